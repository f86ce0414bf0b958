"""Mistakes in cross features: a schema that makes each, and the start of its one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from schemas_shop import ITEMS, SHOP, candidates, sequence, source, user

from genrank.schemas import Candidates, CrossFeature, Log1p, Schema

OWN: dict[str, Any] = {"name": "x", "op": "count", "source": "clicks", "keys": ("user_id",), "window": "7d"}


def cross(**fields: Any) -> Schema:
    """The shop with one more cross feature, `x`: clicks of the user in a week, changed by `fields`."""
    return candidates(CrossFeature(**OWN | fields))


MISTAKES: dict[str, tuple[Callable[[], Schema], str]] = {
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
    "two keys that are lists": (
        lambda: source("items", columns={**SHOP.source("items").columns, "words": "list<string>"}).replace(
            candidates=Candidates(features=(CrossFeature(**OWN | {"keys": ("items.tags", "user_id", "items.words")}),))
        ),
        "candidates.x: keys 'items.tags' and 'items.words' are lists; one key at most may be, so count by one of them",
    ),
    "a key that is a list of numbers": (
        lambda: cross(keys=("items.vector",)),
        "candidates.x: key 'items.vector' is of type list<float32>; a key is of type int64, int32, bool or string, or a list of int64 or string",
    ),
    "a reduction of one value": (
        lambda: cross(reduce="max"),
        "candidates.x: reduce='max' makes one value of those at the ids of a list, and no key is a list; drop it",
    ),
    "a reduction over an unknown list": (
        lambda: cross(keys=("items.tag",), reduce="max"),
        "candidates.x: key column 'tag' is not in items; did you mean 'tags'?",
    ),
    "a reduction of ids": (
        lambda: cross(op="last", value="item_id", table=ITEMS, keys=("user_id", "items.tags")),
        "candidates.x: last with a table is an id for each id of 'items.tags', and ids don't become one; drop the table",
    ),
    "a sum of rates": (
        lambda: cross(op="rate", per="exposures", keys=("items.tags",), reduce="sum", prior=0.1, strength=20),
        "candidates.x: reduce='sum' adds up what is 0 without events, and rate is the prior; use mean, max or min",
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
        "candidates.x: count takes no value; drop it, or use sum, mean, max, min, std, decayed_sum, last or distinct",
    ),
    "a half-life of a count": (
        lambda: cross(half_life="1d"),
        "candidates.x: count takes no half_life; drop it, or use op='decayed_count' or op='decayed_sum'",
    ),
    "no half-life": (
        lambda: cross(op="decayed_count"),
        'candidates.x: decayed_count needs half_life=, after how long an event counts half; write for example half_life="1d"',
    ),
    "a window of too many half-lives": (
        lambda: cross(op="decayed_count", half_life="1h"),
        "candidates.x: window 7d is more than 64 half-lives of 1h, and what is older counts nothing; shorten it to 64h",
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
}
