"""The steps counted before training are the steps taken: any samples, view, budget, order and number of ranks."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_samples import demo_schema, publish, random_table

from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.schema import Schema
from genrank.tokenization.lengths import SampleLengths
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.sample_columns import SampleColumns
from genrank.tokenization.views import view_of

DATES = ["2026-01-01", "2026-01-02"]
PLAIN = demo_schema()
HISTORY, REALTIME = PLAIN.sequences
SCHEMAS = {
    "all": PLAIN,
    "user tokens": demo_schema(user=PLAIN.user.model_copy(update={"tokens": "feature"})),
    "no realtime": demo_schema(sequences=(HISTORY,)),
    "no history": demo_schema(sequences=(REALTIME,)),
}


def publish_some(
    root: Path, schema: Schema, users: list[int], row_group: int, files: int, bare: int, seed: int
) -> None:
    """Random days; of every `bare` users one had no candidate (0: none)."""
    for dt, n in zip(DATES, users, strict=True):
        rows = random_table(schema, dt, n, seed).to_pylist()
        for row in rows[::bare] if bare else []:
            for group in ("candidates", "labels"):
                row[group] = {name: [] for name in row[group]}
            if "mask" in row:
                row["mask"]["candidate_sees"] = []
        publish(root, schema, dt, pa.Table.from_pylist(rows, arrow_schema(schema)), files=files, row_group=row_group)


options = st.fixed_dictionaries(
    {
        "view": st.sampled_from(["user_day", "request", "session"]),
        "token_budget": st.integers(1, 400),
        "shuffle": st.booleans(),
        "by_length": st.booleans(),
        "seed": st.integers(0, 3),
        "shuffle_buffer": st.integers(1, 20),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(SCHEMAS)),
    st.lists(st.integers(0, 12), min_size=2, max_size=2),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(0, 5),
    options,
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_steps_counted_are_steps_taken(
    schema: str,
    users: list[int],
    row_group: int,
    files: int,
    bare: int,
    seed: int,
    options: dict[str, Any],
    world_size: int,
    accumulate: int,
) -> None:
    from genrank.model.checkpoint_manager import steps_of_batches

    epochs = range(2)
    with tempfile.TemporaryDirectory() as folder:
        publish_some(Path(folder), SCHEMAS[schema], users, row_group, files, bare, seed)
        readers = [
            SampleReader(
                folder, SCHEMAS[schema], DATES, rank=rank, world_size=world_size, prefetch=0, **options
            )
            for rank in range(world_size)
        ]  # fmt: skip
        counted = [reader.count_batches(epochs) for reader in readers]
        limited = [reader.count_batches(epochs, limit=3) for reader in readers]
        taken = [[sum(len(batch.item) > 0 for batch in reader) for _ in epochs] for reader in readers]
    assert counted == taken
    steps = sum(math.ceil(max(own[epoch] for own in taken) / accumulate) for epoch in epochs)
    assert steps_of_batches(counted, accumulate) == steps
    assert [min(sum(own), 3) for own in limited] == [min(sum(own), 3) for own in taken]


@pytest.mark.parametrize("view", ["user_day", "request", "session"])
@pytest.mark.parametrize("remember", [False, True])
def test_sizes_are_those_of_the_samples(tmp_path: Path, view: str, remember: bool) -> None:
    publish_some(tmp_path, PLAIN, [30, 0], row_group=8, files=2, bare=5, seed=1)
    units = SampleReader(tmp_path, PLAIN, DATES[:1]).row_groups
    columns = SampleColumns(PLAIN)
    lengths = SampleLengths(columns, view, remember=remember)
    for window in (units[:2], units[2:], units[::-1]):
        views = [
            view_of(columns.stored_rows([pq.ParquetFile(unit.path).read_row_group(unit.number)]), PLAIN, view)
            for unit in window
        ]
        tokens, ranked = lengths.of(window)
        np.testing.assert_array_equal(tokens, np.concatenate([each.tokens for each in views]))
        np.testing.assert_array_equal(ranked, np.concatenate([each.end > each.begin for each in views]))
