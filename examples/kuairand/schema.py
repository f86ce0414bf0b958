"""KuaiRand-Pure: which of the videos of a day's feed are clicked and viewed long (Gao et al., CIKM 2022).

    genrank build --schema examples/kuairand/schema.py --data FOLDER --out FOLDER --from 2022-04-25 --to 2022-05-08

There is no request id, and only a small pool of videos was kept of each feed, so candidates are grouped by user and day; each
is still ranked with what was known in its own millisecond. A user's rows lie 9 hours apart in the median: there is no session to follow, hence
no realtime sequence. The published monthly statistics of videos are not used: they
average over the days that are ranked. Statistics are computed from the log instead, point-in-time.
"""

from typing import Literal

from genrank.schemas import (
    Candidates,
    Categorical,
    CrossFeature,
    Dense,
    DriftLimits,
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
    Limits,
    Log1p,
    MultiValued,
    Numeric,
    QuantileBuckets,
    Schema,
    Snapshot,
    Table,
    TimeGap,
    TimePart,
    UserGroup,
)

FEEDBACK = (
    "is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter"
)  # fmt: skip

exposures = EventLog(
    name="exposures",
    path="exposures/dt={dt}",
    columns={
        "user_id": "int64",
        "video_id": "int64",
        "ts": "int64",
        "arrival_ts": "int64",
        "tab": "int32",
        "duration_ms": "int64",
        "play_time_ms": "int64",
        **dict.fromkeys(FEEDBACK, "int32"),
    },
    arrival="arrival_ts",
    dedup=("user_id", "video_id", "ts"),
    post_exposure=("arrival_ts", "play_time_ms", *FEEDBACK),
    description="Videos shown, with the feedback known when playing ended.",
)
earlier = EventLog(
    name="earlier",
    path="earlier/dt={dt}",
    columns={"user_id": "int64", "video_id": "int64", "ts": "int64", "long_view": "int32"},
    description="What was shown before the log begins, in order; times between the first and the last are spread evenly.",
)
users = Snapshot(
    name="users",
    path="users/dt={dt}",
    key="user_id",
    columns={
        "user_id": "int64",
        "user_active_degree": "string",
        "is_live_streamer": "int32",
        "is_video_author": "int32",
        "follow_user_num": "int64",
        "fans_user_num": "int64",
        "friend_user_num": "int64",
        "register_days": "int64",
        **{f"onehot_feat{i}": "int64" for i in range(18)},
    },
    max_age="60d",
    description="Published once for the whole log.",
)
items = Snapshot(
    name="items",
    path="items/dt={dt}",
    key="video_id",
    columns={
        "video_id": "int64",
        "author_id": "int64",
        "video_type": "string",
        "upload_type": "string",
        "upload_ts": "int64",
        "video_duration": "float32",
        "music_id": "int64",
        "music_type": "int64",
        "tags": "list<string>",
        "main_tag": "string",
    },
    max_age="60d",
    description="Published once for the whole log.",
)

# ---------------------------------------------------------------------- tables shared by several features

video_table = Table(name="video", dim=32, vocabulary=Identity(size=7583))
author_table = Table(name="author", dim=32, vocabulary=Dynamic(capacity=8192))
tag_table = Table(name="tag", dim=16, vocabulary=Dynamic(capacity=256))
tab_table = Table(name="tab", dim=16, vocabulary=Identity(size=15))

# ---------------------------------------------------------------------- user

ENCRYPTED = {0: 2, 1: 7, 2: 50, 3: 1471, 4: 15, 5: 34, 6: 3, 7: 118, 8: 454, 9: 7, 10: 5, 11: 5}
"""Published sizes of the anonymised user features."""

