"""Retrieval: HSTU over the history, each event predicting the next one's item against the catalogue.

HSTU (arXiv:2402.17152), section 2.1 and public code: causal encoder, cosine similarity over a temperature, sampled softmax. Negatives
are drawn from the batch's own items or evenly from the catalogue; in-batch ones are popular items, and log Q takes that back out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from model.config import samples_folder
from model.encoders import HstuConfig, build_encoder
from model.encoders.hstu import PRESETS
from model.losses import sampled_softmax
from model.metrics import RetrievalMetrics, target_ranks
from model.ranks import join_ranks
from schemas.errors import UserError
from schemas.feature import Categorical
from schemas.manifest import sample_files
from schemas.schema import CANDIDATES, Schema
from schemas.tables import table_name
from schemas.vocabulary import MISSING_ID
from tokenization import visibility
from tokenization.batch import Batch
from tokenization.embedding import Embeddings
from tokenization.features import Vocabularies, mix
from tokenization.plan import make_plan, tokens_per_row
from tokenization.quantiles import fit_boundaries
from tokenization.reader import SampleReader
from tokenization.tokens import Tokenizer

FREQUENCY_SLOTS = 1 << 20
"""Of the hashed array that counts items for log Q (Yi et al., RecSys 2019, algorithm 2)."""


@dataclass(frozen=True)
class RetrieverConfig:
    """One retrieval model and its training."""

    schema: Schema
    samples: Path
    """The --out folder of `genrank build`."""
    dates: tuple[str, ...]
    """Training days."""
    eval_date: str
    """The day whose first positive item per user is looked for."""
    task: str | None = None
    """The label that makes an item positive; default the schema's first binary one."""
    encoder: HstuConfig = PRESETS["hstu-tiny"]
    item_dim: int = 64
    """Width of the space queries and items meet in."""
    negatives: int = 512
    """A batch, shared by its queries."""
    sampling: Literal["in_batch", "uniform"] = "in_batch"
    log_q: bool = True
    """Correct in-batch negatives for their popularity."""
    temperature: float = 0.05
    epochs: int = 1
    token_budget: int = 8_192
    lr: float = 2e-3
    sparse_lr: float = 0.05
    cutoffs: tuple[int, ...] = (10, 50, 200)
    device: str = "auto"
    seed: int = 0


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


class Retriever(nn.Module):
    """History -> query vectors; ids -> item vectors.

    Raises:
        UserError: the schema has not exactly one history sequence with a feature on the items' table.
    """

    def __init__(self, embeddings: Embeddings, config: RetrieverConfig) -> None:
        super().__init__()
        schema = embeddings.plan.schema
        self.schema, self.embeddings = schema, embeddings
        self.table, self.sequence, self.feature = item_feature(schema)
        self.tokenizer = Tokenizer(embeddings, config.encoder.dim, visibility=visibility.hstu)
        self.encoder = build_encoder(config.encoder)
        logical, merged = embeddings.plan.logical[self.table]
        self.merged = merged.name
        self.vocabulary = None if logical.dynamic else Vocabularies([logical.vocabulary])
        self.query = nn.Linear(config.encoder.dim, config.item_dim)
        self.item = nn.Linear(logical.dim, config.item_dim)

    def item_rows(self, ids: Tensor) -> Tensor:
        """[N] int64 ids -> [N] int64 physical rows."""
        start = self.embeddings.plan.start_of(self.table)
        if self.vocabulary is None:
            return self.embeddings.vocabularies[self.table].rows_of(ids) + start
        return self.vocabulary(ids[None])[0] + start

    def item_vectors(self, ids: Tensor) -> Tensor:
        """[N] int64 ids -> [N, item_dim]; in training, backward learns the rows."""
        return self.item(self.embeddings.tables.lookup({self.merged: self.item_rows(ids)})[self.merged])

    def states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[N, item_dim] after each history event, and [N] int64 the event's item."""
        batch = history_only(batch, self.schema)
        tokens = self.tokenizer(batch)
        events = (tokens.group_ids == visibility.HISTORY).nonzero().squeeze(1)
        last = tokens_per_row(self.schema, self.sequence)
        encoded = self.encoder(tokens)[events].unflatten(0, (-1, last))[:, -1]
        ids = batch.groups[self.sequence].features[self.feature]
        assert isinstance(ids, Tensor)
        return self.query(encoded), ids

    def pairs(self, batch: Batch) -> Pairs:
        """Every history event with the next one of its user, where that has an item."""
        states, ids = self.states(batch)
        group = batch.groups[self.sequence]
        sample = torch.repeat_interleave(group.lengths, output_size=len(ids))
        known = ids != MISSING_ID
        row = torch.cumsum(known, 0) - 1
        after = torch.arange(1, len(ids), device=ids.device)
        follows = (sample[after] == sample[after - 1]) & known[after]
        return Pairs(
            queries=states[:-1][follows],
            items=self.item_vectors(ids[known]),
            ids=ids[known],
            target=row[after[follows]],
        )


