"""Retrieval: an encoder over the history, each event predicting the next one's item against the catalogue.

HSTU (arXiv:2402.17152), section 2.1 and public code: causal encoder, cosine similarity over a temperature, sampled softmax. Negatives
are drawn from the batch's own items or evenly from the catalogue; in-batch ones are popular items, and log Q takes that back out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from genrank.model.catalogue import catalogue
from genrank.model.encoders import Hstu
from genrank.model.encoders.self_attention import SelfAttention
from genrank.model.losses import sampled_softmax
from genrank.model.ranker import EncoderModel
from genrank.model.retrieval_config import RetrieverConfig, SasrecRetrieverConfig
from genrank.model.tasks.retrieval import NEXT_ITEM, RetrievalModel, first_responses
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
from genrank.tokenization.projections import Projection

FREQUENCY_SLOTS = 1 << 20
"""Of the hashed array that counts items for log Q (Yi et al., RecSys 2019, algorithm 2)."""


class Pairs(NamedTuple):
    """What one batch teaches."""

    queries: Tensor
    """[Q, item_dim]."""
    items: Tensor
    """[E, item_dim]: every event that has an item, then the responses that are learned."""
    ids: Tensor
    """[E] int64."""
    target: Tensor
    """[Q] int64: each query's next item, as a row of `items`."""


class Negatives(NamedTuple):
    """What queries are to score below their next item."""

    ids: Tensor
    """[N] int64."""
    vectors: Tensor
    """[N, item_dim]."""
    log_q: Tensor | None
    """[N] float32: log of how often each is expected among a query's."""
    chosen: Tensor | None
    """[Q, R] int64: each query's own, of the N; None: all are every query's."""


class Events(NamedTuple):
    """The N events of a batch's histories."""

    states: Tensor
    """[N, item_dim]: the query after each."""
    rows: Tensor
    """[N, table dim]: the row of each one's item."""
    ids: Tensor
    """[N] int64."""


