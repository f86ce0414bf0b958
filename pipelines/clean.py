"""Files that no manifest points to, removed."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from genrank.pipelines.compaction.cleanup import unused
from genrank.schemas import UserError
from genrank.schemas.lock import locked
from genrank.schemas.manifest import MANIFEST, REPLACED, SampleManifest, sample_days

TEMPORARY = re.compile(r"\..+[.-]\d+")
"""Names under which processes write what they rename when it is whole; they end in the process's number."""


@dataclass
class Cleaned:
    """What `clean` removed (or would)."""

    paths: list[Path] = field(default_factory=list)
    bytes: int = 0
    dry_run: bool = False


def clean(out: Path, dry_run: bool = False) -> Cleaned:
    """Remove what no manifest points to: replaced builds, partials of no published day and what was compacted from such, remains of killed builds.

    Raises:
        UserError: there is no such folder, or a build is writing to it.
    """
    out = Path(out)
    if not out.is_dir():
        raise UserError(f"--out {out}: there is no such folder; give the --out folder of `genrank build`")
    with locked(out):
        removed = Cleaned(dry_run=dry_run)
        used: set[tuple[str, str, str]] = set()
        for dt in sample_days(out / "samples"):
            day = out / "samples" / f"dt={dt}"
            manifest = SampleManifest.read(day)
            used |= {(s, d, key) for s, keys in manifest.partials.items() for d, key in keys.items()}
            removed.paths += [build for build in day.glob("build=*") if build.name != f"build={manifest.build_id}"]
        removed.paths += [day for day in (out / "samples").glob("dt=*") if not (day / MANIFEST).is_file()]
        for folder in (out / "partials").glob("*/dt=*/*"):
            if (folder.parts[-3], folder.parent.name.removeprefix("dt="), folder.name) not in used:
                removed.paths.append(folder)
        removed.paths += unused(out / "blocks", used)
        removed.paths += [*(out / "staging").glob("*"), *(out / REPLACED).glob("dt=*")]
        removed.paths += [path for path in sorted(out.rglob(".*")) if TEMPORARY.fullmatch(path.name)]
        removed.paths = _outermost(removed.paths)
        for path in removed.paths:
            files = path.rglob("*") if path.is_dir() else [path]
            removed.bytes += sum(file.stat().st_size for file in files if file.is_file())
            if not dry_run:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return removed


def _outermost(paths: list[Path]) -> list[Path]:
    """Without repeats, and without what lies in another of them."""
    unique = dict.fromkeys(paths)
    return [path for path in unique if not any(parent in unique for parent in path.parents)]
