"""One rule of what a data file is: what it leaves out and holds bytes is named, by `build`, `inputs` and `schema check` alike."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines.build import BuildConfig, build
from genrank.pipelines.landing import missing_inputs
from genrank.schemas import (
    Candidates,
    Categorical,
    CrossFeature,
    EventLog,
    Hashed,
    Label,
    Schema,
    Table,
    UserError,
    from_json,
    to_json,
)
from genrank.schemas.review.check import check
from genrank.schemas.source_files import kind_of
from tests.pipelines.worlds import read_samples

pytestmark = pytest.mark.usefixtures("plain_gate")

DAYS = ("2026-01-01", "2026-01-02")
T = 1_767_225_600_000
COLUMNS = {"user_id": "int64", "item_id": "int64", "ts": "int64"}


def small_schema(**click_log: object) -> Schema:
    """Exposures and clicks of two days, one count, one label."""
    item = Categorical(name="item_id", table=Table(name="item", dim=8, vocabulary=Hashed(size=1000)))
    clicks: dict[str, object] = {"name": "clicks", "path": "clicks/dt={dt}", "columns": COLUMNS}
    return Schema(
        name="m",
        sources=(
            EventLog(name="exposures", path="exposures/dt={dt}", columns=COLUMNS),
            EventLog.model_validate(clicks | click_log),
        ),
        candidates=Candidates(
            features=(item, CrossFeature(name="n", op="count", source="clicks", keys=("item_id",), window="7d"))
        ),
        labels=(Label(name="click", source="clicks", window="10m"),),
    )


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Three exposures and two clicks a day."""
    for i, day in enumerate(DAYS):
        t = T + i * 86_400_000 + 36_000_000
        write(tmp_path, f"exposures/dt={day}/part-0.parquet", [(1, 10, t), (1, 11, t + 1000), (2, 12, t + 2000)])
        write(tmp_path, f"clicks/dt={day}/part-0.parquet", [(1, 10, t + 60_000), (2, 12, t + 61_000)])
    return tmp_path


def write(root: Path, where: str, rows: list[tuple[int, int, int]]) -> Path:
    path = root / "logs" / where
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}
    pq.write_table(pa.table(columns, schema=pa.schema(dict.fromkeys(COLUMNS, pa.int64()))), path)
    return path


def built(
    root: Path, schema: Schema | None = None, samples_of: tuple[str, ...] = DAYS, **flags: object
) -> list[dict[str, object]]:
    settings: dict[str, object] = {"schema": schema or small_schema(), "data": root / "logs", "out": root / "out"}
    build(BuildConfig(**settings | {"first": DAYS[0], "last": DAYS[1]} | flags))  # type: ignore[arg-type]
    return [row for day in samples_of for row in read_samples(root / "out", day)]


def clicks(rows: list[dict[str, object]]) -> float:
    return sum(sum(row["labels"]["click"]) for row in rows)  # type: ignore[index]


def click_day(root: Path) -> Path:
    return root / "logs" / "clicks" / f"dt={DAYS[1]}"


def renamed(name: str) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        shutil.copy(click_day(root) / "part-0.parquet", click_day(root) / name)
        return name

    return make


def null_partition(root: Path) -> str:
    shutil.copytree(click_day(root), click_day(root).with_name("dt=__HIVE_DEFAULT_PARTITION__"))
    return "dt=__HIVE_DEFAULT_PARTITION__"


def other_day_name(root: Path) -> str:
    shutil.copytree(click_day(root), click_day(root).with_name("dt=20260103"))
    return "dt=20260103"


def loose_file(root: Path) -> str:
    shutil.copy(click_day(root) / "part-0.parquet", click_day(root).parent / "late.parquet")
    return "late.parquet"


def unfinished_folder(root: Path) -> str:
    (click_day(root) / "_temporary" / "0").mkdir(parents=True)
    shutil.copy(click_day(root) / "part-0.parquet", click_day(root) / "_temporary" / "0" / "part-9.parquet")
    return "_temporary"


def broken_link(root: Path) -> str:
    (click_day(root) / "part-1.parquet").symlink_to(root / "gone.parquet")
    return "part-1.parquet"


