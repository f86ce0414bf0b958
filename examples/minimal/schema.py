"""The smallest schema that ranks: items by a user's click history."""

from genrank.schemas import (
    Candidates,
    Categorical,
    CrossFeature,
    EventLog,
    Events,
    EventSequence,
    Hashed,
    Label,
    Schema,
    Table,
)

columns = {"user_id": "int64", "item_id": "int64", "ts": "int64"}
exposures = EventLog(name="exposures", path="exposures/dt={dt}", columns=columns)
clicks = EventLog(name="clicks", path="clicks/dt={dt}", columns=columns)
item = Categorical(name="item_id", table=Table(name="item", dim=32, vocabulary=Hashed(size=10_000)))
popularity = CrossFeature(name="item_clicks_7d", op="count", source="clicks", keys=("item_id",), window="7d")
history = EventSequence(name="history", events=(Events(source="clicks"),), features=(item,))

schema = Schema(
    name="minimal",
    sources=(exposures, clicks),
    sequences=(history,),
    candidates=Candidates(features=(item, popularity)),
    labels=(Label(name="click", source="clicks", window="10m"),),
)
