"""LightGBM on the samples' numbers (Ke et al., NeurIPS 2017): no ids, no history, and often hard to beat.

The trees learn all training days at once, from every number of the candidates and the user, raw. A label that is conditional on another
learns from the candidates where that one is positive, as its logit is multiplied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genrank.model.baselines.numbers import Numbers
from genrank.model.heads import HeadConfig
from genrank.model.interface import Model
from genrank.model.validation import Checked, Count, Positive, Scale
from genrank.schemas.errors import UserError
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.reader import SampleReader


@dataclass(frozen=True)
class BoostedTreesConfig(Checked):
    """Of LightGBM, by its own names but for the first two."""

    trees: Positive = 300
    leaves: Positive = 63
    learning_rate: Scale = 0.05
    min_data_in_leaf: Positive = 50
    bagging_fraction: Scale = 0.8
    feature_fraction: Scale = 0.8
    lambda_l2: Scale = 1.0
    threads: Count = 0
    """0: as many as there are cores. The trees are the same for any number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.leaves < 2:
            raise self.refuse("leaves", "must be at least 2")
        for field in ("bagging_fraction", "feature_fraction"):
            if getattr(self, field) > 1:
                raise self.refuse(field, "give a share above 0, 1 at most")


class BoostedTrees(Model):
    """A booster a label. Batch -> {label: raw score [C]}."""

    several_ranks = False
    learns_by_steps = False
    text: Tensor

    def __init__(
        self, embeddings: Embeddings, labels: Sequence[str], config: BoostedTreesConfig, head: HeadConfig
    ) -> None:
        super().__init__()
        self._lightgbm = _module()
        self._embeddings = embeddings
        schema = embeddings.plan.schema
        self.labels = [label for label in schema.labels if label.name in labels]
        self.config = config
        self.numbers = Numbers(schema)
        if not self.numbers.names:
            raise UserError(
                f"--model lightgbm: schema {schema.name!r} has no number of candidates or user to learn from"
            )
        # The boosters as text, in the state that checkpoints hold.
        self.register_buffer("text", torch.zeros(0, dtype=torch.uint8))
        self._boosters: dict[str, Any] = {}

    @property
    def embeddings(self) -> Embeddings:
        """Without tables: trees look nothing up."""
        return self._embeddings

    # ------------------------------------------------------------------ learning

    def learn(self, samples: Path, dates: Sequence[str], seed: int) -> int:
        """Fit the boosters on all candidates of some days, in memory at once (4 bytes a number); returns how many there were.

        Raises:
            UserError: no candidate has a mature label, or a label is of one class.
        """
        schema = self.embeddings.plan.schema
        matrices: list[NDArray[np.float32]] = []
        columns: dict[str, list[NDArray[np.float64]]] = {}
        for batch in SampleReader(samples, schema, dates, view="user_day", shuffle=False):
            matrices.append(self.numbers(batch).numpy())
            for label in self.labels:
                columns.setdefault(label.name, []).append(batch.labels[label.name].double().numpy())
                columns.setdefault(f"{label.name} weight", []).append(batch.weights[label.name].double().numpy())
        if not sum(map(len, matrices)):
            raise UserError(
                f"--dates {', '.join(dates)}: the samples of these days hold no candidate; nothing to train on"
            )
        matrix = np.concatenate(matrices)
        known = {name: np.concatenate(parts) for name, parts in columns.items()}
        texts: dict[str, str] = {}
        for label in self.labels:
            rows = known[f"{label.name} weight"] > 0
            if label.given:
                rows &= (known[label.given] > 0) & (known[f"{label.given} weight"] > 0)
            target, weight = known[label.name][rows], known[f"{label.name} weight"][rows]
            if label.kind == "binary":
                weight = np.where(target > 0, weight * label.positive_weight, weight)
            if not len(target) or (label.kind == "binary" and len(np.unique(target > 0)) < 2):
                condition = f" where {label.given} is positive" if label.given else ""
                raise UserError(
                    f"--dates {', '.join(dates)}: label {label.name!r} has not both classes{condition}; give more days"
                )
            texts[label.name] = self._fitted(matrix[rows], target, weight, label.kind, seed)
        self._take(texts)
        return len(matrix)

    def _fitted(
        self,
        matrix: NDArray[np.float32],
        target: NDArray[np.float64],
        weight: NDArray[np.float64],
        kind: str,
        seed: int,
    ) -> str:
        config = self.config
        parameters = {
            "objective": "binary" if kind == "binary" else "regression",
            "num_leaves": config.leaves,
            "learning_rate": config.learning_rate,
            "min_data_in_leaf": config.min_data_in_leaf,
            "bagging_fraction": config.bagging_fraction,
            "bagging_freq": 1 if config.bagging_fraction < 1 else 0,
            "feature_fraction": config.feature_fraction,
            "lambda_l2": config.lambda_l2,
            "num_threads": config.threads,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }
        names = [name.replace(".", "_") for name in self.numbers.names]
        data = self._lightgbm.Dataset(
            matrix, (target > 0).astype(np.float64) if kind == "binary" else target, weight=weight, feature_name=names
        )
        booster = self._lightgbm.train(parameters, data, num_boost_round=config.trees)
        text: str = booster.model_to_string()
        return text

    def _take(self, texts: Mapping[str, str]) -> None:
        whole = bytearray(json.dumps(texts).encode())
        self.text = torch.frombuffer(whole, dtype=torch.uint8).to(self.text.device)
        self._boosters = {}

    # ------------------------------------------------------------------ predicting

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """For as long a text."""
        if "text" in state:
            self.text = torch.zeros_like(state["text"], device=self.text.device)
        self._boosters = {}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{label: raw score [C]}: log odds of a binary label, given the one it is conditional on; the value of another."""
        if not self._boosters:
            if not len(self.text):
                raise RuntimeError("the trees have not been learned")
            texts = json.loads(bytes(self.text.cpu().numpy()))
            self._boosters = {name: self._lightgbm.Booster(model_str=text) for name, text in texts.items()}
        matrix = self.numbers(batch).cpu().numpy()
        found = {}
        for label in self.labels:
            scores = self._boosters[label.name].predict(
                matrix, raw_score=label.kind == "binary", num_threads=self.config.threads
            )
            found[label.name] = torch.from_numpy(np.asarray(scores, np.float32)).to(batch.item.device)
        return found


def _module() -> ModuleType:
    try:
        import lightgbm
    except ImportError:
        raise UserError(
            "--model lightgbm: the package lightgbm is not installed; run `pip install 'genrank[lightgbm]'` "
            "(or `pip install lightgbm`) in this environment"
        ) from None
    module: ModuleType = lightgbm
    return module
