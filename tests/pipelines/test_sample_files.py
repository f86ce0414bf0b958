"""Files of samples carry a checksum a page, so that readers without the manifest notice a flipped bit too; a user's rows stay together."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.pipelines import sample_files
from genrank.pipelines.sample_files import write_samples
from genrank.schemas import load_schema
from genrank.schemas.derive.sample_lengths import stored_lengths

ROOT = Path(__file__).resolve().parents[2]


def one_each(rows: int) -> dict[str, pa.Array]:
    """A candidate and an event a row."""
    ones = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1), pa.int32()), pa.array(np.arange(rows)))
    group = pa.StructArray.from_arrays([ones, ones], ["ts", "request"])
    return {"candidates": group, "history": group}


def test_a_flipped_bit_of_a_page_is_noticed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = pa.table(
        {
            "price": pa.array(random.random(5_000), pa.float32()),
            "item": pa.array(random.integers(0, 9, 5_000)),
            **one_each(5_000),
            "user_id": pa.array(np.arange(5_000)),
        }
    )
    path = tmp_path / "part.parquet"
    write_samples(table, path, load_schema(str(ROOT / "examples" / "minimal" / "schema.py")), "build")
    assert pq.ParquetFile(path, page_checksum_verification=True).read().equals(table, check_metadata=False)
    whole = path.read_bytes()
    chunk = pq.read_metadata(path).row_group(0).column(0)
    begin = chunk.data_page_offset
    silent = 0
    for at in range(begin + 64, begin + chunk.total_compressed_size - 1, chunk.total_compressed_size // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises((OSError, pa.ArrowException)):
            pq.ParquetFile(path, page_checksum_verification=True).read()
        with contextlib.suppress(OSError, pa.ArrowException):
            silent += not pq.ParquetFile(path).read().equals(table, check_metadata=False)
    assert silent, "without verification some of these read as other values: the checksum is what notices"


def test_footers_hold_lengths_and_other_readers_take_no_notice(tmp_path: Path) -> None:
    schema = load_schema(str(ROOT / "examples" / "minimal" / "schema.py"))
    random = np.random.default_rng(0)
    candidates, history = random.integers(1, 4, 5_000), random.integers(0, 3, 5_000)
    requests = [sorted(random.integers(0, 2, n).tolist()) for n in candidates]

    def lists(lengths: np.ndarray, values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), values)

    def group(lengths: np.ndarray, request: pa.Array) -> pa.Array:
        ts = pa.array(np.arange(lengths.sum()))
        return pa.StructArray.from_arrays([lists(lengths, ts), lists(lengths, request)], ["ts", "request"])

    table = pa.table(
        {
            "user_id": pa.array(np.arange(5_000)),
            "candidates": group(candidates, pa.array([r for own in requests for r in own])),
            "history": group(history, pa.array(np.zeros(history.sum(), np.int64))),
        }
    )
    for name in ("one", "two"):
        write_samples(table, tmp_path / name, schema, "build")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    metadata = pq.read_metadata(tmp_path / "one").metadata
    assert all(value.isascii() for value in metadata.values()), "polars and Spark read footers as UTF-8"
    assert polars.read_parquet(tmp_path / "one").height == 5_000
    first = 0
    for number, rows in enumerate((4_096, 904)):
        found = stored_lengths(metadata, number)
        assert found is not None
        np.testing.assert_array_equal(found.rows["candidates"], candidates[first : first + rows])
        np.testing.assert_array_equal(found.rows["history"], history[first : first + rows])
        own = requests[first : first + rows]
        assert found.request.of_row.tolist() == [len(set(r)) for r in own]
        assert found.request.candidates.tolist() == [r.count(k) for r in own for k in sorted(set(r))]
        assert found.session.of_row.tolist() == [1] * rows, "times lie a millisecond apart"
        assert not found.request.sees.any()
        first += rows


def test_the_rows_of_a_user_lie_in_one_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_files, "ROW_GROUP", 4)
    users = [1, 1, 1, 2, 2, 3, *[4] * 6, 5, 6]
    columns = {"user_id": pa.array(users, pa.int64()), "item": pa.array(range(len(users)), pa.int64())}
    table = pa.table(columns | one_each(len(users)))
    path = tmp_path / "part.parquet"
    write_samples(table, path, load_schema(str(ROOT / "examples" / "minimal" / "schema.py")), "build")
    file = pq.ParquetFile(path)
    groups = [file.read_row_group(i)["user_id"].to_pylist() for i in range(file.num_row_groups)]
    assert groups == [[1, 1, 1], [2, 2, 3], [4] * 6, [5, 6]]
    assert file.read().equals(table, check_metadata=False)
    for number, own in enumerate(groups):
        found = stored_lengths(file.metadata.metadata, number)
        assert found is not None and found.rows["candidates"].tolist() == [1] * len(own)
