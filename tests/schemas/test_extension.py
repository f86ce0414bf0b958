"""A feature kind, a vocabulary and a cross-feature operation from outside the package: each a class and a line that registers it.

What they are taken through is what every kind is: validation, YAML and JSON, fingerprints, documentation, comparison, the sample's Arrow
schema, lint, and (where the pipelines are installed) a day built from files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.schemas import (
    Candidates,
    Categorical,
    CrossFeature,
    EventLog,
    Events,
    EventSequence,
    Feature,
    Hashed,
    Label,
    Log1p,
    Operation,
    Schema,
    SchemaError,
    Snapshot,
    Transform,
    Vocabulary,
    from_json,
    from_yaml,
    operations,
    register_feature_kind,
    register_operation,
    register_vocabulary,
    to_json,
    to_yaml,
)
from genrank.schemas.base import CANDIDATES
from genrank.schemas.derive.lineage import lineage
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.derive.tables import logical_tables
from genrank.schemas.features import Scope
from genrank.schemas.present.docs import feature_page
from genrank.schemas.present.serialization import json_schema
from genrank.schemas.review.diff import carried_rows, diff
from genrank.schemas.review.lint import lint
from genrank.schemas.stored import Stored
from genrank.schemas.type_rules import NUMBERS

# ---------------------------------------------------------------------- a feature kind


class Ratio(Feature):
    """One column over another, missing where the other is 0: a number that the builder computes by SQL."""

    kind: Literal["ratio"] = "ratio"
    numerator: str
    denominator: str

    @property
    def row_sql(self) -> str:
        return f"{self.numerator} / NULLIF({self.denominator}, 0)"

    def references(self) -> tuple[str, ...]:
        return (self.numerator, self.denominator)

    @property
    def stored(self) -> Stored:
        return "number"

    @property
    def number_transform(self) -> Transform:
        return Log1p()

    def mistakes(self, at: str, group: str, scope: Scope) -> Iterator[str]:
        types = scope.offered(group)
        for reference in self.references():
            if reference not in types:
                yield f"{at}: {scope.unknown_column(group, reference)}"
            elif types[reference] not in NUMBERS:
                yield f"{at}: column {reference!r} is of type {types[reference]}; a ratio divides numbers"

    def value_in_words(self) -> str:
        return f"{self.numerator} per {self.denominator}"


# ---------------------------------------------------------------------- a vocabulary


class Between(Vocabulary):
    """Integers low .. high, each its own row."""

    kind: Literal["between"] = "between"
    low: int
    high: int

    @property
    def size(self) -> int:
        return self.high - self.low + 1

    @property
    def holds_hashes(self) -> bool:
        return False

    def mistakes(self, at: str) -> Iterator[str]:
        if self.high < self.low:
            yield f"{at}: {self.low} to {self.high} is no range; swap them"

    def id_mistakes(self, at: str, what: str, *, text: bool) -> Iterator[str]:
        if text:
            yield f"{at}: {what!r} holds strings, which Between can't index; use Hashed"

    def carries_over(self, new: Vocabulary) -> bool:
        return isinstance(new, Between) and new.low == self.low and new.high >= self.high

    def in_words(self) -> str:
        return f"{self.low} to {self.high}"


# ---------------------------------------------------------------------- an operation


class Variety(Operation):
    """Different values per event: 1 where none repeats."""

    name = "variety"
    value_types = ("int64", "string")
    missing = "missing"

    def in_words(self) -> str:
        return "different `value`s per event"


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    """For this module alone, where a package would write `@register_feature_kind` above its class."""
    register_feature_kind(Ratio)
    register_vocabulary(Between)
    register_operation(Variety)
    yield
    del Feature.members_by_tag["ratio"], Vocabulary.members_by_tag["between"], operations._OPERATIONS["variety"]


# ---------------------------------------------------------------------- a schema of them

COLUMNS = {
    "user_id": "int64",
    "item_id": "int64",
    "ts": "int64",
    "price": "float32",
    "floor": "int32",
    "shop": "string",
}


def made(*more: Feature, **changes: Any) -> Schema:
    ratio = Ratio(name="discount", numerator="price", denominator="items.list_price")
    floor = Categorical(name="floor", vocabulary=Between(low=-2, high=40), dim=8)
    variety = CrossFeature(
        name="shops", op="variety", source="exposures", keys=("user_id",), window="7d", value="item_id"
    )
    fields: dict[str, Any] = {
        "name": "extended",
        "sources": (
            EventLog(name="exposures", path="exposures/dt={dt}", columns=COLUMNS),
            EventLog(name="clicks", path="clicks/dt={dt}", columns=COLUMNS),
            Snapshot(
                name="items", path="items/dt={dt}", key="item_id", columns={"item_id": "int64", "list_price": "float32"}
            ),
        ),
        "sequences": (EventSequence(name="history", events=(Events(source="clicks"),), features=(ratio,)),),
        "candidates": Candidates(features=(ratio, floor, variety, *more)),
        "labels": (Label(name="click", source="clicks", window="10m"),),
    }
    return Schema(**fields | changes)


def test_text_goes_round() -> None:
    schema = made()
    for text, read in ((to_json(schema), from_json), (to_yaml(schema), from_yaml)):
        assert '"ratio"' in text or "kind: ratio" in text
        assert read(text) == schema and read(text).fingerprint == schema.fingerprint
    described = json_schema()
    assert described["$defs"]["Ratio"]["properties"]["numerator"] and described["$defs"]["Between"]
    assert "variety" in json.dumps(described["$defs"]["CrossFeature"]["properties"]["op"])


def test_mistakes_are_one_line_each_beside_those_of_built_in_kinds() -> None:
    with pytest.raises(SchemaError) as raised:
        made(
            Ratio(name="a", numerator="prize", denominator="shop"),
            Categorical(name="shop", vocabulary=Between(low=3, high=1), dim=4),
            CrossFeature(name="v", op="variety", source="clicks", window="1d"),
            CrossFeature(name="w", op="variety", source="clicks", window="1d", value="price"),
        )
    assert raised.value.mistakes == (
        "candidates.a: column 'prize' is not in exposures; did you mean 'price'?",
        "candidates.a: column 'shop' is of type string; a ratio divides numbers",
        "candidates.shop: 'shop' holds strings, which Between can't index; use Hashed",
        "candidates.shop: 3 to 1 is no range; swap them",
        "candidates.v: variety needs value=, a column of clicks",
        "candidates.w: variety of 'price', which is of type float32",
    )


def test_mistakes_of_form_read_as_those_of_built_in_kinds() -> None:
    data = json.loads(to_json(made()))
    ratio = next(feature for feature in data["candidates"]["features"] if feature["kind"] == "ratio")
    ratio["numerater"] = ratio.pop("numerator")
    with pytest.raises(SchemaError) as raised:
        from_json(json.dumps(data))
    assert "candidates.features 'discount': field 'numerator' is missing" in raised.value.mistakes
    assert (
        "candidates.features 'discount': unknown field 'numerater'; did you mean 'numerator'?" in raised.value.mistakes
    )
    ratio["kind"] = "ration"
    with pytest.raises(SchemaError, match=r"kind 'ration' is none of .*, ratio; did you mean 'ratio'\?"):
        from_json(json.dumps(data))


def test_what_the_sample_stores_and_the_tables() -> None:
    fields = arrow_schema(made()).field(CANDIDATES).type
    assert fields.field("discount").type.value_type == pa.float32()
    assert fields.field("floor").type.value_type == pa.int64()
    assert fields.field("shops").type.value_type == pa.float32()
    floor = {table.name: table for table in logical_tables(made())}["candidates.floor"]
    assert (floor.rows, floor.dim, floor.dynamic) == (43 + 2, 8, False)


def test_fingerprints_and_costs() -> None:
    schema = made()
    renumbered = schema.replace(
        candidates=schema.candidates.replace(
            features=tuple(
                f.replace(numerator="items.list_price", denominator="price") if isinstance(f, Ratio) else f
                for f in schema.candidates.features
            )
        )
    )
    assert renumbered.samples_fingerprint != schema.samples_fingerprint
    # Its inputs are the same shape, and of another meaning only through the samples.
    assert renumbered.model_fingerprint == schema.model_fingerprint
    assert {(c.where, c.cost) for c in diff(schema, renumbered)} == {("candidates.discount", "rebuild")}
    higher = schema.replace(
        candidates=schema.candidates.replace(
            features=tuple(
                f.replace(vocabulary=Between(low=-2, high=50)) if isinstance(f, Categorical) else f
                for f in schema.candidates.features
            )
        )
    )
    assert higher.samples_fingerprint == schema.samples_fingerprint
    assert higher.model_fingerprint != schema.model_fingerprint
    (change,) = diff(schema, higher)
    assert (change.where, change.cost) == ("table candidates.floor", "retrain")
    assert "45 rows carry over, 10 new ones" in change.consequence
    old, new = ({t.name: t for t in logical_tables(s)}["candidates.floor"] for s in (schema, higher))
    assert carried_rows(old, new) == 45 and carried_rows(new, old) is None


def test_docs_lineage_and_lint() -> None:
    schema = made()
    page = feature_page(schema)
    assert "price per items.list_price" in page and "-2 to 40 × 8" in page
    assert "variety of item_id in exposures by user_id in 7d" in page
    read = lineage(schema)
    assert "candidates.discount" in read["items", "list_price"] and "history.discount" in read["clicks", "price"]
    assert not any("discount" in line for line in lint(schema))


def test_a_taken_tag_and_a_class_of_another_family_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"kind 'categorical' is genrank\.schemas\.features\.categorical\.Categorical's"
    ):

        @register_feature_kind
        class Other(Feature):
            kind: Literal["categorical"] = "categorical"

    with pytest.raises(TypeError, match="Hashed must derive from Feature"):
        register_feature_kind(Hashed)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="operation 'count' is Count's"):

        @register_operation
        class Tally(Operation):
            name = "count"

            def in_words(self) -> str:
                return ""


def test_an_installed_package_is_asked_for_a_tag_that_nobody_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    from genrank.schemas import kind

    class Late:
        """An entry point whose module registers a kind when it is imported."""

        def load(self) -> None:
            @register_feature_kind
            class LateKind(Ratio):
                kind: Literal["late"] = "late"  # type: ignore[assignment]

    monkeypatch.setattr(
        kind.importlib.metadata, "entry_points", lambda group: [Late()] if group == "genrank.kinds" else []
    )
    monkeypatch.delitem(Feature.members_by_tag, "late", raising=False)
    kind.load_entry_points.cache_clear()
    text = to_json(made()).replace('"kind": "ratio"', '"kind": "late"')
    try:
        assert {f.kind for f in from_json(text).candidates.features} == {"late", "categorical", "cross_feature"}
    finally:
        Feature.members_by_tag.pop("late", None)
        kind.load_entry_points.cache_clear()


# ---------------------------------------------------------------------- a built day


def test_a_day_is_built(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    from genrank.pipelines.build import BuildConfig, build
    from genrank.pipelines.cross_feature_ops import Evaluation, Question, register_evaluation
    from genrank.schemas.manifest import sample_files

    @register_evaluation
    class VarietyEvaluation(Evaluation):
        name = "variety"
        keyed_by_value = True

        def value_role(self, feature: CrossFeature) -> Literal["id"]:
            return "id"

        def answer(self, question: Question) -> Any:
            values, chosen = question.values()
            different = question.scan.distinct(question.queries, question.window, values, chosen)
            events = question.scan.sum(question.queries, question.window, chosen=chosen)[0]
            return np.where(events > 0, different / np.maximum(events, 1), np.nan)

    begin = datetime(2026, 1, 1, tzinfo=UTC)
    for day in range(3):
        moment = begin + timedelta(days=day)
        dt = moment.date().isoformat()
        rows = [
            {
                "user_id": user,
                "item_id": item,
                "ts": int(moment.timestamp() * 1000) + 1000 * (10 * user + item),
                "price": 3.0 * item,
                "floor": item - 2,
                "shop": "s",
            }
            for user in (1, 2)
            for item in (1, 2, 3)
        ]
        types = {
            "user_id": pa.int64(),
            "item_id": pa.int64(),
            "ts": pa.int64(),
            "price": pa.float32(),
            "floor": pa.int32(),
            "shop": pa.string(),
        }
        items = pa.table({"item_id": [1, 2, 3], "list_price": pa.array([6.0, 0.0, 3.0], pa.float32())})
        for name, table in (
            ("exposures", pa.Table.from_pylist(rows, pa.schema(types))),
            ("clicks", pa.Table.from_pylist(rows[::2], pa.schema(types))),
            ("items", items),
        ):
            folder = tmp_path / "data" / name / f"dt={dt}"
            folder.mkdir(parents=True)
            pq.write_table(table, folder / "0.parquet")
    schema = made()
    build(BuildConfig(schema, tmp_path / "data", tmp_path / "out", "2026-01-01", "2026-01-03"))
    first, last = (
        [
            row
            for file in sample_files(tmp_path / "out" / "samples", dt, schema)
            for row in pq.read_table(file).to_pylist()
        ]
        for dt in ("2026-01-01", "2026-01-03")
    )
    candidates = {row["user_id"]: row["candidates"] for row in last}[1]
    assert candidates["item"] == [1, 2, 3] and candidates["floor"] == [-1, 0, 1]
    assert candidates["discount"][0] == 0.5 and candidates["discount"][2] == 3.0
    assert np.isnan(candidates["discount"][1])  # 6 over 0
    # Before the third day's exposures of items 1, 2, 3: two days of three, then one and two more of this day.
    assert candidates["shops"] == pytest.approx([3 / 6, 3 / 7, 3 / 8])
    nothing_before = {row["user_id"]: row["candidates"] for row in first}[1]["shops"]
    assert np.isnan(nothing_before[0]) and nothing_before[1:] == [1.0, 1.0]
