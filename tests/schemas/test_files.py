"""Days found under a root, physical types against declared ones, and text that is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from genrank.schemas import EventLog, UserError
from genrank.schemas import files as module
from genrank.schemas.conversion import readable_as
from genrank.schemas.files import reading, write_atomically
from genrank.schemas.source_files import days_present

COLUMNS = {"user_id": "int64", "item_id": "int64", "ts": "int64"}


def test_days_are_found_wherever_the_date_stands(tmp_path: Path) -> None:
    for name in ("2026-01-02", "2026-01-01", "2026-1-3", "tmp"):
        (tmp_path / "clicks" / f"dt={name}" / "hourly").mkdir(parents=True)
    (tmp_path / "clicks" / "dt=2026-01-04").mkdir()
    (tmp_path / "flat_2026-01-05.parquet").touch()

    def log(path: str) -> EventLog:
        return EventLog(name="clicks", path=path, columns=COLUMNS)

    assert list(days_present(log("clicks/dt={dt}"), tmp_path)) == ["2026-01-01", "2026-01-02", "2026-01-04"]
    inner = days_present(log("clicks/dt={dt}/hourly"), tmp_path)
    assert inner == {day: tmp_path / "clicks" / f"dt={day}" / "hourly" for day in ("2026-01-01", "2026-01-02")}
    assert list(days_present(log("flat_{dt}.parquet"), tmp_path)) == ["2026-01-05"]
    with pytest.raises(UserError, match=r"source 'clicks': there is no folder .*nowhere.*--data"):
        days_present(log("nowhere/dt={dt}"), tmp_path)


@pytest.mark.parametrize(
    ("type_", "declared"),
    [
        (pa.int8(), {"int32", "int64", "float32", "float64"}),
        (pa.bool_(), {"bool", "int32", "int64"}),
        (pa.float64(), {"float32", "float64"}),
        (pa.decimal128(9, 2), {"int32", "int64", "float32", "float64"}),
        (pa.large_string(), {"string"}),
        (pa.dictionary(pa.int32(), pa.string()), {"string"}),
        (pa.timestamp("us"), {"timestamp"}),
        (pa.list_(pa.int64()), {"list<int64>", "list<float32>"}),
        (pa.large_list(pa.string()), {"list<string>"}),
    ],
)
def test_types_are_read_without_changing_their_meaning(type_: pa.DataType, declared: set[str]) -> None:
    every = {"bool", "int32", "int64", "float32", "float64", "string", "timestamp"}
    every |= {"list<int64>", "list<float32>", "list<string>"}
    assert {name for name in every if readable_as(type_, name)} == declared


def test_a_write_that_fails_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "made" / "manifest.json"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]

    def fail(staged: Path, final: Path) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(module.os, "replace", fail)
    with pytest.raises(OSError, match="power cut"):
        write_atomically(path, "newer")
    assert path.read_text() == "new"


def test_a_damaged_file_is_bad_input_with_a_remedy(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (tmp_path / "a.parquet").write_bytes(b"no Parquet")
    message = r"a\.parquet can't be read as Parquet .*; copy it again"
    with pytest.raises(UserError, match=message) as caught, reading(tmp_path / "a.parquet", "copy it again"):
        pq.read_table(tmp_path / "a.parquet")
    assert "\n" not in str(caught.value)
