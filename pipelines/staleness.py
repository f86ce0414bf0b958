"""Whether the published samples of a day are what a build would publish."""

from __future__ import annotations

from genrank.pipelines.days import dt_of, moment, moment_text
from genrank.pipelines.plan import BuildPlan
from genrank.schemas import EventLog, UserError
from genrank.schemas.base import DAY_MS, parse_duration
from genrank.schemas.manifest import SampleManifest


def why_stale(plan: BuildPlan, day: int) -> str | None:
    """Why the published samples of a day are not what a build would publish; None where they are."""
    folder = plan.out / "samples" / f"dt={dt_of(day)}"
    try:
        manifest = SampleManifest.read(folder)
    except UserError:
        return "its manifest is missing or damaged"
    if manifest.samples_fingerprint != plan.schema.samples_fingerprint:
        return "the schema's samples changed (see genrank schema diff)"
    gone = [file.path for file in manifest.files if not (folder / file.path).is_file()]
    if gone:
        return f"{gone[0]} is missing"
    now = plan.inputs_of(day)
    changed = [
        f"{source} {dt}"
        for source in sorted(now)
        for dt in sorted(now[source].keys() | manifest.partials.get(source, {}).keys())
        if now[source].get(dt) != manifest.partials.get(source, {}).get(dt)
    ]
    if changed:
        return f"changed since: {', '.join(changed[:4])}{' ...' if len(changed) > 4 else ''}"
    if not _same_labels(plan, day, moment(manifest.as_of)):
        return f"labels are as of {manifest.as_of}, now {moment_text(plan.as_of)}"
    return None


def _same_labels(plan: BuildPlan, day: int, as_of: int) -> bool:
    """Whether labels as of then are labels as of now: the same moment, or both after the last event that could count."""
    settled = plan.schema.local_days.start(day + 1) + plan.schema.local_days.spread
    settled += max(parse_duration(label.window) for label in plan.schema.labels)
    settled += max(parse_duration(s.lateness) for s in plan.schema.sources if isinstance(s, EventLog)) + DAY_MS
    return as_of == plan.as_of or min(as_of, plan.as_of) > settled
