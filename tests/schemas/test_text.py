"""JSON and YAML in and out, `--schema`, and how their mistakes read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from schemas_shop import SHOP
from strategies import schemas

from genrank.schemas import Schema, UserError, from_json, from_yaml, load_schema, to_json, to_yaml
from genrank.schemas.derive.sample_schema import SCHEMA_KEY, arrow_schema
from genrank.schemas.present.serialization import json_schema
from genrank.schemas.present.yaml_format import styled, yaml_reader, yaml_writer

SLOW_TO_DRAW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=25, deadline=None, suppress_health_check=SLOW_TO_DRAW)
@given(schemas())
def test_round_trips_are_the_identity(schema: Schema) -> None:
    stored = arrow_schema(schema).metadata[SCHEMA_KEY]
    for read in (from_json(to_json(schema)), from_yaml(to_yaml(schema)), from_json(stored)):
        same = read == schema  # pytest's account of two large schemas that differ takes minutes
        assert same
        assert read.fingerprint == schema.fingerprint
        assert read.samples_fingerprint == schema.samples_fingerprint
        assert read.model_fingerprint == schema.model_fingerprint


@pytest.mark.parametrize("text", ["? a", "?", ": a", "- a", "& a", "# a", "a: b", " a", "'", "on"])
def test_texts_that_look_like_syntax_are_read_as_texts(text: str) -> None:
    data = {"values": [text, "x"], "key": {text: text}, "text": text}
    written = io.StringIO()
    yaml_writer().dump(styled(data), written)
    assert yaml_reader().load(written.getvalue()) == data


@settings(max_examples=20, deadline=None, suppress_health_check=SLOW_TO_DRAW)
@given(schemas())
def test_any_yaml_reader_reads_what_we_write(schema: Schema) -> None:
    """Tools around us read YAML 1.1."""
    same = Schema.model_validate(yaml.safe_load(to_yaml(schema))) == schema
    assert same


def test_yaml_leaves_defaults_out_and_writes_a_shared_table_once() -> None:
    text = to_yaml(SHOP)
    assert text.count("table: &items") == 1 and text.count("table: *items") == 3
    assert "max_quarantine_rate" not in text and "null" not in text


def test_yaml_is_version_1_2() -> None:
    text = to_yaml(SHOP.replace(utc_offset="+08:00")).replace("'", "")
    text = text.replace("source: purchases, window: 1d", "source: purchases, on: [user_id], window: 1d")
    read = from_yaml(text)
    assert read.utc_offset == "+08:00" and read.labels[1].on == ("user_id",)


def test_json_schema_describes_every_field_and_accepts_the_shop() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    described = json_schema()
    jsonschema.Draft202012Validator.check_schema(described)
    jsonschema.validate(json.loads(to_json(SHOP)), described)
    jsonschema.validate(yaml.safe_load(to_yaml(SHOP)), described)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**json.loads(to_json(SHOP)), "label": []}, described)
    assert "quarantined" in described["$defs"]["EventLog"]["properties"]["valid"]["description"]


# ---------------------------------------------------------------------- --schema


def refused(spec: object) -> list[str]:
    with pytest.raises(UserError) as raised:
        load_schema(str(spec))
    return str(raised.value).splitlines()


def edited(tmp_path: Path, old: str, new: str, suffix: str = ".yaml") -> Path:
    text = to_yaml(SHOP) if suffix == ".yaml" else to_json(SHOP)
    assert old in text
    path = tmp_path / f"shop{suffix}"
    path.write_text(text.replace(old, new, 1))
    return path


def test_all_three_kinds_of_file_load(tmp_path: Path) -> None:
    (tmp_path / "shop.json").write_text(to_json(SHOP))
    (tmp_path / "shop.yml").write_text(to_yaml(SHOP))
    (tmp_path / "shop.py").write_text("from schemas_shop import SHOP\nschema = SHOP\n")
    for spec in ("shop.json", "shop.yml", "shop.py", "shop.py:SHOP"):
        assert load_schema(str(tmp_path / spec)) == SHOP


YAML_MISTAKES = {
    "an unknown field": (
        "name: gap}",
        "name: gap, colum: ts}",
        "sequences 'history' features 'gap': unknown field 'colum'; did you mean 'column'?",
    ),
    "an unknown kind": (
        "{kind: time_gap, name: gap}",
        "{kind: timegap, name: gap}",
        "kind 'timegap' is none of categorical",
    ),
    "no kind": (
        "{kind: time_gap, name: gap}",
        "{name: gap}",
        "sequences 'history' features 'gap': field 'kind' is missing",
    ),
    "a missing field": (
        "of: [user.city, category]",
        "description: x",
        "candidates.features 'city_category': field 'of' is missing",
    ),
    "an unknown choice": (
        "tokens: feature",
        "tokens: features",
        "user tokens: 'features' is none of feature, group; did you mean 'feature'?",
    ),
    "an unknown type": ("dwell: float32}", "dwell: float}", "sources 'clicks' columns dwell: 'float' is none of"),
    "a name that is none": (
        "name: visits",
        "name: my visits",
        "sources 'my visits' name: 'my visits' is not a name; use letters, digits and _",
    ),
    "a duration that is none": (
        "delay: 1m",
        "delay: 1 minute",
        "'1 minute' is not a duration; write a whole number and a unit",
    ),
    "too few buckets": (
        "buckets: 8, dim: 4}",
        "buckets: 1, dim: 4}",
        "sequences 'history' features 'dwell' transform buckets: 1 must be greater than 1",
    ),
    "a text for a number": (
        "max_length: 50",
        "max_length: many",
        "sequences 'realtime' max_length: input should be a valid integer",
    ),
    "an empty list": (
        "values: [home, search]",
        "values: []",
        "candidates.features 'tab' vocabulary values: needs at least one",
    ),
    "an infinity": (
        "strength: 20.0",
        "strength: 1e999",
        "candidates.features 'item_ctr' strength: inf is not a finite number",
    ),
    "an offset that is none": (
        "name: shop\n",
        "name: shop\nutc_offset: Z\n",
        'utc_offset: \'Z\' is not of the form "+08:00" or "Europe/Berlin"',
    ),
    "a scalar for a declaration": (
        "vocabulary: {kind: hashed, size: 500}",
        "vocabulary: 500",
        "vocabulary: expected a declaration",
    ),
    "a key twice": ("name: shop\n", "name: shop\nname: shop\n", "not YAML: line 2: key 'name' stands twice"),
    "broken YAML": ("columns: {user_id", "columns: {{user_id", "not YAML: line "),
    "a mistake of meaning": (
        "column: items.listed_at",
        "column: items.listed",
        "candidates.age: column 'listed' is not in items; did you mean 'listed_at'?",
    ),
}


@pytest.mark.parametrize("mistake", YAML_MISTAKES)
def test_a_mistake_in_yaml_is_one_line(tmp_path: Path, mistake: str) -> None:
    old, new, message = YAML_MISTAKES[mistake]
    path = edited(tmp_path, old, new)
    report = "\n".join(refused(path))
    assert message in report and report.startswith(f"--schema {path}: ")
    assert "pydantic" not in report and "Value error" not in report and len(report.splitlines()) == 1


def test_several_mistakes_in_json_are_a_line_each(tmp_path: Path) -> None:
    path = edited(tmp_path, '"kind": "time_gap"', '"unit": "s",\n"kind": "time_gap"', ".json")
    path.write_text(
        path.read_text().replace('"op": "count"', '"op": "counts"').replace('"max_length": 50', '"max_length": 0')
    )
    first, *lines = refused(path)
    assert first == f"--schema {path}: 3 mistakes:"
    assert (
        lines[0]
        == "  sequences 'history' features 'gap': unknown field 'unit'; there is column, description, kind, name, owner, transform"
    )
    assert lines[1] == "  sequences 'realtime' max_length: 0 must be greater than 0"
    assert lines[2].startswith("  candidates.features 'clicks_7d' op: 'counts' is none of count, ")
    path.write_text("{")
    assert refused(path) == [
        f"--schema {path}: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    ]
    path.write_text('{"name": "a", "name": "b"}')
    assert refused(path) == [f"--schema {path}: not JSON: key 'name' stands twice in one object"]


PYTHON_MISTAKES = {
    "an unknown field": (
        "from schemas import Numeric\n\nNumeric(name='x', colum='y')",
        ":3: Numeric: unknown field 'colum'; did you mean 'column'?",
    ),
    "another declaration's field": (
        "from schemas import CrossFeature\nCrossFeature(name='x', column='y', op='mean', source='clicks', window='1d')",
        ":2: CrossFeature: unknown field 'column'; there is as_of, half_life, keys, name, op, per, prior, reduce, source, strength, table, transform, value, ",
    ),
    "a missing field": (
        "from schemas import Table\nTable(name='t', dim=8)",
        ":2: Table: field 'vocabulary' is missing",
    ),
    "a number out of range": (
        "from schemas import Hashed\nHashed(size=0)",
        ":2: Hashed: size: 0 must be greater than 0",
    ),
    "a wrong declaration": (
        "from schemas import Categorical\nCategorical(name='x', table='items')",
        ":2: Categorical: table: expected a declaration with named fields, got 'items'",
    ),
    "a mistake of meaning": (
        "from schemas_shop import SHOP\nSHOP.replace(utc_offset='+99:00')",
        ": utc_offset '+99:00' is no offset of any place",
    ),
    "a name that is not there": (
        "from schemas_shop import SHOP as shop\nschem = shop",
        " has no schema 'schema'; did you mean 'schem'?",
    ),
    "another name": ("from schemas_shop import SHOP", ": name the schema: --schema "),
    "a syntax error": ("x = (", ":1: '(' was never closed"),
    "an import that fails": ("\nimport nowhere", ":2: ModuleNotFoundError: No module named 'nowhere'"),
}


@pytest.mark.parametrize("mistake", PYTHON_MISTAKES)
def test_a_mistake_in_python_names_its_line(tmp_path: Path, mistake: str) -> None:
    code, message = PYTHON_MISTAKES[mistake]
    path = tmp_path / "shop.py"
    path.write_text(code)
    report = refused(path)
    assert len(report) == 1 and message in report[0] and report[0].startswith(f"--schema {path}")


def test_a_file_that_is_no_schema(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "a.yaml").write_text("")
    assert refused(tmp_path / "no.py") == [
        f"--schema {tmp_path}/no.py: there is no file {tmp_path}/no.py; write it as path/to/schema.py:NAME, or a .yaml or .json file"
    ]
    assert "is neither .py nor .yaml nor .json" in refused(tmp_path / "a.txt")[0]
    assert "a .yaml file holds one schema; leave :x out" in refused(f"{tmp_path}/a.yaml:x")[0]
    assert "expected a declaration with named fields, got None" in refused(tmp_path / "a.yaml")[0]
