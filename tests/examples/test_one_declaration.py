"""Adding a feature is one declaration: nothing else in the house is edited for it to be computed, checked, stored and trained."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.marketplace.world import generate
from model.config import TrainConfig
from model.trainer import train
from pipelines.build import BuildConfig, build
from schemas import Categorical, CrossFeature, Hashed, Schema, load_schema
from schemas.manifest import sample_files
from tokenization.plan import make_plan

ROOT = Path(__file__).parents[2]
DAYS = ("2026-01-01", "2026-01-02")

side_information = Categorical(name="seller", column="items.seller", vocabulary=Hashed(size=1024), dim=16)
cross_feature = CrossFeature(
    name="user_seller_clicks_7d", op="count", source="clicks", keys=("user_id", "items.seller"), window="7d"
)


@pytest.fixture(scope="module")
def extended() -> Schema:
    """The marketplace's schema with a column more in the history and a statistic more of the candidates."""
    schema = load_schema(str(ROOT / "examples/marketplace/schema.py"))
    parts = {name: getattr(schema, name) for name in Schema.model_fields}
    history, *others = schema.sequences
    parts["sequences"] = (history.model_copy(update={"features": (*history.features, side_information)}), *others)
    parts["candidates"] = schema.candidates.model_copy(
        update={"features": (*schema.candidates.features, cross_feature)}
    )
    return Schema(**parts)


def test_a_feature_more_is_built_stored_and_trained(tmp_path: Path, extended: Schema) -> None:
    generate(tmp_path / "log", users=60, days=2, seed=0, items=300, progress=False)
    build(BuildConfig(extended, tmp_path / "log", tmp_path / "data", DAYS[0], DAYS[-1]))

    files = sample_files(tmp_path / "data" / "samples", DAYS[1])
    samples = pa.concat_tables(pq.read_table(file, partitioning=None) for file in files)
    history, candidates = (samples[name].combine_chunks() for name in ("history", "candidates"))
    assert len(set(history.field("seller").flatten().to_pylist())) > 10
    counts = candidates.field("user_seller_clicks_7d").flatten().to_numpy()
    assert 0 < (counts > 0).mean() < 1

    run = tmp_path / "run"
    result = train(
        TrainConfig(
            extended, tmp_path / "data", DAYS, run, model="mtgr-tiny", max_steps=3, token_budget=2048, device="cpu"
        )
    )
    assert result.steps == 3
    stored = json.loads((run / "schema.json").read_text())
    assert Schema.model_validate(stored).fingerprint == extended.fingerprint
    # The new table is in the plan, merged with others of its shape.
    merged = next(m for m in make_plan(extended).tables if any(t.name == "history.seller" for t in m.members))
    assert len(merged.members) > 1
