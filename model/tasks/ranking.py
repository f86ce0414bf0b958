"""Ranking: a probability (or value) a candidate and label; judged by GAUC beside the oracle and what needs no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
from torch import Tensor

from genrank.model.baselines.untrained import Untrained
from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.documents import RankingEvaluation
from genrank.model.importance import permutation_importance
from genrank.model.interface import ADDED_LOSS, AUXILIARY, Model
from genrank.model.label_guard import require_two_classes
from genrank.model.losses import Weighted, loss_sums, weight_sums
from genrank.model.metrics import ORDER_METRICS, Estimate, Predictions
from genrank.model.parallel import gathered
from genrank.model.predict import candidate_users, predict
from genrank.model.predictions import judged_rows, write_predictions
from genrank.model.prefetch import make_reader
from genrank.model.ranks import Ranks
from genrank.model.slices import Slices
from genrank.model.tasks.base import LoadedRun, Metrics, Task
from genrank.schemas.errors import UserError
from genrank.tokenization.batch import Batch
from genrank.tokenization.reader import SampleReader


class Ranking(Task[Model]):
    """The schema's labels, each a loss: cross entropy (binary), or half the squared error (value)."""

    name: ClassVar[str] = "ranking"
    headline: ClassVar[str] = "gauc"
    headings: ClassVar[Mapping[str, str]] = {
        "gauc": "GAUC",
        "auc": "AUC",
        "request_auc": "AUC by request",
        "mrr": "MRR",
        "ndcg@10": "NDCG@10",
        "ne": "NE",
        "logloss": "log loss",
        "calibration": "pred/obs",
        "rmse": "RMSE",
        "mae": "MAE",
        "bias": "bias",
    }
    references: ClassVar[Mapping[str, str]] = {
        "oracle": "oracle",
        "popularity": "item popularity",
        "user_item_ctr": "user-item CTR",
        "best_popularity": "best popularity",
        "best_column": "best column",
    }
    on_page: ClassVar[bool] = True
    page_notes: ClassVar[str] = (
        "GAUC: AUC within each user, weighted by the user's exposures; users with one class are skipped. NE: log loss over that of"
        " predicting the mean. AUC by request, MRR and NDCG@10: over requests with a positive and a negative. Pred/obs (calibration):"
        " mean prediction over mean label. Best popularity and best column were chosen on the last training day."
    )
    evaluation = RankingEvaluation

    @property
    def objectives(self) -> Sequence[Weighted]:
        """The labels."""
        return self.schema.labels

    def require_learnable(self, samples: Path, dates: Sequence[str]) -> None:
        """Refuse days whose labels are all of one class, or not mature.

        Raises:
            UserError: they are.
        """
        require_two_classes(samples, self.schema, dates, mature=True)

    def weights(self, model: Model, batch: Batch) -> Tensor:
        """float64 [labels]: the sum of the candidates' weights."""
        return weight_sums(batch.weights, self.schema.labels)

    def loss_sums(self, output: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Per label, over the batch's candidates. Auxiliary logits and the model's added loss, which counts with the first label that has
        weight, add their gradient and nothing to the value."""
        others: dict[str, dict[str, Tensor]] = {}
        for key, logit in output.items():
            if key.startswith(AUXILIARY):
                which, _, label = key.removeprefix(AUXILIARY).rpartition("/")
                others.setdefault(which, {})[label] = logit
        sums = loss_sums(output, batch.labels, batch.weights, self.schema.labels, list(others.values()))
        if (added := output.get(ADDED_LOSS)) is not None:
            first = next((label for label in self.schema.labels if label.weight), None)
            if first is not None:
                sums[first.name] = sums[first.name] + (added - added.detach()) / first.weight
        return sums

    def validate(self, model: Model, config: TrainConfig, samples: Path, ranks: Ranks, *, bf16: bool) -> Metrics:
        """Every metric of each label over the candidates of all ranks."""
        reader = make_reader(config, samples, self.schema, config.eval_dates, ranks, shuffle=False)
        found = {label.name: self._predictions(label.kind) for label in self.schema.labels}
        with gathered(model):
            for batch, scores in predict(model, reader, self.schema, ranks, bf16=bf16):
                for label, each in found.items():
                    weights = batch.weights[label]
                    each.update(candidate_users(batch), batch.labels[label], scores[label], weights, batch.request)
        return {label: each.gather().compute() for label, each in found.items()}

    def _predictions(self, kind: str) -> Predictions:
        return Predictions(kind, by_request=self.schema.candidates.request is not None)

    def evaluate(
        self, model: Model, run: LoadedRun, config: EvaluateConfig, samples: Path, ranks: Ranks
    ) -> RankingEvaluation:
        """Score every candidate, and write the predictions to RUN/predictions.

        Rows per label: `model`; `oracle`, the true probability, where the schema declares one; and, unless the training days' samples are
        gone, `popularity` and `user_item_ctr`, counted over the training days, `best_popularity` and `best_column`, the window of popularity
        and the column to sort by that were best on the last training day.

        Raises:
            UserError: labels of one class, or days without a candidate.
        """
        schema = self.schema
        require_two_classes(samples, schema, config.dates, mature=False)
        untrained = Untrained.of_days(samples, schema, run.trained, config.dates)
        slices = Slices(schema, untrained.items if untrained else None)
        rows: dict[str, dict[str, Predictions]] = {label.name: {} for label in schema.labels}
        users: set[int] = set()
        total_samples = total_candidates = 0
        for date in config.dates:
            reader = SampleReader(
                samples, schema, [date], view="user_day", token_budget=config.token_budget, shuffle=False
            )
            written: list[pa.RecordBatch] = []
            for batch, scores in predict(model, reader, schema, ranks):
                batch = batch.to("cpu")
                owner = candidate_users(batch)
                truth = batch.oracles
                others = untrained.scores(batch, owner) if untrained else {}
                for label in schema.labels:
                    own = {"model": scores[label.name].cpu()} | others.get(label.name, {})
                    if label.name in truth:
                        own["oracle"] = truth[label.name]
                    for name in sorted(own, key=ROWS.index):
                        found = rows[label.name].setdefault(name, self._predictions(label.kind))
                        labels, weights = batch.labels[label.name], batch.weights[label.name]
                        found.update(owner, labels, own[name], weights, batch.request)
                slices.update(batch, owner, scores)
                users.update(batch.user.tolist())
                total_samples += len(batch)
                total_candidates += len(batch.item)
                written.append(judged_rows(schema, batch, scores))
            if not written:
                raise UserError(f"--dates {date}: the samples of this day hold no candidate; nothing to evaluate")
            write_predictions(run.folder / "predictions" / f"dt={date}.parquet", written)
        return RankingEvaluation(
            model=run.model,
            step=run.step,
            dates=list(config.dates),
            samples=total_samples,
            candidates=total_candidates,
            users=len(users),
            tasks={
                label: {n: _of_row(n, p.compute(bootstrap=config.bootstrap, seed=config.seed)) for n, p in each.items()}
                for label, each in rows.items()
            },
            chosen=untrained.chosen if untrained else {},
            slices=slices.compute(bootstrap=config.bootstrap, seed=config.seed),
            importance=permutation_importance(model, schema, config, samples, ranks) if config.importance else {},
        )

    @classmethod
    def nothing_known(cls, objective: str, days: str) -> str:
        """Labels mature when their window closes."""
        return f"{objective}: no candidate of {days} has a mature label yet"


ROWS = ("model", *Ranking.references)
"""Of a label's metrics, in their order."""


def _of_row(row: str, metrics: dict[str, Estimate]) -> dict[str, Estimate]:
    """What is said of a row: of scores that are no probabilities, how they order."""
    ordered = row in ("best_popularity", "best_column")
    return {name: each for name, each in metrics.items() if not ordered or name in ORDER_METRICS}
