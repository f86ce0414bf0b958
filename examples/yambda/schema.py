"""Yambda: will a track be listened to, in MLPerf's terms (Ploshkin et al., arXiv:2505.22238; MLPerf Training, recommendation_v4).

    genrank build --schema examples/yambda/schema.py --data FOLDER --out FOLDER --from 2024-05-30 --to 2024-10-26

One task, `listen_plus`: at least half of the track is played. One history of three pools, listens, likes and skips, in time order; seven
crossed ids of candidate, user, hour and how the track was reached. Sizes are the 50M variant's; `of_size` gives those of the others, and
`schema_5b` is the benchmark's own: widths of 512 and its crossed ids' rows.

Where this departs from the benchmark: a training sample is a user and day, so that a user's listens of a day share one pass over the history
(there each listen brings its own); the history keeps the newest 4,086 events of all three pools together instead of 1,362 of each; crossed
ids belong to the candidate's token instead of standing before the history.
"""

from dataclasses import dataclass

from genrank.schemas import (
    Candidates,
    Categorical,
    Dynamic,
    EventLog,
    Events,
    EventSequence,
    Hashed,
    HashedCross,
    Identity,
    Label,
    Log1p,
    Numeric,
    Schema,
    Snapshot,
    Sql,
    Table,
    TimeGap,
    UserGroup,
)


@dataclass(frozen=True)
class Sizes:
    """Distinct ids of a variant, rows for crossed ids (a share of the benchmark's), width of a row."""

    users: int
    items: int
    artists: int
    albums: int
    crossed: float
    dim: int


SIZES = {
    "50m": Sizes(users=10_000, items=940_000, artists=300_000, albums=600_000, crossed=0.01, dim=64),
    "500m": Sizes(users=100_000, items=3_010_000, artists=700_000, albums=1_600_000, crossed=0.1, dim=128),
    "5b": Sizes(users=1_000_000, items=9_390_623, artists=1_293_394, albums=3_367_691, crossed=1.0, dim=512),
}
CROSSED = {
    "user_x_artist": (("user.user_id", "artist_id"), 100_000_000),
    "user_x_album": (("user.user_id", "album_id"), 40_000_000),
    "user_x_hour": (("user.user_id", "hour"), 24_000_000),
    "item_x_hour": (("item_id", "hour"), 40_000_000),
    "artist_x_hour": (("artist_id", "hour"), 32_000_000),
    "user_x_is_organic": (("user.user_id", "is_organic"), 2_000_000),
    "user_x_artist_x_hour": (("user.user_id", "artist_id", "hour"), 40_000_000),
}
"""The benchmark's crossed ids and the rows that it gives them."""
HISTORY_LENGTH = 4086

listens = EventLog(
    name="listens",
    path="listens/dt={dt}",
    columns={
        "user_id": "int64",
        "item_id": "int64",
        "ts": "int64",
        "arrival_ts": "int64",
        "is_organic": "int32",
        "played_ratio_pct": "int32",
        "track_length_seconds": "int32",
        "listen_plus": "int32",
    },
    arrival="arrival_ts",
    lateness="2d",
    post_exposure=("arrival_ts", "played_ratio_pct", "listen_plus"),
    description="Tracks played, with the share that was; times are binned to 5 s.",
)
feedback = EventLog(
    name="feedback",
    path="feedback/dt={dt}",
    columns={"user_id": "int64", "item_id": "int64", "ts": "int64", "is_organic": "int32", "action": "string"},
    description="Likes, dislikes and their withdrawals.",
)
items = Snapshot(
    name="items",
    path="items/dt={dt}",
    key="item_id",
    columns={"item_id": "int64", "artist_id": "int64", "album_id": "int64"},
    max_age="400d",
    description="Published once for the whole log.",
)


def of_size(variant: str) -> Schema:
    """The schema with tables as large as a variant (50m, 500m or 5b) needs."""
    sizes = SIZES[variant]

    def ids(name: str, rows: int) -> Table:
        return Table(name=name, dim=sizes.dim, vocabulary=Dynamic(capacity=rows))

    track = (
        Categorical(name="item_id", table=ids("item", sizes.items)),
        Categorical(name="artist_id", column="items.artist_id", table=ids("artist", sizes.artists)),
        Categorical(name="album_id", column="items.album_id", table=ids("album", sizes.albums)),
    )
    organic = Categorical(name="is_organic", table=Table(name="is_organic", dim=8, vocabulary=Identity(size=2)))
    pools = (
        Events(source="listens", where="listen_plus = 1", name="listen_plus"),
        Events(source="listens", where="listen_plus = 0", name="skip"),
        Events(source="feedback", where="action = 'like'", name="like"),
    )
    side = (*track, organic)
    return Schema(
        name=f"yambda_{variant}",
        description="Is at least half of a track played?",
        sources=(listens, feedback, items),
        user=UserGroup(features=(Categorical(name="user_id", table=ids("user", sizes.users)),)),
        sequences=(
            EventSequence(name="history", events=pools, features=side, max_length=HISTORY_LENGTH, lookback="300d"),
            EventSequence(name="today", scope="realtime", events=pools, features=side, max_length=1024),
        ),
        candidates=Candidates(
            source="listens",
            features=(
                *track,
                organic,
                Sql(
                    name="hour",
                    expression="CAST(MOD(FLOOR(ts / 3600000), 24) AS INT)",
                    type="int32",
                    vocabulary=Identity(size=24),
                    dim=8,
                ),
                Numeric(name="length", column="track_length_seconds", transform=Log1p()),
                TimeGap(name="since_last_event", transform=Log1p()),
                *(
                    HashedCross(
                        name=name, of=of, vocabulary=Hashed(size=max(1024, int(rows * sizes.crossed))), dim=sizes.dim
                    )
                    for name, (of, rows) in CROSSED.items()
                ),
            ),
        ),
        labels=(Label(name="listen_plus", column="listen_plus"),),
    )


schema = of_size("50m")
schema_500m = of_size("500m")
schema_5b = of_size("5b")
