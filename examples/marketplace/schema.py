"""The marketplace's features: every kind of declaration genrank knows, on the synthetic world of `world.py`.

    genrank schema explain --schema examples/marketplace/schema.py

Which part of the world each group is for: the history carries taste; the realtime sequence and the recency features carry
intent; the user x item and user x category statistics carry fatigue, repeat interest and purchases. `position` is not a
feature: it is what a ranker decides.
"""

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
    FixedBuckets,
    Hashed,
    HashedCross,
    Identity,
    Label,
    Log1p,
    MultiValued,
    Numeric,
    QuantileBuckets,
    Schema,
    Snapshot,
    SparseOptimizer,
    Sql,
    Table,
    TimeGap,
    TimePart,
    Training,
    UserGroup,
)

# ---------------------------------------------------------------------- sources

EVENT = {"user_id": "int64", "item_id": "int64", "request_id": "int64", "ts": "int64", "arrival_ts": "int64"}
EVENT_KEY = ("user_id", "item_id", "request_id")
WHEN = {"arrival": "arrival_ts", "lateness": "3d"}

exposures = EventLog(
    name="exposures",
    path="exposures/dt={dt}",
    columns={
        **EVENT,
        "position": "int32",
        "scene": "string",
        "device": "string",
        "price": "float32",
        "click_probability": "float32",
        "purchase_probability": "float32",
    },
    valid=("price > 0",),
    dedup=EVENT_KEY,
    post_exposure=("position", "click_probability", "purchase_probability"),
    description="Items shown. The two probabilities are the world's truth: for the oracle, never for a feature.",
    **WHEN,
)
clicks = EventLog(
    name="clicks",
    path="clicks/dt={dt}",
    columns={**EVENT, "dwell_ms": "int32"},
    valid=("item_id is not null", "dwell_ms >= 0"),
    dedup=EVENT_KEY,
    **WHEN,
)
carts = EventLog(
    name="carts",
    path="carts/dt={dt}",
    columns={**EVENT, "quantity": "int32"},
    valid=("item_id is not null",),
    dedup=EVENT_KEY,
    **WHEN,
)
purchases = EventLog(
    name="purchases",
    path="purchases/dt={dt}",
    columns={**EVENT, "quantity": "int32", "amount": "float32"},
    valid=("item_id is not null", "amount > 0"),
    dedup=EVENT_KEY,
    description="Minutes to a day after the exposure.",
    **WHEN,
)
follows = EventLog(
    name="follows",
    path="follows/dt={dt}",
    columns={"user_id": "int64", "brand": "int64", "ts": "int64", "arrival_ts": "int64", "action": "string"},
    **WHEN,
)
users = Snapshot(
    name="users",
    path="users/dt={dt}",
    key="user_id",
    columns={
        "user_id": "int64",
        "age": "string",
        "gender": "string",
        "city": "string",
        "membership": "string",
        "device": "string",
        "registered_ts": "int64",
        "followed_brands": "list<int64>",
    },
)
items = Snapshot(
    name="items",
    path="items/dt={dt}",
    key="item_id",
    columns={
        "item_id": "int64",
        "category": "string",
        "brand": "int64",
        "seller": "int64",
        "price": "float32",
        "list_price": "float32",
        "rating": "float32",
        "title_length": "int32",
        "tags": "list<string>",
        "created_ts": "int64",
    },
)

# ---------------------------------------------------------------------- tables shared by several features

CATEGORIES = [
    "audio",
    "baby",
    "bags",
    "beauty",
    "books",
    "camera",
    "computers",
    "craft",
    "fitness",
    "food",
    "furniture",
    "games",
    "garden",
    "jewellery",
    "kitchen",
    "lighting",
    "music",
    "outdoor",
    "pets",
    "phones",
    "shoes",
    "stationery",
    "toys",
    "watches",
]

item_table = Table(name="item", dim=32, vocabulary=Dynamic(capacity=16_384, admit_after=3, max_age="30d"))
category_table = Table(name="category", dim=16, vocabulary=Enumerated(values=tuple(CATEGORIES)))
brand_table = Table(name="brand", dim=16, vocabulary=Identity(size=120))
tag_table = Table(name="tag", dim=16, vocabulary=Dynamic(capacity=1024, evict="frequency"))
city_table = Table(name="city", dim=8, vocabulary=Enumerated(values=tuple(f"city_{i:02d}" for i in range(40))))
membership_table = Table(name="membership", dim=8, vocabulary=Enumerated(values=("free", "silver", "gold")))
device_table = Table(name="device", dim=8, vocabulary=Enumerated(values=("android", "ios", "web")))
user_table = Table(
    name="user", dim=16, vocabulary=Hashed(size=65_536), optimizer=SparseOptimizer(lr_scale=0.5, weight_decay=1e-5)
)

# ---------------------------------------------------------------------- user