@pytest.mark.parametrize(
    "leave",
    [
        renamed("part-1"),
        renamed("part-1.parquet.tmp"),
        renamed(".part-1.parquet"),
        renamed("_part-1.parquet"),
        renamed("part-1.csv"),
        null_partition,
        other_day_name,
        loose_file,
        unfinished_folder,
        broken_link,
    ],
)
def test_bytes_that_nobody_reads_stop_build_inputs_and_check(logs: Path, leave: Callable[[Path], str]) -> None:
    name = leave(logs)
    with pytest.raises(UserError, match="source 'clicks'") as refused:
        built(logs)
    assert name in str(refused.value)
    assert "ignore=(...)" in str(refused.value)
    assert not (logs / "out" / "samples").exists()
    assert name in "; ".join(missing_inputs(small_schema(), str(logs / "logs"), DAYS[1]))
    assert any(
        name in finding.what and finding.level == "error" for finding in check(small_schema(), logs / "logs").findings
    )
    ignoring = small_schema(ignore=(name,))
    assert missing_inputs(ignoring, str(logs / "logs"), DAYS[1]) == []
    assert check(ignoring, logs / "logs").ok
    assert clicks(built(logs, ignoring)) == 4


@pytest.mark.parametrize(
    "name", ["part-1.parq", "PART-1.PARQUET", "part-1.pq", "sub/part-1.parquet", "hour=10/part-1.parquet"]
)
def test_every_data_file_is_read(logs: Path, name: str) -> None:
    part = click_day(logs) / "part-0.parquet"
    table = pq.read_table(part, partitioning=None)
    (click_day(logs) / name).parent.mkdir(exist_ok=True)
    pq.write_table(table.slice(0, 1), part)
    pq.write_table(table.slice(1), click_day(logs) / name)
    assert clicks(built(logs)) == 4
    assert missing_inputs(small_schema(), str(logs / "logs"), DAYS[1]) == []


def test_a_linked_folder_is_read_once_and_a_circle_of_links_ends(logs: Path) -> None:
    part = click_day(logs) / "part-0.parquet"
    elsewhere = logs / "elsewhere"
    elsewhere.mkdir()
    part.rename(elsewhere / part.name)
    (click_day(logs) / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(click_day(logs))
    assert clicks(built(logs)) == 4


def test_markers_and_empty_files_are_no_matter(logs: Path) -> None:
    for name in ("_SUCCESS", "_metadata", ".part-0.parquet.crc", "_committed_17"):
        (click_day(logs) / name).write_text("x")
    (click_day(logs) / "notes.txt").touch()
    assert clicks(built(logs)) == 4


def test_days_of_two_sources_may_share_a_folder(logs: Path) -> None:
    root = logs / "logs"
    for source in ("exposures", "clicks"):
        for day in DAYS:
            shutil.move(root / source / f"dt={day}", root / f"{source}-{day}")
        (root / source).rmdir()
    sources = (s.replace(path=f"{s.name}-{{dt}}") for s in small_schema().sources)
    assert clicks(built(logs, small_schema().replace(sources=tuple(sources)))) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_is_named(logs: Path) -> None:
    below = click_day(logs) / "hour=10"
    below.mkdir(mode=0)
    try:
        with pytest.raises(UserError, match="hour=10 can't be read"):
            built(logs)
    finally:
        below.chmod(0o700)


def test_a_schema_without_ignore_has_the_fingerprint_of_before() -> None:
    schema = small_schema()
    assert "ignore" not in to_json(schema)
    assert from_json(to_json(schema)).fingerprint == schema.fingerprint
    assert small_schema(ignore=("*.csv",)).samples_fingerprint == schema.samples_fingerprint


NAME = st.text(st.sampled_from("ab._=-"), min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))


@given(st.lists(NAME, min_size=1, max_size=3), st.booleans())
def test_a_file_is_data_ignored_or_named(parts: list[str], ignored: bool) -> None:
    inside = "/".join(parts) + ".parquet"
    kind = kind_of(inside, (f"{parts[0]}*",) if ignored else ())
    hidden = any(part.startswith((".", "_")) for part in parts)
    assert kind == ("ignored" if ignored else kind if hidden else "data")
    assert hidden or ignored or kind == "data"
