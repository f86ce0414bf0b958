"""Retrieval: the next item of a history, found in the whole catalogue; judged by HR, NDCG and MRR beside popularity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor, nn

from genrank.model.catalogue import catalogue, responses
from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.documents import RetrievalEvaluation
from genrank.model.interface import Model
from genrank.model.losses import Weighted
from genrank.model.metrics import Estimate, RetrievalMetrics, target_ranks
from genrank.model.predictions import write_predictions
from genrank.model.ranks import Ranks
from genrank.model.tasks.base import LoadedRun, Metrics, Objective, Task
from genrank.schemas.errors import UserError
from genrank.schemas.manifest import sample_files
from genrank.schemas.schema import Schema
from genrank.tokenization.batch import Batch, Group, ranges
from genrank.tokenization.reader import SampleReader

NEXT_ITEM = "next_item"
"""The one objective."""
QUERY_COLUMNS = pa.schema([("user_id", pa.int64()), ("item", pa.int64()), ("rank", pa.int64())])
"""Of RUN/predictions: who asked, what was to be found, and where it stood, from 1."""


class RetrievalModel(Model):
    """A model that gives histories and items vectors in one space. Called on a batch, it is the loss of its histories:
    {"next_item": a sum over the batch's queries}."""

    sequence: str
    """The history that queries come from."""

    @property
    @abstractmethod
    def target(self) -> str:
        """The label that makes an exposure an item to be found."""

    @property
    @abstractmethod
    def cutoffs(self) -> tuple[int, ...]:
        """K of HR@K and NDCG@K."""

    @property
    def events(self) -> tuple[str, str] | None:
        """(sequence, feature) whose items are in the catalogue beside the candidates; None: none."""
        return None

    @property
    def exclude_seen(self) -> bool:
        """Whether evaluation offers no item of the query's own history."""
        return False

    @abstractmethod
    def query_count(self, batch: Batch) -> Tensor:
        """float64 [1]: queries of a batch, which its loss is divided by."""

    @abstractmethod
    def states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[N, d] the query after each event of the history, and [N] int64 the event's item."""

    @abstractmethod
    def item_vectors(self, ids: Tensor) -> Tensor:
        """[N] int64 ids -> [N, d]."""


class Ranked(NamedTuple):
    """Queries of a batch, and where what they look for stands among the items."""

    date: str
    user: Tensor
    """[Q] int64: whose each is."""
    ranks: Tensor
    """[Q] int64, from 1, by the model."""
    own: Tensor
    """[Q] int64: the index of what each looks for."""
    seen: tuple[Tensor, Tensor]
    """[S] int64 each: (query, index of an item that it isn't offered), each pair once."""


class Found(NamedTuple):
    """How well items were found."""

    rows: dict[str, dict[str, Estimate]]
    """`model` and `popularity` -> metric -> its value and interval."""
    queries: int
    catalogue: int
    """Items in it."""
    predictions: dict[str, list[pa.RecordBatch]]
    """Day -> a row a query: user_id, item, rank (int64 each)."""


class Retrieval(Task[RetrievalModel]):
    """The next item, among all."""

    name: ClassVar[str] = "retrieval"
    headline: ClassVar[str] = "mrr"
    references: ClassVar[Mapping[str, str]] = {"popularity": "item popularity"}
    on_page: ClassVar[bool] = True
    resampled: ClassVar[str] = "queries"
    page_notes: ClassVar[str] = (
        "A query is a user's day: its history looks for the first item that the user responded to, among the whole catalogue. HR@K: the"
        " share of queries that have it among the first K. NDCG@K: 1 / log2(1 + rank) of those. MRR: the mean of 1 / rank. Popularity:"
        " by responses on the training days."
    )
    evaluation = RetrievalEvaluation

    @property
    def objectives(self) -> Sequence[Weighted]:
        """The one loss."""
        return [Objective(NEXT_ITEM, 1.0)]

    def weights(self, model: RetrievalModel, batch: Batch) -> Tensor:
        """float64 [1]: the batch's queries."""
        return model.query_count(batch)

    def loss_sums(self, output: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """What the model computed."""
        return dict(output)

    def validate(
        self, model: RetrievalModel, config: TrainConfig, samples: Path, ranks: Ranks, *, bf16: bool
    ) -> Metrics:
        """HR, NDCG and MRR on the evaluation days."""
        found = find(
            model, self.schema, samples, config.eval_dates, trained=config.dates, token_budget=config.token_budget
        )
        return {NEXT_ITEM: found.rows["model"]}

    def evaluate(
        self, model: RetrievalModel, run: LoadedRun, config: EvaluateConfig, samples: Path, ranks: Ranks
    ) -> RetrievalEvaluation:
        """A query is a user's day, its candidates are the whole catalogue. Ranks are written to RUN/predictions.

        Raises:
            UserError: the days hold no response of a user with a history, or importance is asked for.
        """
        if config.importance:
            raise UserError("--importance is of rankers; leave it out for a retrieval model")
        found = find(
            model,
            self.schema,
            samples,
            config.dates,
            trained=_published(samples, self.schema, run.trained),
            token_budget=config.token_budget,
            bootstrap=config.bootstrap,
            seed=config.seed,
        )
        for date in config.dates:
            columns = found.predictions.get(date, [])
            write_predictions(run.folder / "predictions" / f"dt={date}.parquet", columns, QUERY_COLUMNS)
        return RetrievalEvaluation(
            model=run.model,
            step=run.step,
            dates=list(config.dates),
            queries=found.queries,
            catalogue=found.catalogue,
            tasks={NEXT_ITEM: found.rows},
        )


def _published(samples: Path, schema: Schema, dates: Sequence[str]) -> list[str]:
    """Those of some days whose samples are still there."""
    return [date for date in dates if (samples / f"dt={date}").is_dir() and sample_files(samples, date, schema)]


def first_responses(batch: Batch, label: str) -> tuple[Tensor, Tensor]:
    """[R] int64 each: the samples with a positive candidate, ascending, and the item of their first."""
    positive = ((batch.labels[label] > 0.5) & (batch.weights[label] > 0)).nonzero().squeeze(1)
    owner = torch.repeat_interleave(batch.candidates.lengths, output_size=len(batch.item))[positive]
    first = torch.ones_like(owner, dtype=torch.bool)
    first[1:] = owner[1:] != owner[:-1]
    return owner[first], batch.item[positive[first]]


@torch.inference_mode()
def found_ranks(
    model: RetrievalModel, schema: Schema, samples: Path, dates: Sequence[str], items: Tensor, token_budget: int
) -> Iterator[Ranked]:
    """Where the first item that each user responded to on each day stands, by batches. Users without a history have no query.

    Args:
        items: [N] int64, ascending; every positive item of the days among them.
    """
    vectors = nn.functional.normalize(model.item_vectors(items), dim=-1)
    for date in dates:
        reader = SampleReader(samples, schema, [date], view="user_day", shuffle=False, token_budget=token_budget)
        for batch in reader:
            batch = batch.to(items.device)
            states, ids = model.states(batch)
            group = batch.groups[model.sequence]
            user, target = first_responses(batch, model.target)
            kept = group.lengths[user] > 0
            user, target = user[kept], target[kept]
            if not len(user):
                continue
            query = nn.functional.normalize(states[group.offsets[1:][user] - 1], dim=-1)
            scores, own = query @ vectors.T, torch.searchsorted(items, target)
            seen = _seen(group, user, ids, items) if model.exclude_seen else (own[:0], own[:0])
            scores[seen] = -torch.inf
            yield Ranked(date, batch.user[user], target_ranks(scores, own), own, seen)


def _seen(group: Group, user: Tensor, ids: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """(query, index among `items`) of each item in the history of each query's sample, once."""
    lengths = group.lengths[user]
    _, events = ranges(group.offsets[:-1][user], group.offsets[1:][user])
    query = torch.repeat_interleave(lengths, output_size=len(events))
    index = torch.searchsorted(items, ids[events]).clamp(max=len(items) - 1)
    offered = items[index] == ids[events]
    pairs = torch.unique(query[offered] * len(items) + index[offered])
    return pairs // len(items), pairs % len(items)


def find(
    model: RetrievalModel,
    schema: Schema,
    samples: Path,
    dates: Sequence[str],
    *,
    trained: Sequence[str],
    token_budget: int = 16_384,
    bootstrap: int = 0,
    seed: int = 0,
) -> Found:
    """HR@K, NDCG@K and MRR of the first item each user responded to on each day, among every item that was a candidate on any of the
    days (and, for `model.events`, that a history holds): by the model, and by how often items were responded to on the training days
    (`trained`). With `model.exclude_seen` no item of the user's own history is among them.

    Raises:
        UserError: the days hold no response of a user with a history.
    """
    training, device = model.training, next(model.parameters()).device
    items = catalogue(samples, schema, (*trained, *dates), model.events).to(device)
    popular = torch.from_numpy(responses(samples, schema, trained, model.target, items.cpu().numpy(), model.events))
    order = torch.sort(popular).values
    by_model, by_popularity = RetrievalMetrics(model.cutoffs), RetrievalMetrics(model.cutoffs)
    predictions: dict[str, list[pa.RecordBatch]] = {}
    for found in found_ranks(model.eval(), schema, samples, dates, items, token_budget):
        by_model.update(found.ranks)
        by_popularity.update(_popularity_ranks(popular, order, found))
        columns = [each.cpu().numpy() for each in (found.user, items[found.own], found.ranks)]
        predictions.setdefault(found.date, []).append(pa.RecordBatch.from_arrays(columns, schema=QUERY_COLUMNS))
    model.train(training)
    if not len(by_model):
        raise UserError(
            f"--dates {', '.join(dates)}: no user with a history has a positive {model.target}; nothing to look for"
        )
    rows = {"model": by_model, "popularity": by_popularity}
    estimates = {name: metrics.compute(bootstrap=bootstrap, seed=seed) for name, metrics in rows.items()}
    return Found(estimates, len(by_model), len(items), predictions)


def _popularity_ranks(popular: Tensor, order: Tensor, found: Ranked) -> Tensor:
    """[Q] int64: as `Ranked.ranks`, by counts ([N] int64, and in `order` ascending)."""
    own, (query, index) = found.own.cpu(), (each.cpu() for each in found.seen)
    ranks = len(order) - torch.searchsorted(order, popular[own])
    ranks -= torch.bincount(query[popular[index] >= popular[own[query]]], minlength=len(own))
    ranks[query[index == own[query]]] = len(popular)
    return ranks
