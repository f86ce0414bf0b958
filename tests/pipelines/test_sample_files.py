"""Files of samples carry a checksum a page, so that readers without the manifest notice a flipped bit too; a user's rows stay together."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.pipelines import sample_files
from genrank.pipelines.sample_files import write_samples
from genrank.schemas import load_schema

ROOT = Path(__file__).resolve().parents[2]


def test_a_flipped_bit_of_a_page_is_noticed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = pa.table(
        {
            "price": pa.array(random.random(5_000), pa.float32()),
            "item": pa.array(random.integers(0, 9, 5_000)),
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


def test_the_rows_of_a_user_lie_in_one_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_files, "ROW_GROUP", 4)
    users = [1, 1, 1, 2, 2, 3, *[4] * 6, 5, 6]
    table = pa.table({"user_id": pa.array(users, pa.int64()), "item": pa.array(range(len(users)), pa.int64())})
    path = tmp_path / "part.parquet"
    write_samples(table, path, load_schema(str(ROOT / "examples" / "minimal" / "schema.py")), "build")
    file = pq.ParquetFile(path)
    groups = [file.read_row_group(i)["user_id"].to_pylist() for i in range(file.num_row_groups)]
    assert groups == [[1, 1, 1], [2, 2, 3], [4] * 6, [5, 6]]
    assert file.read().equals(table, check_metadata=False)
