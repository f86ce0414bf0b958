"""Values across sources against the declaration: keys that meet, features, labels."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from genrank.schemas.derive.columns import rows, snapshots
from genrank.schemas.findings import ColumnValues, Finding, present_values
from genrank.schemas.messages import share
from genrank.schemas.review.check.sample import Sample
from genrank.schemas.schema import Schema
from genrank.schemas.source import EventLog
from genrank.schemas.type_rules import split


def join_findings(schema: Schema, samples: dict[str, Sample]) -> Iterator[Finding]:
    """Keys that find no partner in a snapshot that some feature joins."""
    for name, snapshot in snapshots(schema).items():
        if name not in samples or snapshot.key not in samples[name].rows.column_names or not samples[name].whole:
            continue
        known = pc.unique(samples[name].rows.column(snapshot.key).drop_null())
        for source in schema.sources:
            joins = (
                isinstance(source, EventLog) and source.name in samples and _reads_through(schema, source.name, name)
            )
            if not joins or snapshot.key not in samples[source.name].rows.column_names:
                continue
            keys = samples[source.name].rows.column(snapshot.key).drop_null()
            if not len(keys) or keys.type != known.type:
                continue
            missed = 1 - pc.sum(pc.is_in(keys, value_set=known)).as_py() / len(keys)
            where = f"{source.name}.{snapshot.key}"
            missing = f"{share(missed)} of {samples[source.name].day} find no row in {name} of {samples[name].day}"
            if missed == 1:
                yield Finding("error", where, f"{missing}: the keys never meet")
            elif missed > 0.05:
                yield Finding("warning", where, f"{missing}: their attributes are missing")


def _reads_through(schema: Schema, log: str, snapshot: str) -> bool:
    for group, features in schema.groups():
        for name, own in rows(schema, group):
            if name == log:
                for feature in features:
                    if any(r in own and split(r)[0] == snapshot for r in feature.references()):
                        return True
    keys = {key for feature in schema.candidates.features for key in feature.exposure_keys}
    return any(split(key)[0] == snapshot for key in keys) and log == schema.candidates.source


def feature_findings(schema: Schema, samples: dict[str, Sample]) -> Iterator[Finding]:
    """Each feature against the values of the column it reads."""
    for group, features in schema.groups():
        for feature in features:
            for source, column in _cells(schema, group, feature.column_reference):
                sample = samples.get(source)
                if sample and column in sample.rows.column_names:
                    values = ColumnValues(f"{group}.{feature.name}", f"{source}.{column}", sample.rows.column(column))
                    if len(values.present):
                        yield from feature.findings(values)


def _cells(schema: Schema, group: str, reference: str | None) -> list[tuple[str, str]]:
    """(source, column) where the values of a reference lie."""
    if reference is None:
        return []
    snapshot, column = split(reference)
    found = [(snapshot or name, column) for name, own in rows(schema, group) if reference in own]
    return list(dict.fromkeys(found))


def label_findings(schema: Schema, samples: dict[str, Sample]) -> Iterator[Finding]:
    """Labels that are all alike, or whose events match few exposures."""
    exposures = samples.get(schema.candidates.source)
    if exposures is None:
        return
    for label in schema.labels:
        where = f"label {label.name}"
        if label.column and label.kind == "binary" and label.column in exposures.rows.column_names:
            values = pc.cast(present_values(exposures.rows.column(label.column)), pa.float64())
            positives = pc.sum(pc.not_equal(values, 0)).as_py() or 0
            if positives in (0, len(values)):
                yield Finding(
                    "error",
                    where,
                    f"all {len(values):,} values of {label.column} are {'non-zero' if positives else 'zero'}: nothing to learn",
                )
        events = samples.get(label.source or "")
        if events and exposures.whole and events.day == exposures.day:
            on = [c for c in label.on if c in exposures.rows.column_names and c in events.rows.column_names]
            theirs, ours = events.rows.select(on), exposures.rows.select(on)
            if len(on) == len(label.on) and theirs.schema.types == ours.schema.types and theirs.num_rows:
                met = theirs.join(ours, on, join_type="left semi").num_rows / theirs.num_rows
                if met < 0.05:
                    yield Finding(
                        "warning",
                        where,
                        f"{share(met)} of {label.source} of {events.day} match an exposure of that day on {', '.join(on)}",
                    )
