"""A scorer whose scores are known, and servers of it in process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
import httpx
from random_samples import demo_schema, random_table

from genrank.schemas import Schema
from genrank.serving.request_contract import RequestContract
from genrank.serving.request_json import to_json
from genrank.serving.server.app import Server, make_app
from genrank.serving.server.config import ServeConfig
from genrank.serving.server.metrics import Metrics
from genrank.serving.server.models import Served
from genrank.serving.stored_requests import requests_of

SCHEMA = demo_schema()
CONTRACT = RequestContract(SCHEMA, max_candidates=50)


@dataclass
class Known:
    """A scorer whose scores are a function of item and user alone, so that any mix-up of candidates shows."""

    schema: Schema = SCHEMA
    fingerprint: str = SCHEMA.fingerprint
    tasks: tuple[str, ...] = ("click", "watch")
    salt: int = 0
    seconds: float = 0.0
    poison: int | None = None
    """The item that the model fails on."""
    batches: list[int] = field(default_factory=list)

    def score(self, rows: pa.RecordBatch) -> np.ndarray:
        time.sleep(self.seconds)
        self.batches.append(len(rows))
        items = rows.column("candidates").field("item")
        if self.poison is not None and self.poison in items.flatten().to_pylist():
            raise RuntimeError("an index is out of range")
        users = np.repeat(rows.column("user_id").to_numpy(), items.value_lengths().to_numpy())
        return known(users, items.flatten().to_numpy(), self.salt)


def known(users: np.ndarray, items: np.ndarray, salt: int = 0) -> np.ndarray:
    first = np.sin(users * 7.1 + items * 13.7 + salt)
    return np.stack([first, np.cos(first * 3 + items)], 1).astype(np.float32)


@cache
def rows_of(seed: int, users: int = 6) -> pa.RecordBatch:
    return requests_of(random_table(SCHEMA, "2026-03-01", users=users, seed=seed), CONTRACT, "request")


def body(rows: pa.RecordBatch) -> bytes:
    return b'{"requests": [' + ",".join(to_json(rows)).encode() + b"]}"


def wanted(rows: pa.RecordBatch, salt: int = 0) -> list[np.ndarray]:
    items = rows.column("candidates").field("item").to_pylist()
    users = rows.column("user_id").to_pylist()
    return [known(np.full(len(own), user), np.array(own), salt) for user, own in zip(users, items, strict=True)]


def scores_in(answer: dict[str, Any]) -> list[np.ndarray]:
    return [
        np.stack([np.array(result["scores"][task], np.float32) for task in result["scores"]], 1)
        for result in answer["results"]
    ]


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


def server_of(scorer: Any, **limits: Any) -> Server:
    config = ServeConfig(model=Path("unused"), reload_seconds=0, **({"batch_wait_ms": 1.0} | limits))
    served = Served(scorer, RequestContract(scorer.schema, config.max_candidates), "known")
    return Server(SimpleNamespace(current=served), config, Metrics())  # type: ignore[arg-type]


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(server)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client,
    ):
        yield client


def run_with(server: Server, work: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with client_of(server) as client:
            await work(client)

    asyncio.run(whole())
