"""Retrieval: HSTU over the history, each event predicting the next one's item against the catalogue.

HSTU (arXiv:2402.17152), section 2.1 and public code: causal encoder, cosine similarity over a temperature, sampled softmax. Negatives
are drawn from the batch's own items or evenly from the catalogue; in-batch ones are popular items, and log Q takes that back out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from genrank.model.catalogue import catalogue
from genrank.model.encoders import Hstu, HstuConfig, hstu
from genrank.model.losses import sampled_softmax
from genrank.model.ranker import EncoderModel
from genrank.model.tasks.retrieval import NEXT_ITEM, RetrievalModel
from genrank.model.validation import Positive, Scale
from genrank.schemas.derive.tables import table_name
from genrank.schemas.errors import UserError
from genrank.schemas.features import Categorical
from genrank.schemas.ids import MISSING_ID
from genrank.schemas.schema import CANDIDATES, Schema
from genrank.tokenization import visibility
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.features import row_encoder
from genrank.tokenization.hashing import splitmix64
from genrank.tokenization.plan import tokens_per_row

FREQUENCY_SLOTS = 1 << 20
"""Of the hashed array that counts items for log Q (Yi et al., RecSys 2019, algorithm 2)."""


@dataclass(frozen=True)
class RetrieverConfig(HstuConfig):
    """HSTU's encoder, and how items are learned and found."""

    visibility: Literal["dynamic", "targets", "causal"] = "causal"
    """Anything else would show an event the ones it is to predict, user tokens that see the whole history included."""
    item_dim: Positive = 64
    """Width of the space queries and items meet in."""
    negatives: Positive = 512
    """A batch, shared by its queries."""
    sampling: Literal["in_batch", "uniform"] = "in_batch"
    """Negatives are other queries' items, or drawn evenly from the training days' catalogue."""
    log_q: bool = True
    """Correct negatives for how often they are drawn."""
    temperature: Scale = 0.05
    target: str | None = None
    """The label that makes an exposure an item to be found; null: the schema's first binary one."""
    cutoffs: tuple[Positive, ...] = (10, 50, 200)
    """K of HR@K and NDCG@K."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.visibility != "causal":
            raise self.refuse("visibility", "retrieval predicts what comes next; only causal hides it")
        if self.history:
            raise self.refuse("history", "retrieval learns from every event of a history; give 0")


PRESETS = {
    f"hstu-retrieval-{size}": RetrieverConfig(
        **{**dataclasses.asdict(hstu.PRESETS[f"hstu-{size}"]), "visibility": "causal"}
    )
    for size in ("tiny", "small", "large")
} | {
    # The paper's retrieval model: 6 layers of 256.
    "hstu-retrieval-paper": RetrieverConfig(
        dim=256, layers=6, heads=4, qk_dim=64, v_dim=64, visibility="causal", divisor="visible"
    ),
}


class Pairs(NamedTuple):
    """What one batch teaches."""

    queries: Tensor
    """[Q, item_dim]."""
    items: Tensor
    """[E, item_dim]: every event that has an item."""
    ids: Tensor
    """[E] int64."""
    target: Tensor
    """[Q] int64: each query's next item, as a row of `items`."""


