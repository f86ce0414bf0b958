"""A day is there whole or not at all, whenever a build dies and whoever else is building."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from genrank.pipelines.build import BuildConfig, build
from genrank.schemas import UserError
from genrank.schemas.checked_json import checked, with_checksum
from genrank.schemas.lock import locked
from genrank.schemas.manifest import SampleManifest, opened, sample_days, sample_files
from tests.pipelines.worlds import full_schema, read_samples, write_world

pytestmark = pytest.mark.usefixtures("plain_gate")

BUILDER = """
import sys
from pathlib import Path
from genrank.pipelines import build
from tests.pipelines.worlds import full_schema
root, first, last = sys.argv[1:]
print("ready", flush=True)
build.build(build.BuildConfig(full_schema(), Path(root) / "data", Path(root) / "out", first, last, force=True, days_per_job=1))
"""


def start_builder(root: Path, days: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", BUILDER, str(root), days[0], days[-1]]
    builder = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert builder.stdout is not None
    assert builder.stdout.readline() == "ready\n"
    return builder


def whole(out: Path, dt: str) -> list[str]:
    """The day as readers see it; every listed file must be there and hold what the manifest says."""
    manifest = SampleManifest.read(out / "samples" / f"dt={dt}")
    assert sum(pq.read_metadata(path).num_rows for path in sample_files(out / "samples", dt)) == manifest.samples
    return [repr(sample) for sample in read_samples(out, dt)]


def test_kill_9_at_random_moments_leaves_the_old_day_or_the_new_one(tmp_path: Path) -> None:
    days = write_world(tmp_path / "data", seed=41, days=2, users=4, per_day=60)
    config = BuildConfig(full_schema(), tmp_path / "data", tmp_path / "out", days[0], days[-1], days_per_job=1)
    build(config)
    truth = {dt: whole(tmp_path / "out", dt) for dt in days}
    begun = time.monotonic()
    start_builder(tmp_path, days).communicate()
    took = time.monotonic() - begun
    builds = {dt: set[str]() for dt in days}
    for i in range(4):
        builder = start_builder(tmp_path, days)
        time.sleep(took * i / 3)
        os.kill(builder.pid, signal.SIGKILL)
        builder.wait()
        for dt in days:
            assert whole(tmp_path / "out", dt) == truth[dt]
            builds[dt].add(SampleManifest.read(tmp_path / "out" / "samples" / f"dt={dt}").build_id)
    # The lock died with its holder, and leftovers are swept by the next build.
    assert build(config).unchanged == days
    assert list((tmp_path / "out" / "staging").glob("*")) == []
    assert len(builds[days[0]]) > 1, "no kill came after a day was published: the test saw nothing"


def test_a_first_build_killed_publishes_nothing_or_whole_days(tmp_path: Path) -> None:
    days = write_world(tmp_path / "data", seed=42, days=2)
    builder = start_builder(tmp_path, days)
    time.sleep(0.3)
    os.kill(builder.pid, signal.SIGKILL)
    builder.wait()
    for dt in sample_days(tmp_path / "out" / "samples"):
        whole(tmp_path / "out", dt)
    result = build(BuildConfig(full_schema(), tmp_path / "data", tmp_path / "out", days[0], days[-1]))
    assert sorted(result.days + result.unchanged) == days


def test_a_second_build_of_the_same_output_is_refused(tmp_path: Path) -> None:
    days = write_world(tmp_path / "data", seed=43, days=1)
    config = BuildConfig(full_schema(), tmp_path / "data", tmp_path / "out", days[0], days[0], wait=False)
    with (
        locked(tmp_path / "out"),
        pytest.raises(UserError, match=f"another build is writing here .process {os.getpid()}"),
    ):
        build(config)
    assert build(config).days == days


def test_builds_of_different_days_side_by_side_take_turns(tmp_path: Path) -> None:
    """As Airflow's mapped tasks start them: both at once, into one folder; each day is that of a build alone."""
    days = write_world(tmp_path / "data", seed=46, days=2)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    program = (
        "import sys; from pathlib import Path; from genrank.pipelines.build import BuildConfig, build;"
        "from tests.pipelines.worlds import full_schema; root, day = sys.argv[1:];"
        "print(build(BuildConfig(full_schema(), Path(root) / 'data', Path(root) / 'out', day, day)).days)"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), day], env=environment, stdout=subprocess.PIPE, text=True
        )
        for day in days
    ]
    assert [builder.communicate()[0].strip() for builder in started] == [f"['{day}']" for day in days]
    build(BuildConfig(full_schema(), tmp_path / "data", tmp_path / "alone", days[0], days[1]))
    for day in days:
        assert whole(tmp_path / "out", day) == whole(tmp_path / "alone", day)


