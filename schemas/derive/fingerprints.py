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

import json
from typing import Any

from genrank.schemas.base import CANDIDATES, USER
from genrank.schemas.declaration import SchemaDeclaration
from genrank.schemas.derive.columns import SchemaScope
from genrank.schemas.derive.tables import event_names, logical_tables, table_name
from genrank.schemas.features import Feature
from genrank.schemas.group import ChangePoints, Events, EventSequence, TokenGroup
from genrank.schemas.label import Label
from genrank.schemas.source_meaning import Meaning, column_meaning, references_meaning, rows_meaning, sql_meaning

# ---------------------------------------------------------------------- the whole

_WITHOUT_MEANING = {"description", "owner", "drift"}
_LATER = {"token_groups", "half_life", "reduce", "value_transform"}
"""Fields that earlier releases didn't have: without a value they mean what they meant then."""
_UNORDERED = {"sources", "features", "labels", "valid", "dedup", "post_exposure", "on", "keys"}


def whole_meaning(schema: SchemaDeclaration) -> Meaning:
    """Everything with meaning.

    Histories keep their order, which is the order of their tokens; the realtime sequence is last wherever it is declared.
    """
    data: Meaning = schema.model_dump(mode="json")
    data["sequences"] = sorted(data["sequences"], key=lambda sequence: sequence["scope"] == "realtime")
    return dict(_canonical(data))


def _canonical(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {
            k: _canonical(v, k)
            for k, v in sorted(value.items())
            if k not in _WITHOUT_MEANING and not (k in _LATER and not v)
        }
    if isinstance(value, list):
        items = [_canonical(v) for v in value]
        return sorted(items, key=lambda v: json.dumps(v, sort_keys=True)) if key in _UNORDERED else items
    return value + 0.0 if isinstance(value, float) else value  # -0.0 is 0.0


# ---------------------------------------------------------------------- the samples


def samples_meaning(schema: SchemaDeclaration) -> Meaning:
    """What decides each stored column, by its path (`candidates.price`), and which rows there are (`candidates`, `history`).

    A leaf's meaning includes that of every source it reads: which rows count, and which physical columns are read. Samples of a
    schema serve any other whose parts are among theirs with equal meaning.
    """
    exposures, candidates, scope = schema.exposures, schema.candidates, SchemaScope(schema)
    parts: Meaning = {
        "days": {"utc_offset": schema.utc_offset},
        CANDIDATES: {
            "source": rows_meaning(exposures),
            "item": column_meaning(exposures, candidates.item),
            "request": column_meaning(exposures, candidates.request) if candidates.request else None,
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
            "events": [_event(scope, event) for event in sequence.events],
            "max_length": sequence.max_length,
            "lookback": sequence.lookback if sequence.scope == "history" else None,
        }
    for group, features in schema.groups():
        for feature in features:
            if stored := feature.stored:
                parts[f"{group}.{feature.name}"] = {"stored": stored, **feature.samples_meaning(group, scope)}
    return parts | _labels(schema)


def _labels(schema: SchemaDeclaration) -> Meaning:
    by_name = {label.name: label for label in schema.labels}
    parts: Meaning = {}
    for label in schema.labels:
        parts[f"labels.{label.name}"] = _label(schema, label, by_name)
        if label.oracle:
            parts[f"labels.{label.name}_oracle"] = column_meaning(schema.exposures, label.oracle)
    return parts


def _label(schema: SchemaDeclaration, label: Label, by_name: dict[str, Label]) -> Meaning:
    # A conditional label is positive only where the one it is given is.
    own: Meaning = {"kind": label.kind, "given": _label(schema, by_name[label.given], by_name) if label.given else None}
    if label.column:
        return own | {"column": column_meaning(schema.exposures, label.column)}
    log, snapshots = schema.event_log(label.source or ""), SchemaScope(schema).snapshots
    return own | {
        "source": rows_meaning(log),
        "on": sorted(
            [column, *column_meaning(schema.exposures, column), *column_meaning(log, column)] for column in label.on
        ),
        "where": sql_meaning(snapshots, log, label.where),
        "value": references_meaning(snapshots, log, [label.value]) if label.value else None,
        "window": label.window,
        "attribution": label.attribution,
    }


def _event(scope: SchemaScope, event: Events | ChangePoints) -> Meaning:
    if isinstance(event, Events):
        log = scope.event_logs[event.source]
        return {"rows": rows_meaning(log), "where": sql_meaning(scope.snapshots, log, event.where)}
    snapshot = scope.snapshots[event.source]
    return {"changes": rows_meaning(snapshot), "column": column_meaning(snapshot, event.column)}


# ---------------------------------------------------------------------- the model


def model_meaning(schema: SchemaDeclaration) -> Meaning:
    """What decides each parameter: logical tables by name (`table items`), inputs (`candidates.price`), token groups, heads.

    Left out, because they change no shape and no meaning of a stored weight: initialisers, learning rates, admission and
    eviction, loss weights.
    """
    parts: Meaning = {"groups": [group for group, _ in schema.groups()]}
    for table in logical_tables(schema):
        vocabulary = table.vocabulary.model_meaning()
        parts[f"table {table.name}"] = {"dim": table.dim, "vocabulary": vocabulary, "optimizer": table.optimizer.kind}
    for group, features in schema.groups():
        for feature in features:
            parts[f"{group}.{feature.name}"] = _input(group, feature)
    parts[USER] = {"tokens": schema.user.tokens if schema.user.features else None, **_tokens(schema.user.token_groups)}
    if schema.candidates.token_groups:
        parts[CANDIDATES] = _tokens(schema.candidates.token_groups)
    for sequence in schema.sequences:
        parts[sequence.name] = _layout(sequence)
    for label in schema.labels:
        transform = {"value_transform": label.value_transform} if label.value_transform else {}
        parts[f"labels.{label.name}"] = {"kind": label.kind, "given": label.given, **transform}
    return parts


def _tokens(groups: tuple[TokenGroup, ...]) -> Meaning:
    return {"token_groups": [sorted(group.features) for group in groups]} if groups else {}


def _layout(sequence: EventSequence) -> Meaning:
    return {
        "scope": sequence.scope,
        "types": event_names(sequence),
        "interleave": sequence.interleave,
        "max_length": sequence.max_length,
    }


def _input(group: str, feature: Feature) -> Meaning:
    """How a feature's value becomes numbers of its token."""
    transform = feature.number_transform
    return {
        "table": table_name(group, feature),
        "transform": _canonical(transform.model_dump(mode="json")) if transform else None,
        **feature.model_meaning(),
    }
