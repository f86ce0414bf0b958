"""Mistakes in features: columns, types, leaks, numbers, crossed ids and SQL: a schema that makes each, and the start of its one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from schemas_shop import SHOP, candidates, sequence, user

from genrank.schemas import (
    Arithmetic,
    AutoDis,
    Categorical,
    CrossFeature,
    Dense,
    Events,
    FixedBuckets,
    Hashed,
    HashedCross,
    Identity,
    Log1p,
    MultiValued,
    Numeric,
    RequestSize,
    Schema,
    Sql,
    Table,
    TimeGap,
    WithinRequest,
)


def cross(**fields: Any) -> Schema:
    """The shop with one more cross feature, `x`: clicks of the user in a week, changed by `fields`."""
    own = {"name": "x", "op": "count", "source": "clicks", "keys": ("user_id",), "window": "7d"} | fields
    return candidates(CrossFeature(**own))


def sql(expression: str, type: str = "float32", **fields: Any) -> Schema:
    return candidates(Sql(name="x", expression=expression, type=type, **fields))


ITEM = SHOP.candidates.features[0]

MISTAKES: dict[str, tuple[Callable[[], Schema], str]] = {
    # ---------------------------------------------------------------------- columns and types
    "unknown column": (
        lambda: candidates(Numeric(name="x", column="prise")),
        "candidates.x: column 'prise' is not in exposures; did you mean 'price'?",
    ),
    "unknown column of a snapshot": (
        lambda: candidates(Numeric(name="x", column="items.prise")),
        "candidates.x: column 'prise' is not in items; did you mean 'price'?",
    ),
    "unknown snapshot": (
        lambda: candidates(Numeric(name="x", column="item.price")),
        "candidates.x: column 'item.price': there is no snapshot 'item'; did you mean 'items'?",
    ),
    "snapshot left out": (
        lambda: candidates(Categorical(name="x", column="category", vocabulary=Hashed(size=9), dim=4)),
        "candidates.x: column 'category' is not in exposures; did you mean 'items.category'?",
    ),
    "a join that is impossible": (
        lambda: candidates(Numeric(name="x", column="tags.weight")),
        "candidates.x: column 'tags.weight' can't be joined: exposures has no column 'tag', the key of tags",
    ),
    "an item's column for the user": (
        lambda: user(Numeric(name="x", column="items.price")),
        "user.x: column 'items.price' can't be joined: the user group has no column 'item_id', the key of items",
    ),
    "an exposure's column for the user": (
        lambda: user(Numeric(name="price")),
        "user.price: column 'price' is not in the user group; there is user_id, users.age, users.city",
    ),
    "a column no source of the sequence has": (
        lambda: sequence(Numeric(name="x", column="dwel")),
        "history.x: column 'dwel' is not in clicks and users; did you mean 'dwell'?",
    ),
    "a column of two types": (
        lambda: SHOP.replace(
            sequences=(
                SHOP.sequences[0].replace(
                    events=(Events(source="clicks"), Events(source="purchases")),
                    features=(Numeric(name="dwell"),),
                    interleave=(),
                ),
                SHOP.sequences[1],
            )
        ),
        "history.dwell: column 'dwell' is float32 in clicks and string in purchases; a feature has one type",
    ),
    "Numeric on a string": (
        lambda: candidates(Numeric(name="x", column="tab")),
        "candidates.x: column 'tab' is of type string; use Categorical for a string, or Sql with TRY_CAST",
    ),
    "Numeric on a time": (
        lambda: candidates(Numeric(name="x", column="items.listed_at")),
        "candidates.x: column 'items.listed_at' is of type timestamp; use TimeGap for a moment",
    ),
    "Numeric on a list": (
        lambda: candidates(Numeric(name="x", column="items.tags")),
        "candidates.x: column 'items.tags' is of type list<string>; use MultiValued for a list of ids",
    ),
    "Categorical on a float": (
        lambda: candidates(Categorical(name="x", column="price", vocabulary=Hashed(size=9), dim=4)),
        "candidates.x: column 'price' is of type float32; use Numeric (with buckets, if a row per range is meant)",
    ),
    "Categorical on a list": (
        lambda: candidates(Categorical(name="x", column="items.tags", vocabulary=Hashed(size=9), dim=4)),
        "candidates.x: column 'items.tags' is of type list<string>; use MultiValued for a list of ids",
    ),
    "Categorical on a time": (
        lambda: candidates(Categorical(name="x", column="items.listed_at", vocabulary=Hashed(size=9), dim=4)),
        "candidates.x: column 'items.listed_at' is of type timestamp; use TimeGap for a moment",
    ),
    "MultiValued on a scalar": (
        lambda: candidates(MultiValued(name="x", column="tab", vocabulary=Hashed(size=9), dim=4)),
        "candidates.x: column 'tab' is of type string; use Categorical for a single value",
    ),
    "MultiValued on floats": (
        lambda: candidates(MultiValued(name="x", column="items.vector", vocabulary=Hashed(size=9), dim=4)),
        "candidates.x: column 'items.vector' is of type list<float32>; MultiValued pools ids: list<int64> or list<string>",
    ),
    "TimeGap on a number": (
        lambda: candidates(TimeGap(name="x", column="price")),
        "candidates.x: column 'price' is of type float32; a time gap needs a moment: timestamp, or int64 in epoch ms",
    ),
    "TimeGap of the user to nothing": (
        lambda: user(TimeGap(name="x")),
        "user.x: a time gap of the user needs column=: the user group has no previous event",
    ),
    # ---------------------------------------------------------------------- leaks
    "a label as a feature": (
        lambda: candidates(Numeric(name="x", column="clicked")),
        "candidates.x: column 'clicked' is the label 'click': no feature of a candidate may read it",
    ),
    "a post-exposure column as a feature": (
        lambda: candidates(Numeric(name="play_ms")),
        "candidates.play_ms: column 'play_ms' is known only after the exposure: no feature of a candidate may read it; count past "
        "ones with a cross feature, or read it in a sequence",
    ),
    "an oracle as a feature": (
        lambda: candidates(Numeric(name="x", column="p_click")),
        "candidates.x: column 'p_click' is the oracle of 'click'",
    ),
    "a label inside SQL": (
        lambda: sql("price * clicked"),
        "candidates.x: column 'clicked' is the label 'click'",
    ),
    "a post-exposure key": (
        lambda: cross(keys=("play_ms",)),
        "candidates.x: key column 'play_ms' is known only after the exposure",
    ),
    # ---------------------------------------------------------------------- numbers
    "boundaries out of order": (
        lambda: candidates(Numeric(name="x", column="price", transform=FixedBuckets(boundaries=(1, 5, 5)))),
        "candidates.x: boundaries [1.0, 5.0, 5.0] don't increase; sort them and drop repeats",
    ),
    "a scale of zero": (
        lambda: candidates(Numeric(name="x", column="price", transform=Dense(scale=0))),
        "candidates.x: scale 0 makes every value 0",
    ),
    "AutoDis with too many buckets": (
        lambda: candidates(Numeric(name="x", column="price", transform=AutoDis(buckets=5000))),
        "candidates.x: AutoDis computes a softmax over all 5000 buckets for every value; use QuantileBuckets, or fewer",
    ),
    # ---------------------------------------------------------------------- crossed
    "crossing an unknown feature": (
        lambda: candidates(HashedCross(name="x", of=("tab", "user.cty"), vocabulary=Hashed(size=9), dim=4)),
        "candidates.x: of names unknown feature 'user.cty'; did you mean 'user.city'?",
    ),
    "crossing a number": (
        lambda: candidates(HashedCross(name="x", of=("tab", "price"), vocabulary=Hashed(size=9), dim=4)),
        "candidates.x: 'price' is a Numeric feature; only ids cross: Categorical, or Sql with a vocabulary",
    ),
    "crossing itself": (
        lambda: candidates(HashedCross(name="x", of=("tab", "x"), vocabulary=Hashed(size=9), dim=4)),
        "candidates.x: a crossed feature can't be made of itself",
    ),
    "crossing twice": (
        lambda: candidates(HashedCross(name="x", of=("tab", "tab"), vocabulary=Hashed(size=9), dim=4)),
        "candidates.x: of names 'tab' twice",
    ),
    "crossed ids in an indexed table": (
        lambda: candidates(
            HashedCross(name="x", of=("tab", "user.city"), table=Table(name="t", dim=4, vocabulary=Identity(size=9)))
        ),
        "candidates.x: crossed ids are hashes; the vocabulary of table 't' must be Hashed or Dynamic",
    ),
    # ---------------------------------------------------------------------- computed when samples are read
    "comparing an unknown feature": (
        lambda: candidates(WithinRequest(name="x", of="prices", what="rank")),
        "candidates.x: unknown feature 'prices' of the candidates",
    ),
    "comparing an id": (
        lambda: candidates(WithinRequest(name="x", of="tab", what="rank")),
        "candidates.x: 'tab' is a Categorical feature without a number of its own; name a Numeric, a TimeGap with column=",
    ),
    "comparing within no request": (
        lambda: SHOP.replace(candidates=SHOP.candidates.replace(features=(ITEM, RequestSize(name="x")), request=None)),
        "candidates.x: candidates are compared within their request; give Candidates(request=...) the column of its id",
    ),
    "comparing within what down-sampling leaves": (
        lambda: SHOP.replace(
            candidates=SHOP.candidates.replace(features=(ITEM, RequestSize(name="x")), negative_keep_rate=0.5)
        ),
        "candidates.x: with negative_keep_rate 0.5 samples hold every positive of a request and only part of the rest",
    ),
    "a number of itself": (
        lambda: candidates(Arithmetic(name="x", op="ratio", of=("x", "x"))),
        "candidates.x: it can't be computed from itself",
    ),
    "numbers of each other": (
        lambda: candidates(
            Arithmetic(name="x", op="ratio", of=("price", "y")), Arithmetic(name="y", op="ratio", of=("price", "x"))
        ),
        "candidates.x: 'y' is itself computed from 'x'; drop one of the two",
    ),
    "a comparison outside of the candidates": (
        lambda: user(RequestSize(name="x")),
        "user.x: a RequestSize feature is of a candidate; declare it under candidates",
    ),
    # ---------------------------------------------------------------------- SQL
    "SQL that doesn't parse": (
        lambda: sql("price / "),
        "candidates.x: 'price / ' doesn't parse as SQL near '/'",
    ),
    "SQL with an unknown column": (
        lambda: sql("price / items.prce"),
        "candidates.x: column 'prce' is not in items; did you mean 'price'?",
    ),
    "SQL with an unknown function": (
        lambda: sql("SQUARE(price)"),
        "candidates.x: 'SQUARE(price)': there is no function SQUARE",
    ),
    "SQL over many rows": (
        lambda: sql("AVG(price)"),
        "AVG reads many rows; an expression reads one: declare a cross feature instead",
    ),
    "SQL of another type": (
        lambda: sql("tab || '!'", "int64"),
        "candidates.x: the expression gives string, not int64; declare that type, or CAST",
    ),
    "SQL that compares a string with a number": (
        lambda: sql("CASE WHEN tab = 1 THEN 1 ELSE 0 END"),
        "candidates.x: 'tab = 1' compares a string with an int",
    ),
    "a SQL string without a vocabulary": (
        lambda: sql("tab || '!'", "string"),
        "candidates.x: type string needs a table, or vocabulary and dim; without them a SQL feature is a number",
    ),
    "a SQL float with a vocabulary": (
        lambda: sql("price", "float32", vocabulary=Hashed(size=9), dim=4),
        "candidates.x: type float32 with a vocabulary; declare int64 or string for an id",
    ),
    "a SQL time": (
        lambda: sql("items.listed_at", "timestamp"),
        "candidates.x: a feature can't be of type timestamp; declare an id, a list of ids or a number",
    ),
    "SQL with a vocabulary and a transform": (
        lambda: sql("tab || '!'", "string", vocabulary=Hashed(size=9), dim=4, transform=Log1p()),
        "candidates.x: both a vocabulary and a transform are given; a vocabulary for an id, a transform for a number",
    ),
    "SQL across the sources of a sequence": (
        lambda: SHOP.replace(
            sequences=(
                SHOP.sequences[0],
                SHOP.sequences[1].replace(
                    events=(Events(source="clicks"), Events(source="visits")),
                    features=(Sql(name="x", expression="IF(city = 'here', dwell, 0)", type="float32"),),
                ),
            )
        ),
        "realtime.x: no single source of the sequence has all of city and dwell; write one feature per source",
    ),
}
