"""Adding a feature is one declaration: the build, the tables, the tokens and the trainer follow by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from genrank.examples.marketplace.world import generate
from genrank.model.config import TrainConfig
from genrank.model.trainer import train
from genrank.pipelines.build import BuildConfig, build
from genrank.schemas import Categorical, CrossFeature, Hashed, Schema, UserError, load_schema
from genrank.schemas.manifest import sample_files
from genrank.schemas.review.diff import diff

ROOT = Path(__file__).parents[1]
DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")

CROSS = CrossFeature(
    name="user_category_carts_14d", op="count", source="carts", keys=("user_id", "items.category"), window="14d"
)
SIDE = Categorical(name="seller", column="items.seller", vocabulary=Hashed(size=1024), dim=16)


def with_both(schema: Schema) -> Schema:
    """The whole edit."""
    history, *others = schema.sequences
    return schema.replace(
        candidates=schema.candidates.replace(features=(*schema.candidates.features, CROSS)),
        sequences=(history.replace(features=(*history.features, SIDE)), *others),
    )


@pytest.fixture(scope="module")
def marketplace() -> Schema:
    schema = load_schema(str(ROOT / "examples/marketplace/schema.py"))
    # So few rows a day pass the gate's rate by chance.
    return schema.replace(sources=tuple(source.replace(max_quarantine_rate=1) for source in schema.sources))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("log")
    generate(out, users=40, days=len(DAYS), seed=5, items=200)
    return out


def built(schema: Schema, log: Path, out: Path) -> pa.Table:
    build(BuildConfig(schema, log, out, DAYS[0], DAYS[-1]))
    files = [file for day in DAYS for file in sample_files(out / "samples", day, schema)]
    return pa.concat_tables(pq.read_table(file, partitioning=None) for file in files)


def leaf(samples: pa.Table, group: str, name: str) -> pa.Array:
    return pc.list_flatten(pc.struct_field(samples.column(group), name)).combine_chunks()


def test_a_cross_feature_and_side_information_need_no_other_edit(
    marketplace: Schema, log: Path, tmp_path: Path
) -> None:
    bolder = with_both(marketplace)
    before = built(marketplace, log, tmp_path / "before")
    old_run = train(TrainConfig(marketplace, tmp_path / "before", DAYS[:2], tmp_path / "run", max_steps=3))
    assert old_run is not None

    # Samples built before lack both columns, and the refusal says so.
    asked = TrainConfig(bolder, tmp_path / "before", DAYS[:2], tmp_path / "refused", max_steps=1)
    with pytest.raises(UserError) as raised:
        train(asked)
    assert "candidates.user_category_carts_14d: added" in str(raised.value)
    assert "history.seller: added" in str(raised.value)

    after = built(bolder, log, tmp_path / "after")
    carts = leaf(after, "candidates", "user_category_carts_14d").to_numpy()
    sellers = leaf(after, "history", "seller")
    assert np.isfinite(carts).all() and carts.max() > 0
    assert pc.count_distinct(sellers).as_py() > 1

    # Nothing else moved: the cost that `diff` named is the whole cost.
    assert {c.where for c in diff(marketplace, bolder) if c.cost == "rebuild"} == {
        "candidates.user_category_carts_14d",
        "history.seller",
    }
    assert before.num_rows == after.num_rows > 0
    for field in before.schema:
        if not pa.types.is_struct(field.type):
            assert before.column(field.name).equals(after.column(field.name))
            continue
        for name in (child.name for child in field.type):
            old, new = (pc.struct_field(table.column(field.name), name) for table in (before, after))
            assert old.combine_chunks().to_pylist().__repr__() == new.combine_chunks().to_pylist().__repr__(), name

    # The model grows by both and starts from the old checkpoint.
    grown = TrainConfig(
        bolder, tmp_path / "after", DAYS[2:], tmp_path / "grown", max_steps=3, from_checkpoint=tmp_path / "run"
    )
    train(grown)
    losses = [json.loads(line).get("loss") for line in (tmp_path / "grown" / "log.jsonl").read_text().splitlines()]
    assert any(loss is not None and np.isfinite(loss) for loss in losses)