HOLDER = """
import subprocess, sys, time
from pathlib import Path
from genrank.schemas.lock import locked
with locked(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_a_lock_never_outlives_its_process(tmp_path: Path) -> None:
    """Not in a child that does, not through what its file says: another host's process, or a number that is another process's now."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(UserError, match=f"process {holder.pid} on "), locked(tmp_path):
            pass
        holder.kill()
        holder.wait()
        os.kill(child, 0)
        for left in (None, f"{os.getppid()} on {os.uname().nodename}", "1 on another-host"):
            if left is not None:
                (tmp_path / ".lock").write_text(left)
            with locked(tmp_path):
                pass
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.raises(UserError, match=r"its file system can't lock a file .No locks available"), locked(tmp_path):
        pass


def test_a_failed_gate_publishes_nothing_and_keeps_the_old_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = write_world(tmp_path / "data", seed=44, days=1)
    config = BuildConfig(full_schema(), tmp_path / "data", tmp_path / "out", days[0], days[0], force=True)
    build(config)
    old = SampleManifest.read(tmp_path / "out" / "samples" / f"dt={days[0]}")

    def refuse(*_: object) -> None:
        raise UserError("no")

    monkeypatch.setattr("genrank.pipelines.gate.judge.Gate.judge", refuse)
    with pytest.raises(UserError):
        build(config)
    assert SampleManifest.read(tmp_path / "out" / "samples" / f"dt={days[0]}") == old
    assert list((tmp_path / "out" / "staging").glob("*")) == []


def test_a_power_cut_publishes_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rename makes visible outside of staging was on the disk before it."""
    days = write_world(tmp_path / "data", seed=46, days=2)
    out, synced, seen = tmp_path / "out", set[tuple[int, int]](), set[str]()
    fsync, replace = os.fsync, os.replace

    def stamp(path: Path | int) -> tuple[int, int]:
        return (found := os.stat(path)).st_ino, found.st_mtime_ns

    def watched_fsync(handle: int) -> None:
        fsync(handle)
        synced.add(stamp(handle))

    def watched_replace(source: Path, target: Path) -> None:
        for path in [source, *source.rglob("*")]:
            assert stamp(path) in synced, f"{path} becomes {target} and may be empty after a power cut"
        seen.add(target.relative_to(out).parts[0])
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    build(BuildConfig(full_schema(), tmp_path / "data", out, days[0], days[-1]))
    assert seen == {"partials", "samples", "stats", "gate"}


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = write_world(tmp_path / "data", seed=45, days=1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("genrank.pipelines.assemble.write_samples", full)
    with pytest.raises(UserError, match="no space left on the disk"):
        build(BuildConfig(full_schema(), tmp_path / "data", tmp_path / "out", days[0], days[0]))
    assert sample_days(tmp_path / "out" / "samples") == []


def read_as_the_readme_says(out: Path, dt: str) -> pl.DataFrame:
    """The two lines of README, on another folder."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (lines,) = re.findall(r"```python\n(import polars as pl\n.*?)```", readme, re.DOTALL)
    names: dict[str, pl.DataFrame] = {}
    exec(lines.replace("runs/demo/data/samples/dt=2026-01-10", str(out / "samples" / f"dt={dt}")), names)
    return names["samples"]


def test_readers_of_the_folder_find_each_row_once_after_rebuilds_and_earlier_readers_keep_theirs(
    tmp_path: Path,
) -> None:
    (dt,) = write_world(tmp_path / "data", seed=44, days=1)
    out = tmp_path / "out"
    config = BuildConfig(full_schema(), tmp_path / "data", out, dt, dt, force=True)
    (first,) = build(config).manifests.values()
    before = sample_files(out / "samples", dt)
    for _ in range(2):
        held = sample_files(out / "samples", dt)
        build(config)
        assert read_as_the_readme_says(out, dt).height == first.samples
        assert sum(pq.read_metadata(opened(path)).num_rows for path in held) == first.samples
    assert not any(opened(path).is_file() for path in before), "one replaced build is kept, not each"


@pytest.mark.parametrize("published", [False, True])
def test_a_build_killed_around_its_manifest_is_settled_by_the_next(tmp_path: Path, published: bool) -> None:
    days = write_world(tmp_path / "data", seed=45, days=2)
    out = tmp_path / "out"
    config = BuildConfig(full_schema(), tmp_path / "data", out, days[0], days[1])
    manifest = build(config).manifests[days[0]]
    day = out / "samples" / f"dt={days[0]}"
    shutil.copytree(day / f"build={manifest.build_id}", day / "build=other")
    (day / ".manifest.json.123").write_text("{")
    if published:  # The manifest names the new build, and the old one is still there.
        text = json.dumps(checked((day / "manifest.json").read_bytes())).replace(manifest.build_id, "other")
        (day / "manifest.json").write_text(with_checksum(text))
    assert build(config).unchanged == days
    assert read_as_the_readme_says(out, days[0]).height == manifest.samples
    assert [path.name for path in day.glob("build=*")] == ["build=other" if published else f"build={manifest.build_id}"]
    assert not list(day.glob(".manifest*"))
