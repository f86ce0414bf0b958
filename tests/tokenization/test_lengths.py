"""The steps counted before training are the steps taken: any samples, view, budget, order and number of ranks."""

from __future__ import annotations

import base64
import logging
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

from genrank.schemas.derive.sample_lengths import LENGTHS_KEY, stored_lengths
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
    root: Path,
    schema: Schema,
    users: list[int],
    row_group: int,
    files: int,
    bare: int,
    seed: int,
    lengths: bool = False,
) -> None:
    """Random days; of every `bare` users one had no candidate (0: none)."""
    for dt, n in zip(DATES, users, strict=True):
        rows = random_table(schema, dt, n, seed).to_pylist()
        for row in rows[::bare] if bare else []:
            for group in ("candidates", "labels"):
                row[group] = {name: [] for name in row[group]}
            if "mask" in row:
                row["mask"]["candidate_sees"] = []
        table = pa.Table.from_pylist(rows, arrow_schema(schema))
        publish(root, schema, dt, table, files=files, row_group=row_group, lengths=lengths)


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
    st.booleans(),
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
    lengths: bool,
    options: dict[str, Any],
    world_size: int,
    accumulate: int,
) -> None:
    from genrank.model.checkpoint_manager import steps_of_batches

    epochs = range(2)
    with tempfile.TemporaryDirectory() as folder:
        publish_some(Path(folder), SCHEMAS[schema], users, row_group, files, bare, seed, lengths)
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


@pytest.mark.parametrize("in_footer", [False, True])
@pytest.mark.parametrize("view", ["user_day", "request", "session"])
@pytest.mark.parametrize("remember", [False, True])
def test_sizes_are_those_of_the_samples(tmp_path: Path, view: str, remember: bool, in_footer: bool) -> None:
    publish_some(tmp_path, PLAIN, [30, 0], row_group=8, files=2, bare=5, seed=1, lengths=in_footer)
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


def no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a column was read")

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", refused)


@pytest.mark.parametrize("view", ["user_day", "request", "session"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_footers_save_reading_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, view: Any
) -> None:
    schema = SCHEMAS[name]
    caplog.set_level(logging.INFO, "genrank")
    counts = []
    for lengths in (False, True):
        publish_some(tmp_path / str(lengths), schema, [30, 7], 8, files=2, bare=5, seed=1, lengths=lengths)
        if lengths:
            no_columns(monkeypatch)
        counts.append(SampleReader(tmp_path / str(lengths), schema, DATES, view=view).count_batches(range(2)))
        assert ("counting steps from columns" in caplog.text) is not lengths
        caplog.clear()
    assert counts[0] == counts[1]


def test_sessions_of_another_gap_are_counted_from_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_some(tmp_path, PLAIN, [30, 7], 8, files=2, bare=0, seed=1, lengths=True)
    longer = PLAIN.model_copy(update={"training": PLAIN.training.model_copy(update={"session_gap": "9h"})})
    one = SampleReader(tmp_path, PLAIN, DATES, view="session", token_budget=1).count_batches(range(1))
    other = SampleReader(tmp_path, longer, DATES, view="session", token_budget=1)
    assert other.count_batches(range(1)) == [sum(1 for _ in other)] != one
    no_columns(monkeypatch)
    with pytest.raises(AssertionError, match="a column was read"):
        SampleReader(tmp_path, longer, DATES, view="session").count_batches(range(1))


def test_lengths_of_other_rows_are_not_believed(tmp_path: Path) -> None:
    """As where a tool drops rows of a file and keeps its metadata."""
    publish_some(tmp_path, PLAIN, [30, 7], row_group=64, files=1, bare=0, seed=1, lengths=True)
    unit = SampleReader(tmp_path, PLAIN, DATES[:1]).row_groups[0]
    metadata = pq.read_metadata(unit.path).metadata
    rows = pq.read_table(unit.path).slice(3)
    with pq.ParquetWriter(unit.path, rows.schema) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata({k: v for k, v in metadata.items() if k.startswith(LENGTHS_KEY)})
    columns = SampleColumns(PLAIN)
    tokens, _ = SampleLengths(columns, "user_day").of([unit._replace(rows=27)])
    np.testing.assert_array_equal(tokens, view_of(columns.stored_rows([rows]), PLAIN, "user_day").tokens)


@pytest.mark.parametrize("value", [b"", b"!", b"aGVsbG8=", base64.b64encode(b"\xff\xff\xff\xff" + bytes(40))])
def test_lengths_that_cannot_be_read_are_as_none(value: bytes) -> None:
    assert stored_lengths({LENGTHS_KEY + b"0": value}, 0) is None
    assert stored_lengths({}, 0) is None
