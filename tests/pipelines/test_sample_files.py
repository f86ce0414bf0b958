"""Files of samples carry a checksum a page, so that readers without the manifest notice a flipped bit too."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.pipelines.sample_files import write_samples
from genrank.schemas import load_schema
from genrank.schemas.derive.sample_lengths import stored_lengths

ROOT = Path(__file__).resolve().parents[2]


def test_a_flipped_bit_of_a_page_is_noticed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    ones = pa.ListArray.from_arrays(pa.array(np.arange(5_001), pa.int32()), pa.array(np.arange(5_000)))
    group = pa.StructArray.from_arrays([ones, ones], ["ts", "request"])
    table = pa.table(
        {
            "price": pa.array(random.random(5_000), pa.float32()),
            "item": pa.array(random.integers(0, 9, 5_000)),
            "candidates": group,
            "history": group,
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
