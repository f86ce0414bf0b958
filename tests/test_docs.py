"""The pages name what there is: commands, flags, modules, files, headings, names to import."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from genrank.command import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(page for folder in ("docs", "benchmarks") for page in sorted((ROOT / folder).rglob("*.md"))),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
page_of = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

PACKAGES = (
    "airflow_dags",
    "benchmarks",
    "examples",
    "kernels",
    "model",
    "pipelines",
    "schemas",
    "serving",
    "tests",
    "tokenization",
)
# Flags that pages name of commands that aren't ours.
OF_OTHERS = {
    "--no-deps",
    "--standalone",
    "--nproc-per-node",
    "--nnodes",
    "--rdzv-endpoint",
    "--constraint",
    "--packages",
    "--conf",
}

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.M | re.S)
OPTION = re.compile(r"(?<![\w-])--?[a-z][\w-]*")


@dataclass(frozen=True)
class Code:
    """Text of a page that stands for itself: a listing, or what lies between backticks."""

    language: str  # of a listing; "" of an inline one
    text: str


def code_of(page: Path) -> list[Code]:
    text = page.read_text()
    listings = [Code(found[2] or "text", textwrap.dedent(found[3])) for found in FENCE.finditer(text)]
    prose = FENCE.sub("", text)
    listings += [Code("sh", textwrap.dedent(block)) for block in re.findall(r"(?<=\n\n)((?: {4}(?! ).*\n)+)", prose)]
    return listings + [Code("", inline) for inline in re.findall(r"`([^`\n]+)`", prose)]


def listings(page: Path, *languages: str) -> list[str]:
    return [code.text for code in code_of(page) if code.language in languages]


@cache
def commands() -> dict[str, Any]:
    """Every command by the words that call it: `build`, `schema check`, ..."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        yield " ".join(words), command
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(below, (*words, name))

    return dict(walk(typer.main.get_command(app), ()))


def flags_of(command: Any) -> set[str]:
    return {"-h", "--help"} | {
        flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)
    }


def calls(text: str) -> Iterator[tuple[str, str]]:
    """Commands that a line of code calls, each with the words behind it: `genrank schema check --data logs/  # why`."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        for call in re.split(r"(?<!from )(?<!of )\bgenrank (?=[a-z])", line)[1:]:
            call = re.split(r"\s#|[;&→]|\s{3,}", call)[0]
            for words in call.split(" | "):
                name, *rest = words.split()
                if name == "schema" and rest and re.fullmatch("[a-z][a-z-]*", rest[0]):
                    name = f"schema {rest.pop(0)}"
                elif name not in commands() and f"schema {name}" in commands() and call.startswith("schema "):
                    name = f"schema {name}"
                yield name, " ".join(rest)


@page_of
def test_commands_and_their_flags_are_there(page: Path) -> None:
    for code in code_of(page):
        for name, rest in calls(code.text):
            assert name in commands(), f"`genrank {name} {rest}`: there is no such command"
            unknown = set(OPTION.findall(rest)) - flags_of(commands()[name])
            assert not unknown, f"`genrank {name} {rest}`: it takes no {', '.join(sorted(unknown))}"


@page_of
def test_commands_to_copy_are_whole(page: Path) -> None:
    """What a listing gives to copy names every required flag, and values of the right type."""
    for listing in listings(page, "sh"):
        for line in re.sub(r"\\\n\s*", " ", listing).splitlines():
            _, *words = shlex.split(line, comments=True) if line.startswith("genrank ") else ["genrank"]
            if not words or any(re.search(r"^\.\.\.$|\||OLD|NEW|FILE", word) for word in words):
                continue
            depth = 2 if words[0] == "schema" else 1
            command = commands()[" ".join(words[:depth])]
            try:
                command.make_context(" ".join(words[:depth]), words[depth:])
            except Exception as error:
                error.add_note(f"{page.name}: {line}")
                raise


def flags_of_modules() -> set[str]:
    """Flags that the benchmarks and adapters declare to argparse or typer, and those of make and pytest that we pass on."""
    text = "".join(path.read_text() for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))
    return set(re.findall(r"[\"'](--[a-z][\w-]*)", text))


@page_of
def test_flags_in_the_text_are_somebodys(page: Path) -> None:
    known = {flag for command in commands().values() for flag in flags_of(command)} | flags_of_modules() | OF_OTHERS
    for code in code_of(page):
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code.text)) if not code.language else set()
        assert named <= known, f"`{code.text}`: no command takes {', '.join(sorted(named - known))}"


@page_of
def test_modules_to_run_are_there_and_take_their_flags(page: Path) -> None:
    for code in code_of(page):
        for module, rest in re.findall(r"-m ((?:benchmarks|examples)\.[\w.]+)([^\n#|;]*)", code.text):
            stem = ROOT / module.replace(".", "/")
            path = next((p for p in (stem.with_suffix(".py"), stem / "__main__.py") if p.is_file()), None)
            assert path, f"`python -m {module}`: there is no such module"
            source = "".join(
                one.read_text() for one in (path.parent.rglob("*.py") if path.name == "__main__.py" else [path])
            )
            source += "".join(one.read_text() for one in (ROOT / "benchmarks").glob("*.py") if one.stem in source)
            for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", rest):
                assert f'"{flag}"' in source or flag[2:].replace("-", "_") in source, f"{module} takes no {flag}"


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).lower()).strip().replace(" ", "-")


@page_of
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target}: there is no {path}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", linked.read_text()), re.M)
            assert anchor in map(slug, headings), f"{target}: no such heading"


@page_of
def test_files_in_the_text_are_there(page: Path) -> None:
    pattern = re.compile(rf"(?<![\w/.-])(?:{'|'.join(PACKAGES)})/[\w./-]+\.(?:py|sh|md|csv)\b(?!\.)")
    for code in code_of(page):
        for path in pattern.findall(code.text):
            assert (ROOT / path).is_file(), f"`{path}` is not there"


@page_of
def test_targets_of_make_are_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for code in code_of(page):
        for target in re.findall(r"^make ([a-z][a-z-]*)\b", code.text, re.M):
            assert target in targets, f"`make {target}`: the Makefile has no such target"


@page_of
def test_python_listings_compile_and_import_what_there_is(page: Path) -> None:
    for listing in listings(page, "python"):
        for node in ast.walk(ast.parse(listing)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "genrank":
                module = importlib.import_module(node.module)
                # What a package exports may be loaded lazily: its list answers without loading torch.
                exported = getattr(module, "__all__", dir(module))
                missing = [alias.name for alias in node.names if alias.name not in exported]
                assert not missing, f"from {node.module} import {', '.join(missing)}: no such name"


@page_of
def test_yaml_listings_are_yaml(page: Path) -> None:
    for listing in listings(page, "yaml"):
        assert isinstance(yaml.safe_load(listing), dict)


def test_the_pages_are_read() -> None:
    """The patterns above find what they look for."""
    code = [code for page in PAGES for code in code_of(page)]
    called = {name for one in code for name, _ in calls(one.text)}
    assert called >= {"build", "train", "evaluate", "schema check", "schema diff", "inputs", "verify"}
    assert sum(one.language == "python" for one in code) >= 10
    assert list(calls("genrank schema check | diff --at-most retrain  # why")) == [
        ("schema check", ""),
        ("schema diff", "--at-most retrain"),
    ]
    assert list(calls("genrank build --out x \\\n  --force")) == [("build", "--out x --force")]
