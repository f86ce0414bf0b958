"""Configurations of retrieval models: an encoder's fields, and how items are learned and found."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from genrank.model.encoders import HstuConfig, hstu
from genrank.model.encoders.self_attention import SelfAttentionConfig
from genrank.model.validation import Checked, Positive, Scale


@dataclass(frozen=True)
class RetrievalConfig(Checked):
    """How items are learned and found, whatever encodes the history."""

    item_dim: Positive = 64
    """Width of the space queries and items meet in; of `tied` items it is `dim`."""
    tied: bool = False
    """An item's vector is what its id adds to a token of the history, and queries are the encoder's own vectors: items have no projection
    beside that of the input (Inan et al., ICLR 2017, arXiv:1611.01462; HSTU's and SASRec's public code)."""
    negatives: Positive = 512
    """How many are drawn."""
    per_query: bool = False
    """Each query has negatives of its own; otherwise all of a batch share the same."""
    sampling: Literal["in_batch", "uniform"] = "in_batch"
    """Negatives are other queries' items, or drawn evenly from the training days' catalogue."""
    log_q: bool = True
    """Correct negatives for how often they are drawn."""
    temperature: Scale = 0.05
    learn_responses: bool = False
    """Learn the first response of each sample, too, as what follows its history, which is what evaluation asks for. Without it the last event
    of a history is no query in training."""
    catalogue: Literal["candidates", "events"] = "candidates"
    """Which items there are: those that were candidates on the days, or those of the samples' histories, too, where sequences are all that is
    known."""
    exclude_seen: bool = False
    """Evaluation doesn't offer a user the items of the history that the query is made of; one of them is then never found."""
    target: str | None = None
    """The label that makes an exposure an item to be found; null: the schema's first binary one."""
    cutoffs: tuple[Positive, ...] = (10, 50, 200)
    """K of HR@K and NDCG@K."""


@dataclass(frozen=True)
class RetrieverConfig(RetrievalConfig, HstuConfig):
    """HSTU's encoder."""

    visibility: Literal["dynamic", "targets", "causal"] = "causal"
    """Anything else would show an event the ones it is to predict, user tokens that see the whole history included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.visibility != "causal":
            raise self.refuse("visibility", "retrieval predicts what comes next; only causal hides it")
        if self.history_loss:
            raise self.refuse("history_loss", "retrieval learns from every event as it is; give 0")
        if self.listwise:
            raise self.refuse("listwise", "retrieval reads no request's candidates; give false")
        if self.history:
            raise self.refuse("history", "retrieval learns from every event of a history; give 0")


@dataclass(frozen=True)
class SasrecRetrieverConfig(RetrievalConfig, SelfAttentionConfig):
    """SASRec's encoder."""


PRESETS: dict[str, RetrieverConfig | SasrecRetrieverConfig] = {
    **{
        f"hstu-retrieval-{size}": RetrieverConfig(
            **{**dataclasses.asdict(hstu.PRESETS[f"hstu-{size}"]), "visibility": "causal"}
        )
        for size in ("tiny", "small", "large")
    },
    # The paper's retrieval model: 6 layers of 256.
    "hstu-retrieval-paper": RetrieverConfig(
        dim=256, layers=6, heads=4, qk_dim=64, v_dim=64, visibility="causal", divisor="visible"
    ),
    "sasrec-retrieval": SasrecRetrieverConfig(dim=64),
}
