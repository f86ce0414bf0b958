"""Routes, limits, answers and errors.

| route | |
|---|---|
| `POST /v1/score` | requests in JSON (`{"requests": [...]}`) or as an Arrow IPC stream -> scores; in Arrow with `Accept: application/vnd.apache.arrow.stream` |
| `GET /v1/schema` | the JSON Schema of requests |
| `GET /v1/model` | which model answers |
| `GET /healthz` | 200 while the process answers |
| `GET /readyz` | 200 while requests are scored; 503 before, and while the server is closing |
| `GET /metrics` | Prometheus |

An error is `{"error": "one line"}`: 408 (the body came too slowly), 413 (too large, as it came or once decompressed), 415 (of another type), 422 (what is wrong, and where),
429 (too many at once: try again), 500 (the model failed), 503 (closing).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
from fastapi import FastAPI, Request, Response

from genrank.schemas.console import logger
from genrank.schemas.errors import UserError
from genrank.schemas.schema import CANDIDATES
from genrank.serving import request_arrow
from genrank.serving.request_arrow import read_arrow, write_arrow
from genrank.serving.request_json import read_json
from genrank.serving.request_schema import request_json_schema
from genrank.serving.row_scores import ScoringError
from genrank.serving.scorer import Scores
from genrank.serving.server.batching import Batcher
from genrank.serving.server.config import ServeConfig
from genrank.serving.server.metrics import Metrics
from genrank.serving.server.models import ModelSlot, Served

Done = TypeVar("Done")
JSON, ARROW = "application/json", request_arrow.MEDIA_TYPE


class Refused(Exception):
    """An answer that is no score."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


class Server:
    """What the routes share.

    Args:
        slot: the model being served.
        config: limits and budgets.
        metrics: the slot's.
    """

    def __init__(self, slot: ModelSlot, config: ServeConfig, metrics: Metrics) -> None:
        self.slot, self.config, self.metrics = slot, config, metrics
        self.max_body = int(config.max_body_mb * 1_000_000)
        self.at_work = 0
        self.batcher: Batcher | None = None
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="genrank-read")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the server takes requests; at its end those at work are answered."""
        self.batcher = Batcher(self.config.batch_tokens, self.config.batch_wait_ms / 1000, self.metrics)
        self.batcher.start()
        watch = asyncio.create_task(self._watch()) if self.config.reload_seconds else None
        try:
            yield
        finally:
            if watch is not None:
                watch.cancel()
            await self.batcher.close()
            self._readers.shutdown()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.config.reload_seconds)
            try:
                await asyncio.to_thread(self.slot.look)
            except Exception:
                logger.exception("looking for a new model failed")

    @property
    def ready(self) -> bool:
        """Whether requests are scored."""
        return self.batcher is not None and self.batcher.alive

    # ------------------------------------------------------------------ one body

    async def answer(self, request: Request) -> Response:
        """The scores of a body's requests, or what is wrong with it."""
        started = time.perf_counter()
        try:
            response = await self._scored(request)
        except Refused as refused:
            response = error(refused.status, str(refused), refused.headers)
        except request_arrow.ExpandsTooMuch as large:
            response = error(413, str(large))
        except UserError as wrong:
            response = error(422, str(wrong))
        except ScoringError as failed:
            response = error(500 if self.ready else 503, str(failed))
        except Exception:
            logger.exception("a request failed")
            response = error(500, "the server failed; its log says why")
        self.metrics.answers.labels(str(response.status_code)).inc()
        self.metrics.stage.labels("total").observe(time.perf_counter() - started)
        return response

    async def _scored(self, request: Request) -> Response:
        if not self.ready:
            raise Refused(503, "the server is closing, or not ready yet")
        if self.at_work >= self.config.max_concurrency:
            why = f"{self.config.max_concurrency} requests are at work; try again"
            raise Refused(429, why, {"Retry-After": "1"})
        self.at_work += 1
        self.metrics.at_work.set(self.at_work)
        try:
            return await self._at_work(request)
        finally:
            self.at_work -= 1
            self.metrics.at_work.set(self.at_work)

    async def _at_work(self, request: Request) -> Response:
        kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if kind not in (JSON, ARROW):
            raise Refused(415, f"Content-Type {kind} is not read; send {JSON} or {ARROW}")
        if (encoding := request.headers.get("content-encoding", "identity").lower()) != "identity":
            raise Refused(
                415,
                f"Content-Encoding {encoding} is not read; send the body as it is (Arrow compresses its own buffers)",
            )
        body = await self._timed("read", self._body(request))
        served, loop = self.slot.current, asyncio.get_running_loop()
        read = partial(read_arrow, max_bytes=self.max_body) if kind == ARROW else read_json
        rows = await self._timed("parse", loop.run_in_executor(self._readers, read, served.contract, body))
        assert self.batcher is not None
        scores = await self.batcher.score(served, rows)
        arrow = ARROW in request.headers.get("accept", "")
        write = _as_arrow if arrow else _as_json
        content = await self._timed("write", loop.run_in_executor(self._readers, write, served, rows, scores))
        return Response(content, media_type=ARROW if arrow else JSON)

    async def _timed(self, stage: str, work: Awaitable[Done]) -> Done:
        started = time.perf_counter()
        done = await work
        self.metrics.stage.labels(stage).observe(time.perf_counter() - started)
        return done

    async def _body(self, request: Request) -> bytes:
        too_large = Refused(413, f"the body is larger than {self.config.max_body_mb:g} MB; send fewer requests at once")
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self.max_body:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.config.body_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > self.max_body:
                        raise too_large
                    parts.append(part)
        except TimeoutError:
            raise Refused(408, f"the body took longer than {self.config.body_seconds:g} s") from None
        return b"".join(parts)


