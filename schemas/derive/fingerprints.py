"""What of a declaration matters, and to whom: three fingerprints.

| fingerprint | over | equal means |
|---|---|---|
| `fingerprint` | everything with meaning | the same schema, whatever its order, descriptions or owners |
| `samples_fingerprint` | what decides the stored samples | samples of one are samples of the other |
| `model_fingerprint` | what decides the parameters' shapes and meaning | a checkpoint of one loads into the other whole |

Vocabularies, buckets, pooling and dims are applied when samples are read, so they are the model's; paths say where rows lie, not
what they mean, so they are nobody's but the whole's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from genrank.schemas import expression
from genrank.schemas.derive import columns
from genrank.schemas.derive.columns import families, snapshots
from genrank.schemas.derive.sample_schema import stored_as
from genrank.schemas.derive.tables import event_names, logical_tables, table_name, transform_of
from genrank.schemas.features import CrossFeature, Feature, HashedCross, MultiValued, Sql, TimeGap, TimePart
from genrank.schemas.group import CANDIDATES, USER, Events, EventSequence
from genrank.schemas.label import Label
from genrank.schemas.source import EventLog, Snapshot
from genrank.schemas.vocabularies import Dynamic

if TYPE_CHECKING:
    from genrank.schemas.schema import Schema

Meaning = dict[str, Any]
"""Part -> plain data (JSON) that says what it means."""


def digest(value: object) -> str:
    """16 hex digits of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------- the whole

_WITHOUT_MEANING = {"description", "owner"}
_UNORDERED = {"sources", "features", "labels", "valid", "dedup", "post_exposure", "on", "keys"}


def whole_meaning(schema: Schema) -> Meaning:
    """Everything with meaning. Histories keep their order, which is the order of their tokens; the realtime sequence is last
    wherever it is declared."""
    data: Meaning = schema.model_dump(mode="json")
    data["sequences"] = sorted(data["sequences"], key=lambda sequence: sequence["scope"] == "realtime")
    return dict(_canonical(data))


def _canonical(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _canonical(v, k) for k, v in sorted(value.items()) if k not in _WITHOUT_MEANING}
    if isinstance(value, list):
        items = [_canonical(v) for v in value]
        return sorted(items, key=lambda v: json.dumps(v, sort_keys=True)) if key in _UNORDERED else items
    return value + 0.0 if isinstance(value, float) else value  # -0.0 is 0.0


# ---------------------------------------------------------------------- the samples


def samples_meaning(schema: Schema) -> Meaning:
    """What decides each stored column, by its path (`candidates.price`), and which rows there are (`candidates`, `history`).

    A leaf's meaning includes that of every source it reads: which rows count, and which physical columns are read. Samples of a
    schema serve any other whose parts are among theirs with equal meaning.
    """
    exposures, candidates = schema.exposures, schema.candidates
    parts: Meaning = {
        "days": {"utc_offset": schema.utc_offset},
        CANDIDATES: {
            "source": _rows(exposures),
            "item": _column(exposures, candidates.item),
            "request": _column(exposures, candidates.request) if candidates.request else None,
            "max_candidates": candidates.max_candidates,
            "negative_keep_rate": candidates.negative_keep_rate,
            "keep_correction": candidates.keep_correction and candidates.negative_keep_rate < 1,
            # Down-sampling keeps every positive of every label.
            "positives": _labels(schema) if candidates.negative_keep_rate < 1 else None,
        },
    }
    for sequence in schema.sequences:
        parts[sequence.name] = {
            "scope": sequence.scope,
            "events": [_event(schema, event) for event in sequence.events],
            "max_length": sequence.max_length,
            "lookback": sequence.lookback if sequence.scope == "history" else None,
        }
    for group, features in schema.groups():
        for feature in features:
            if stored := stored_as(feature):
                parts[f"{group}.{feature.name}"] = {"stored": stored, **_read(schema, group, feature)}
    return parts | _labels(schema)


def _labels(schema: Schema) -> Meaning:
    by_name = {label.name: label for label in schema.labels}
    parts: Meaning = {}
    for label in schema.labels:
        parts[f"labels.{label.name}"] = _label(schema, label, by_name)
        if label.oracle:
            parts[f"labels.{label.name}_oracle"] = _column(schema.exposures, label.oracle)
    return parts


def _label(schema: Schema, label: Label, by_name: dict[str, Label]) -> Meaning:
    # A conditional label is positive only where the one it is given is.
    own: Meaning = {"kind": label.kind, "given": _label(schema, by_name[label.given], by_name) if label.given else None}
    if label.column:
        return own | {"column": _column(schema.exposures, label.column)}
    log = schema.event_log(label.source or "")
    return own | {
        "source": _rows(log),
        "on": sorted([column, *_column(schema.exposures, column), *_column(log, column)] for column in label.on),
        "where": _sql(schema, log, label.where),
        "value": _references(schema, log, [label.value]) if label.value else None,
        "window": label.window,
        "attribution": label.attribution,
    }


