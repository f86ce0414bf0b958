"""Samples are published day by day (`schemas.publishing`), and what a killed build left is put right."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from genrank.schemas import UserError
from genrank.schemas.manifest import MANIFEST, SampleManifest
from genrank.schemas.publishing import move_out, publish_build


def publish(samples_root: Path, manifest: SampleManifest, staged: Path) -> None:
    """Publish a build's folder, whose files are named as the manifest has them, in the place of the build before.

    Killed in between, the day holds two builds, of which the manifest names one; `settle` of the next build moves the other out.
    """
    publish_build(samples_root / f"dt={manifest.dt}", manifest.build_id, staged, manifest.text())


def settle(samples_root: Path) -> None:
    """Have each day's folder hold the build that its manifest names alone, and no half-written manifest: what a killed build left."""
    for day in samples_root.glob("dt=*"):
        for half in day.glob(f".{MANIFEST}.*"):
            half.unlink(missing_ok=True)
        if len(list(day.glob("build=*"))) > 1:
            with suppress(
                UserError
            ):  # Without a manifest that can be read, which of them counts isn't known: the day is built again.
                move_out(day, f"build={SampleManifest.read(day).build_id}")
