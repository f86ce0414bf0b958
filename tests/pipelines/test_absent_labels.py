"""A label is mature where its own log's days have landed; a build without one of them is refused, or gives weight 0 and says so."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from genrank.schemas import UserError
from tests.pipelines.test_unread_files import DAYS, built, click_day, clicks, logs, write

__all__ = ["logs"]
pytestmark = pytest.mark.usefixtures("plain_gate")
DAY_MS = 86_400_000
T = 1_767_225_600_000


def weights(rows: list[dict[str, object]], day: str) -> list[float]:
    return [w for row in rows if day in str(row["sample_id"]) for w in row["labels"]["click_weight"]]  # type: ignore[index]


@pytest.mark.parametrize("absent", DAYS)
def test_an_absent_day_of_a_labels_log_is_refused_or_weighs_nothing(
    logs: Path, absent: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(click_day(logs).with_name(f"dt={absent}"))
    with pytest.raises(UserError, match=f"source 'clicks' has no day {absent} .*labels click .*--allow-missing"):
        built(logs)
    assert not (logs / "out" / "samples").exists()
    with caplog.at_level(logging.WARNING, "genrank"):
        rows = built(logs, allow_missing=True)
    assert f"no day {absent}" in caplog.text
    assert weights(rows, absent) == [0, 0, 0]
    (other,) = set(DAYS) - {absent}
    assert weights(rows, other) == [1, 1, 1]


def test_only_windows_that_reach_into_the_absent_day_weigh_nothing(logs: Path) -> None:
    midnight = T + DAY_MS
    write(logs, f"exposures/dt={DAYS[0]}/part-0.parquet", [(1, 10, midnight - 700_000), (2, 11, midnight - 300_000)])
    shutil.rmtree(click_day(logs))
    rows = built(logs, last=DAYS[0], samples_of=(DAYS[0],))
    assert sorted(weights(rows, DAYS[0])) == [0, 1]
    write(logs, f"clicks/dt={DAYS[1]}/part-0.parquet", [(2, 11, midnight + 1000)])
    rows = built(logs, last=DAYS[0], samples_of=(DAYS[0],))
    assert sorted(weights(rows, DAYS[0])) == [1, 1]
    assert clicks(rows) == 1


def test_a_day_without_clicks_is_a_file_without_rows(logs: Path) -> None:
    write(logs, f"clicks/dt={DAYS[1]}/part-0.parquet", [])
    rows = built(logs)
    assert weights(rows, DAYS[1]) == [1, 1, 1]
    assert clicks(rows) == 2


def test_a_day_that_is_a_copy_of_another_says_so(logs: Path, caplog: pytest.LogCaptureFixture) -> None:
    exposures = logs / "logs" / "exposures"
    shutil.copy(exposures / f"dt={DAYS[0]}" / "part-0.parquet", exposures / f"dt={DAYS[1]}" / "part-0.parquet")
    with caplog.at_level(logging.WARNING, "genrank"):
        built(logs)
    assert f"none of the 3 rows in {DAYS[1]} is of that day; all are of {DAYS[0]}" in caplog.text