class Retriever(EncoderModel, RetrievalModel):
    """History -> query vectors; ids -> item vectors. Called on a batch, it is the loss of its histories.

    Raises:
        UserError: the schema has not exactly one history sequence with a feature on the items' table.
    """

    several_ranks: ClassVar[bool] = False

    def __init__(self, embeddings: Embeddings, config: RetrieverConfig | SasrecRetrieverConfig) -> None:
        super().__init__(embeddings, config, Hstu if isinstance(config, RetrieverConfig) else SelfAttention)
        # Parameters of features are named by it in checkpoints, as by the first of the modules that hold them.
        self._modules = {"embeddings": embeddings, **self._modules}
        schema = embeddings.plan.schema
        self.schema, self.config = schema, config
        self.table, self.sequence, self.feature = item_feature(schema)
        logical, merged = embeddings.plan.logical[self.table]
        self.merged = merged.name
        self.vocabulary = None if logical.dynamic else row_encoder(logical.vocabulary)
        if config.tied:
            # Rows enter at sqrt(dim) of their scale (Vaswani et al., arXiv:1706.03762, section 3.4), and turned: angles between items stay.
            nn.init.orthogonal_(self._input_weight, math.sqrt(logical.dim))
        else:
            self.query = nn.Linear(config.dim, config.item_dim)
            self.item = nn.Linear(logical.dim, config.item_dim)
        self.frequency = ItemFrequency()
        self.items = torch.zeros(0, dtype=torch.int64)
        """The catalogue that uniform negatives are drawn from; `prepare` sets it."""

    def prepare(self, samples: Path, dates: Sequence[str]) -> None:
        """Learn which items there are, for uniform negatives; and what `EncoderModel.prepare` does."""
        super().prepare(samples, dates)
        if self.config.sampling == "uniform":
            self.items = catalogue(samples, self.schema, dates, self.events)

    @property
    def target(self) -> str:
        """The label that makes an exposure an item to be found."""
        return self.config.target or next(label.name for label in self.schema.labels if label.kind == "binary")

    @property
    def cutoffs(self) -> tuple[int, ...]:
        """K of HR@K and NDCG@K."""
        return self.config.cutoffs

    @property
    def events(self) -> tuple[str, str] | None:
        """(sequence, feature) whose items are in the catalogue beside the candidates; None: none."""
        return (self.sequence, self.feature) if self.config.catalogue == "events" else None

    @property
    def exclude_seen(self) -> bool:
        """Whether evaluation offers no item of the query's own history."""
        return self.config.exclude_seen

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{"next_item": sum over the batch's queries of the sampled softmax loss}; `query_count` is how many they are."""
        config = self.config
        (known, follows), (last, responses) = self._following(batch), self._responses(batch)
        uniform = config.sampling == "uniform"
        others, chosen = self._from_catalogue(int(follows.sum()) + len(last)) if uniform else (responses[:0], None)
        events, more = self._events(batch, torch.cat([responses, others]))
        ids = torch.cat([events.ids[known], responses])
        vectors, of_others = self._placed(torch.cat([events.rows[known], more])).tensor_split([len(ids)])
        after, row = torch.arange(1, len(events.ids), device=ids.device), torch.cumsum(known, 0) - 1
        pairs = Pairs(
            queries=torch.cat([events.states[:-1][follows], events.states[last]]),
            items=vectors,
            ids=ids,
            target=torch.cat([row[after[follows]], torch.arange(len(ids) - len(last), len(ids), device=ids.device)]),
        )
        self.frequency.observe(ids)
        if not len(pairs.target):
            return {NEXT_ITEM: pairs.queries.sum() + pairs.items.sum() * 0}
        negatives = Negatives(others, of_others, self._even_share(others), chosen) if uniform else self._in_batch(pairs)
        loss = sampled_softmax(
            pairs.queries,
            pairs.items[pairs.target],
            negatives.vectors,
            positive_ids=pairs.ids[pairs.target],
            negative_ids=negatives.ids,
            negative_log_q=negatives.log_q,
            chosen=negatives.chosen,
            temperature=config.temperature,
        )
        return {NEXT_ITEM: loss}

    def _in_batch(self, pairs: Pairs) -> Negatives:
        """Of the batch's own items, each as often as it comes."""
        config, each = self.config, len(pairs.ids)
        device = pairs.ids.device
        if config.per_query:
            ids, vectors = pairs.ids, pairs.items
            chosen = torch.randint(each, (len(pairs.target), config.negatives), device=device)
        else:
            drawn = torch.randint(each, (config.negatives,), device=device)
            ids, vectors, chosen = pairs.ids[drawn], pairs.items[drawn], None
        log_q = self.frequency.log_share(ids) + math.log(config.negatives) if config.log_q else None
        return Negatives(ids, vectors, log_q, chosen)

    def _from_catalogue(self, queries: int) -> tuple[Tensor, Tensor | None]:
        """[N] int64 ids drawn evenly from the catalogue, and with negatives of its own for each query which are whose, [Q, R] int64."""
        self.items = items = self.items.to(self.frequency.counts.device)
        number = self.config.negatives
        if not self.config.per_query:
            return items[torch.randint(len(items), (number,), device=items.device)], None
        drawn = torch.randint(len(items), (queries, number), device=items.device)
        if len(items) <= drawn.numel():
            return items, drawn
        found, chosen = torch.unique(drawn, return_inverse=True)
        return items[found], chosen

    def _even_share(self, ids: Tensor) -> Tensor | None:
        """[N] float32: `Negatives.log_q` of ids drawn evenly from the catalogue."""
        if not self.config.log_q:
            return None
        return torch.full((len(ids),), math.log(self.config.negatives / len(self.items)), device=ids.device)

    # ------------------------------------------------------------------ vectors

    def item_rows(self, ids: Tensor) -> Tensor:
        """[N] int64 ids -> [N] int64 physical rows."""
        start = self.embeddings.plan.start_of(self.table)
        if self.vocabulary is None:
            return self.embeddings.vocabularies[self.table].rows_of(ids) + start
        rows: Tensor = self.vocabulary(ids[None])
        return rows[0] + start

    def item_vectors(self, ids: Tensor) -> Tensor:
        """[N] int64 ids -> [N, item_dim]; in training, backward learns the rows."""
        return self._placed(self.embeddings.tables.lookup({self.merged: self.item_rows(ids)})[self.merged])

    def _placed(self, rows: Tensor) -> Tensor:
        """[N, table dim] rows of the items' table -> [N, item_dim]."""
        if self.config.tied:
            return nn.functional.linear(rows, self._input_weight)
        vectors: Tensor = self.item(rows)
        return vectors

    @property
    def _input_weight(self) -> nn.Parameter:
        """[dim, table dim]: what makes of an item's row its part of a token."""
        name = f"of_{self.feature}"
        modules = self.tokenizer.projections[f"of_{self.sequence}"].modules()
        return next(
            module.weights.get_parameter(name)
            for module in modules
            if isinstance(module, Projection) and hasattr(module.weights, name)
        )

    def states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[N, item_dim] after each history event, and [N] int64 the event's item."""
        events, _ = self._events(batch, batch.item[:0])
        return events.states, events.ids

    def _events(self, batch: Batch, more: Tensor) -> tuple[Events, Tensor]:
        """The history's events, and [M, table dim] the rows of `more` items, [M] int64."""
        batch = history_only(batch, self.schema)
        matrices, of_more = self.embeddings.with_rows(batch, self.merged, lambda: self.item_rows(more))
        norms = self.tokenizer.norms
        tokens = self.tokenizer.tokens(batch, matrices if norms is None else norms.scaled(matrices))
        events = (tokens.group_ids == visibility.HISTORY).nonzero().squeeze(1)
        last = tokens_per_row(self.schema, self.sequence)
        encoded = self.encoder(tokens, events).unflatten(0, (-1, last))[:, -1]
        ids = batch.groups[self.sequence].features[self.feature]
        assert isinstance(ids, Tensor)
        rows = matrices[self.sequence][:, self.embeddings.layout[self.sequence][self.feature]]
        return Events(encoded if self.config.tied else self.query(encoded), rows, ids), of_more

    # ------------------------------------------------------------------ what follows what

    def query_count(self, batch: Batch) -> Tensor:
        """float64 [1]: events of a batch that are followed by an item."""
        return (self._following(batch)[1].sum() + len(self._responses(batch)[0])).double().unsqueeze(0)

    def _following(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """bool [N]: events that have an item; bool [N-1]: those whose next event is the same user's and has one."""
        group = batch.groups[self.sequence]
        ids = group.features[self.feature]
        assert isinstance(ids, Tensor)
        sample = torch.repeat_interleave(group.lengths, output_size=len(ids))
        known = ids != MISSING_ID
        return known, (sample[1:] == sample[:-1]) & known[1:]

    def _responses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[R] int64 each: the last event of a history, and the item that its user responded to first; none where they aren't learned."""
        group = batch.groups[self.sequence]
        if not self.config.learn_responses:
            return group.offsets[:0], batch.item[:0]
        sample, item = first_responses(batch, self.target)
        some = group.lengths[sample] > 0
        return group.offsets[1:][sample[some]] - 1, item[some]


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
