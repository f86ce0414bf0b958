"""Numbers near each other are written without a dictionary, hashes and texts with one; what is read is what was written."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.pipelines.encodings import leaves, without_dictionary
from genrank.pipelines.partial_writer import write_partial
from genrank.schemas.ids import MISSING_ID

NEAR, FAR = [5, 5 + (1 << 32) - 1], [5, 5 + (1 << 32)]


@pytest.mark.parametrize(
    ("values", "without"),
    [
        (pa.array([0.5, None], pa.float32()), True),
        (pa.array([0.5], pa.float64()), True),
        (pa.array([-(2**31), 2**31 - 1], pa.int32()), True),
        (pa.array([1], pa.int8()), False),
        (pa.array(NEAR), True),
        (pa.array(FAR), False),
        (pa.array([*NEAR, MISSING_ID, None]), True),
        (pa.array([MISSING_ID]), True),
        (pa.array([], pa.int64()), True),
        (pa.array([-(2**63) + 1, 2**63 - 1]), False),
        (pa.array(["a"]), False),
        (pa.array([True]), False),
        (pa.array([[1]]), False),
        (pa.chunked_array([[1], [2]]), True),
    ],
)
def test_which_columns_have_no_dictionary(values: pa.Array | pa.ChunkedArray, without: bool) -> None:
    assert without_dictionary(values) == without


def test_leaves_have_the_names_that_parquet_gives_them(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": ["a", "b"],
            "history": [{"item": [1, 2], "tags": [[1], [2, 3]]}, {"item": [3], "tags": [[]]}],
            "user": [{"age": 1.0}, {"age": 2.0}],
        }
    ).slice(1)
    pq.write_table(table, tmp_path / "a.parquet")
    stored = pq.read_metadata(tmp_path / "a.parquet").schema
    found = [leaf for name in table.column_names for leaf in leaves(name, table.column(name).chunk(0))]
    assert [path for path, _ in found] == [stored.column(at).path for at in range(len(stored))]
    values = {path: array.to_pylist() for path, array in found}
    assert values["history.item.list.element"] == [3] and values["user.age"] == [2.0]
    assert values["history.tags.list.element.list.element"] == []


def test_partials_are_read_as_they_were_written(tmp_path: Path) -> None:
    table = pa.table(
        {
            "u": [1, 1, 2],
            "ts": [10, 11, 9],
            "id": [2**62, -(2**62), 7],
            "id(item)": [3, MISSING_ID, 4],
            "id(hashed)": [2**61, -(2**61), 2**61],
            "number(price)": pa.array([0.5, float("nan"), 1.0], pa.float32()),
            "ids(tags)": [[1, 2], [], [3]],
        }
    )
    write_partial(table, tmp_path / "a.parquet")
    read = pq.ParquetFile(tmp_path / "a.parquet").read()
    assert read.drop_columns(["number(price)"]).equals(table.drop_columns(["number(price)"]))
    assert str(read["number(price)"].to_pylist()) == str(table["number(price)"].to_pylist())
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    encodings = {group.column(at).path_in_schema: group.column(at).encodings for at in range(group.num_columns)}
    split = {name for name, found in encodings.items() if "BYTE_STREAM_SPLIT" in found}
    assert split == {"u", "id(item)", "number(price)"}
    assert "RLE_DICTIONARY" in encodings["id(hashed)"]
