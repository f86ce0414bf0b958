"""MovieLens-1M: which film does someone rate next? Sequences alone; nothing is known of what was shown.

    genrank build --schema examples/movielens1m/schema.py --data FOLDER --out FOLDER --from 2000-01-02 --to 2000-01-04

What is to be found on a day is what happened on it: `candidates` are the day's ratings themselves, and every one of them is a `rating`. The days
that `adapter.py` writes say which rating of a user is the last, the one before, and so on (leave one out); on a log with its real days the same
schema evaluates by time. Of times only the order is read.
"""

from genrank.schemas import (
    Candidates,
    Categorical,
    EventLog,
    Events,
    EventSequence,
    Identity,
    Label,
    Normal,
    Schema,
    SparseOptimizer,
    Table,
)

ratings = EventLog(
    name="ratings",
    path="ratings/dt={dt}",
    columns={"user_id": "int64", "item_id": "int64", "ts": "int64", "rated": "int32"},
    post_exposure=("rated",),
    description="Ratings in their order.",
)
film = Categorical(
    name="item_id",
    table=Table(
        name="film",
        dim=50,
        vocabulary=Identity(size=3953),
        initializer=Normal(std=0.02),
        optimizer=SparseOptimizer(kind="rowwise_adam"),
    ),
)

schema = Schema(
    name="movielens1m",
    description="The film that someone rates next.",
    sources=(ratings,),
    sequences=(EventSequence(name="history", events=(Events(source="ratings"),), features=(film,), max_length=200),),
    candidates=Candidates(source="ratings", features=(film,)),
    labels=(Label(name="rating", column="rated"),),
)
