"""Validation that teaches: distinct mistakes, each said in one line that names the place and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from schemas_shop import ITEMS, SHOP, candidates, label, sequence, source, user

from genrank.schemas import (
    AutoDis,
    Categorical,
    ChangePoints,
    CrossFeature,
    Dense,
    Dynamic,
    Enumerated,
    EventLog,
    Events,
    EventSequence,
    FixedBuckets,
    Hashed,
    HashedCross,
    Identity,
    Label,
    Log1p,
    MultiValued,
    Numeric,
    Schema,
    Snapshot,
    SparseOptimizer,
    Sql,
    Table,
    TimeGap,
    TimePart,
    Training,
)
from genrank.schemas.errors import SchemaError, UserError


def cross(**fields: Any) -> Schema:
    """The shop with one more cross feature, `x`: clicks of the user in a week, changed by `fields`."""
    own = {"name": "x", "op": "count", "source": "clicks", "keys": ("user_id",), "window": "7d"} | fields
    return candidates(CrossFeature(**own))


def sql(expression: str, type: str = "float32", **fields: Any) -> Schema:
    return candidates(Sql(name="x", expression=expression, type=type, **fields))


TWICE = (
    'for a condition on the exposure\'s own row declare its files a second time, outcomes = exposures.replace(name="outcomes"), and '
    'write source="outcomes", where="...", window="1ms"'
)
MISTAKES: dict[str, tuple[Callable[[], Schema], str]] = {
    # ------------------------------------------------------------------ sources
    "two sources of one name": (
        lambda: SHOP.replace(
            sources=(*SHOP.sources, EventLog(name="clicks", path="c/{dt}", columns={"user_id": "int64", "ts": "int64"}))
        ),
        "clicks: two sources have this name; rename one",
    ),
    "path and catalog": (
        lambda: source("clicks", catalog="db.clicks"),
        "clicks: both path and catalog are given; keep the one that is read",
    ),
    "neither path nor catalog": (
        lambda: source("clicks", path=None),
        'clicks: neither path nor catalog is given; write path="clicks/dt={dt}" or catalog="db.clicks"',
    ),
    "path without a day": (
        lambda: source("clicks", path="clicks/"),
        "clicks: path 'clicks/' has no {dt}; write \"clicks/dt={dt}\": a day is read from its own directory",
    ),
    "path with another placeholder": (
        lambda: source("clicks", path="{region}/clicks/{dt}"),
        "clicks: path '{region}/clicks/{dt}' has an unknown placeholder {region}; only {dt} is filled in",
    ),
    "path with a lone brace": (
        lambda: source("clicks", path="clicks/{dt"),
        "clicks: path 'clicks/{dt' is not a template (expected '}' before end of string); write it with {dt} alone in braces",
    ),
    "no columns": (
        lambda: source("tags", columns={}),
        "tags: no columns; declare those genrank reads, with their types",
    ),
    "rename of an unknown column": (
        lambda: source("clicks", rename={"itemid": "iid"}),
        "clicks: rename of unknown column 'itemid'; did you mean 'item_id'?",
    ),
    "two columns read from one": (
        lambda: source("clicks", rename={"item_id": "user_id"}),
        "clicks: columns user_id and item_id are both read from 'user_id'; drop one rename",
    ),
    "unknown user column": (
        lambda: source("clicks", user="user"),
        "clicks: user column 'user' is not in columns; did you mean 'user_id'?",
    ),
    "unknown time column": (
        lambda: source("clicks", time="event_time"),
        "clicks: time column 'event_time' is not in columns; there is dwell, item_id, ts, user_id",
    ),
    "time that is no time": (
        lambda: source("clicks", time="dwell"),
        "clicks: time column 'dwell' is of type float32, not a time; declare it timestamp, or int64 and its time_unit",
    ),
    "arrival that is no time": (
        lambda: source("exposures", arrival="tab"),
        "exposures: arrival column 'tab' is of type string, not a time; declare it timestamp, or int64 and its time_unit",
    ),
    "dedup on an unknown column": (
        lambda: source("clicks", dedup=("user_id", "itm_id")),
        "clicks: dedup column 'itm_id' is not in columns; did you mean 'item_id'?",
    ),
    "unknown post-exposure column": (
        lambda: source("exposures", post_exposure=("clicked", "play_ms", "play_tme")),
        "exposures: post_exposure column 'play_tme' is not in columns; did you mean 'play_ms'?",
    ),
    "users of another type": (
        lambda: source("clicks", columns={"user_id": "string", "item_id": "int64", "ts": "int64", "dwell": "float32"}),
        "clicks: user column 'user_id' is of type string, but exposures.user_id is int64: they would never meet; declare one type",
    ),
    "a user that is no id": (
        lambda: source("clicks", user="dwell"),
        "clicks: user column 'dwell' is of type float32; a user id is of type int64, int32 or string",
    ),
    "unknown snapshot key": (
        lambda: source("items", key="item"),
        "items: key 'item' is not in columns; did you mean 'item_id'?",
    ),
    "a key that is no id": (
        lambda: source("tags", key="weight"),
        "tags: key 'weight' is of type float32; a key is of type int64, int32 or string",
    ),
    "valid that doesn't parse": (
        lambda: source("clicks", valid=("dwell >",)),
        "clicks: valid: 'dwell >' doesn't parse as SQL near '>'",
    ),
    "valid with an unknown column": (
        lambda: source("clicks", valid=("dwel >= 0",)),
        "clicks: valid: column 'dwel' is unknown; did you mean 'dwell'?",
    ),
    "valid that is no condition": (
        lambda: source("clicks", valid=("dwell + 1",)),
        "clicks: valid: 'dwell + 1' gives float, not a condition; compare it with something",
    ),
    # ------------------------------------------------------------------ candidates
    "candidates of an unknown source": (
        lambda: SHOP.replace(candidates=SHOP.candidates.replace(source="exposure")),
        "candidates: source 'exposure' is unknown; did you mean 'exposures'?",
    ),
    "candidates of a snapshot": (
        lambda: SHOP.replace(candidates=SHOP.candidates.replace(source="items")),
        "candidates: source 'items' is a snapshot; name an event log",
    ),
    "unknown item column": (
        lambda: SHOP.replace(candidates=SHOP.candidates.replace(item="itemid")),
        "candidates: item column 'itemid' is not in exposures; did you mean 'item_id'?",
    ),
    "a request that is no id": (
        lambda: SHOP.replace(candidates=SHOP.candidates.replace(request="price")),
        "candidates: request column 'price' is of type float32; an id is of type int64, int32 or string",
    ),
    "a request known only later": (
        lambda: SHOP.replace(candidates=SHOP.candidates.replace(request="play_ms")),
        "candidates: request column 'play_ms' is known only after the exposure; candidates need one known when it was shown",
    ),
    "down-sampling without negatives": (
        lambda: SHOP.replace(
            candidates=SHOP.candidates.replace(negative_keep_rate=0.5),
            labels=(Label(name="play", kind="value", column="play_ms"),),
        ),
        "candidates: negative_keep_rate 0.5 without a binary label: nothing says what a negative is; set it to 1 or add a binary label",
    ),
    # ------------------------------------------------------------------ features: columns and types
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
    # ------------------------------------------------------------------ features: leaks
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
    # ------------------------------------------------------------------ features: names and tables
    "two features of one name": (
        lambda: candidates(Numeric(name="price", transform=Dense())),
        "candidates.price: two features of the group have this name; rename one (its `column` may stay)",
    ),
    "a reserved name in candidates": (
        lambda: candidates(Categorical(name="item", column="item_id", table=ITEMS)),
        "candidates.item: the sample keeps a column 'item' of its own in candidates; give the feature another name and column=\"item\"",
    ),
    "a reserved name in a sequence": (
        lambda: sequence(TimeGap(name="ts")),
        "history.ts: the sample keeps a column 'ts' of its own in history",
    ),
    "a reserved sequence name": (
        lambda: SHOP.replace(sequences=(SHOP.sequences[0].replace(name="mask"), SHOP.sequences[1])),
        "sequence mask: samples have a column of that name; call it history or realtime",
    ),
    "table and vocabulary": (
        lambda: candidates(Categorical(name="x", column="tab", table=ITEMS, vocabulary=Hashed(size=9), dim=4)),
        "candidates.x: both table and vocabulary and dim are given; keep the table, or its own vocabulary and dim",
    ),
    "neither table nor vocabulary": (
        lambda: candidates(Categorical(name="x", column="tab")),
        "candidates.x: no table; give table=, or vocabulary= and dim= for one of its own",
    ),
    "vocabulary without dim": (
        lambda: candidates(Categorical(name="x", column="tab", vocabulary=Hashed(size=9))),
        "candidates.x: vocabulary without dim; give both, or a table",
    ),
    "dim without vocabulary": (
        lambda: candidates(Categorical(name="x", column="tab", dim=4)),
        "candidates.x: dim without vocabulary; give both, or a table",
    ),
    "two dims of one table": (
        lambda: candidates(Categorical(name="x", column="item_id", table=ITEMS.replace(dim=32))),
        "table items: history.item_id gives it dim 16, candidates.x 32; share one Table object, or name two tables",
    ),
    "two vocabularies of one table": (
        lambda: candidates(Categorical(name="x", column="item_id", table=ITEMS.replace(vocabulary=Hashed(size=100)))),
        "table items: history.item_id gives it vocabulary Dynamic(",
    ),
    "two optimizers of one table": (
        lambda: candidates(
            Categorical(name="x", column="item_id", table=ITEMS.replace(optimizer=SparseOptimizer(lr_scale=2)))
        ),
        "table items: history.item_id gives it optimizer SparseOptimizer(",
    ),
    "strings and integers in one table": (
        lambda: candidates(Categorical(name="x", column="tab", table=ITEMS)),
        "table items: it would mix integers of history.item_id and strings of candidates.x: equal ids that mean different things",
    ),
    "Identity of strings": (
        lambda: candidates(Categorical(name="x", column="tab", vocabulary=Identity(size=9), dim=4)),
        "candidates.x: 'tab' holds strings, which Identity can't index; use Enumerated, Hashed or Dynamic",
    ),
    "integers enumerated for strings": (
        lambda: candidates(Categorical(name="x", column="tab", vocabulary=Enumerated(values=(1, 2)), dim=4)),
        "candidates.x: 'tab' holds strings, but the vocabulary enumerates integers; write strings",
    ),
    "a value enumerated twice": (
        lambda: candidates(Categorical(name="x", column="tab", vocabulary=Enumerated(values=("a", "b", "a")), dim=4)),
        "candidates.x: the vocabulary enumerates 'a' twice",
    ),
    "ids evicted at once": (
        lambda: candidates(Categorical(name="x", column="tab", vocabulary=Dynamic(capacity=9, max_age="0d"), dim=4)),
        "candidates.x: max_age 0 evicts every id at once",
    ),
    # ------------------------------------------------------------------ features: numbers
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
    # ------------------------------------------------------------------ features: crossed
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
    # ------------------------------------------------------------------ features: cross features
    "a cross feature of past events": (
        lambda: sequence(CrossFeature(name="x", op="count", source="clicks", keys=("user_id",), window="7d")),
        "history.x: a cross feature is a statistic as of an exposure (or of the window's start, for the user); declare it under "
        "candidates",
    ),
    "a cross feature of the user by item": (
        lambda: user(CrossFeature(name="x", op="count", source="clicks", keys=("user_id", "item_id"), window="7d")),
        "user.x: key column 'item_id' is not in the user group",
    ),
    "a cross feature of an unknown log": (
        lambda: cross(source="click"),
        "candidates.x: source 'click' is unknown; did you mean 'clicks'?",
    ),
    "a cross feature of a snapshot": (
        lambda: cross(source="items"),
        "candidates.x: source 'items' is a snapshot; name an event log",
    ),
    "a window longer than is kept": (
        lambda: cross(window="91d"),
        "candidates.x: window 91d is longer than the 90d of events that a day reads, the most there is; shorten it",
    ),
    "a window of nothing": (
        lambda: cross(window="0s"),
        "candidates.x: window is 0, so no event is counted",
    ),
    "an unknown key": (
        lambda: cross(keys=("item",)),
        "candidates.x: key column 'item' is not in exposures; did you mean 'item_id'?",
    ),
    "a key the events lack": (
        lambda: cross(keys=("tab",)),
        "candidates.x: events of clicks have no column 'tab'; add it to the source, or drop the key",
    ),
    "a key the events can't join": (
        lambda: cross(source="visits", keys=("items.category",)),
        "candidates.x: events of visits have no column 'items.category' (nor 'item_id', the key of items)",
    ),
    "a key that is no id either": (
        lambda: cross(keys=("price",), source="purchases"),
        "candidates.x: key 'price' is of type float32; a key is of type int64, int32, bool or string",
    ),
    "a key of two types": (
        lambda: cross(keys=("request_id",), source="purchases"),
        "candidates.x: key 'request_id' is int64 in exposures but string in purchases: they would never meet",
    ),
    "a key twice": (
        lambda: cross(keys=("user_id", "user_id")),
        "candidates.x: keys name 'user_id' twice",
    ),
    "a sum of nothing": (
        lambda: cross(op="sum"),
        "candidates.x: sum needs value=, a column of clicks",
    ),
    "a count of something": (
        lambda: cross(value="dwell"),
        "candidates.x: count takes no value; drop it, or use sum, mean, last or distinct",
    ),
    "an unknown value": (
        lambda: cross(op="mean", value="dwel"),
        "candidates.x: value 'dwel' is not a column of clicks; did you mean 'dwell'?",
    ),
    "a sum of strings": (
        lambda: cross(op="sum", source="purchases", value="coupon"),
        "candidates.x: sum of 'coupon', which is of type string",
    ),
    "the last string without a table": (
        lambda: cross(op="last", source="purchases", value="coupon"),
        "candidates.x: last of 'coupon', which is of type string; give it a table to keep it as an id",
    ),
    "a rate of everything": (
        lambda: cross(op="rate"),
        "candidates.x: a rate needs `where` (which events count) or `per` (the log of all trials); without both it is always 1",
    ),
    "a prior beyond one": (
        lambda: cross(op="rate", per="exposures", prior=2, strength=1),
        "candidates.x: prior 2.0 is no rate; give one from 0 to 1",
    ),
    "a prior of a count": (
        lambda: cross(prior=0.1, strength=10),
        "candidates.x: prior and strength smooth a rate; count takes none",
    ),
    "per of a count": (
        lambda: cross(per="exposures"),
        "candidates.x: count takes no `per`; drop it, or use op='rate'",
    ),
    "an unknown per": (
        lambda: cross(op="rate", per="exposure"),
        "candidates.x: source 'exposure' is unknown; did you mean 'exposures'?",
    ),
    "a where with an unknown column": (
        lambda: cross(where="dwel > 1"),
        "candidates.x: where: column 'dwel' is unknown; did you mean 'dwell'?",
    ),
    "a where that is no condition": (
        lambda: cross(where="dwell"),
        "candidates.x: where: 'dwell' gives float, not a condition",
    ),
    "a table of a count": (
        lambda: cross(table=ITEMS),
        "candidates.x: count is a number and takes no table; bucket it with transform=QuantileBuckets(...)",
    ),
    "a table and a transform": (
        lambda: cross(op="last", value="item_id", table=ITEMS, transform=Log1p()),
        "candidates.x: both table and transform are given; a table for an id, a transform for a number",
    ),
    # ------------------------------------------------------------------ features: SQL
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
    # ------------------------------------------------------------------ sequences
    "two realtime sequences": (
        lambda: SHOP.replace(sequences=(SHOP.sequences[0].replace(scope="realtime"), SHOP.sequences[1])),
        "sequences history and realtime are both of scope realtime; merge them: one sequence takes events of several sources",
    ),
    "two sequences of one name": (
        lambda: SHOP.replace(sequences=(SHOP.sequences[0], SHOP.sequences[0])),
        "history: two sequences have this name; rename one",
    ),
    "events of an unknown source": (
        lambda: SHOP.replace(
            sequences=(SHOP.sequences[0].replace(events=(Events(source="click"),)), SHOP.sequences[1])
        ),
        "sequence history: source 'click' is unknown; did you mean 'clicks'?",
    ),
    "events of a snapshot": (
        lambda: SHOP.replace(
            sequences=(SHOP.sequences[0].replace(events=(Events(source="users"),)), SHOP.sequences[1])
        ),
        "sequence history: source 'users' is a snapshot; name an event log",
    ),
    "events of one type": (
        lambda: SHOP.replace(
            sequences=(
                SHOP.sequences[0].replace(
                    events=(
                        Events(source="clicks"),
                        Events(source="clicks", where="dwell > 1"),
                        ChangePoints(source="users", column="city"),
                    )
                ),
                SHOP.sequences[1],
            )
        ),
        "sequence history: two events are called 'clicks'; tell them apart with name=",
    ),
    "events where nothing": (
        lambda: SHOP.replace(
            sequences=(
                SHOP.sequences[0].replace(
                    events=(Events(source="clicks", where="dwelt > 1"), ChangePoints(source="users", column="city"))
                ),
                SHOP.sequences[1],
            )
        ),
        "sequence history: where of clicks: column 'dwelt' is unknown; did you mean 'dwell'?",
    ),
    "changes of an event log": (
        lambda: SHOP.replace(
            sequences=(
                SHOP.sequences[0].replace(
                    events=(Events(source="clicks"), ChangePoints(source="purchases", column="coupon", name="city"))
                ),
                SHOP.sequences[1],
            )
        ),
        "sequence history: ChangePoints of 'purchases', an event log; use Events(source='purchases'), or name a snapshot keyed by the user",
    ),
    "changes of something else than the user": (
        lambda: SHOP.replace(
            sequences=(
                SHOP.sequences[0].replace(
                    events=(Events(source="clicks"), ChangePoints(source="items", column="category"))
                ),
                SHOP.sequences[1],
            )
        ),
        "sequence history: ChangePoints of 'items', which is keyed by 'item_id', not by the user ('user_id')",
    ),
    "changes of an unknown column": (
        lambda: SHOP.replace(
            sequences=(
                SHOP.sequences[0].replace(
                    events=(Events(source="clicks"), ChangePoints(source="users", column="town", name="city"))
                ),
                SHOP.sequences[1],
            )
        ),
        "sequence history: ChangePoints column 'town' is not in users; there is age, city, user_id",
    ),
    "interleaving an unknown feature": (
        lambda: SHOP.replace(sequences=(SHOP.sequences[0].replace(interleave=("dwel",)), SHOP.sequences[1])),
        "sequence history: interleave 'dwel' is not a feature of it; did you mean 'dwell'?",
    ),
    "a lookback of nothing": (
        lambda: SHOP.replace(sequences=(SHOP.sequences[0].replace(lookback="0d"), SHOP.sequences[1])),
        'sequence history: lookback is 0, so nothing is kept; write for example lookback="90d"',
    ),
    # ------------------------------------------------------------------ labels
    "two labels of one name": (
        lambda: label(name="click", column="play_ms"),
        "click: two labels have this name; rename one",
    ),
    "a label with a leaf's name": (
        lambda: label(name="click_weight", column="play_ms"),
        "label click_weight: samples keep 'click_weight' beside label 'click'; rename it",
    ),
    "a label of column and source": (
        lambda: label(column="clicked", source="clicks", window="1d"),
        "label x: both column and source are given; a column of the exposure, or events of another log",
    ),
    "a label of nothing": (
        lambda: label(),
        "label x: neither column nor source; name a column of the exposures, or the event log that answers them",
    ),
    "a label of an unknown column": (
        lambda: label(column="playms"),
        "label x: column 'playms' is not in exposures; did you mean 'play_ms'?",
    ),
    "a label that is no number": (
        lambda: label(column="tab"),
        "label x: column 'tab' is of type string; a label is a number or a bool",
    ),
    "a column label with where": (
        lambda: label(column="play_ms", where="play_ms > 3"),
        "label x: where reads events of a source, not a column; drop it, or " + TWICE,
    ),
    "a condition for a label's column": (
        lambda: label(column="play_ms > 3"),
        "label x: column 'play_ms > 3' is not a column but a condition; " + TWICE,
    ),
    "a label of an unknown source": (
        lambda: label(source="purchase", window="1d"),
        "label x: source 'purchase' is unknown; did you mean 'purchases'?",
    ),
    "a label of the exposures": (
        lambda: label(source="exposures", window="1d"),
        "label x: source is the exposures themselves; use column= for a 0/1 column of theirs, or " + TWICE,
    ),
    "a label without time": (
        lambda: label(source="purchases"),
        'label x: window is 0, so no event of purchases can follow in time; write for example window="1d"',
    ),
    "a label on nothing": (
        lambda: label(source="purchases", window="1d", on=()),
        "label x: on is empty, so every event would match every exposure",
    ),
    "a label on an unknown column": (
        lambda: label(source="purchases", window="1d", on=("user_id", "itemid")),
        "label x: on column 'itemid' is not in exposures and purchases; did you mean 'item_id'?",
    ),
    "a label on two types": (
        lambda: label(source="purchases", window="1d", on=("request_id",)),
        "label x: on column 'request_id' is int64 in exposures but string in purchases: they would never meet",
    ),
    "a label where nothing": (
        lambda: label(source="purchases", window="1d", where="prize > 3"),
        "label x: where: column 'prize' is unknown; did you mean 'price'?",
    ),
    "a value label without value": (
        lambda: label(kind="value", source="purchases", window="1d"),
        "label x: kind='value' needs value=, the column of purchases that is summed",
    ),
    "a binary label with value": (
        lambda: label(source="purchases", window="1d", value="price"),
        "label x: a binary label takes no value; drop it, or set kind='value'",
    ),
    "a sum of text": (
        lambda: label(kind="value", source="purchases", window="1d", value="coupon"),
        "label x: value 'coupon' is of type string; only numbers are summed",
    ),
    "given an unknown label": (
        lambda: label(column="play_ms", given="clik"),
        "label x: given 'clik' is not a label; did you mean 'click'?",
    ),
    "given in a circle": (
        lambda: SHOP.replace(
            labels=(
                Label(name="a", column="clicked", given="b"),
                Label(name="b", column="play_ms", given="a"),
            )
        ),
        "label a: given goes in a circle: a -> b -> a",
    ),
    "given a number": (
        lambda: label(kind="value", column="play_ms", given="click"),
        "label x: given chains probabilities; both 'x' and 'click' must be binary",
    ),
    "an unknown oracle": (
        lambda: label(column="play_ms", oracle="p_clik"),
        "label x: oracle 'p_clik' is not in exposures; did you mean 'p_click'?",
    ),
    "an oracle that is no probability": (
        lambda: label(column="play_ms", oracle="tab"),
        "label x: oracle 'tab' is of type string; a probability is a float",
    ),
    # ------------------------------------------------------------------ training
    "a session gap of nothing": (
        lambda: SHOP.replace(training=Training(view="session", session_gap="0m")),
        "training: session_gap 0 makes every exposure a session",
    ),
    "an offset of nowhere": (
        lambda: SHOP.replace(utc_offset="+25:00"),
        "utc_offset '+25:00' is no offset of any place; write for example \"+08:00\"",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_place_and_remedy(mistake: str) -> None:
    make, message = MISTAKES[mistake]
    with pytest.raises(SchemaError) as raised:
        make()
    assert any(report.startswith(message) or message in report for report in raised.value.mistakes), (
        raised.value.mistakes
    )
    for report in raised.value.mistakes:
        assert "\n" not in report and len(report) < 400


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_mistake_is_reported_once(mistake: str) -> None:
    """One slip may break several features, but a reader shouldn't wade through echoes of it in other words."""
    with pytest.raises(SchemaError) as raised:
        MISTAKES[mistake][0]()
    places = [report.split(":")[0] for report in raised.value.mistakes]
    assert len(raised.value.mistakes) <= len(set(places)) + 1, raised.value.mistakes


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(UserError) as raised:
        SHOP.replace(
            sources=tuple(s.replace(path="nowhere") if s.name == "visits" else s for s in SHOP.sources),
            candidates=SHOP.candidates.replace(
                features=(
                    *SHOP.candidates.features,
                    Numeric(name="a", column="prise"),
                    Numeric(name="b", column="clicked"),
                )
            ),
            labels=(*SHOP.labels, Label(name="x")),
        )
    first, *lines = str(raised.value).splitlines()
    assert first == "schema 'shop': 4 mistakes:"
    assert [line.split(":")[0].strip() for line in lines] == ["visits", "candidates.a", "candidates.b", "label x"]


def test_the_shop_itself_has_no_mistake_and_uses_every_kind() -> None:
    kinds = {type(feature) for _, features in SHOP.groups() for feature in features}
    assert kinds == {Categorical, MultiValued, Numeric, TimePart, TimeGap, HashedCross, CrossFeature, Sql}
    assert {type(s) for s in SHOP.sources} == {EventLog, Snapshot}
    assert isinstance(SHOP.sequences[0], EventSequence)


def test_a_changed_copy_is_checked_and_has_its_own_fingerprint() -> None:
    before = SHOP.fingerprint
    copy = SHOP.model_copy(update={"utc_offset": "+08:00"})
    assert copy.fingerprint != before == SHOP.fingerprint
    with pytest.raises(SchemaError):
        SHOP.model_copy(update={"labels": (Label(name="x"),)})