def _read(schema: Schema, group: str, feature: Feature) -> Meaning:
    """What a stored feature reads."""
    if isinstance(feature, CrossFeature):
        logs = [schema.event_log(name) for name in (feature.source, feature.per) if name]
        return {
            "op": feature.op,
            "logs": [_rows(log) for log in logs],
            "keys": sorted(
                [key, *(_references(schema, log, [key]) for log in (schema.exposures, *logs))] for key in feature.keys
            ),
            "window": feature.window,
            "value": _references(schema, logs[0], [feature.value]) if feature.value else None,
            "where": _sql(schema, logs[0], feature.where),
            "prior": feature.prior,
            "strength": feature.strength,
            "as_of": feature.as_of if group == CANDIDATES else "window_start",
        }
    read: Meaning = {"max_values": feature.max_values} if isinstance(feature, MultiValued) else {}
    if isinstance(feature, Sql):
        read["expression"] = feature.expression
    sources = []
    for name, offered in columns.rows(schema, group):
        references = [reference for reference in columns.reads(feature) if reference in offered]
        sources.append(_references(schema, schema.source(name), references))
    return read | {"sources": sources}


def _event(schema: Schema, event: Any) -> Meaning:
    if isinstance(event, Events):
        log = schema.event_log(event.source)
        return {"rows": _rows(log), "where": _sql(schema, log, event.where)}
    snapshot = schema.source(event.source)
    return {"changes": _rows(snapshot), "column": _column(snapshot, event.column)}


def _rows(source: EventLog | Snapshot) -> Meaning:
    """Which rows of a source there are, who they are of, and when they are visible."""
    own: Meaning = {"name": source.name, "valid": sorted(source.valid)}
    read = {reference for condition in source.valid for reference in expression.columns(condition)}
    if isinstance(source, Snapshot):
        own |= {"key": _column(source, source.key), "max_age": source.max_age}
    else:
        times = [source.time, *([source.arrival] if source.arrival else [])]
        # Without `dedup`, rows are one event if they agree on every declared column.
        read |= set(source.dedup or source.columns)
        own |= {
            "user": _column(source, source.user),
            "times": [_column(source, column) for column in times],
            "time_unit": None if all(source.columns[c] == "timestamp" for c in times) else source.time_unit,
            "delay": source.delay,
            "lateness": source.lateness,
            "dedup": sorted(source.dedup),
        }
    return own | {"columns": sorted([column, *_column(source, column)] for column in read)}


def _column(source: EventLog | Snapshot, column: str) -> list[str]:
    """[physical name, type up to its width]."""
    return [source.physical(column), *families([source.columns[column]])]


def _references(schema: Schema, source: EventLog | Snapshot, references: Iterable[str | None]) -> list[Any]:
    """What references mean when read from a row of `source`."""
    found: list[Any] = []
    for reference in references:
        assert reference is not None
        snapshot, column = columns.split(reference)
        owner = snapshots(schema).get(snapshot or "", source)
        joined = owner.name != source.name and isinstance(owner, Snapshot)
        by = (
            _column(source, owner.key)
            if joined and isinstance(owner, Snapshot) and owner.key in source.columns
            else None
        )
        found.append([_column(owner, column), _rows(owner) if joined else owner.name, by])
    return found


def _sql(schema: Schema, source: EventLog | Snapshot, text: str | None) -> list[Any] | None:
    return [text, _references(schema, source, expression.columns(text))] if text else None


# ---------------------------------------------------------------------- the model


def model_meaning(schema: Schema) -> Meaning:
    """What decides each parameter: logical tables by name (`table items`), inputs (`candidates.price`), token groups, heads.

    Left out, because they change no shape and no meaning of a stored weight: initialisers, learning rates, admission and
    eviction, loss weights.
    """
    parts: Meaning = {"groups": [group for group, _ in schema.groups()]}
    for table in logical_tables(schema):
        vocabulary = table.vocabulary.model_dump(mode="json")
        if isinstance(table.vocabulary, Dynamic):
            vocabulary = {"kind": "dynamic", "capacity": table.vocabulary.capacity}
        parts[f"table {table.name}"] = {"dim": table.dim, "vocabulary": vocabulary, "optimizer": table.optimizer.kind}
    for group, features in schema.groups():
        for feature in features:
            parts[f"{group}.{feature.name}"] = _input(group, feature)
    parts[USER] = {"tokens": schema.user.tokens if schema.user.features else None}
    for sequence in schema.sequences:
        parts[sequence.name] = _layout(sequence)
    for label in schema.labels:
        parts[f"labels.{label.name}"] = {"kind": label.kind, "given": label.given}
    return parts


def _layout(sequence: EventSequence) -> Meaning:
    return {
        "scope": sequence.scope,
        "types": event_names(sequence),
        "interleave": sequence.interleave,
        "max_length": sequence.max_length,
    }


def _input(group: str, feature: Feature) -> Meaning:
    """How a feature's value becomes numbers of its token."""
    transform: BaseModel | None = transform_of(feature)
    own: Meaning = {
        "table": table_name(group, feature),
        "transform": _canonical(transform.model_dump(mode="json")) if transform else None,
    }
    if isinstance(feature, MultiValued):
        own["pooling"] = feature.pooling
    if isinstance(feature, TimePart):
        own["part"] = feature.part
    if isinstance(feature, TimeGap) and feature.column is None:
        own["gap"] = "previous"
    if isinstance(feature, HashedCross):
        own["of"] = feature.of
    return own
