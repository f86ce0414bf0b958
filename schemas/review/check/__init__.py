"""Does the data hold what the schema says? Footers of the newest days, and a sample of rows of the newest.

    for finding in check(schema, Path("data/world")).findings:
        print(finding)

An `error` would stop a build or ruin a feature; a `warning` is worth a look. What a sample can't show (a share below one in
`sample_rows`) isn't found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from genrank.schemas.errors import UserError
from genrank.schemas.findings import Finding
from genrank.schemas.review.check.days import beside, footers, missing_days, reach
from genrank.schemas.review.check.rows import row_findings
from genrank.schemas.review.check.sample import ColumnStats, Sample, column_stats, read_sample
from genrank.schemas.review.check.values import feature_findings, join_findings, label_findings
from genrank.schemas.schema import Schema
from genrank.schemas.source_files import days_present


@dataclass
class Checked:
    """What `check` found."""

    findings: list[Finding] = field(default_factory=list)
    columns: list[ColumnStats] = field(default_factory=list)
    days: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    """Source -> (first day, last day, days present)."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found that would stop a build or ruin a feature."""
        return all(finding.level != "error" for finding in self.findings)


def check(schema: Schema, root: Path, *, sample_rows: int = 200_000, days: int = 14) -> Checked:
    """Compare sources with what the schema declares of them.

    Args:
        root: the data root that the sources' paths are relative to.
        sample_rows: rows read of each source's newest day.
        days: footers of the newest so many days are read.

    Raises:
        UserError: the data root is no folder.
    """
    if not root.is_dir():
        raise UserError(f"--data {root}: there is no such folder")
    checked = Checked()
    samples: dict[str, Sample] = {}
    for source in schema.sources:
        if source.path is None or "://" in source.path:
            what = "a catalog table" if source.path is None else f"lies at {source.path}"
            checked.findings.append(Finding("warning", source.name, f"{what}; `check` reads only local folders"))
            continue
        try:
            present = days_present(source, root)
        except UserError as error:
            checked.findings.append(Finding("error", source.name, str(error).removeprefix(f"source {source.name!r}: ")))
            continue
        checked.findings += beside(schema, source, root)
        if not present:
            checked.findings.append(Finding("error", source.name, f"no day lies at {source.path!r} under {root}"))
            continue
        checked.days[source.name] = (min(present), max(present), len(present))
        checked.findings += missing_days(source, list(present))
        newest = dict(list(present.items())[-days:])
        checked.findings += footers(source, newest)
        if sample := read_sample(source, newest, sample_rows):
            samples[source.name] = sample
            checked.columns += column_stats(source, sample)
            checked.findings += row_findings(schema, source, sample)
    checked.findings += reach(schema, checked.days)
    checked.findings += join_findings(schema, samples)
    checked.findings += feature_findings(schema, samples)
    checked.findings += label_findings(schema, samples)
    checked.findings = sorted(dict.fromkeys(checked.findings), key=lambda finding: finding.level)
    return checked


__all__ = ["Checked", "ColumnStats", "Finding", "check"]