def make_app(server: Server) -> FastAPI:
    """The ASGI application."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with server.running():
            yield

    app = FastAPI(title="genrank", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        return await server.answer(request)

    @app.get("/v1/schema")
    async def schema() -> Response:
        return _json(request_json_schema(server.slot.current.contract))

    @app.get("/v1/model")
    async def model() -> Response:
        served = server.slot.current
        scorer = served.scorer
        said = {"model": served.name, "schema": scorer.schema.name, "fingerprint": scorer.fingerprint}
        return _json({**said, "tasks": list(scorer.tasks)})

    @app.get("/healthz")
    async def health() -> Response:
        return _json({"status": "ok"})

    @app.get("/readyz")
    async def ready() -> Response:
        return _json({"status": "ready"}) if server.ready else error(503, "the server is closing, or not ready yet")

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """One line that says what is wrong."""
    return Response(json.dumps({"error": message}), status, headers, JSON)


def _json(content: dict[str, object]) -> Response:
    return Response(json.dumps(content), media_type=JSON)


def _as_json(served: Served, rows: pa.RecordBatch, scores: Scores) -> bytes:
    """A result for each row: every task's scores in the candidates' order; float32 written so that it is read back exactly."""
    counts = rows.column(CANDIDATES).field("ts").value_lengths().to_numpy()
    results = [
        {"sample_id": sample, "scores": dict(zip(served.scorer.tasks, of_row.T.tolist(), strict=True))}
        for sample, of_row in zip(
            rows.column("sample_id").to_pylist(), np.split(scores, np.cumsum(counts)[:-1]), strict=True
        )
    ]
    return json.dumps({"model": served.name, "fingerprint": served.scorer.fingerprint, "results": results}).encode()


def _as_arrow(served: Served, rows: pa.RecordBatch, scores: Scores) -> bytes:
    """A row for each request: `sample_id`, and a list<float> for each task; model and fingerprint in the metadata."""
    offsets = rows.column(CANDIDATES).field("ts").offsets
    lists = [pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(of_task))) for of_task in scores.T]
    batch = pa.RecordBatch.from_arrays(
        [rows.column("sample_id"), *lists], names=["sample_id", *(f"scores.{task}" for task in served.scorer.tasks)]
    )
    said = {"model": served.name, "fingerprint": served.scorer.fingerprint}
    return write_arrow([batch.replace_schema_metadata(said)], batch.schema.with_metadata(said))
