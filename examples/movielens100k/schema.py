"""MovieLens-100K: which of the films that someone rates in a day get four stars or more?

    genrank build --schema examples/movielens100k/schema.py --data FOLDER --out FOLDER --from 1997-09-20 --to 1998-04-22

Half of the users rate on one day only, most within an hour: what is known of a user are the ratings minutes before, which is what the
realtime sequence is for. A user's statistics are as of the exposure.
"""

from genrank.examples.movielens100k.adapter import GENRES
from genrank.schemas import (
    Candidates,
    Categorical,
    CrossFeature,
    Dense,
    Enumerated,
    EventLog,
    Events,
    EventSequence,
    FixedBuckets,
    Identity,
    Label,
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

exposures = EventLog(
    name="exposures",
    path="exposures/dt={dt}",
    columns={"user_id": "int64", "item_id": "int64", "ts": "int64", "rating": "int32", "liked": "int32"},
    dedup=("user_id", "item_id"),
    post_exposure=("rating", "liked"),
    description="Ratings, each as the showing of a film.",
)
users = Snapshot(
    name="users",
    path="users/dt={dt}",
    key="user_id",
    max_age="240d",
    columns={"user_id": "int64", "age": "int32", "gender": "string", "occupation": "string"},
)
items = Snapshot(
    name="items",
    path="items/dt={dt}",
    key="item_id",
    max_age="240d",
    columns={"item_id": "int64", "release_year": "int32", "genres": "list<string>"},
)

item = Categorical(name="item_id", table=Table(name="item", dim=32, vocabulary=Identity(size=1683)))
genres = MultiValued(
    name="genres",
    column="items.genres",
    table=Table(name="genre", dim=16, vocabulary=Enumerated(values=GENRES)),
    max_values=6,
)
year = Numeric(name="year", column="items.release_year", transform=QuantileBuckets(buckets=12))
stars = Categorical(name="rating", table=Table(name="stars", dim=8, vocabulary=Identity(size=6)))

RATED = (
    Events(source="exposures", where="liked = 1", name="liked"),
    Events(source="exposures", where="liked = 0", name="disliked"),
)
COUNT = FixedBuckets(boundaries=(1, 2, 4, 8, 16, 32, 64, 128))


def rate(name: str, keys: tuple[str, ...], strength: float) -> CrossFeature:
    """Share of a key's ratings that are four stars or more."""
    return CrossFeature(
        name=name, op="rate", source="exposures", where="liked = 1", keys=keys, window="60d", prior=0.55, strength=strength,
        transform=Dense(shift=0.55, scale=4.0),
    )  # fmt: skip


schema = Schema(
    name="movielens100k",
    description="Films that get four stars or more, by user and day.",
    sources=(exposures, users, items),
    user=UserGroup(
        features=(
            Numeric(name="age", column="users.age", transform=QuantileBuckets(buckets=8)),
            Categorical(name="gender", column="users.gender", vocabulary=Enumerated(values=("F", "M")), dim=8),
            Categorical(
                name="occupation",
                column="users.occupation",
                vocabulary=Enumerated(
                    values=(
                        "administrator", "artist", "doctor", "educator", "engineer", "entertainment", "executive", "healthcare",
                        "homemaker", "lawyer", "librarian", "marketing", "none", "other", "programmer", "retired", "salesman",
                        "scientist", "student", "technician", "writer",
                    )
                ),
                dim=8,
            ),
        )
    ),
    sequences=(
        EventSequence(name="history", events=RATED, features=(item, genres, year, stars), max_length=128),
        EventSequence(name="realtime", scope="realtime", events=RATED, features=(item, genres, year, stars), max_length=256),
    ),
    candidates=Candidates(
        source="exposures",
        features=(
            item,
            genres,
            year,
            TimePart(name="hour", part="hour"),
            TimeGap(name="since_last_event", transform=FixedBuckets(boundaries=(5, 15, 60, 300, 3600, 86_400))),
            rate("item_rate", ("item_id",), 5),
            rate("item_gender_rate", ("item_id", "users.gender"), 5),
            rate("item_occupation_rate", ("item_id", "users.occupation"), 5),
            rate("user_rate", ("user_id",), 5),
            rate("user_year_rate", ("user_id", "items.release_year"), 3),
            CrossFeature(name="item_ratings", op="count", source="exposures", keys=("item_id",), window="60d"),
            CrossFeature(name="item_stars", op="mean", source="exposures", keys=("item_id",), value="rating", window="60d"),
            CrossFeature(name="user_stars", op="mean", source="exposures", keys=("user_id",), value="rating", window="60d"),
            CrossFeature(name="user_ratings", op="count", source="exposures", keys=("user_id",), window="60d", transform=COUNT),
        ),
        max_candidates=768,
    ),
    labels=(Label(name="like", column="liked"),),
)  # fmt: skip
