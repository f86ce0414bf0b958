"""The example schemas hold what they promise, and fit the data they are for."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from genrank.examples.marketplace import preferences
from genrank.examples.marketplace.world import SOURCES, generate
from genrank.schemas import CrossFeature, EventLog, Schema, load_schema
from genrank.schemas.base import ARROW_TYPES, parse_duration
from genrank.schemas.derive.tables import logical_tables
from genrank.schemas.features import Feature
from genrank.schemas.operations import operation_names
from genrank.schemas.review.diff import diff, require_samples
from genrank.schemas.transforms import Transform
from genrank.schemas.vocabularies import Vocabulary

ROOT = Path(__file__).parents[2]
EXAMPLES = ("marketplace", "kuairand", "yambda", "minimal")


def example(name: str) -> Schema:
    return load_schema(str(ROOT / "examples" / name / "schema.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_schemas_survive_json(name: str) -> None:
    schema = example(name)
    again = Schema.model_validate_json(schema.model_dump_json())
    assert again == schema and again.fingerprint == schema.fingerprint


def test_history_only_leaves_out_the_users_statistics_and_nothing_else() -> None:
    whole = example("marketplace")
    schema = load_schema(str(ROOT / "examples/marketplace/history_only.py"))
    left = {f.name for f in whole.candidates.features} - {f.name for f in schema.candidates.features}
    keyed = {f.name for f in whole.candidates.features if isinstance(f, CrossFeature) and "user_id" in f.keys}
    assert left == keyed and len(keyed) > 15
    assert (schema.user, schema.sequences, schema.labels) == (whole.user, whole.sequences, whole.labels)
    require_samples(whole, schema, "samples of the whole schema")


def test_tag_statistics_are_added_and_nothing_else() -> None:
    whole, variant = example("marketplace"), load_schema(str(ROOT / "examples/marketplace/tag_statistics.py"))
    added = [change.where for change in diff(whole, variant) if change.cost == "rebuild"]
    assert sorted(added) == ["candidates.user_tag_clicks_30m", "candidates.user_tag_ctr_30d"]
    require_samples(variant, whole, "samples of the variant")


def test_the_request_s_context_needs_no_other_samples() -> None:
    whole, variant = example("marketplace"), load_schema(str(ROOT / "examples/marketplace/request_context.py"))
    assert variant.samples_fingerprint == whole.samples_fingerprint
    assert variant.model_fingerprint != whole.model_fingerprint


def own(family: type[Feature] | type[Transform] | type[Vocabulary]) -> set[str]:
    """Tags of a family's members that the package defines; another test of this process may have registered more."""
    return {tag for tag, kind in family.kinds().items() if kind.__module__.startswith("genrank.")}


def test_the_marketplace_and_its_variant_use_every_kind_there_is() -> None:
    schema = load_schema(str(ROOT / "examples/marketplace/request_context.py"))
    features = [feature for _, group in schema.groups() for feature in group]
    names = {(group, feature.name) for group, members in schema.groups() for feature in members}
    assert len(names) >= 40
    assert {feature.kind for feature in features} == own(Feature) - {"vector"}  # the world has no content vectors
    transforms = {t.kind for f in features if (t := getattr(f, "transform", None))}
    assert transforms == own(Transform)
    assert {table.vocabulary.kind for table in logical_tables(schema)} >= own(Vocabulary)
    cross = [feature for feature in features if isinstance(feature, CrossFeature)]
    # What says nothing there; pipelines/worlds.py counts them.
    unused = {"max", "min", "std", "decayed_count", "decayed_sum"}
    assert {feature.op for feature in cross} == set(operation_names()) - unused
    assert {feature.as_of for feature in cross} == {"exposure", "window_start"}
    assert any(feature.where for feature in cross) and any(not feature.keys for feature in cross)
    keys = {feature.keys for feature in cross}
    assert {("user_id",), ("item_id",), ("user_id", "item_id"), ("user_id", "items.category")} <= keys
    windows = [parse_duration(feature.window) for feature in cross]
    assert min(windows) <= 30 * 60_000 and max(windows) >= 30 * 86_400_000
    assert {e.kind for s in schema.sequences for e in s.events} == {"events", "changes"}
    assert {s.scope for s in schema.sequences} == {"history", "realtime"}
    assert [label.name for label in schema.labels] == ["click", "purchase"] and schema.labels[1].given == "click"


def test_the_marketplace_knows_the_worlds_words() -> None:
    schema = example("marketplace")
    values = {}
    for table in logical_tables(schema):
        if table.vocabulary.kind == "enumerated":
            values[table.name] = tuple(table.vocabulary.values)
        if table.name == "brand":
            assert table.vocabulary.size == preferences.Preferences().brands
    assert values["category"] == tuple(preferences.CATEGORIES)
    assert values["city"] == preferences.CITIES
    assert values["membership"] == preferences.MEMBERSHIPS
    assert values["device"] == preferences.DEVICES
    assert values["user.age"] == preferences.AGES
    assert values["user.gender"] == preferences.GENDERS
    assert values["candidates.scene"] == preferences.SCENES


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "w"
    generate(out, users=60, days=2, seed=0, items=300)
    return out


@pytest.mark.parametrize("name", ["marketplace", "minimal"])
def test_the_world_holds_what_the_schema_reads(name: str, world: Path) -> None:
    schema = example(name)
    assert {source.name for source in schema.sources} <= set(SOURCES)
    for source in schema.sources:
        for day in ("2026-01-01", "2026-01-02"):
            assert source.path
            files = sorted((world / source.path.format(dt=day)).glob("*.parquet"))
            assert files
            there = pq.read_schema(files[0])
            for column, type_ in source.columns.items():
                assert there.field(source.physical(column)).type == ARROW_TYPES[type_], (source.name, column)


def test_no_feature_reads_the_truth() -> None:
    """Not the true probabilities, and not the position, which is what a ranker decides."""
    schema = example("marketplace")
    hidden = schema.exposures.post_exposure
    assert {label.oracle for label in schema.labels} | {"position"} == set(hidden)
    text = "\n".join(feature.model_dump_json() for _, group in schema.groups() for feature in group)
    assert not re.search(r"probability|position", text)


def test_kuairand_reads_nothing_that_is_known_too_late() -> None:
    """Feedback enters as events and statistics of the past, never as a column of the candidate; no monthly averages."""
    schema = example("kuairand")
    exposures = schema.exposures
    assert isinstance(exposures, EventLog)
    read = {
        getattr(f, "column", None) or f.name for f in dict(schema.groups())["candidates"] if f.kind != "cross_feature"
    }
    assert not read & set(exposures.post_exposure)
    assert schema.utc_offset == "+08:00"
    assert {source.name for source in schema.sources} == {"exposures", "earlier", "users", "items"}


def test_the_minimal_schema_is_the_tutorials() -> None:
    folder = ROOT / "examples" / "minimal"
    code = (folder / "schema.py").read_text()
    declared = code.split("\n\n", 2)[2]  # below the docstring and the import
    assert len([line for line in declared.splitlines() if line.strip()]) <= 15
    assert f"```python\n{code}```" in (folder / "README.md").read_text()
