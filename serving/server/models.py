"""The model being served, and the next one: loaded beside it, then put in its place between two batches.

A request is read, scored and answered by one and the same model; the old one is released when its last request is answered.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from genrank.model.checkpoint import find_checkpoint
from genrank.schemas.console import logger
from genrank.schemas.errors import UserError
from genrank.schemas.schema import CANDIDATES, USER
from genrank.serving.id_counts import IdCounter
from genrank.serving.request_contract import RequestContract
from genrank.serving.request_json import rows_of
from genrank.serving.scorer import CheckpointScorer, Scorer, Scores
from genrank.serving.server.metrics import Metrics
from genrank.tokenization.sample_columns import SampleColumns, list_lengths
from genrank.tokenization.views import token_counts

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
        """Counts the ids of requests; None where the scorer's tables can't be asked."""
        loaded = getattr(self.scorer, "loaded", None)
        return IdCounter(loaded.model.embeddings) if loaded else None

    @cached_property
    def compares(self) -> bool:
        """Whether a feature compares the candidates of a request."""
        return bool(SampleColumns(self.scorer.schema).read_time)

    def sizes(self, rows: pa.RecordBatch) -> tuple[int, int]:
        """(tokens, candidates) of rows."""
        schema, table = self.scorer.schema, pa.table(rows)
        lengths = {name: list_lengths(table, f"{name}.ts") for name, _ in schema.groups() if name != USER}
        realtime = lengths[schema.realtime.name] if schema.realtime else np.zeros(len(rows), np.int64)
        tokens = token_counts(schema, lengths[CANDIDATES], realtime, np.arange(len(rows)), lengths)
        return int(tokens.sum()), int(lengths[CANDIDATES].sum())

    def score(self, rows: pa.RecordBatch) -> Scores:
        """[candidates, tasks] float32, each row by itself.

        Samples of one user and day that follow one another are parts of one day to the reader, and features that compare candidates would
        look across them: such rows are scored one after another.
        """
        if not self.compares or len(rows) < 2:
            return self.scorer.score(rows)
        turn = _turns(rows)
        counts = rows.column(CANDIDATES).field("ts").value_lengths().to_numpy()
        owner = np.repeat(turn, counts)
        scores = np.empty((len(owner), len(self.scorer.tasks)), np.float32)
        for number in range(int(turn.max()) + 1):
            scores[owner == number] = self.scorer.score(rows.take(pa.array(np.flatnonzero(turn == number))))
        return scores

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


def _turns(rows: pa.RecordBatch) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """[R]: how many rows of the same user and window come before each."""
    seen: dict[tuple[object, object], int] = {}
    turns = []
    for key in zip(rows.column("user_id").to_pylist(), rows.column("window_start").to_pylist(), strict=True):
        turns.append(seen.get(key, 0))
        seen[key] = turns[-1] + 1
    return np.array(turns, np.int64)


def load_served(model: Path, device: str, max_candidates: int) -> Served:
    """The model of a run's or a checkpoint's folder: the best checkpoint, or else the newest whole one.

    Raises:
        UserError: there is none, it is damaged, or it ranks no candidates.
    """
    folder = find_checkpoint(model)
    manifest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    scorer = CheckpointScorer.load(folder, device)
    served = Served(scorer, RequestContract(scorer.schema, max_candidates), f"{folder.name}-{manifest[:12]}")
    served.warm_up()
    return served


def stamp(model: Path) -> Stamp:
    """What says, without reading much, that another model lies there."""
    root = model.resolve()
    found = []
    for pattern in ("manifest.json", "checkpoints/best.json", "checkpoints/step-*/manifest.json"):
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
        model: folder of a run or of a checkpoint; a link to one may be pointed elsewhere.
        device: cpu or cuda.
        max_candidates: of a request.
        metrics: counts loads.

    Raises:
        UserError: as `load_served`.
    """

    def __init__(self, model: Path, device: str, max_candidates: int, metrics: Metrics) -> None:
        self.model, self.device, self.max_candidates, self.metrics = model, device, max_candidates, metrics
        self._stamp = stamp(model)
        self.current = load_served(model, device, max_candidates)
        self._announce()

    def look(self) -> bool:
        """Load what lies in the folder if it is another model; whether one was. What can't be loaded leaves the old one serving."""
        now = stamp(self.model)
        if now == self._stamp:
            return False
        self._stamp = now
        try:
            following = load_served(self.model, self.device, self.max_candidates)
        except (UserError, OSError, RuntimeError) as error:
            self.metrics.loads.labels("refused").inc()
            logger.warning(f"{self.model}: the new model can't be served, {self.current.name} goes on: {error}")
            return False
        if following.name == self.current.name:
            return False
        self.current = following
        self._announce()
        return True

    def _announce(self) -> None:
        self.metrics.loads.labels("loaded").inc()
        self.metrics.serving(self.current.name, self.current.scorer.fingerprint)
        logger.info(f"serving {self.current.name} of {self.model}")