user = UserGroup(
    features=(
        Categorical(name="user_id", vocabulary=Identity(size=27_285), dim=16),
        Categorical(
            name="active_degree",
            column="users.user_active_degree",
            vocabulary=Enumerated(
                values=(
                    "full_active", "high_active", "middle_active", "low_active", "single_low_active", "2_14_day_new",
                    "day_new", "30day_retention",
                )
            ),
            dim=8,
        ),
        Categorical(name="is_video_author", column="users.is_video_author", vocabulary=Identity(size=2), dim=8),
        Categorical(name="is_live_streamer", column="users.is_live_streamer", vocabulary=Identity(size=2), dim=8),
        Numeric(name="follow_user_num", column="users.follow_user_num", transform=QuantileBuckets(buckets=16)),
        Numeric(name="fans_user_num", column="users.fans_user_num", transform=QuantileBuckets(buckets=16)),
        Numeric(name="friend_user_num", column="users.friend_user_num", transform=QuantileBuckets(buckets=16)),
        Numeric(name="register_days", column="users.register_days", transform=Log1p()),
        TimePart(name="weekday", part="weekday"),
        *(
            Categorical(
                name=f"encrypted_{i}", column=f"users.onehot_feat{i}", vocabulary=Identity(size=size), dim=8
            )
            for i, size in ENCRYPTED.items()
        ),
    )
)  # fmt: skip

# ---------------------------------------------------------------------- sequences

video_side = (
    Categorical(name="video_id", table=video_table),
    Categorical(name="author_id", column="items.author_id", table=author_table),
    MultiValued(name="tags", column="items.tags", table=tag_table, max_values=3),
    Numeric(name="duration", column="items.video_duration", transform=Log1p()),
)
log_events = (
    Events(source="exposures", where="long_view = 1", name="long_view"),
    Events(source="exposures", where="long_view = 0 and is_click = 1", name="click"),
    Events(source="exposures", where="long_view = 0 and is_click = 0", name="shown"),
)
played = Numeric(name="play_time_ms", transform=Log1p())
tab = Categorical(name="tab", table=tab_table)

history = EventSequence(
    name="history",
    events=(
        *log_events,
        Events(source="earlier", where="long_view = 1", name="earlier_long_view"),
        Events(source="earlier", where="long_view = 0", name="earlier_shown"),
    ),
    features=(*video_side, played, tab),
    max_length=64,
)
# ---------------------------------------------------------------------- statistics, point-in-time

RECENCY = FixedBuckets(boundaries=(60, 600, 3600, 21_600, 86_400, 172_800, 345_600, 604_800))
COUNT = FixedBuckets(boundaries=(1, 2, 3, 5, 8, 13, 21))
VIDEO, AUTHOR, USER = ("video_id",), ("items.author_id",), ("user_id",)
AsOf = Literal["exposure", "window_start"]


def rate(
    name: str, flag: str, keys: tuple[str, ...], strength: float, window: str = "14d", as_of: AsOf = "exposure"
) -> CrossFeature:
    """Share of the exposures of a key that got the feedback."""
    prior = {"is_click": 0.44, "long_view": 0.31}[flag]
    return CrossFeature(
        name=name,
        op="rate",
        source="exposures",
        where=f"{flag} = 1",
        keys=keys,
        window=window,
        prior=prior,
        strength=strength,
        as_of=as_of,
        transform=Dense(shift=prior, scale=4.0),
    )


def count(
    name: str, keys: tuple[str, ...], window: str, source: str = "exposures", where: str | None = None
) -> CrossFeature:
    """Events of a key, in buckets."""
    return CrossFeature(name=name, op="count", source=source, where=where, keys=keys, window=window, transform=COUNT)


