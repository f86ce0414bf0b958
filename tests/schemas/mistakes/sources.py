"""Mistakes in sources and what is read of them: a schema that makes each, and the start of its one line."""

from __future__ import annotations

from collections.abc import Callable

from schemas_shop import SHOP, source

from genrank.schemas import EventLog, Schema

MISTAKES: dict[str, tuple[Callable[[], Schema], str]] = {
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
}
