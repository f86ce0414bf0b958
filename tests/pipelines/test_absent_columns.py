"""Columns that files lack: added later, filled by default, or in the path; what remains unknown is refused by name."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrank.schemas import Schema, SchemaError, UserError, from_json, to_json
from genrank.schemas.absent_columns import with_absent_columns
from genrank.schemas.review.check import check
from tests.pipelines.test_unread_files import COLUMNS, DAYS, built, click_day, clicks, logs, small_schema

__all__ = ["logs"]
pytestmark = pytest.mark.usefixtures("plain_gate")


def add(root: Path, day: str, values: list[str | None]) -> None:
    """A column `surface` for the clicks of a day."""
    file = click_day(root).with_name(f"dt={day}") / "part-0.parquet"
    table = pq.read_table(file, partitioning=None)
    pq.write_table(table.append_column("surface", pa.array(values, pa.string())), file)


def with_surface(**source: object) -> Schema:
    """Clicks count as such on the home page, or where it isn't known on which."""
    schema = small_schema(columns=COLUMNS | {"surface": "string"}, **source)
    where = "surface is null or surface = 'home'"
    return schema.replace(labels=(schema.labels[0].replace(where=where),))


def test_a_column_added_later_is_missing_before_and_said_to_be(logs: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(logs, DAYS[1], ["home", "search"])
    with caplog.at_level(logging.WARNING, "genrank"):
        assert clicks(built(logs, with_surface())) == 3
    assert "column 'surface' was added after 2026-01-01" in caplog.text
    (finding,) = (f for f in check(with_surface(), logs / "logs").findings if "surface" in f.where)
    assert finding.level == "warning"
    assert "was added after 2026-01-01" in finding.what


def test_the_day_before_a_column_was_added_may_be_built_alone(logs: Path) -> None:
    add(logs, DAYS[1], ["home", "search"])
    assert clicks(built(logs, with_surface(), samples_of=(DAYS[0],), last=DAYS[0])) == 2


def test_a_default_says_what_a_column_was(logs: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(logs, DAYS[1], ["home", "search"])
    assert clicks(built(logs, with_surface(defaults={"surface": "search"}))) == 1
    assert "added" not in caplog.text


def test_a_column_that_was_lost_is_refused_unless_a_default_says_what_it_is(logs: Path) -> None:
    add(logs, DAYS[0], ["home", "search"])
    with pytest.raises(
        UserError, match=r"dt=2026-01-02.part-0.parquet has no column 'surface'.*defaults=..surface.: None"
    ):
        built(logs, with_surface())
    assert not check(with_surface(), logs / "logs").ok
    lost = with_surface(defaults={"surface": None})
    assert check(lost, logs / "logs").ok
    assert clicks(built(logs, lost)) == 3


def test_a_column_of_some_files_of_a_day_is_refused(logs: Path) -> None:
    table = pq.read_table(click_day(logs) / "part-0.parquet", partitioning=None)
    add(logs, DAYS[1], ["home", "search"])
    pq.write_table(table.slice(0, 0), click_day(logs) / "part-1.parquet")
    with pytest.raises(UserError, match="has no column 'surface'"):
        built(logs, with_surface())


def test_a_column_that_no_day_has_is_refused(logs: Path) -> None:
    with pytest.raises(UserError, match="has no column 'surface'"):
        built(logs, with_surface())
    assert not check(with_surface(), logs / "logs").ok


def test_columns_in_the_path_are_columns(logs: Path) -> None:
    for day in DAYS:
        file = click_day(logs).with_name(f"dt={day}") / "part-0.parquet"
        table = pq.read_table(file, partitioning=None)
        for i, surface in enumerate(["home", "__HIVE_DEFAULT_PARTITION__" if day == DAYS[0] else "search%20page"]):
            (file.parent / f"surface={surface}").mkdir()
            pq.write_table(table.slice(i, 1), file.parent / f"surface={surface}" / "a.parquet")
        file.unlink()
    assert check(with_surface(), logs / "logs").ok
    assert clicks(built(logs, with_surface())) == 3


def test_a_value_in_the_path_of_another_type_is_named(logs: Path) -> None:
    for day in DAYS:
        folder = click_day(logs).with_name(f"dt={day}")
        (folder / "surface=home").mkdir()
        (folder / "part-0.parquet").rename(folder / "surface=home" / "a.parquet")
    with pytest.raises(UserError, match=r"column 'surface' is 'home' in the path .*declared int64"):
        built(logs, small_schema(columns=COLUMNS | {"surface": "int64"}))


@given(st.integers(-(2**63), 2**63 - 1))
def test_whole_numbers_in_the_path_are_exact(value: int) -> None:
    source = small_schema(columns=COLUMNS | {"n": "int64"}).source("clicks")
    rows = with_absent_columns(source, f"clicks/dt=2026-01-01/n={value}/a.parquet", pa.table({"user_id": [1, 2]}))
    assert rows.column("n").to_pylist() == [value, value]


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"surfaces": None}, "default of unknown column 'surfaces'"),
        ({"user_id": 1}, "column 'user_id' says whose a row is"),
        ({"surface": 1}, "default 1 of column 'surface' is no string"),
    ],
)
def test_mistaken_defaults_are_named(defaults: dict[str, object], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        with_surface(defaults=defaults)


def test_a_default_is_part_of_what_a_column_means_and_none_changes_nothing() -> None:
    plain, filled = with_surface(), with_surface(defaults={"surface": "home"})
    assert "defaults" not in to_json(plain)
    assert from_json(to_json(filled)) == filled
    assert plain.samples_fingerprint != filled.samples_fingerprint