statistics = (
    rate("video_ctr", "is_click", VIDEO, 20),
    rate("video_long_view_rate", "long_view", VIDEO, 20),
    rate("video_ctr_1d", "is_click", VIDEO, 20, window="1d"),
    rate("author_ctr", "is_click", AUTHOR, 20),
    rate("author_long_view_rate", "long_view", AUTHOR, 20),
    rate("tab_video_ctr", "is_click", ("tab", "video_id"), 20),
    rate("tag_ctr", "is_click", ("items.main_tag",), 50),
    # How a user responds, as of the day's start. Within a day it would order a user's few videos the wrong way round: of
    # outcomes in random order, those before a click hold one click less than those before no click.
    rate("user_ctr", "is_click", USER, 5, as_of="window_start"),
    rate("user_long_view_rate", "long_view", USER, 5, as_of="window_start"),
    rate("user_tab_ctr", "is_click", ("user_id", "tab"), 5, as_of="window_start"),
    rate("user_tag_long_view_rate", "long_view", ("user_id", "items.main_tag"), 3, as_of="window_start"),
    CrossFeature(name="video_play_time", op="mean", source="exposures", keys=VIDEO, value="play_time_ms", window="14d"),
    CrossFeature(
        name="user_play_time", op="mean", source="exposures", keys=USER, value="play_time_ms", window="14d",
        as_of="window_start",
    ),
    CrossFeature(name="video_viewers", op="distinct", source="exposures", keys=VIDEO, value="user_id", window="7d"),
    CrossFeature(name="user_shown_1h", op="count", source="exposures", keys=USER, window="1h", transform=COUNT),
    CrossFeature(name="user_recency", op="recency", source="exposures", keys=USER, window="14d", transform=RECENCY),
    CrossFeature(
        name="user_video_recency", op="recency", source="exposures", keys=("user_id", "video_id"), window="14d",
        transform=RECENCY,
    ),
    count("user_video_shown", ("user_id", "video_id"), "14d"),
    count("user_author_shown", ("user_id", "items.author_id"), "14d"),
    count("user_author_long_views", ("user_id", "items.author_id"), "14d", where="long_view = 1"),
    count("user_video_shown_earlier", ("user_id", "video_id"), "30d", source="earlier"),
    count("user_video_long_views_earlier", ("user_id", "video_id"), "30d", source="earlier", where="long_view = 1"),
    count("user_tag_long_views_earlier", ("user_id", "items.main_tag"), "30d", source="earlier", where="long_view = 1"),
    CrossFeature(
        name="video_long_view_rate_earlier", op="rate", source="earlier", where="long_view = 1", keys=VIDEO, window="30d",
        prior=0.35, strength=20, as_of="window_start", transform=Dense(shift=0.35, scale=4.0),
    ),
)  # fmt: skip

# ---------------------------------------------------------------------- candidates

candidates = Candidates(
    source="exposures",
    item="video_id",
    features=(
        *video_side,
        tab,
        Numeric(name="length", column="duration_ms", transform=QuantileBuckets(buckets=24)),
        Categorical(name="music_id", column="items.music_id", vocabulary=Hashed(size=8192), dim=16),
        Categorical(name="music_type", column="items.music_type", vocabulary=Identity(size=12), dim=8),
        Categorical(name="upload_type", column="items.upload_type", vocabulary=Hashed(size=64), dim=8),
        TimeGap(name="video_age", column="items.upload_ts", transform=FixedBuckets(boundaries=tuple(86_400.0 * d for d in range(14, 30)))),
        TimePart(name="hour", part="hour"),
        TimeGap(name="since_last_event", transform=RECENCY),
        HashedCross(name="degree_x_tab", of=("user.active_degree", "tab"), vocabulary=Hashed(size=256), dim=8),
        *statistics,
    ),
    max_candidates=128,
)  # fmt: skip

schema = Schema(
    name="kuairand_pure",
    description="Clicks and long views of short videos, by user and day.",
    sources=(exposures, earlier, users, items),
    user=user,
    sequences=(history,),
    candidates=candidates,
    labels=(Label(name="click", column="is_click"), Label(name="long_view", column="long_view")),
    utc_offset="+08:00",
    # Videos are those of the collection's first weeks, so that their age moves a day every day.
    drift=DriftLimits(psi=Limits(warn=3.0)),
)
