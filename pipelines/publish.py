"""A day is published whole or not at all: files first, the manifest last, by one rename."""

from __future__ import annotations

import shutil
from pathlib import Path

from genrank.schemas.files import move, write_atomically
from genrank.schemas.manifest import MANIFEST, SampleManifest


def publish(samples_root: Path, manifest: SampleManifest, staged: Path) -> None:
    """Move a build's folder (files named as the manifest has them) into its day, then let the manifest point to it."""
    day = samples_root / f"dt={manifest.dt}"
    final = day / f"build={manifest.build_id}"
    day.mkdir(parents=True, exist_ok=True)
    staged.mkdir(parents=True, exist_ok=True)
    move(staged, final)
    write_atomically(day / MANIFEST, manifest.model_dump_json(indent=1, by_alias=True))
    # Readers of the manifest before this one keep their files; older builds have no reader left.
    keep = {final.name, *_previous(day, final.name)}
    for old in day.glob("build=*"):
        if old.name not in keep:
            shutil.rmtree(old, ignore_errors=True)


def _previous(day: Path, current: str) -> list[str]:
    builds = sorted((p for p in day.glob("build=*") if p.name != current), key=lambda p: p.stat().st_mtime_ns)
    return [p.name for p in builds[-1:]]