class ItemFrequency:
    """How often each item occurs in the training stream, in a hashed array."""

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(FREQUENCY_SLOTS, dtype=torch.float64, device=device)

    def observe(self, ids: Tensor) -> None:
        """Count a batch's items."""
        self.counts += torch.bincount(_slot(ids), minlength=FREQUENCY_SLOTS)

    def log_share(self, ids: Tensor) -> Tensor:
        """[N] float32: log of each item's share of the stream so far."""
        return (self.counts[_slot(ids)].clamp(min=1) / self.counts.sum().clamp(min=1)).log().float()


def _slot(ids: Tensor) -> Tensor:
    return mix(ids) & (FREQUENCY_SLOTS - 1)


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


def train_retriever(config: RetrieverConfig) -> tuple[Retriever, dict[str, float | None]]:
    """Train on some days' histories; look for each user's first positive item of the evaluation day in the whole catalogue.

    Returns: the model, and HR@K, NDCG@K and MRR.
    Raises:
        UserError: bad samples, or a schema without the items' table in its history.
    """
    ranks = join_ranks(config.device)
    samples = samples_folder(config.samples)
    boundaries = fit_boundaries(samples, config.schema, config.dates)
    torch.manual_seed(config.seed)
    embeddings = Embeddings(
        make_plan(config.schema),
        backend="torch",
        device=ranks.device,
        boundaries=boundaries,
        lr=config.sparse_lr,
        seed=config.seed,
    )
    model = Retriever(embeddings, config).to(ranks.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01, betas=(0.9, 0.98))
    frequency = ItemFrequency(ranks.device)
    items = catalogue(samples, config.schema, (*config.dates, config.eval_date)).to(ranks.device)
    generator = torch.Generator(ranks.device).manual_seed(config.seed)
    reader = SampleReader(samples, config.schema, config.dates, token_budget=config.token_budget, seed=config.seed)
    for _ in range(config.epochs):
        for batch in reader:
            loss = retrieval_loss(model, batch.to(ranks.device), config, items, frequency, generator)
            if loss is not None:
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return model.eval(), evaluate_retriever(model, config, items)


def retrieval_loss(
    model: Retriever,
    batch: Batch,
    config: RetrieverConfig,
    items: Tensor,
    frequency: ItemFrequency,
    generator: torch.Generator,
) -> Tensor | None:
    """Mean sampled-softmax loss of a batch; None if no event follows another."""
    pairs = model.pairs(batch)
    if not len(pairs.target):
        return None
    frequency.observe(pairs.ids)
    device = pairs.ids.device
    if config.sampling == "in_batch":
        chosen = torch.randint(len(pairs.ids), (config.negatives,), device=device, generator=generator)
        negative_ids, negatives = pairs.ids[chosen], pairs.items[chosen]
        log_q = frequency.log_share(negative_ids) + np.log(config.negatives) if config.log_q else None
    else:
        negative_ids = items[torch.randint(len(items), (config.negatives,), device=device, generator=generator)]
        negatives = model.item_vectors(negative_ids)
        log_q = (
            torch.full((config.negatives,), np.log(config.negatives / len(items)), device=device)
            if config.log_q
            else None
        )
    loss = sampled_softmax(
        pairs.queries,
        pairs.items[pairs.target],
        negatives,
        positive_ids=pairs.ids[pairs.target],
        negative_ids=negative_ids,
        negative_log_q=log_q,
        temperature=config.temperature,
    )
    return loss / len(pairs.target)


@torch.inference_mode()
def evaluate_retriever(model: Retriever, config: RetrieverConfig, items: Tensor) -> dict[str, float | None]:
    """HR@K, NDCG@K and MRR of each user's first positive item of the day among `items` (ascending ids)."""
    task = config.task or next(label.name for label in config.schema.labels if label.kind == "binary")
    vectors = nn.functional.normalize(model.item_vectors(items), dim=-1)
    metrics = RetrievalMetrics(config.cutoffs)
    reader = SampleReader(
        samples_folder(config.samples), config.schema, [config.eval_date], view="user_day", shuffle=False,
        token_budget=config.token_budget,
    )  # fmt: skip
    for batch in reader:
        batch = batch.to(items.device)
        states, _ = model.states(batch)
        group = batch.groups[model.sequence]
        owner = torch.repeat_interleave(batch.candidates.lengths, output_size=len(batch.item))
        positive = ((batch.labels[task] > 0.5) & (batch.weights[task] > 0)).nonzero().squeeze(1)
        users, first = np.unique(owner[positive].cpu().numpy(), return_index=True)
        user = torch.from_numpy(users).to(items.device)
        kept = group.lengths[user] > 0
        target = batch.item[positive[torch.from_numpy(first).to(items.device)]][kept]
        if not len(target):
            continue
        query = nn.functional.normalize(states[group.offsets[1:][user[kept]] - 1], dim=-1)
        scores = query @ vectors.T
        own = torch.searchsorted(items, target)
        metrics.update(target_ranks(scores, own))
    return metrics.compute()


def catalogue(samples: Path, schema: Schema, dates: Sequence[str]) -> Tensor:
    """[N] int64: every item that was a candidate on some day, ascending."""
    found = [
        pc.struct_field(pq.ParquetFile(file).read(columns=["candidates.item"])["candidates"].combine_chunks(), "item")
        for date in dates
        for file in sample_files(samples, date, schema)
    ]
    return torch.from_numpy(np.unique(np.concatenate([each.flatten().to_numpy() for each in found])))
