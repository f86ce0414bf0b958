"""Where faults are made: a small world with samples and a run, and the recipes by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.model.checkpoint import find_checkpoint
from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.evaluate import evaluate
from genrank.model.trainer import train
from genrank.pipelines.build import build
from genrank.pipelines.config import BuildConfig
from genrank.schemas import (
    Candidates,
    Categorical,
    CrossFeature,
    EventLog,
    Hashed,
    Label,
    Schema,
    Table,
)
from genrank.tokenization.reader import SampleReader

DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")
NOON = 1_767_268_800_000
DAY = 86_400_000
COLUMNS = {"user_id": "int64", "item_id": "int64", "ts": "int64"}


def a_schema(clicks: dict[str, Any] | None = None, amount: bool = False, **changes: Any) -> Schema:
    """Exposures and clicks, one count, one label."""
    columns = COLUMNS | ({"amount": "float64"} if amount else {})
    item = Categorical(name="item_id", table=Table(name="item", dim=8, vocabulary=Hashed(size=100)))
    features: list[Any] = [CrossFeature(name="n", op="count", source="clicks", keys=("item_id",), window="7d")]
    if amount:
        features.append(
            CrossFeature(name="paid", op="sum", source="clicks", keys=("user_id",), window="7d", value="amount")
        )
    declared: dict[str, Any] = {"name": "clicks", "path": "clicks/dt={dt}", "columns": columns} | (clicks or {})
    settings: dict[str, Any] = {
        "name": "m",
        "sources": (
            EventLog(name="exposures", path="exposures/dt={dt}", columns=COLUMNS),
            EventLog.model_validate(declared),
        ),
        "candidates": Candidates(features=(item, *features)),
        "labels": (Label(name="click", source="clicks", window="10m"),),
    }
    return Schema(**settings | changes)


@dataclass
class Place:
    """Three days of logs under `root`; samples of two of them in `root/out` and a run in `root/run`, where they were asked for."""

    root: Path
    patch: pytest.MonkeyPatch

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def checkpoint(self) -> Path:
        return find_checkpoint(self.run, report=False)

    @property
    def clicks(self) -> Path:
        """The file of clicks of the second day."""
        return self.root / "logs" / "clicks" / f"dt={DAYS[1]}" / "part-0.parquet"

    def build(self, schema: Schema | None = None, **flags: Any) -> None:
        given = {"out": self.out, "first": DAYS[0], "last": DAYS[1], "engine": "local"} | flags
        build(BuildConfig(schema=schema or a_schema(), data=self.root / "logs", **given))

    def train(self, **flags: Any) -> None:
        given: dict[str, Any] = {"samples": self.out, "dates": DAYS[:1], "out": self.run, "model": "din"}
        given |= {"token_budget": 64, "max_steps": 2, "checkpoint_every": 1, "device": "cpu", "log_every": 1}
        train(TrainConfig(schema=a_schema(), **given | flags))

    def evaluate(self, **flags: Any) -> None:
        given: dict[str, Any] = {"run": self.run, "samples": self.out, "dates": DAYS[1:2], "device": "cpu"}
        evaluate(EvaluateConfig(**given | flags))

    def read(self, schema: Schema | None = None) -> None:
        list(SampleReader(self.out / "samples", schema or a_schema(), [DAYS[0]], shuffle=False, token_budget=10**6))

    def rewrite(self, change: Callable[[pa.Table], pa.Table]) -> None:
        pq.write_table(change(pq.ParquetFile(self.clicks).read()), self.clicks)


def put(root: Path) -> None:
    for i, dt in enumerate(DAYS):
        for source, rows in (("exposures", 6), ("clicks", 3)):
            folder = root / "logs" / source / f"dt={dt}"
            folder.mkdir(parents=True)
            ts = [NOON + i * DAY + n * 1000 for n in range(rows)]
            columns = {"user_id": [n % 3 for n in range(rows)], "item_id": list(range(rows)), "ts": ts}
            pq.write_table(pa.table(columns), folder / "part-0.parquet")


RECIPES: dict[str, Callable[[Place], object]] = {}


def fault(name: str) -> Callable[[Callable[[Place], object]], Callable[[Place], object]]:
    def add(recipe: Callable[[Place], object]) -> Callable[[Place], object]:
        RECIPES[name] = recipe
        return recipe

    return add
