"""Every mistake of a declaration at once, each in one line: where it is, what is wrong, and the remedy.

`Schema` runs this when it is made, so a schema that exists can be built. What is merely unwise is `lint.py`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from string import Formatter
from typing import TYPE_CHECKING

from schemas import columns, expression
from schemas.base import DAY_MS, ColumnType, parse_duration
from schemas.columns import Types, event_logs, families, hidden_from_candidates, joined, offered, rows, snapshots
from schemas.expression import nearest
from schemas.feature import (
    AutoDis,
    Categorical,
    Crossed,
    CrossFeature,
    Dense,
    Feature,
    FixedBuckets,
    MultiValued,
    Numeric,
    Sql,
    TimeGap,
    TimePart,
)
from schemas.group import CANDIDATES, USER, Changes, Events
from schemas.label import Label
from schemas.source import EventLog
from schemas.table import Table
from schemas.tables import event_names, transform_of
from schemas.vocabulary import Dynamic, Enumerated, Identity, Vocabulary

if TYPE_CHECKING:
    from schemas.schema import Schema

LONGEST_WINDOW_MS = 90 * DAY_MS
"""How far back the events of cross features are kept."""

SAMPLE_COLUMNS = ("sample_id", "user_id", "window_start", "window_end", USER, CANDIDATES, "labels", "mask", "dt")
"""Top-level names of a sample: no sequence may take them."""

NUMBERS: tuple[ColumnType, ...] = ("bool", "int32", "int64", "float32", "float64")
IDS: tuple[ColumnType, ...] = ("bool", "int32", "int64", "string")
ID_LISTS: tuple[ColumnType, ...] = ("list<int64>", "list<string>")
TIMES: tuple[ColumnType, ...] = ("timestamp", "int64")


def mistakes(schema: Schema) -> list[str]:
    """Every mistake, in the order of declaration; empty for a schema that can be built."""
    found = [
        *_names(schema),
        *_sources(schema),
        *_candidates(schema),
        *_sequences(schema),
        *_features(schema),
        *_tables(schema),
        *_labels(schema),
        *_training(schema),
    ]
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------------- names


def _names(schema: Schema) -> Iterator[str]:
    for what, names in (
        ("sources", [source.name for source in schema.sources]),
        ("sequences", [sequence.name for sequence in schema.sequences]),
        ("labels", [label.name for label in schema.labels]),
    ):
        for name in _twice(names):
            yield f"{name}: two {what} have this name; rename one"
    for group, features in schema.groups():
        reserved = _reserved(schema, group)
        for name in _twice(feature.name for feature in features):
            yield f"{group}.{name}: two features of the group have this name; rename one (its `column` may stay)"
        for feature in features:
            if feature.name in reserved:
                yield (
                    f"{group}.{feature.name}: the sample keeps a column {feature.name!r} of its own in {group}; give the feature "
                    f'another name and column="{feature.name}"'
                )
    for sequence in schema.sequences:
        if sequence.name in SAMPLE_COLUMNS:
            yield f"sequence {sequence.name}: samples have a column of that name; call it history or realtime"
    leaves = {label.name for label in schema.labels}
    for label in schema.labels:
        for leaf in (f"{label.name}_weight", *([f"{label.name}_oracle"] if label.oracle else [])):
            if leaf in leaves:
                yield f"label {leaf}: samples keep {leaf!r} beside label {label.name!r}; rename it"


def _reserved(schema: Schema, group: str) -> tuple[str, ...]:
    if group == CANDIDATES:
        return ("ts", "request", "item")
    return () if group == USER else ("ts", "type", "available")


# ---------------------------------------------------------------------- sources


def _sources(schema: Schema) -> Iterator[str]:
    for source in schema.sources:
        at, known = source.name, source.columns
        if source.path and source.catalog:
            yield f"{at}: both path and catalog are given; keep the one that is read"
        if not source.path and not source.catalog:
            yield f'{at}: neither path nor catalog is given; write path="{at}/dt={{dt}}" or catalog="db.{at}"'
        if source.path:
            yield from _path(at, source.path)
        if not known:
            yield f"{at}: no columns; declare those genrank reads, with their types"
            continue
        for column in source.rename:
            if column not in known:
                yield f"{at}: rename of unknown column {column!r}{nearest(column, known)}"
        physical = [source.physical(column) for column in known]
        for column in _twice(physical):
            both = [c for c in known if source.physical(c) == column]
            yield f"{at}: columns {_and(both)} are both read from {column!r}; drop one rename"
        for condition in source.valid:
            yield from _condition(f"{at}: valid", condition, known)
        if isinstance(source, EventLog):
            yield from _event_log(schema, source)
        elif source.key not in known:
            yield f"{at}: key {source.key!r} is not in columns{nearest(source.key, known)}"
        elif known[source.key] not in IDS:
            yield f"{at}: key {source.key!r} is of type {known[source.key]}; a key is of type int64, int32 or string"


def _path(at: str, path: str) -> Iterator[str]:
    try:
        fields = {name for _, name, _, _ in Formatter().parse(path) if name is not None}
    except ValueError as error:
        yield f"{at}: path {path!r} is not a template ({error}); write it with {{dt}} alone in braces"
        return
    if "dt" not in fields:
        yield f'{at}: path {path!r} has no {{dt}}; write "{path.rstrip("/")}/dt={{dt}}": a day is read from its own directory'
    for name in sorted(fields - {"dt"}):
        yield f"{at}: path {path!r} has an unknown placeholder {{{name}}}; only {{dt}} is filled in"


def _event_log(schema: Schema, log: EventLog) -> Iterator[str]:
    at, known = log.name, log.columns
    for role, column in (("user", log.user), ("time", log.time), ("arrival", log.arrival)):
        if column is not None and column not in known:
            yield f"{at}: {role} column {column!r} is not in columns{nearest(column, known)}"
        elif column is not None and role != "user" and known[column] not in (*TIMES, "int32"):
            yield (
                f"{at}: {role} column {column!r} is of type {known[column]}, not a time; declare it timestamp, or int64 and "
                "its time_unit"
            )
    for role, listed in (("dedup", log.dedup), ("post_exposure", log.post_exposure)):
        for column in listed:
            if column not in known:
                yield f"{at}: {role} column {column!r} is not in columns{nearest(column, known)}"
    if log.user in known:
        exposures = event_logs(schema).get(schema.candidates.source)
        user = known[log.user]
        if user not in IDS or user == "bool":
            yield f"{at}: user column {log.user!r} is of type {user}; a user id is of type int64, int32 or string"
        elif exposures and exposures.user in exposures.columns:
            asked = exposures.columns[exposures.user]
            if families([user]) != families([asked]):
                yield (
                    f"{at}: user column {log.user!r} is of type {user}, but {exposures.name}.{exposures.user} is {asked}: they "
                    "would never meet; declare one type"
                )


# ---------------------------------------------------------------------- candidates and sequences


def _candidates(schema: Schema) -> Iterator[str]:
    candidates, logs = schema.candidates, event_logs(schema)
    if candidates.source not in logs:
        yield f"candidates: source {_unknown_log(schema, candidates.source)}"
        return
    log = logs[candidates.source]
    hidden = hidden_from_candidates(schema)
    for role, column in (("item", candidates.item), ("request", candidates.request)):
        if column is None:
            continue
        if column not in log.columns:
            yield f"candidates: {role} column {column!r} is not in {log.name}{nearest(column, log.columns)}"
        elif log.columns[column] not in ("int32", "int64", "string"):
            yield f"candidates: {role} column {column!r} is of type {log.columns[column]}; an id is of type int64, int32 or string"
        elif column in hidden:
            yield f"candidates: {role} column {column!r} {hidden[column]}; candidates need one known when it was shown"
    if candidates.negative_keep_rate < 1 and not any(label.kind == "binary" for label in schema.labels):
        yield (
            f"candidates: negative_keep_rate {candidates.negative_keep_rate} without a binary label: nothing says what a "
            "negative is; set it to 1 or add a binary label"
        )


def _sequences(schema: Schema) -> Iterator[str]:
    realtime = [sequence.name for sequence in schema.sequences if sequence.scope == "realtime"]
    if len(realtime) > 1:
        yield f"sequences {_and(realtime)} are both of scope realtime; merge them: one sequence takes events of several sources"
    for sequence in schema.sequences:
        at = f"sequence {sequence.name}"
        for name in _twice(event_names(sequence)):
            yield f"{at}: two events are called {name!r}; tell them apart with name="
        for event in sequence.events:
            yield from _events(schema, at, event) if isinstance(event, Events) else _changes(schema, at, event)
        for name in sequence.interleave:
            names = [feature.name for feature in sequence.features]
            if name not in names:
                yield f"{at}: interleave {name!r} is not a feature of it{nearest(name, names)}"
        for name in _twice(sequence.interleave):
            yield f"{at}: interleave names {name!r} twice"
        if parse_duration(sequence.lookback) == 0:
            yield f'{at}: lookback is 0, so nothing is kept; write for example lookback="90d"'


def _events(schema: Schema, at: str, event: Events) -> Iterator[str]:
    log = event_logs(schema).get(event.source)
    if log is None:
        yield f"{at}: source {_unknown_log(schema, event.source)}"
    elif event.where is not None:
        yield from _condition(f"{at}: where of {event.name or event.source}", event.where, joined(schema, log.columns))


def _changes(schema: Schema, at: str, change: Changes) -> Iterator[str]:
    known, exposures = snapshots(schema), event_logs(schema).get(schema.candidates.source)
    if change.source in event_logs(schema):
        yield f"{at}: Changes of {change.source!r}, an event log; use Events(source={change.source!r}), or name a snapshot keyed by the user"
    elif change.source not in known:
        yield f"{at}: Changes of unknown source {change.source!r}{nearest(change.source, known)}"
    else:
        snapshot = known[change.source]
        if exposures and snapshot.key != exposures.user:
            yield (
                f"{at}: Changes of {change.source!r}, which is keyed by {snapshot.key!r}, not by the user ({exposures.user!r}); "
                "a user's sequence takes change points of the user's own attributes"
            )
        if change.column not in snapshot.columns:
            yield f"{at}: Changes column {change.column!r} is not in {change.source}{nearest(change.column, snapshot.columns)}"


# ---------------------------------------------------------------------- features


def _features(schema: Schema) -> Iterator[str]:
    for group, features in schema.groups():
        types = offered(schema, group)
        for feature in features:
            at = f"{group}.{feature.name}"
            if isinstance(feature, CrossFeature):
                yield from _cross_feature(schema, group, at, feature)
            elif isinstance(feature, Crossed):
                yield from _crossed(schema, group, at, feature)
            elif isinstance(feature, Sql):
                yield from _sql(schema, group, at, feature)
            elif isinstance(feature, TimeGap) and feature.column is None:
                if group == USER:
                    yield f"{at}: a time gap of the user needs column=: the user group has no previous event"
            elif not isinstance(feature, TimePart):
                yield from _column(schema, group, at, feature, types)
            yield from _encoding(at, feature)


def _column(schema: Schema, group: str, at: str, feature: Feature, types: Types) -> Iterator[str]:
    reference = columns.column_of(feature)
    assert reference is not None
    if reference not in types:
        yield f"{at}: {_unknown_column(schema, group, reference, types)}"
        return
    seen = [own[reference] for _, own in rows(schema, group) if reference in own]
    if len(families(seen)) > 1:
        each = [f"{own[reference]} in {source}" for source, own in rows(schema, group) if reference in own]
        yield f"{at}: column {reference!r} is {_and(each)}; a feature has one type: declare one, or read them as two features"
        return
    type_, vocabulary = types[reference], _vocabulary(feature)
    told = f"{at}: column {reference!r} is of type {type_}"
    if isinstance(feature, Categorical):
        if type_.startswith("list"):
            yield f"{told}; use MultiValued for a list of ids"
        elif type_ in ("float32", "float64"):
            yield f"{told}; use Numeric (with buckets, if a row per range is meant)"
        elif type_ == "timestamp":
            yield f"{told}; use TimeGap for a moment"
    elif isinstance(feature, MultiValued):
        if not type_.startswith("list"):
            yield f"{told}; use {'Categorical' if type_ in IDS else 'Numeric'} for a single value"
        elif type_ not in ID_LISTS:
            yield f"{told}; MultiValued pools ids: list<int64> or list<string>"
    elif isinstance(feature, Numeric):
        if type_ == "string":
            yield f"{told}; use Categorical for a string, or Sql with TRY_CAST for a number written as text"
        elif type_ == "timestamp":
            yield f"{told}; use TimeGap for a moment"
        elif type_ not in NUMBERS:
            yield f"{told}; use MultiValued for a list of ids, or Sql to take one number of it"
    elif isinstance(feature, TimeGap) and type_ not in TIMES:
        yield f"{told}; a time gap needs a moment: timestamp, or int64 in epoch ms"
    if vocabulary is not None and type_ in (*IDS, *ID_LISTS):
        yield from _fits_vocabulary(at, reference, vocabulary, text="string" in type_)


def _fits_vocabulary(at: str, what: str, vocabulary: Vocabulary, *, text: bool) -> Iterator[str]:
    if isinstance(vocabulary, Identity) and text:
        yield f"{at}: {what!r} holds strings, which Identity can't index; use Enumerated, Hashed or Dynamic"
    if isinstance(vocabulary, Enumerated) and isinstance(vocabulary.values[0], str) != text:
        wanted = "strings" if text else "integers"
        yield f"{at}: {what!r} holds {wanted}, but the vocabulary enumerates {'integers' if text else 'strings'}; write {wanted}"


def _crossed(schema: Schema, group: str, at: str, feature: Crossed) -> Iterator[str]:
    groups = dict(schema.groups())
    own = {f.name: f for f in groups[group]}
    users = {f"{USER}.{f.name}": f for f in groups[USER]} if group != USER else {}
    ids = {name: f for name, f in (own | users).items() if _is_id(f) and name != feature.name}
    for name in feature.of:
        if name == feature.name:
            yield f"{at}: a crossed feature can't be made of itself"
        elif name in ids:
            continue
        elif name in own or name in users:
            kind = type((own | users)[name]).__name__
            yield f"{at}: {name!r} is {_a(kind)} feature; only ids cross: Categorical, or Sql with a vocabulary"
        else:
            yield f"{at}: of names unknown feature {name!r}{nearest(name, ids)}"
    for name in _twice(feature.of):
        yield f"{at}: of names {name!r} twice"
    if feature.table and isinstance(feature.table.vocabulary, Identity | Enumerated):
        yield f"{at}: crossed ids are hashes; the vocabulary of table {feature.table.name!r} must be Hashed or Dynamic"


def _is_id(feature: Feature) -> bool:
    embedded = (
        isinstance(feature, Sql) and bool(feature.table or feature.vocabulary) and not feature.type.startswith("list")
    )
    return isinstance(feature, Categorical) or embedded


def _sql(schema: Schema, group: str, at: str, feature: Sql) -> Iterator[str]:
    embedded = feature.table or feature.vocabulary
    if feature.type in ("timestamp", "list<float32>"):
        yield f"{at}: a feature can't be of type {feature.type}; declare an id, a list of ids or a number"
    elif not embedded and feature.type not in NUMBERS:
        yield f"{at}: type {feature.type} needs a table, or vocabulary and dim; without them a SQL feature is a number"
    elif embedded and feature.type in ("float32", "float64"):
        yield f"{at}: type {feature.type} with a vocabulary; declare int64 or string for an id, or drop the vocabulary for a number"
    vocabulary = _vocabulary(feature)
    if vocabulary is not None:
        yield from _fits_vocabulary(at, feature.expression, vocabulary, text="string" in feature.type)
    try:
        parsed = expression.parse(feature.expression)
    except ValueError as error:
        yield f"{at}: {error}"
        return
    types = offered(schema, group)
    unknown = [reference for reference in parsed.columns if reference not in types]
    for reference in unknown:
        yield f"{at}: {_unknown_column(schema, group, reference, types)}"
    if unknown:
        return
    whole = [own for _, own in rows(schema, group) if all(reference in own for reference in parsed.columns)]
    if not whole:
        yield f"{at}: no single source of the sequence has all of {_and(parsed.columns)}; write one feature per source"
    for own in whole:
        try:
            kind = parsed.kind(own)
        except ValueError as error:
            yield f"{at}: {error}"
            return
        if not expression.fits(kind, feature.type):
            yield f"{at}: the expression gives {kind}, not {feature.type}; declare that type, or CAST"
            return


def _cross_feature(schema: Schema, group: str, at: str, feature: CrossFeature) -> Iterator[str]:
    if group not in (USER, CANDIDATES):
        yield f"{at}: a cross feature is a statistic as of an exposure (or of the window's start, for the user); declare it under candidates"
        return
    logs = event_logs(schema)
    window = parse_duration(feature.window)
    if window > LONGEST_WINDOW_MS:
        yield f"{at}: window {feature.window} is longer than the 90d of events that are kept; shorten it"
    if window == 0:
        yield f'{at}: window is 0, so no event is counted; write for example window="7d"'
    if feature.per is not None and feature.op != "rate":
        yield f"{at}: {feature.op} takes no `per`; drop it, or use op='rate'"
    for name in dict.fromkeys((feature.source, *([feature.per] if feature.per and feature.op == "rate" else []))):
        if name not in logs:
            yield f"{at}: source {_unknown_log(schema, name)}"
            continue
        yield from _keys(schema, group, at, feature, logs[name])
    for name in _twice(feature.keys):
        yield f"{at}: keys name {name!r} twice"
    if feature.source in logs:
        log = logs[feature.source]
        yield from _value(at, feature, log, joined(schema, log.columns))
        if feature.where is not None:
            yield from _condition(f"{at}: where", feature.where, joined(schema, log.columns))
    if feature.op == "rate":
        if feature.per is None and feature.where is None:
            yield f"{at}: a rate needs `where` (which events count) or `per` (the log of all trials); without both it is always 1"
        if feature.prior > 1:
            yield f"{at}: prior {feature.prior} is no rate; give one from 0 to 1"
    elif feature.prior or feature.strength:
        yield f"{at}: prior and strength smooth a rate; {feature.op} takes none"
    if feature.table and feature.op != "last":
        yield f"{at}: {feature.op} is a number and takes no table; bucket it with transform=QuantileBuckets(...)"
    if feature.table and feature.transform:
        yield f"{at}: both table and transform are given; a table for an id, a transform for a number"


def _keys(schema: Schema, group: str, at: str, feature: CrossFeature, log: EventLog) -> Iterator[str]:
    exposures = event_logs(schema).get(schema.candidates.source)
    if exposures is None:
        return
    ours = offered(schema, group)
    theirs = joined(schema, log.columns)
    for key in feature.keys:
        if key not in ours:
            yield f"{at}: key {_unknown_column(schema, group, key, ours)}"
        elif key not in theirs:
            snapshot, _ = columns.split(key)
            through = f" (nor {snapshots(schema)[snapshot].key!r}, the key of {snapshot})" if snapshot else ""
            yield f"{at}: events of {log.name} have no column {key!r}{through}; add it to the source, or drop the key"
        elif ours[key] not in IDS:
            yield f"{at}: key {key!r} is of type {ours[key]}; a key is of type int64, int32, bool or string"
        elif families([ours[key]]) != families([theirs[key]]):
            yield f"{at}: key {key!r} is {ours[key]} in {exposures.name} but {theirs[key]} in {log.name}: they would never meet"


def _value(at: str, feature: CrossFeature, log: EventLog, types: Types) -> Iterator[str]:
    needs = feature.op in ("sum", "mean", "last", "distinct")
    if needs and feature.value is None:
        yield f"{at}: {feature.op} needs value=, a column of {log.name}"
    elif feature.value is not None and not needs:
        yield f"{at}: {feature.op} takes no value; drop it, or use sum, mean, last or distinct"
    elif feature.value is not None and feature.value not in types:
        yield f"{at}: value {feature.value!r} is not a column of {log.name}{nearest(feature.value, types)}"
    elif feature.value is not None:
        type_ = types[feature.value]
        allowed = {
            "sum": NUMBERS,
            "mean": NUMBERS,
            "distinct": (*NUMBERS, "string"),
            "last": IDS if feature.table else NUMBERS,
        }
        if type_ not in allowed[feature.op]:
            remedy = "; give it a table to keep it as an id" if (feature.op, type_) == ("last", "string") else ""
            yield f"{at}: {feature.op} of {feature.value!r}, which is of type {type_}{remedy}"
        elif feature.table:
            yield from _fits_vocabulary(at, feature.value, feature.table.vocabulary, text=type_ == "string")


def _encoding(at: str, feature: Feature) -> Iterator[str]:
    if isinstance(feature, Categorical | MultiValued | Crossed | Sql):
        own = [name for name in ("vocabulary", "dim") if getattr(feature, name) is not None]
        if feature.table and own:
            yield f"{at}: both table and {' and '.join(own)} are given; keep the table, or its own vocabulary and dim"
        elif not feature.table and len(own) == 1:
            yield f"{at}: {own[0]} without {'dim' if own == ['vocabulary'] else 'vocabulary'}; give both, or a table"
        elif not feature.table and not own and not isinstance(feature, Sql):
            yield f"{at}: no table; give table=, or vocabulary= and dim= for one of its own"
        if isinstance(feature, Sql) and feature.transform and (feature.table or feature.vocabulary):
            yield f"{at}: both a vocabulary and a transform are given; a vocabulary for an id, a transform for a number"
    transform = transform_of(feature)
    if isinstance(transform, FixedBuckets) and any(a >= b for a, b in pairwise(transform.boundaries)):
        yield f"{at}: boundaries {list(transform.boundaries)} don't increase; sort them and drop repeats"
    if isinstance(transform, Dense) and transform.scale == 0:
        yield f"{at}: scale 0 makes every value 0; give 1 / standard deviation"
    if isinstance(transform, AutoDis) and transform.buckets > 1024:
        yield f"{at}: AutoDis computes a softmax over all {transform.buckets} buckets for every value; use QuantileBuckets, or fewer"
    vocabulary = _vocabulary(feature)
    if isinstance(vocabulary, Enumerated):
        for value in _twice(vocabulary.values):
            yield f"{at}: the vocabulary enumerates {value!r} twice"
    if isinstance(vocabulary, Dynamic) and vocabulary.max_age and parse_duration(vocabulary.max_age) == 0:
        yield f"{at}: max_age 0 evicts every id at once; leave it out to evict only when the table is full"


def _vocabulary(feature: Feature) -> Vocabulary | None:
    table = _table(feature)
    return table.vocabulary if table else getattr(feature, "vocabulary", None)


def _table(feature: Feature) -> Table | None:
    return getattr(feature, "table", None)


# ---------------------------------------------------------------------- tables


def _tables(schema: Schema) -> Iterator[str]:
    users: dict[str, list[tuple[str, Feature, Table]]] = {}
    for group, features in schema.groups():
        for feature in features:
            if table := _table(feature):
                users.setdefault(table.name, []).append((group, feature, table))
    for name, found in users.items():
        first_group, first, table = found[0]
        for group, feature, other in found[1:]:
            for field in ("dim", "vocabulary", "initializer", "optimizer"):
                mine, theirs = getattr(table, field), getattr(other, field)
                if mine != theirs:
                    yield (
                        f"table {name}: {first_group}.{first.name} gives it {field} {_short(mine)}, {group}.{feature.name} "
                        f"{_short(theirs)}; share one Table object, or name two tables"
                    )
        spaces: dict[str, str] = {}
        for group, feature, _ in found:
            if space := _id_space(schema, group, feature):
                spaces.setdefault(space, f"{group}.{feature.name}")
        if len(spaces) > 1:
            told = [f"{space} of {user}" for space, user in spaces.items()]
            yield f"table {name}: it would mix {_and(told)}: equal ids that mean different things; name two tables"


def _id_space(schema: Schema, group: str, feature: Feature) -> str | None:
    """What kind of id a feature looks up with; None where a mistake is told elsewhere."""
    if isinstance(feature, Crossed):
        return "crossed ids"
    type_: str | None
    if isinstance(feature, CrossFeature):
        log = event_logs(schema).get(feature.source)
        type_ = joined(schema, log.columns).get(feature.value or "") if log else None
    elif isinstance(feature, Sql):
        type_ = feature.type
    else:
        type_ = offered(schema, group).get(columns.column_of(feature) or "")
    if type_ not in (*IDS, *ID_LISTS):
        return None
    return "strings" if "string" in str(type_) else "integers"


# ---------------------------------------------------------------------- labels and training


def _labels(schema: Schema) -> Iterator[str]:
    labels = {label.name: label for label in schema.labels}
    exposures = event_logs(schema).get(schema.candidates.source)
    for label in schema.labels:
        at = f"label {label.name}"
        if label.column and label.source:
            yield f"{at}: both column and source are given; a column of the exposure, or events of another log"
        elif not label.column and not label.source:
            yield f"{at}: neither column nor source; name a column of the exposures, or the event log that answers them"
        elif label.column and exposures:
            yield from _column_label(at, label, exposures)
        elif label.source and exposures:
            yield from _event_label(schema, at, label, exposures)
        if label.oracle and exposures:
            if label.oracle not in exposures.columns:
                yield f"{at}: oracle {label.oracle!r} is not in {exposures.name}{nearest(label.oracle, exposures.columns)}"
            elif exposures.columns[label.oracle] not in ("float32", "float64"):
                yield f"{at}: oracle {label.oracle!r} is of type {exposures.columns[label.oracle]}; a probability is a float"
        yield from _given(at, label, labels)


def _column_label(at: str, label: Label, exposures: EventLog) -> Iterator[str]:
    column = label.column or ""
    if column not in exposures.columns:
        yield f"{at}: column {column!r} is not in {exposures.name}{nearest(column, exposures.columns)}"
    elif exposures.columns[column] not in NUMBERS:
        yield f"{at}: column {column!r} is of type {exposures.columns[column]}; a label is a number or a bool"
    for field in ("where", "value"):
        if getattr(label, field) is not None:
            yield f"{at}: {field} reads events of a source; with column= drop it"
    if label.attribution != "every":
        yield f"{at}: attribution chooses among exposures of one event; with column= drop it"


def _event_label(schema: Schema, at: str, label: Label, exposures: EventLog) -> Iterator[str]:
    source = label.source or ""
    log = event_logs(schema).get(source)
    if log is None:
        yield f"{at}: source {_unknown_log(schema, source)}"
        return
    if source == exposures.name:
        yield f"{at}: source is the exposures themselves; use column= for what an exposure says of its own outcome"
    if parse_duration(label.window) == 0:
        yield f'{at}: window is 0, so no event of {source} can follow in time; write for example window="1d"'
    if not label.on:
        yield f"{at}: on is empty, so every event would match every exposure; name the columns that must be equal"
    for column in label.on:
        missing = [f.name for f in (exposures, log) if column not in f.columns]
        if missing:
            known = set(exposures.columns) & set(log.columns)
            yield f"{at}: on column {column!r} is not in {_and(missing)}{nearest(column, known)}"
        elif families([exposures.columns[column]]) != families([log.columns[column]]):
            yield (
                f"{at}: on column {column!r} is {exposures.columns[column]} in {exposures.name} but {log.columns[column]} in "
                f"{log.name}: they would never meet"
            )
    types = joined(schema, log.columns)
    if label.where is not None:
        yield from _condition(f"{at}: where", label.where, types)
    if label.kind == "value" and label.value is None:
        yield f"{at}: kind='value' needs value=, the column of {source} that is summed"
    elif label.kind == "binary" and label.value is not None:
        yield f"{at}: a binary label takes no value; drop it, or set kind='value'"
    elif label.value is not None and label.value not in types:
        yield f"{at}: value {label.value!r} is not in {source}{nearest(label.value, types)}"
    elif label.value is not None and types[label.value] not in NUMBERS:
        yield f"{at}: value {label.value!r} is of type {types[label.value]}; only numbers are summed"


def _given(at: str, label: Label, labels: Mapping[str, Label]) -> Iterator[str]:
    if label.given is None:
        return
    if label.given not in labels:
        others = set(labels) - {label.name}
        yield f"{at}: given {label.given!r} is not a label{nearest(label.given, others)}"
        return
    if label.kind != "binary" or labels[label.given].kind != "binary":
        yield f"{at}: given chains probabilities; both {label.name!r} and {label.given!r} must be binary"
    chain = [label.name]
    while (after := labels[chain[-1]].given) in labels:
        assert after is not None
        if after in chain:
            yield f"{at}: given goes in a circle: {' -> '.join([*chain, after])}"
            return
        chain.append(after)


def _training(schema: Schema) -> Iterator[str]:
    if schema.training.view == "session" and parse_duration(schema.training.session_gap) == 0:
        yield 'training: session_gap 0 makes every exposure a session; write for example session_gap="30m", or view="request"'
    hours, minutes = (int(part) for part in schema.utc_offset[1:].split(":"))
    if hours > 14 or minutes > 59:
        yield f'utc_offset {schema.utc_offset!r} is no offset of any place; write for example "+08:00"'


# ---------------------------------------------------------------------- shared words


def _condition(at: str, text: str, types: Types) -> Iterator[str]:
    """`where` and `valid` read their own row only and must be conditions."""
    try:
        kind = expression.parse(text).kind(types)
    except ValueError as error:
        yield f"{at}: {error}"
        return
    if not expression.is_condition(kind):
        yield f"{at}: {text!r} gives {kind}, not a condition; compare it with something"


def _unknown_log(schema: Schema, name: str) -> str:
    if name in snapshots(schema):
        return f"{name!r} is a snapshot; name an event log{nearest(name, event_logs(schema))}"
    return f"{name!r} is unknown{nearest(name, event_logs(schema))}"


def _unknown_column(schema: Schema, group: str, reference: str, types: Types) -> str:
    snapshot, column = columns.split(reference)
    known = snapshots(schema)
    if group == CANDIDATES and reference in (hidden := hidden_from_candidates(schema)):
        return (
            f"column {reference!r} {hidden[reference]}: no feature of a candidate may read it; count past ones with a cross "
            "feature, or read it in a sequence"
        )
    if snapshot in known and column in known[snapshot].columns:
        key = known[snapshot].key
        has = (
            " or ".join(dict.fromkeys(source for source, _ in rows(schema, group)))
            if group != USER
            else "the user group"
        )
        return f"column {reference!r} can't be joined: {has} has no column {key!r}, the key of {snapshot}"
    if snapshot and snapshot not in known:
        return f"column {reference!r}: there is no snapshot {snapshot!r}{nearest(snapshot, known)}"
    if snapshot:
        return f"column {column!r} is not in {snapshot}{nearest(column, known[snapshot].columns)}"
    where = dict.fromkeys(source for source, _ in rows(schema, group))
    return f"column {reference!r} is not in {_and(where) if group != USER else 'the user group'}{nearest(reference, set(types))}"


def _twice(names: Iterable[object]) -> list[str]:
    return [str(name) for name, count in Counter(names).items() if count > 1]


def _and(names: Iterable[str]) -> str:
    *first, last = names or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def _short(value: object) -> str:
    """`16`, `Dynamic(capacity=100, ...)`."""
    return str(value) if isinstance(value, int) else f"{type(value).__name__}({value})"