user = UserGroup(
    features=(
        Categorical(name="user_id", table=user_table),
        Categorical(
            name="age",
            column="users.age",
            vocabulary=Enumerated(values=("18-24", "25-34", "35-44", "45-54", "55+")),
            dim=8,
        ),
        Categorical(name="gender", column="users.gender", vocabulary=Enumerated(values=("f", "m", "unknown")), dim=8),
        Categorical(name="city", column="users.city", table=city_table),
        Categorical(name="membership", column="users.membership", table=membership_table),
        Categorical(name="main_device", column="users.device", table=device_table),
        MultiValued(name="followed_brands", column="users.followed_brands", table=brand_table, pooling="sum"),
        TimeGap(name="tenure", column="users.registered_ts"),
        TimePart(name="weekday", part="weekday"),
        HashedCross(name="age_x_gender", of=("age", "gender"), vocabulary=Hashed(size=64), dim=8),
    )
)

# ---------------------------------------------------------------------- sequences

item_side = (
    Categorical(name="item_id", table=item_table),
    Categorical(name="category", column="items.category", table=category_table),
    Categorical(name="brand", column="items.brand", table=brand_table),
    MultiValued(name="tags", column="items.tags", table=tag_table, max_values=4),
    TimeGap(name="gap", transform=FixedBuckets(boundaries=(15, 60, 300, 1800, 7200, 43_200, 86_400, 259_200))),
)

history = EventSequence(
    name="history",
    events=(
        Events(source="clicks"),
        Events(source="carts"),
        Events(source="purchases"),
        Events(source="follows", where="action = 'follow'"),
        ChangePoints(source="users", column="city"),
        ChangePoints(source="users", column="membership"),
    ),
    features=(
        *item_side,
        Numeric(name="price", column="items.price", transform=QuantileBuckets(buckets=16)),
        Numeric(name="dwell_ms", transform=Log1p()),
        Numeric(name="amount", transform=Log1p()),
        Categorical(name="followed_brand", column="brand", table=brand_table),
        Categorical(name="city", table=city_table),
        Categorical(name="membership", table=membership_table),
        TimePart(name="hour", part="hour"),
    ),
    max_length=128,
    lookback="60d",
)

realtime = EventSequence(
    name="realtime",
    scope="realtime",
    events=(Events(source="clicks"), Events(source="carts"), Events(source="purchases")),
    features=(*item_side, Numeric(name="dwell_ms", transform=Log1p())),
    max_length=64,
)

# ---------------------------------------------------------------------- cross features

RECENCY = FixedBuckets(boundaries=(60, 180, 420, 900, 1800, 3600, 7200, 21_600, 86_400, 259_200, 604_800))
COUNT = FixedBuckets(boundaries=(1, 2, 3, 4, 6, 8, 12, 20))
USER_ITEM, USER_CATEGORY, USER_BRAND = (
    ("user_id", "item_id"),
    ("user_id", "items.category"),
    ("user_id", "items.brand"),
)


def ctr(name: str, keys: tuple[str, ...], window: str, strength: float, **more: object) -> CrossFeature:
    """Clicks per exposure, smoothed towards the overall rate."""
    return CrossFeature(
        name=name,
        op="rate",
        source="clicks",
        per="exposures",
        keys=keys,
        window=window,
        prior=0.11,
        strength=strength,
        **more,
    )


