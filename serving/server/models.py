"""The model being served, and the next one: loaded beside it, then put in its place between two batches.

A request is read, scored and answered by one and the same model; the old one is released when its last request is answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from genrank.schemas.console import logger
from genrank.schemas.errors import UserError
from genrank.schemas.schema import CANDIDATES, USER
from genrank.serving.id_counts import IdCounter
from genrank.serving.model_folder import MODEL_FILES, open_model
from genrank.serving.model_scorer import ModelScorer, Scores
from genrank.serving.request_contract import RequestContract
from genrank.serving.request_json import rows_of
from genrank.serving.row_scores import score_rows, sizes
from genrank.serving.scorer import Scorer
from genrank.serving.server.metrics import Metrics
from genrank.serving.user_cache import UserCache

Stamp = tuple[tuple[str, int, int], ...]
"""Path, size and modification time of the files whose replacement makes another model."""


@dataclass(frozen=True, eq=False)
class Served:
    """A model with what is needed to answer requests by it."""

    scorer: Scorer
    contract: RequestContract
    name: str
    """Which checkpoint or export it is: its folder's name and a digest of its manifest."""

    @cached_property
    def ids(self) -> IdCounter | None:
        """Counts the ids of requests; None where the scorer has no tables."""
        return IdCounter(self.scorer.model.embeddings) if isinstance(self.scorer, ModelScorer) else None

    def sizes(self, rows: pa.RecordBatch) -> tuple[int, int]:
        """(tokens, candidates) of rows."""
        return sizes(self.scorer.schema, rows)

    def score(self, rows: pa.RecordBatch) -> Scores:
        """[candidates, tasks] float32, each row by itself."""
        return score_rows(self.scorer, rows)

    def warm_up(self) -> None:
        """Score a request of which everything is missing: what the first request would wait for is loaded, and a model that gives no
        number is found before it serves.

        Raises:
            UserError: it gives no number.
        """
        rows = rows_of(self.contract, [_blank(self.contract)])
        if self.ids is not None:
            list(self.ids.count(rows))
        if not np.isfinite(self.score(rows)).all():
            raise UserError(f"{self.name} scores a request as no number; train it again from an earlier checkpoint")


def _blank(contract: RequestContract) -> dict[str, object]:
    """A request of one candidate, no events, and no value."""
    days = contract.schema.local_days
    start, end = days.start(20_000), days.start(20_001)
    identity: dict[str, object] = {"sample_id": "", "window_start": start, "window_end": end}
    identity["user_id"] = "" if pa.types.is_string(contract.sent.field("user_id").type) else 0
    groups: dict[str, dict[str, object]] = {}
    for field in contract.sent:
        if pa.types.is_struct(field.type):
            groups[field.name] = {child.name: None if field.name == USER else [] for child in field.type}
    groups[CANDIDATES] = {name: [None] for name in groups[CANDIDATES]} | {"ts": [start], "item": [0]}
    return identity | groups


def load_served(
    model: Path, device: str, max_candidates: int, *, micro_batch: int = 0, cache: UserCache | None = None
) -> Served:
    """The model of a folder, tried.

    Args:
        model: the folder, as of `open_model`.
        device: cpu or cuda.
        max_candidates: of a request.
        micro_batch, cache: as of `ModelScorer`.

    Raises:
        UserError: there is none, it is damaged, it ranks no candidates, or it gives no number.
    """
    scorer, name = open_model(model, device, micro_batch=micro_batch, cache=cache)
    served = Served(scorer, RequestContract(scorer.schema, max_candidates), name)
    served.warm_up()
    return served


def stamp(model: Path) -> Stamp:
    """What says, without reading much, that another model lies there."""
    root = model.resolve()
    found = []
    for pattern in MODEL_FILES:
        for path in sorted(root.glob(pattern)):
            try:
                status = path.stat()
            except FileNotFoundError:  # a checkpoint that training has just dropped
                continue
            found.append((str(path), status.st_size, status.st_mtime_ns))
    return tuple(found)


class ModelSlot:
    """The model being served.

    Args:
        model: folder of a run, a checkpoint or an export; a link to one may be pointed elsewhere.
        device: cpu or cuda.
        max_candidates: of a request.
        metrics: counts loads.
        micro_batch, cache: as of `ModelScorer`; what a checkpoint cached is dropped when the next one takes over.

    Raises:
        UserError: as `load_served`.
    """

    def __init__(
        self,
        model: Path,
        device: str,
        max_candidates: int,
        metrics: Metrics,
        *,
        micro_batch: int = 0,
        cache: UserCache | None = None,
    ) -> None:
        self.cache = cache
        self._load = partial(load_served, model, device, max_candidates, micro_batch=micro_batch, cache=cache)
        self.model, self.metrics = model, metrics
        self._stamp = stamp(model)
        self.current = self._load()
        self._announce()

    def look(self) -> bool:
        """Load what lies in the folder if it is another model; whether one was. What can't be loaded leaves the old one serving."""
        now = stamp(self.model)
        if now == self._stamp:
            return False
        self._stamp = now
        try:
            following = self._load()
        except (UserError, OSError, RuntimeError) as error:
            self.metrics.loads.labels("refused").inc()
            logger.warning(f"{self.model}: the new model can't be served, {self.current.name} goes on: {error}")
            return False
        if following.name == self.current.name:
            return False
        old, self.current = self.current, following
        if self.cache is not None and isinstance(old.scorer, ModelScorer):
            self.cache.drop(old.scorer.checkpoint)
        self._announce()
        return True

    def _announce(self) -> None:
        self.metrics.loads.labels("loaded").inc()
        self.metrics.serving(self.current.name, self.current.scorer.fingerprint)
        logger.info(f"serving {self.current.name} of {self.model}")
        if self.cache is not None and isinstance(self.current.scorer, ModelScorer):
            stand = self.current.scorer.engine.append_obstacles
            logger.info(
                f"users kept: each window's histories are computed anew, for {'; '.join(stand)}"
                if stand
                else "users kept: histories that go on are appended to"
            )
