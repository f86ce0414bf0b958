"""A day is published whole or not at all: files first, the manifest last, by one rename.

ROOT/dt=<day>/build=<id>/*.parquet    the files that manifest.json names
ROOT/dt=<day>/manifest.json
ROOT/../replaced/dt=<day>/            the build before, for those who read the manifest before
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from genrank.schemas.files import move, write_atomically
from genrank.schemas.manifest import MANIFEST, REPLACED


def publish_build(day: Path, build: str, staged: Path, manifest: str) -> None:
    """Move a build's folder (files named as the manifest has them) into its day, let the manifest point to it, and the build before out.

    Killed in between, the day holds two builds, of which the manifest names one.

    Args:
        day: the day's folder, `dt=YYYY-MM-DD`; made if it isn't there.
        build: its name.
        staged: the folder that becomes `build=<build>`.
        manifest: the manifest's text.
    """
    final = day / f"build={build}"
    day.mkdir(parents=True, exist_ok=True)
    staged.mkdir(parents=True, exist_ok=True)
    move(staged, final)
    point_to(day, build, manifest)


def point_to(day: Path, build: str, manifest: str) -> None:
    """Let a day's manifest name a build whose folder is in its place, and move the build before out."""
    write_atomically(day / MANIFEST, manifest)
    move_out(day, f"build={build}")


def move_out(day: Path, current: str) -> None:
    """Replaced builds leave the folder that people read by a glob. The last one stays beside for those who read the manifest before."""
    beside = day.parent.parent / REPLACED / day.name
    replaced = [build for build in day.glob("build=*") if build.name != current]
    if replaced:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True, exist_ok=True)
    for build in replaced:
        os.rename(build, beside / build.name)
