"""A small valid schema with every kind of declaration, and ways to change one thing of it."""

from __future__ import annotations

from typing import Any

from genrank.schemas import (
    AutoDis,
    Candidates,
    Categorical,
    ChangePoints,
    CrossFeature,
    Dense,
    Dynamic,
    Enumerated,
    EventLog,
    Events,
    EventSequence,
    Feature,
    FixedBuckets,
    Hashed,
    HashedCross,
    Label,
    MultiValued,
    Numeric,
    QuantileBuckets,
    Schema,
    Snapshot,
    Sql,
    Table,
    TimeGap,
    TimePart,
    UserGroup,
)

ITEMS = Table(name="items", dim=16, vocabulary=Dynamic(capacity=1000))
EVENT = {"user_id": "int64", "item_id": "int64", "ts": "int64"}
CLICK = {**EVENT, "dwell": "float32"}
PURCHASE = {**EVENT, "price": "float32", "coupon": "string", "request_id": "string", "dwell": "string"}

SHOP = Schema(
    name="shop",
    sources=(
        EventLog(
            name="exposures",
            path="exposures/dt={dt}",
            columns={
                **EVENT,
                "request_id": "int64",
                "tab": "string",
                "price": "float32",
                "clicked": "int32",
                "play_ms": "int64",
                "p_click": "float32",
            },
            post_exposure=("clicked", "play_ms"),
            dedup=("request_id", "item_id"),
            delay="1m",
            valid=("item_id IS NOT NULL", "price >= 0"),
        ),
        EventLog(name="clicks", path="clicks/dt={dt}", columns=CLICK),
        EventLog(name="purchases", path="purchases/dt={dt}", columns=PURCHASE, lateness="2d"),
        EventLog(name="visits", path="visits/dt={dt}", columns={"user_id": "int64", "ts": "int64", "city": "string"}),
        Snapshot(
            name="items",
            path="items/dt={dt}",
            key="item_id",
            columns={
                "item_id": "int64",
                "category": "string",
                "price": "float32",
                "tags": "list<string>",
                "vector": "list<float32>",
                "listed_at": "timestamp",
            },
        ),
        Snapshot(
            name="users",
            path="users/dt={dt}",
            key="user_id",
            columns={"user_id": "int64", "city": "string", "age": "int32"},
        ),
        Snapshot(name="tags", path="tags/dt={dt}", key="tag", columns={"tag": "string", "weight": "float32"}),
    ),
    user=UserGroup(
        features=(
            Categorical(name="city", column="users.city", vocabulary=Hashed(size=100), dim=8),
            Numeric(name="age", column="users.age", transform=FixedBuckets(boundaries=(18, 30, 50), dim=4)),
        ),
        tokens="feature",
    ),
    sequences=(
        EventSequence(
            name="history",
            events=(Events(source="clicks"), ChangePoints(source="users", column="city")),
            features=(
                Categorical(name="item_id", table=ITEMS),
                Categorical(name="city", vocabulary=Hashed(size=100), dim=8),
                Numeric(name="dwell", transform=QuantileBuckets(buckets=8, dim=4)),
                MultiValued(name="tags", column="items.tags", vocabulary=Hashed(size=500), dim=8),
                TimeGap(name="gap"),
            ),
            interleave=("dwell",),
        ),
        EventSequence(
            name="realtime",
            scope="realtime",
            events=(Events(source="clicks"),),
            features=(Categorical(name="item_id", table=ITEMS),),
            max_length=50,
        ),
    ),
    candidates=Candidates(
        request="request_id",
        features=(
            Categorical(name="item_id", table=ITEMS),
            Categorical(name="category", column="items.category", vocabulary=Hashed(size=50), dim=8),
            Categorical(name="tab", vocabulary=Enumerated(values=("home", "search")), dim=4),
            Numeric(name="price", transform=AutoDis(buckets=8, dim=4)),
            TimePart(name="hour", part="hour"),
            TimeGap(name="age", column="items.listed_at"),
            HashedCross(name="city_category", of=("user.city", "category"), vocabulary=Hashed(size=1000), dim=8),
            CrossFeature(
                name="clicks_7d", op="count", source="clicks", keys=("user_id", "items.category"), window="7d"
            ),
            CrossFeature(
                name="item_ctr",
                op="rate",
                source="clicks",
                per="exposures",
                keys=("item_id",),
                window="30d",
                prior=0.05,
                strength=20,
            ),
            CrossFeature(
                name="last_item",
                op="last",
                source="purchases",
                keys=("user_id",),
                window="90d",
                value="item_id",
                table=ITEMS,
            ),
            Sql(name="discount", expression="1 - price / items.price", type="float32", transform=Dense()),
        ),
    ),
    labels=(
        Label(name="click", column="clicked", oracle="p_click"),
        Label(name="buy", source="purchases", window="1d", given="click"),
    ),
)


def source(name: str, **changes: Any) -> Schema:
    """The shop with one source changed."""
    return SHOP.replace(sources=tuple(s.replace(**changes) if s.name == name else s for s in SHOP.sources))


def candidates(*more: Feature) -> Schema:
    """The shop with more features of the candidates."""
    return SHOP.replace(candidates=SHOP.candidates.replace(features=(*SHOP.candidates.features, *more)))


def user(*more: Feature) -> Schema:
    """The shop with more features of the user."""
    return SHOP.replace(user=SHOP.user.replace(features=(*SHOP.user.features, *more)))


def sequence(*more: Feature) -> Schema:
    """The shop with more features of its history."""
    history, realtime = SHOP.sequences
    return SHOP.replace(sequences=(history.replace(features=(*history.features, *more)), realtime))


def label(**fields: Any) -> Schema:
    """The shop with one more label, `x` unless named."""
    return SHOP.replace(labels=(*SHOP.labels, Label(**({"name": "x"} | fields))))
