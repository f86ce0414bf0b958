"""Requests that arrive together are scored together, by a token budget and a time budget.

Scores don't depend on what else is in a batch (but for float32's rounding), and a request that fails alone never fails its neighbours:
a batch that raises is scored again request by request.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from genrank.schemas.console import logger
from genrank.schemas.errors import UserError
from genrank.serving.row_scores import ScoringError, score_senders
from genrank.serving.scorer import Scores
from genrank.serving.server.metrics import Metrics
from genrank.serving.server.models import Served


@dataclass(eq=False)
class _Job:
    served: Served
    rows: pa.RecordBatch
    tokens: int
    candidates: int
    answer: asyncio.Future[Scores]
    since: float = field(default_factory=time.perf_counter)


class Batcher:
    """Scores requests, batch by batch, in a thread of its own.

    Args:
        batch_tokens: of a batch at most, unless one request has more.
        wait_seconds: from a batch's first request until it is scored, where the budget isn't reached before.
        metrics: counts batches.
    """

    def __init__(self, batch_tokens: int, wait_seconds: float, metrics: Metrics) -> None:
        self.batch_tokens, self.wait_seconds, self.metrics = batch_tokens, wait_seconds, metrics
        self._pending: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="genrank-score")
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to score; within the event loop."""
        self._task = asyncio.create_task(self._run())

    @property
    def alive(self) -> bool:
        """Whether requests will be scored."""
        return self._task is not None and not self._task.done() and not self._closing

    async def score(self, served: Served, rows: pa.RecordBatch) -> Scores:
        """[candidates, tasks] of a request's rows, by the model that they were read for.

        Raises:
            UserError: the model refuses the rows.
            ScoringError: it fails, or gives what is no number; or the server is closing.
        """
        if not self.alive:
            raise ScoringError("the server is closing")
        tokens, candidates = served.sizes(rows)
        job = _Job(served, rows, tokens, candidates, asyncio.get_running_loop().create_future())
        self._pending.append(job)
        self._arrived.set()
        return await job.answer

    async def close(self) -> None:
        """Score what is pending, then stop."""
        self._closing = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._pending:
                if self._closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            await self._fill()
            batch = self._take()
            try:
                answers = await loop.run_in_executor(self._thread, self._score, batch)
            except BaseException:
                for job in batch:
                    if not job.answer.done():
                        job.answer.set_exception(ScoringError("the server is closing"))
                raise
            for job, answer in zip(batch, answers, strict=True):
                if job.answer.done():  # its sender has gone
                    continue
                if isinstance(answer, Exception):
                    job.answer.set_exception(answer)
                else:
                    job.answer.set_result(answer)

    async def _fill(self) -> None:
        """Wait until the pending requests fill a batch, or its first has waited long enough."""
        until = self._pending[0].since + self.wait_seconds
        while not self._closing and sum(job.tokens for job in self._pending) < self.batch_tokens:
            left = until - time.perf_counter()
            if left <= 0:
                return
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    def _take(self) -> list[_Job]:
        """The oldest requests that fit one batch, all of one model."""
        batch = [self._pending.popleft()]
        tokens = batch[0].tokens
        while self._pending:
            job = self._pending[0]
            if job.served is not batch[0].served or tokens + job.tokens > self.batch_tokens:
                break
            tokens += job.tokens
            batch.append(self._pending.popleft())
        return batch

    # ------------------------------------------------------------------ in the thread

    def _score(self, batch: list[_Job]) -> list[Scores | UserError | ScoringError]:
        started = time.perf_counter()
        for job in batch:
            self.metrics.stage.labels("queue").observe(started - job.since)
        self.metrics.batch_requests.observe(len(batch))
        self.metrics.batch_tokens.observe(sum(job.tokens for job in batch))
        served = batch[0].served
        found = score_senders(served.scorer, [job.rows for job in batch])
        for job, answer in zip(batch, found, strict=True):
            if not isinstance(answer, Exception):
                try:
                    self._count(job)
                except Exception:  # its scores are right
                    logger.exception("counting a request's ids failed")
        self.metrics.stage.labels("score").observe(time.perf_counter() - started)
        return found

    def _count(self, job: _Job) -> None:
        self.metrics.candidates.inc(job.candidates)
        for counted in job.served.ids.count(job.rows) if job.served.ids else ():
            self.metrics.ids.labels(counted.table, "own").inc(counted.known)
            self.metrics.ids.labels(counted.table, "none").inc(counted.unknown)
