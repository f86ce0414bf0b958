"""Configurations: validated as flags would be, read from files, each mistake a line that names the flag and the remedy."""

from __future__ import annotations

import json
from dataclasses import field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BeforeValidator, model_validator
from pydantic.dataclasses import dataclass

from genrank.schemas import Schema, UserError
from genrank.schemas.configuration import (
    AT_LEAST_1,
    CHANGEABLE,
    NOT_NEGATIVE,
    SHARE,
    ConfigError,
    Configuration,
    Day,
    Days,
    Flag,
    SchemaField,
    changeable_fields,
    fields_of,
    flag_of,
    from_values,
    parse_dates,
    read_config,
    settings_text,
)
from genrank.schemas.present.serialization import to_json

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = ROOT / "examples" / "minimal" / "schema.py"


@dataclass(frozen=True)
class Cook(Configuration):
    """One of each kind of field."""

    dates: Days
    """Days to cook on."""
    spoons: Annotated[int, AT_LEAST_1] = 1
    """Spoons at hand. More are lent."""
    heat: Annotated[float, NOT_NEGATIVE, CHANGEABLE] = 0.5
    lean: Annotated[float, SHARE] = 0.0
    kind: Literal["soup", "stew"] = "soup"
    first: Annotated[Day, Flag(name="--from", metavar="DAY")] = "2026-01-01"
    out: Annotated[Path, CHANGEABLE] = Path("pot")
    herbs: Annotated[dict[str, str], BeforeValidator(settings_text), Flag(name="--set")] = field(default_factory=dict)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.kind == "stew" and self.spoons < 2:
            raise UserError("--kind stew needs --spoons 2 or more")
        return self


@dataclass(frozen=True)
class Declared(Configuration):
    schema: SchemaField
    seed: int = 0


def cook(**changes: object) -> Cook:
    return Cook(**{"dates": "2026-01-01", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spoons": 0}, "--spoons 0: must be at least 1 (spoons at hand)"),
        ({"spoons": 1.5}, "--spoons 1.5: must be a whole number (spoons at hand)"),
        ({"spoons": "many"}, "--spoons 'many': must be a whole number (spoons at hand)"),
        ({"heat": -1}, "--heat -1: must be at least 0"),
        ({"heat": float("nan")}, "--heat nan: must be a finite number"),
        ({"heat": float("inf")}, "--heat inf: must be a finite number"),
        ({"heat": "hot"}, "--heat 'hot': must be a number"),
        ({"lean": 1.5}, "--lean 1.5: must be at most 1"),
        ({"kind": "stow"}, "--kind 'stow': must be one of soup, stew"),
        ({"kind": "stew"}, "--kind stew needs --spoons 2 or more"),
        ({"first": "monday"}, "--from 'monday' is not a day; write YYYY-MM-DD"),
        ({"dates": "2026-01-02:2026-01-01"}, "--dates '2026-01-02:2026-01-01' ends before it begins"),
        ({"dates": ["2026-01-01", "x"]}, "--dates ['2026-01-01', 'x'] is not a day"),
        ({"dates": 5}, "--dates 5 is neither FROM:TO nor a list of days"),
        ({"spoon": 1}, "Cook: unknown field 'spoon'; did you mean 'spoons'?"),
        ({"from": 1}, "Cook: unknown field 'from'; did you mean 'first'?"),
        ({"herbs": 5}, "--set 5: input should be a valid dictionary"),
    ],
)
def test_what_does_not_hold_is_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as raised:
        cook(**values)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_every_mistake_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        Cook(spoons=0, heat=-1)  # type: ignore[call-arg]
    assert [name for name, _ in raised.value.mistakes] == ["dates", "spoons", "heat"]
    assert str(raised.value).splitlines() == [
        "3 mistakes:",
        "  --dates is missing (days to cook on)",
        "  --spoons 0: must be at least 1 (spoons at hand)",
        "  --heat -1: must be at least 0",
    ]


def test_positional_values_are_named_too() -> None:
    with pytest.raises(ConfigError, match="--spoons 0: must be at least 1"):
        Cook(("2026-01-01",), 0)
    with pytest.raises(ConfigError, match="Cook: takes 8 fields, got a value for one more"):
        Cook(*[("2026-01-01",), 1, 0.5, 0.0, "soup", "2026-01-01", Path("pot"), {}, 1])  # type: ignore[arg-type,call-arg]


def test_a_changed_copy_is_validated_too() -> None:
    with pytest.raises(ConfigError, match="--spoons 0"):
        replace(cook(), spoons=0)


def test_metadata_says_what_may_change_and_how_flags_are_written() -> None:
    assert changeable_fields(Cook) == {"heat", "out"}
    flags = {name: flag_of(name, field) for name, field in fields_of(Cook).items()}
    assert flags["first"] == "--from" and flags["herbs"] == "--set" and flags["spoons"] == "--spoons"
    assert fields_of(Cook)["spoons"].description == "Spoons at hand. More are lent."


