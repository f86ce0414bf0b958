"""Deeply nested SQL, JSON and YAML end in one line: no RecursionError, whoever reads them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from genrank.command import main
from genrank.schemas import SchemaError, from_json, from_yaml
from genrank.schemas.errors import UserError
from genrank.schemas.expression import MOST_LEVELS, parse
from genrank.schemas.manifest import SampleManifest

DEPTHS = (600, 5_000)
"""Beyond the interpreter's own levels, and beyond a C stack's."""


@pytest.mark.parametrize("n", DEPTHS)
@pytest.mark.parametrize(
    "text",
    [
        lambda n: "(" * n + "a" + ")" * n,
        lambda n: "not " * n + "a",
        lambda n: "- " * n + "a",
        lambda n: "abs(" * n + "a" + ")" * n,
        lambda n: "a" + " + a" * n,
        lambda n: "a > 1" + " and a > 1" * n,
        lambda n: "case when a > 1 then " * n + "1" + " else 1 end" * n,
        lambda n: "(" * n,
    ],
    ids=["parentheses", "not", "minus", "function", "sum", "and", "case", "left open"],
)
def test_expressions(text, n: int) -> None:
    with pytest.raises(ValueError, match=r"levels; compute it in a column|doesn't parse") as error:
        parse(text(n))
    assert type(error.value) is ValueError and len(str(error.value).splitlines()) == 1


def test_expressions_of_many_values_and_terms_parse() -> None:
    assert parse(f"a in ({', '.join(map(str, range(5_000)))})").columns == ("a",)
    assert parse("a" + " + a" * (MOST_LEVELS // 2)).columns == ("a",)


@pytest.mark.parametrize("n", DEPTHS)
@pytest.mark.parametrize("read", [from_json, from_yaml])
@pytest.mark.parametrize(
    "text",
    [lambda n: "[" * n + "]" * n, lambda n: '{"a": ' * n + "1" + "}" * n, lambda n: "[" * n],
    ids=["lists", "mappings", "left open"],
)
def test_schemas(read, text, n: int) -> None:
    with pytest.raises(SchemaError, match=r"^x: ") as error:
        read(text(n), where="x")
    assert "Traceback" not in str(error.value)


def test_manifests(tmp_path: Path) -> None:
    for text in ("[" * 50_000, '{"a": ' * 50_000, "null", "[]"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match="is not a manifest this version reads") as error:
            SampleManifest.read(tmp_path)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize(
    "text",
    ["null", "[" * 1_200, '{"a": ' * 1_200, "- " * 1_200 + "1", ""],
    ids=["null", "lists", "mappings", "items", "nothing"],
)
def test_configurations(tmp_path: Path, suffix: str, text: str, capsys, monkeypatch) -> None:
    file = tmp_path / f"train.{suffix}"
    file.write_text(text)
    monkeypatch.setattr(sys, "argv", ["genrank", "train", "--config", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and len(lines) == 1 and lines[0].startswith("error: --config ")
