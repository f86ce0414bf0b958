"""The marketplace without a statistic of the user: of taste, intent and purchases a model knows what the sequences tell it.

    genrank train --schema examples/marketplace/history_only.py --samples runs/history/data ...

Every candidate cross feature whose keys hold the user is left out; the rest is `schema.py`. Click fatigue and an item clicked in the
last days weigh as much in the world as before, but showings are in no sequence: only the second can be known here. For comparing how
models read a history: benchmarks/history.md.
"""

from genrank.examples.marketplace.schema import schema as _whole
from genrank.schemas import CrossFeature, Schema

schema: Schema = _whole.replace(
    name="marketplace_history",
    candidates=_whole.candidates.replace(
        features=tuple(
            feature
            for feature in _whole.candidates.features
            if not (isinstance(feature, CrossFeature) and "user_id" in feature.keys)
        )
    ),
)
