"""The marketplace with features of a candidate within its request, and arithmetic over its statistics; the same samples serve.

    genrank train --schema examples/marketplace/request_context.py --samples FOLDER ...

All of them are computed when samples are read. What they are worth there: benchmarks/context.md.
"""

from genrank.examples.marketplace.schema import schema as marketplace
from genrank.schemas import Arithmetic, Dense, Log1p, RequestSize, WithinRequest

COMPARED = (
    "item_ctr_1d",
    "item_ctr_14d",
    "item_clicks_6h",
    "user_category_ctr_30d",
    "user_brand_ctr_30d",
    "price",
    "discount",
)

within_request = (
    RequestSize(name="request_size"),
    *(
        WithinRequest(name=f"{name}_rank", of=name, what="fraction_rank", transform=Dense(shift=0.5, scale=2))
        for name in COMPARED
    ),
    *(
        WithinRequest(name=f"{name}_difference", of=name, what="difference_to_mean", transform=Dense(scale=10))
        for name in COMPARED
        if name.endswith(("ctr_1d", "ctr_14d", "ctr_30d"))
    ),
    WithinRequest(name="price_share", of="price", what="share", transform=Dense(scale=10)),
)
trend = (
    Arithmetic(name="item_trend", op="ratio", of=("item_ctr_1d", "item_ctr_14d")),
    Arithmetic(name="price_to_basket", op="ratio", of=("price", "user_basket_14d"), transform=Log1p()),
)

schema = marketplace.replace(
    candidates=marketplace.candidates.replace(features=(*marketplace.candidates.features, *within_request, *trend))
)