class Retriever(EncoderModel, RetrievalModel):
    """History -> query vectors; ids -> item vectors. Called on a batch, it is the loss of its histories.

    Raises:
        UserError: the schema has not exactly one history sequence with a feature on the items' table.
    """

    encoder: Hstu
    several_ranks: ClassVar[bool] = False

    def __init__(self, embeddings: Embeddings, config: RetrieverConfig) -> None:
        super().__init__(embeddings, config, Hstu)
        # Parameters of features are named by it in checkpoints, as by the first of the modules that hold them.
        self._modules = {"embeddings": embeddings, **self._modules}
        schema = embeddings.plan.schema
        self.schema, self.config = schema, config
        self.table, self.sequence, self.feature = item_feature(schema)
        logical, merged = embeddings.plan.logical[self.table]
        self.merged = merged.name
        self.vocabulary = None if logical.dynamic else row_encoder(logical.vocabulary)
        self.query = nn.Linear(config.dim, config.item_dim)
        self.item = nn.Linear(logical.dim, config.item_dim)
        self.frequency = ItemFrequency()
        self.items = torch.zeros(0, dtype=torch.int64)
        """The catalogue that uniform negatives are drawn from; `prepare` sets it."""

    def prepare(self, samples: Path, dates: Sequence[str]) -> None:
        """Learn which items there are, for uniform negatives; and what `EncoderModel.prepare` does."""
        super().prepare(samples, dates)
        if self.config.sampling == "uniform":
            self.items = catalogue(samples, self.schema, dates)

    @property
    def target(self) -> str:
        """The label that makes an exposure an item to be found."""
        return self.config.target or next(label.name for label in self.schema.labels if label.kind == "binary")

    @property
    def cutoffs(self) -> tuple[int, ...]:
        """K of HR@K and NDCG@K."""
        return self.config.cutoffs

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{"next_item": sum over the batch's queries of the sampled softmax loss}; `query_count` is how many they are."""
        config, pairs = self.config, self.pairs(batch)
        self.frequency.observe(pairs.ids)
        device, wanted = pairs.ids.device, (config.negatives,)
        if not len(pairs.target):
            return {NEXT_ITEM: pairs.queries.sum() + pairs.items.sum() * 0}
        log_q = None
        if config.sampling == "in_batch":
            chosen = torch.randint(len(pairs.ids), wanted, device=device)
            ids, vectors = pairs.ids[chosen], pairs.items[chosen]
            if config.log_q:
                log_q = self.frequency.log_share(ids) + math.log(config.negatives)
        else:
            self.items = self.items.to(device)
            ids = self.items[torch.randint(len(self.items), wanted, device=device)]
            vectors = self.item_vectors(ids)
            if config.log_q:
                log_q = torch.full(wanted, math.log(config.negatives / len(self.items)), device=device)
        loss = sampled_softmax(
            pairs.queries,
            pairs.items[pairs.target],
            vectors,
            positive_ids=pairs.ids[pairs.target],
            negative_ids=ids,
            negative_log_q=log_q,
            temperature=config.temperature,
        )
        return {NEXT_ITEM: loss}

    def item_rows(self, ids: Tensor) -> Tensor:
        """[N] int64 ids -> [N] int64 physical rows."""
        start = self.embeddings.plan.start_of(self.table)
        if self.vocabulary is None:
            return self.embeddings.vocabularies[self.table].rows_of(ids) + start
        rows: Tensor = self.vocabulary(ids[None])
        return rows[0] + start

    def item_vectors(self, ids: Tensor) -> Tensor:
        """[N] int64 ids -> [N, item_dim]; in training, backward learns the rows."""
        rows = self.embeddings.tables.lookup({self.merged: self.item_rows(ids)})[self.merged]
        vectors: Tensor = self.item(rows)
        return vectors

    def states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[N, item_dim] after each history event, and [N] int64 the event's item."""
        batch = history_only(batch, self.schema)
        tokens = self.tokenizer(batch)
        events = (tokens.group_ids == visibility.HISTORY).nonzero().squeeze(1)
        last = tokens_per_row(self.schema, self.sequence)
        encoded = self.encoder(tokens, events).unflatten(0, (-1, last))[:, -1]
        ids = batch.groups[self.sequence].features[self.feature]
        assert isinstance(ids, Tensor)
        return self.query(encoded), ids

    def pairs(self, batch: Batch) -> Pairs:
        """Every history event with the next one of its user, where that has an item."""
        states, ids = self.states(batch)
        known, follows = self._following(batch)
        row = torch.cumsum(known, 0) - 1
        after = torch.arange(1, len(ids), device=ids.device)
        return Pairs(
            queries=states[:-1][follows],
            items=self.item_vectors(ids[known]),
            ids=ids[known],
            target=row[after[follows]],
        )

    def query_count(self, batch: Batch) -> Tensor:
        """float64 [1]: events of a batch that are followed by an item."""
        return self._following(batch)[1].sum().double().unsqueeze(0)

    def _following(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """bool [N]: events that have an item; bool [N-1]: those whose next event is the same user's and has one."""
        group = batch.groups[self.sequence]
        ids = group.features[self.feature]
        assert isinstance(ids, Tensor)
        sample = torch.repeat_interleave(group.lengths, output_size=len(ids))
        known = ids != MISSING_ID
        return known, (sample[1:] == sample[:-1]) & known[1:]


class ItemFrequency(nn.Module):
    """How often each item occurs in the training stream, in a hashed array; part of the model's checkpoint."""

    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(FREQUENCY_SLOTS, dtype=torch.float64))

    def observe(self, ids: Tensor) -> None:
        """Count a batch's items."""
        self.counts += torch.bincount(_slot(ids), minlength=FREQUENCY_SLOTS)

    def log_share(self, ids: Tensor) -> Tensor:
        """[N] float32: log of each item's share of the stream so far."""
        return (self.counts[_slot(ids)].clamp(min=1) / self.counts.sum().clamp(min=1)).log().float()


def _slot(ids: Tensor) -> Tensor:
    return splitmix64(ids) & (FREQUENCY_SLOTS - 1)


def item_feature(schema: Schema) -> tuple[str, str, str]:
    """(logical table, sequence, feature) that hold the ranked items' ids in the history.

    Raises:
        UserError: there is none, or more than one history sequence.
    """
    groups = dict(schema.groups())
    item = schema.candidates.item
    own = [f for f in groups[CANDIDATES] if isinstance(f, Categorical) and (f.column or f.name) == item]
    if not own:
        raise UserError(
            f"retrieval needs a candidates feature on {item!r}, the items' id; declare Categorical(name={item!r}, ...)"
        )
    table = table_name(CANDIDATES, own[0])
    if len(schema.histories) != 1:
        raise UserError(f"retrieval reads exactly one history sequence; the schema has {len(schema.histories)}")
    sequence = schema.histories[0].name
    found = [f for f in groups[sequence] if isinstance(f, Categorical) and table_name(sequence, f) == table]
    if not found or table is None:
        raise UserError(
            f"retrieval needs a feature of {sequence} on the same table as candidates.{own[0].name}; share it: table=..."
        )
    return table, sequence, next((f for f in found if (f.column or f.name) == item), found[0]).name


def history_only(batch: Batch, schema: Schema) -> Batch:
    """The batch without realtime events and candidates, which a causal history never sees."""
    kept = {name for name in batch.groups if name == "user" or any(s.name == name for s in schema.histories)}
    none = torch.zeros(0, dtype=torch.int64, device=batch.user.device)
    groups = {
        name: group if name in kept else group.take(none, torch.zeros_like(group.offsets))
        for name, group in batch.groups.items()
    }
    empty = torch.zeros(0, dtype=torch.int32, device=batch.user.device)
    return dataclasses.replace(
        batch,
        groups=groups,
        candidate_sees=empty,
        realtime_sees=empty,
        realtime_available=none,
        item=none,
        request=none,
    )