popularity = (
    ctr("ctr_1h", (), "1h", 100),
    ctr("item_ctr_14d", ("item_id",), "14d", 30, transform=Dense(shift=0.11, scale=10)),
    ctr("item_ctr_1d", ("item_id",), "1d", 30, transform=QuantileBuckets(buckets=16)),
    ctr("brand_ctr_7d", ("items.brand",), "7d", 50, as_of="window_start", transform=Dense(shift=0.11, scale=10)),
    ctr("category_ctr_7d", ("items.category",), "7d", 50, as_of="window_start", transform=Dense(shift=0.11, scale=10)),
    ctr("age_category_ctr_7d", ("users.age", "items.category"), "7d", 50, as_of="window_start",
        transform=Dense(shift=0.11, scale=10)),
    CrossFeature(name="item_clicks_6h", op="count", source="clicks", keys=("item_id",), window="6h"),
    CrossFeature(name="item_buyers_7d", op="distinct", source="purchases", keys=("item_id",), value="user_id", window="7d"),
    CrossFeature(name="item_revenue_7d", op="sum", source="purchases", keys=("item_id",), value="amount", window="7d"),
    CrossFeature(name="item_dwell_7d", op="mean", source="clicks", keys=("item_id",), value="dwell_ms", window="7d"),
)  # fmt: skip
activity = (
    ctr("user_ctr_7d", ("user_id",), "7d", 30, transform=AutoDis(buckets=16)),
    CrossFeature(name="user_clicks_30m", op="count", source="clicks", keys=("user_id",), window="30m", transform=COUNT),
    CrossFeature(name="user_shown_1d", op="count", source="exposures", keys=("user_id",), window="1d"),
    CrossFeature(name="user_spend_14d", op="sum", source="purchases", keys=("user_id",), value="amount", window="14d"),
    CrossFeature(name="user_basket_14d", op="mean", source="purchases", keys=("user_id",), value="amount", window="14d"),
    CrossFeature(name="user_items_1d", op="distinct", source="clicks", keys=("user_id",), value="item_id", window="1d"),
    CrossFeature(
        name="user_last_item", op="last", source="clicks", keys=("user_id",), value="item_id", window="1d", table=item_table
    ),
)  # fmt: skip
taste = (
    ctr("user_category_ctr_30d", USER_CATEGORY, "30d", 10, transform=Dense(shift=0.11, scale=8)),
    ctr("user_brand_ctr_30d", USER_BRAND, "30d", 10, transform=Dense(shift=0.11, scale=8)),
    CrossFeature(
        name="user_category_long_clicks_30d", op="count", source="clicks", keys=USER_CATEGORY, window="30d",
        where="dwell_ms >= 15000", transform=COUNT,
    ),
)  # fmt: skip
intent = (
    CrossFeature(
        name="user_category_clicks_30m", op="count", source="clicks", keys=USER_CATEGORY, window="30m", transform=COUNT
    ),
    CrossFeature(
        name="user_category_click_recency", op="recency", source="clicks", keys=USER_CATEGORY, window="7d", transform=RECENCY
    ),
    CrossFeature(
        name="user_brand_click_recency", op="recency", source="clicks", keys=USER_BRAND, window="7d", transform=RECENCY
    ),
    CrossFeature(
        name="user_category_purchase_recency", op="recency", source="purchases", keys=USER_CATEGORY, window="7d",
        transform=RECENCY,
    ),
)  # fmt: skip
fatigue = (
    CrossFeature(
        name="user_item_shown_3d", op="count", source="exposures", keys=USER_ITEM, window="3d", transform=COUNT
    ),
    CrossFeature(
        name="user_item_shown_recency", op="recency", source="exposures", keys=USER_ITEM, window="7d", transform=RECENCY
    ),
    CrossFeature(
        name="user_item_clicks_4d", op="count", source="clicks", keys=USER_ITEM, window="4d", transform=COUNT
    ),
    CrossFeature(
        name="user_item_click_recency", op="recency", source="clicks", keys=USER_ITEM, window="7d", transform=RECENCY
    ),
    CrossFeature(name="user_item_in_cart_7d", op="count", source="carts", keys=USER_ITEM, window="7d", transform=COUNT),
)  # fmt: skip

# ---------------------------------------------------------------------- candidates

candidates = Candidates(
    source="exposures",
    request="request_id",
    features=(
        Categorical(name="item_id", table=item_table),
        Categorical(name="category", column="items.category", table=category_table),
        Categorical(name="brand", column="items.brand", table=brand_table),
        Categorical(name="seller", column="items.seller", vocabulary=Hashed(size=1024), dim=16),
        MultiValued(name="tags", column="items.tags", table=tag_table, max_values=4),
        Numeric(name="price", column="items.price", transform=QuantileBuckets(buckets=16)),
        Numeric(name="rating", column="items.rating", transform=AutoDis(buckets=8)),
        Numeric(name="title_length", column="items.title_length", transform=FixedBuckets(boundaries=(20, 30, 40, 50))),
        Sql(
            name="discount",
            expression="1 - items.price / items.list_price",
            type="float32",
            transform=FixedBuckets(boundaries=(0.01, 0.15, 0.25, 0.35)),
            description="Share of the list price taken off today.",
        ),
        TimeGap(name="item_age", column="items.created_ts", transform=QuantileBuckets(buckets=12)),
        TimeGap(name="since_last_event", transform=RECENCY),
        TimePart(name="hour", part="hour"),
        Categorical(name="scene", vocabulary=Enumerated(values=("home", "search", "detail", "cart")), dim=8),
        Categorical(name="device", table=device_table),
        HashedCross(name="age_x_category", of=("user.age", "category"), vocabulary=Hashed(size=512), dim=8),
        HashedCross(name="membership_x_brand", of=("user.membership", "brand"), vocabulary=Hashed(size=1024), dim=8),
        *popularity,
        *activity,
        *taste,
        *intent,
        *fatigue,
    ),
    max_candidates=512,
)

# ---------------------------------------------------------------------- the schema

schema = Schema(
    name="marketplace",
    description="A synthetic marketplace with known click probabilities.",
    sources=(exposures, clicks, carts, purchases, follows, users, items),
    user=user,
    sequences=(history, realtime),
    candidates=candidates,
    labels=(
        Label(name="click", source="clicks", on=EVENT_KEY, window="10m", oracle="click_probability"),
        Label(
            name="purchase",
            source="purchases",
            on=EVENT_KEY,
            window="1d",
            given="click",
            oracle="purchase_probability",
        ),
    ),
    training=Training(view="user_day"),
)
