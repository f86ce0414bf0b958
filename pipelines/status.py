"""What is published under an output folder, and what a build would change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genrank.pipelines.days import day_number, dt_of
from genrank.pipelines.losses import losses
from genrank.pipelines.plan import BuildPlan
from genrank.pipelines.sources import LANDED, days_present
from genrank.pipelines.staleness import why_stale
from genrank.schemas import Schema, UserError
from genrank.schemas.manifest import SampleManifest, sample_days


@dataclass(frozen=True)
class DayStatus:
    """One day: what is published, and whether it is what a build would publish."""

    dt: str
    state: str
    """`up to date`, `stale`, `missing` (inputs are there, samples are not) or `no inputs` (published, its exposures are gone)."""
    reason: str = ""
    samples: int = 0
    candidates: int = 0
    fingerprint: str = ""
    as_of: str = ""
    quarantined: int = 0
    duplicates: int = 0
    losses: tuple[str, ...] = ()
    """A line for each source that lost rows: quarantined ones by reason, and duplicates."""


def status(schema: Schema, data: Path | str, out: Path, as_of: str | None = None) -> list[DayStatus]:
    """Every day that has exposures under `data` or samples under `out`.

    Raises:
        UserError: as `BuildPlan`.
    """
    out = Path(out)
    published = {day_number(dt) for dt in sample_days(out / "samples")}
    present = days_present(schema.exposures, data, out / LANDED)
    days = sorted(published | set(present))
    if not days:
        return []
    plan = BuildPlan(schema, data, out, days[0], days[-1], as_of)
    found = []
    for day in days:
        if day not in published:
            found.append(DayStatus(dt_of(day), "missing"))
            continue
        reason = why_stale(plan, day) if day in present else "its exposures are gone"
        try:
            manifest = SampleManifest.read(out / "samples" / f"dt={dt_of(day)}")
        except UserError:
            found.append(DayStatus(dt_of(day), "stale", reason or ""))
            continue
        state = "no inputs" if day not in present else "stale" if reason else "up to date"
        quarantined = sum(n for reasons in manifest.counts.quarantined.values() for n in reasons.values())
        found.append(
            DayStatus(
                manifest.dt,
                state,
                reason or "",
                manifest.samples,
                manifest.candidates,
                manifest.fingerprint,
                manifest.as_of,
                quarantined,
                sum(manifest.counts.duplicates.values()),
                tuple(losses([manifest.counts])),
            )
        )
    return found
