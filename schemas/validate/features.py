"""Mistakes of features: what they read, whether it is of a type they can encode, and how they encode it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from genrank.schemas import expression
from genrank.schemas.base import parse_duration
from genrank.schemas.derive import columns
from genrank.schemas.derive.columns import Types, families, offered, rows
from genrank.schemas.derive.tables import transform_of
from genrank.schemas.expression import nearest
from genrank.schemas.features import (
    Categorical,
    CrossFeature,
    Feature,
    HashedCross,
    MultiValued,
    Numeric,
    Sql,
    TimeGap,
    TimePart,
)
from genrank.schemas.group import USER
from genrank.schemas.messages import and_, twice, unknown_column, with_article
from genrank.schemas.transforms import AutoDis, Dense, FixedBuckets
from genrank.schemas.type_rules import ID_LISTS, IDS, NUMBERS, TIMES, vocabulary_mistakes, vocabulary_of
from genrank.schemas.validate.cross_features import cross_feature_mistakes
from genrank.schemas.vocabularies import Dynamic, Enumerated, Identity

if TYPE_CHECKING:
    from genrank.schemas.schema import Schema


def feature_mistakes(schema: Schema) -> Iterator[str]:
    """Of every feature of every group."""
    for group, features in schema.groups():
        types = offered(schema, group)
        for feature in features:
            at = f"{group}.{feature.name}"
            if isinstance(feature, CrossFeature):
                yield from cross_feature_mistakes(schema, group, at, feature)
            elif isinstance(feature, HashedCross):
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
        yield f"{at}: {unknown_column(schema, group, reference, types)}"
        return
    seen = [own[reference] for _, own in rows(schema, group) if reference in own]
    if len(families(seen)) > 1:
        each = [f"{own[reference]} in {source}" for source, own in rows(schema, group) if reference in own]
        yield f"{at}: column {reference!r} is {and_(each)}; a feature has one type: declare one, or read them as two features"
        return
    type_, vocabulary = types[reference], vocabulary_of(feature)
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
        yield from vocabulary_mistakes(at, reference, vocabulary, text="string" in type_)


def _crossed(schema: Schema, group: str, at: str, feature: HashedCross) -> Iterator[str]:
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
            yield f"{at}: {name!r} is {with_article(kind)} feature; only ids cross: Categorical, or Sql with a vocabulary"
        else:
            yield f"{at}: of names unknown feature {name!r}{nearest(name, ids)}"
    for name in twice(feature.of):
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
    vocabulary = vocabulary_of(feature)
    if vocabulary is not None:
        yield from vocabulary_mistakes(at, feature.expression, vocabulary, text="string" in feature.type)
    try:
        parsed = expression.parse(feature.expression)
    except ValueError as error:
        yield f"{at}: {error}"
        return
    types = offered(schema, group)
    unknown = [reference for reference in parsed.columns if reference not in types]
    for reference in unknown:
        yield f"{at}: {unknown_column(schema, group, reference, types)}"
    if unknown:
        return
    whole = [own for _, own in rows(schema, group) if all(reference in own for reference in parsed.columns)]
    if not whole:
        yield f"{at}: no single source of the sequence has all of {and_(parsed.columns)}; write one feature per source"
    for own in whole:
        try:
            kind = parsed.kind(own)
        except ValueError as error:
            yield f"{at}: {error}"
            return
        if not expression.fits(kind, feature.type):
            yield f"{at}: the expression gives {kind}, not {feature.type}; declare that type, or CAST"
            return


def _encoding(at: str, feature: Feature) -> Iterator[str]:
    if isinstance(feature, Categorical | MultiValued | HashedCross | Sql):
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
    vocabulary = vocabulary_of(feature)
    if isinstance(vocabulary, Enumerated):
        for value in twice(vocabulary.values):
            yield f"{at}: the vocabulary enumerates {value!r} twice"
    if isinstance(vocabulary, Dynamic) and vocabulary.max_age and parse_duration(vocabulary.max_age) == 0:
        yield f"{at}: max_age 0 evicts every id at once; leave it out to evict only when the table is full"
