"""A day is published whole or not at all: files first, the manifest last, by one rename."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from genrank.schemas import UserError
from genrank.schemas.files import move, write_atomically
from genrank.schemas.manifest import MANIFEST, REPLACED, SampleManifest


def publish(samples_root: Path, manifest: SampleManifest, staged: Path) -> None:
    """Move a build's folder (files named as the manifest has them) into its day, let the manifest point to it, and the build before out.

    Killed in between, the day holds two builds, of which the manifest names one; `settle` of the next build moves the other out.
    """
    day = samples_root / f"dt={manifest.dt}"
    final = day / f"build={manifest.build_id}"
    day.mkdir(parents=True, exist_ok=True)
    staged.mkdir(parents=True, exist_ok=True)
    move(staged, final)
    write_atomically(day / MANIFEST, manifest.text())
    _move_out(day, final.name)


def settle(samples_root: Path) -> None:
    """Have each day's folder hold the build that its manifest names alone, and no half-written manifest: what a killed build left."""
    for day in samples_root.glob("dt=*"):
        for half in day.glob(f".{MANIFEST}.*"):
            half.unlink(missing_ok=True)
        if len(list(day.glob("build=*"))) > 1:
            with suppress(
                UserError
            ):  # Without a manifest that can be read, which of them counts isn't known: the day is built again.
                _move_out(day, f"build={SampleManifest.read(day).build_id}")


def _move_out(day: Path, current: str) -> None:
    """Replaced builds leave the folder that people read by a glob. The last one stays beside for those who read the manifest before."""
    beside = day.parent.parent / REPLACED / day.name
    replaced = [build for build in day.glob("build=*") if build.name != current]
    if replaced:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True, exist_ok=True)
    for build in replaced:
        os.rename(build, beside / build.name)
