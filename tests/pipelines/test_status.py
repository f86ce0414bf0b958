"""What `genrank status` and `genrank clean` say, and that a build follows the same plan."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from genrank.pipelines.build import BuildConfig, build
from genrank.pipelines.clean import clean
from genrank.pipelines.presentation.status import print_status
from genrank.pipelines.status import DayStatus, status
from genrank.schemas.manifest import sample_days
from tests.pipelines.worlds import full_schema, read_samples, write_late_click, write_world

pytestmark = pytest.mark.usefixtures("plain_gate")


def states(root: Path) -> dict[str, str]:
    return {day.dt: day.state for day in status(full_schema(), root / "data", root / "out")}


def test_status_names_missing_and_stale_days(tmp_path: Path) -> None:
    schema = full_schema()
    days = write_world(tmp_path / "data", seed=21, days=4)
    build(BuildConfig(schema, tmp_path / "data", tmp_path / "out", days[0], days[1]))
    assert states(tmp_path) == dict(zip(days, ["up to date", "up to date", "missing", "missing"], strict=True))
    build(BuildConfig(schema, tmp_path / "data", tmp_path / "out", days[2], days[3]))
    assert set(states(tmp_path).values()) == {"up to date"}

    # A click of the second day that arrives on the third: the second day on must be built again, the first needn't.
    write_late_click(tmp_path, days[1], arrives=days[2])
    state_of = {day.dt: day for day in status(schema, tmp_path / "data", tmp_path / "out")}
    assert [state_of[dt].state for dt in days] == ["stale", "stale", "stale", "stale"]
    assert f"clicks {days[1]}" in state_of[days[1]].reason
    result = build(BuildConfig(schema, tmp_path / "data", tmp_path / "out", days[0], days[3]))
    assert result.days == days
    assert set(states(tmp_path).values()) == {"up to date"}

    shutil.rmtree(tmp_path / "data" / "exposures" / f"dt={days[3]}")
    assert states(tmp_path)[days[3]] == "no inputs"


def test_days_built_one_by_one_equal_days_built_at_once(tmp_path: Path) -> None:
    """Also in any order: no day is chained to another."""
    schema = full_schema()
    days = write_world(tmp_path / "data", seed=22, users=4, per_day=60)
    build(BuildConfig(schema, tmp_path / "data", tmp_path / "full", days[0], days[-1], buckets=2))
    for dt in (days[2], days[0], days[3], days[1]):
        build(BuildConfig(schema, tmp_path / "data", tmp_path / "out", dt, dt, buckets=2))
    for dt in days:
        assert repr(read_samples(tmp_path / "full", dt)) == repr(read_samples(tmp_path / "out", dt))
    assert set(states(tmp_path).values()) == {"up to date"}


def test_clean_keeps_what_a_manifest_points_to(tmp_path: Path) -> None:
    days = write_world(tmp_path / "data", seed=23, days=3)
    config = BuildConfig(full_schema(), tmp_path / "data", tmp_path / "out", days[0], days[-1], force=True)
    build(config)
    build(config)
    (tmp_path / "out" / "partials" / "clicks" / f"dt={days[0]}" / "0123456789abcdef").mkdir()
    (tmp_path / "out" / "samples" / f"dt={days[0]}" / ".manifest.json.321").write_text("{")
    (tmp_path / "out" / "partials" / ".census.json.321").write_text("{")
    (tmp_path / "out" / "partials" / "clicks" / f"dt={days[0]}" / ".0123456789abcdef-321").mkdir()
    before = [read_samples(tmp_path / "out", dt) for dt in days]
    assert len(clean(tmp_path / "out", dry_run=True).paths) == 7
    assert len(clean(tmp_path / "out").paths) == 7
    assert clean(tmp_path / "out").paths == []
    assert sample_days(tmp_path / "out" / "samples") == days
    assert repr([read_samples(tmp_path / "out", dt) for dt in days]) == repr(before)
    assert build(BuildConfig(full_schema(), tmp_path / "data", tmp_path / "out", days[0], days[-1])).days == []


def test_status_says_which_build_mends_it(capsys: pytest.CaptureFixture[str]) -> None:
    states = ("stale", "stale", "up to date", "missing")
    print_status(
        [DayStatus(f"2026-01-0{i}", state, "a late row" * (state == "stale")) for i, state in enumerate(states, 1)]
    )
    printed = capsys.readouterr().out
    assert "2026-01-01 to 2026-01-02: a late row" in printed
    assert "3 of 4 days to build: genrank build --from 2026-01-01 --to 2026-01-04" in printed