@given(st.dates(date(1970, 1, 1), date(2100, 1, 1)), st.integers(0, 400))
def test_dates_are_every_day_from_first_to_last(first: date, more: int) -> None:
    last = first + timedelta(days=more)
    days = parse_dates(f"{first}:{last}")
    assert [date.fromisoformat(day) - first for day in days] == [timedelta(days=i) for i in range(more + 1)]
    assert cook(dates=days).dates == cook(dates=f"{first}:{last}").dates == tuple(days)


values = st.fixed_dictionaries(
    {"dates": st.just(("2026-01-01", "2026-01-02"))},
    optional={
        "spoons": st.integers(2, 9),
        "heat": st.floats(0, 1e6),
        "lean": st.floats(0, 1),
        "kind": st.sampled_from(["soup", "stew"]),
        "out": st.sampled_from([Path("a"), Path("b/c")]),
        "herbs": st.dictionaries(st.sampled_from("xyz"), st.text("ab01[] ", max_size=3)),
    },
)


@given(values, values, st.sampled_from(["json", "yaml"]))
def test_flags_override_the_file_and_the_file_the_defaults(
    tmp_path_factory: pytest.TempPathFactory, in_file: dict[str, object], flags: dict[str, object], kind: str
) -> None:
    in_file.setdefault("spoons", 2)
    file = tmp_path_factory.mktemp("config") / f"config.{kind}"
    plain = json.loads(json.dumps(in_file, default=str))
    file.write_text(json.dumps(plain) if kind == "json" else yaml.safe_dump(plain))
    herbs = {**in_file.get("herbs", {}), **flags.get("herbs", {})}  # type: ignore[dict-item]
    assert from_values(Cook, flags, file) == Cook(**{**in_file, **flags, "herbs": herbs})  # type: ignore[arg-type]


@given(values)
def test_what_a_run_keeps_reads_back_as_itself(
    tmp_path_factory: pytest.TempPathFactory, given_: dict[str, object]
) -> None:
    config = Cook(**{"spoons": 2, **given_})  # type: ignore[arg-type]
    file = tmp_path_factory.mktemp("config") / "config.json"
    file.write_text(json.dumps(config.as_json()))
    assert from_values(Cook, {}, file) == config


def test_mistakes_of_a_file_are_named_with_it(tmp_path: Path) -> None:
    file = tmp_path / "cook.yaml"
    file.write_text("dates: 2026-01-01\nspoons: 0\nheat: -1\n")
    with pytest.raises(ConfigError) as raised:
        from_values(Cook, {"heat": -2.0}, file)
    assert [text for _, text in raised.value.mistakes] == [
        f"--config {file}: --spoons 0: must be at least 1 (spoons at hand)",
        "--heat -2.0: must be at least 0",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spoon: 1", "unknown field 'spoon'; did you mean 'spoons'?"),
        ("--from: 2026-01-01", "unknown field '--from'; did you mean 'first'?"),
        ("a: 1\nb: 2\nc: 3\nd: 4", "4 unknown fields (a, b, c, ...); there is dates, spoons"),
        ("spoons: [", "line 1"),
        ("- spoons", "holds no fields"),
        ("", "holds no fields"),
        ("\0", "not text"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "cook.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as raised:
        read_config(Cook, file)
    assert str(raised.value).startswith(f"--config {file}: ") and message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        read_config(Cook, tmp_path / "cook.yaml")
    with pytest.raises(UserError, match="is a folder"):
        read_config(Cook, tmp_path)


def test_a_schema_is_given_as_itself_as_a_path_or_beside_the_file(tmp_path: Path) -> None:
    declared = Declared(schema=str(MINIMAL)).schema  # type: ignore[arg-type]
    assert isinstance(declared, Schema) and declared.name == "minimal"
    assert Declared(schema=declared).schema is declared
    (tmp_path / "config.json").write_text('{"seed": 3}')
    with pytest.raises(ConfigError, match="--schema is missing"):
        from_values(Declared, {}, tmp_path / "config.json")
    (tmp_path / "schema.json").write_text(to_json(declared.replace(name="beside")))
    beside = from_values(Declared, {}, tmp_path / "config.json")
    assert (beside.schema.name, beside.seed) == ("beside", 3)
    assert from_values(Declared, {"schema": str(MINIMAL)}, tmp_path / "config.json").schema.name == "minimal"
    with pytest.raises(UserError, match=r"--schema nowhere\.py: there is no file"):
        Declared(schema="nowhere.py")  # type: ignore[arg-type]
    assert "schema" not in Declared(schema=declared).as_json()


def test_a_day_is_the_same_day_however_it_is_written() -> None:
    assert parse_dates("20260131", "--day", one=True) == parse_dates("20260131") == ["2026-01-31"]
    assert parse_dates("20260131:2026-02-01") == ["2026-01-31", "2026-02-01"]
    assert cook(dates="20260131").dates == ("2026-01-31",)
