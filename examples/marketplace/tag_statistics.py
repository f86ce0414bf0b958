"""The marketplace with statistics of a user by each of an item's tags, which reveal its style: keys that are lists.

    genrank build --schema examples/marketplace/tag_statistics.py --data FOLDER --out FOLDER ...

An event counts at each of its item's tags, and a candidate's value is that of its tags together, by `reduce`.
"""

from genrank.examples.marketplace.schema import schema as _whole
from genrank.schemas import CrossFeature, Dense, Log1p, Schema

USER_TAG = ("user_id", "items.tags")

tag_statistics = (
    CrossFeature(
        name="user_tag_clicks_30m",
        op="count",
        source="clicks",
        keys=USER_TAG,
        window="30m",
        reduce="sum",
        transform=Log1p(),
    ),
    CrossFeature(
        name="user_tag_ctr_30d",
        op="rate",
        source="clicks",
        per="exposures",
        keys=USER_TAG,
        window="30d",
        prior=0.11,
        strength=10,
        reduce="mean",
        transform=Dense(shift=0.11, scale=8),
    ),
)

schema: Schema = _whole.replace(
    name="marketplace_tags",
    candidates=_whole.candidates.replace(features=(*_whole.candidates.features, *tag_statistics)),
)
