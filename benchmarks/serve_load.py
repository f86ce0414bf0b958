"""Load on a server on loopback by an open loop: requests at random moments of a fixed rate, whatever the answers take.

python -m benchmarks.serve_load                                  three ways, five rates each, N = 1,100 and K = 256
python -m benchmarks.serve_load --lengths 4000 --candidates 32,256
python -m benchmarks.serve_load --model mtgr-small --device cuda --rates 50,100,200

A client that sends its next request when the last one is answered (a closed loop: locust, wrk, hey) slows down with the server and never meets its queue.
Here arrivals are a Poisson process and latency counts from the moment for which a request was scheduled, so that nothing is omitted in
step with the server. `--rates` are requests a second; by default parts and multiples of what one client gets that waits for each answer.
Both processes share the machine. Bounded: `--seconds` a rate, `--most` requests outstanding (what is beyond is not sent, and counted), `--drain`
seconds for answers afterwards. What --out has is not measured again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import torch
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table as Shown

from benchmarks.serve import loaded_model, request, schema_of
from genrank.schemas.console import logger, print_whole
from genrank.serving.request_arrow import MEDIA_TYPE, write_arrow
from genrank.serving.request_contract import RequestContract
from genrank.serving.scorer import CheckpointScorer
from genrank.serving.server.app import Server, make_app
from genrank.serving.server.config import ServeConfig
from genrank.serving.server.metrics import Metrics
from genrank.serving.server.models import Served
from genrank.serving.user_cache import UserCache

WAYS = {
    "row": {},  # a request has a row with the whole history for each candidate
    "aggregated": {},
    "micro-batched": {"micro_batch": 512},
    "cached": {"micro_batch": 512, "cache": True},
}
LOADS = (0.25, 0.5, 0.75, 1.0, 1.25)
TIMED = 5
"""Requests one by one, from which rates follow."""


@dataclass(frozen=True)
class Cell:
    """What is measured."""

    model: str
    device: str
    length: int
    candidates: int
    way: str
    load: float
    """Of what one client gets; 0: `rate` was given."""
    rate: float = 0.0
    """Requests a second."""

    @property
    def key(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if name != "rate" or not self.load})


@dataclass
class Found:
    """What became of a rate's requests."""

    offered: float
    """Requests a second that were scheduled."""
    achieved: float
    """That were answered with scores, from the first moment to the last answer."""
    p50_ms: float
    p90_ms: float
    p99_ms: float
    """From the scheduled moment, of answers with scores."""
    answered: int
    refused: int
    """429."""
    failed: int
    """Not sent, not answered in time, or answered otherwise."""
    candidates_per_second: float
    batch_requests: float
    batch_tokens: float
    """Means of the server's batches."""
    hits: float
    """Of the cache's look-ups; 0 without one."""
    memory_mb: float
    """The server process's peak."""
    late_ms: float
    """99th percentile of how much later than scheduled a request was sent: the generator's own share."""
    alone_ms: float
    """Median of one client that waits for each answer."""


# ---------------------------------------------------------------------- the server's process


@contextmanager
def serving(given: argparse.Namespace, length: int, way: str) -> Iterator[tuple[str, int]]:
    """A server of a model with fresh weights: (its address, its process id)."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(given, length, way, theirs), daemon=True)
    process.start()
    try:
        if not mine.poll(600):
            raise TimeoutError("the server hasn't started within 600 s")
        yield f"http://127.0.0.1:{mine.recv()}", process.pid or 0
    finally:
        process.terminate()
        process.join(30)
        process.kill()


def _serve(given: argparse.Namespace, length: int, way: str, ready: Connection) -> None:
    device, schema, metrics = torch.device(given.device), schema_of(length), Metrics()
    cache = None
    if WAYS[way].get("cache"):
        cache = UserCache(int(given.cache_mb * 1e6), storage="bf16")
        metrics.watch(cache)
    loaded = loaded_model(schema, given.model, dict(x.split("=") for x in given.set), device)
    scorer = CheckpointScorer(loaded, device, micro_batch=WAYS[way].get("micro_batch", 0), cache=cache)
    served = Served(scorer, RequestContract(schema), "fresh")
    served.warm_up()
    config = ServeConfig(model=Path("fresh"), reload_seconds=0, max_body_mb=1_000, max_concurrency=given.concurrency, batch_wait_ms=given.wait_ms)  # fmt: skip
    slot: Any = SimpleNamespace(current=served)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ready.send(listening.getsockname()[1])
        app = make_app(Server(slot, config, metrics))
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])


# ---------------------------------------------------------------------- the load


def bodies_of(length: int, candidates: int, way: str, users: int) -> list[bytes]:
    """A request of each user, as an Arrow stream."""
    schema = schema_of(length)
    sent = RequestContract(schema).sent
    rows, each = (candidates, 1) if way == "row" else (1, candidates)
    made = (request(schema, length, each, rows, user=user) for user in range(1, users + 1))
    return [write_arrow([batch.select(sent.names)], sent) for batch in made]


async def one_by_one(url: str, bodies: Sequence[bytes], count: int) -> list[float]:
    """Seconds of each of so many requests, after one of every user."""
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        taken = []
        for at in range(len(bodies) + count):
            began = time.perf_counter()
            answer = await _post(client, bodies[at % len(bodies)])
            answer.raise_for_status()
            taken.append(time.perf_counter() - began)
    return taken[len(bodies) :]


async def open_loop(url: str, bodies: Sequence[bytes], rate: float, given: argparse.Namespace) -> dict[str, Any]:
    """Requests of random users at the moments of a Poisson process."""
    random = np.random.default_rng(int(1e3 * rate))
    gaps = random.exponential(1 / rate, int(rate * given.seconds * 2) + 50)
    moments = np.cumsum(gaps)[np.cumsum(gaps) < given.seconds]
    whose = random.integers(0, len(bodies), len(moments))
    latencies, late, statuses = [], [], {200: 0, 429: 0, 0: 0}
    last = 0.0

    async def send(client: httpx.AsyncClient, due: float, body: bytes) -> None:
        nonlocal last
        late.append(time.perf_counter() - due)
        try:
            status = (await _post(client, body)).status_code
        except httpx.HTTPError:
            status = 0
        statuses[status if status in statuses else 0] += 1
        if status == 200:
            last = time.perf_counter()
            latencies.append(last - due)

    limits = httpx.Limits(max_connections=given.most, max_keepalive_connections=given.most)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        start, tasks = time.perf_counter() + 0.1, set()
        for moment, user in zip(moments, whose, strict=True):
            await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
            if len(tasks) >= given.most:
                statuses[0] += 1
                continue
            task = asyncio.create_task(send(client, start + float(moment), bodies[user]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        waiting = set(tasks)
        if waiting:
            _, late_ones = await asyncio.wait(waiting, timeout=given.drain)
            for task in late_ones:
                task.cancel()
            statuses[0] += len(late_ones)
            await asyncio.gather(*late_ones, return_exceptions=True)
    seconds = max(last - start, given.seconds)
    return {
        "offered": len(moments) / given.seconds,
        "achieved": statuses[200] / seconds,
        "latencies": latencies,
        "late": late,
        "statuses": statuses,
    }


async def _post(client: httpx.AsyncClient, body: bytes) -> httpx.Response:
    headers = {"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE}
    return await client.post("/v1/score", content=body, headers=headers)


def measure(
    url: str, process: int, cell: Cell, bodies: Sequence[bytes], alone: float, given: argparse.Namespace
) -> Found:
    """One rate."""
    before = counters(url)
    Path(f"/proc/{process}/clear_refs").write_text("5")
    found = asyncio.run(open_loop(url, bodies, cell.rate, given))
    after = {name: value - before.get(name, 0.0) for name, value in counters(url).items()}

    def mean(name: str) -> float:
        return after[f"{name}_sum"] / max(after[f"{name}_count"], 1.0)

    def percentile(values: Sequence[float], q: int) -> float:
        return 1e3 * float(np.percentile(values, q)) if values else float("nan")

    looked_up = sum(after.get(f"genrank_user_cache_total{event}", 0.0) for event in ("hits", "extended", "misses"))
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1_000
    statuses = found["statuses"]
    return Found(
        offered=found["offered"],
        achieved=found["achieved"],
        p50_ms=percentile(found["latencies"], 50),
        p90_ms=percentile(found["latencies"], 90),
        p99_ms=percentile(found["latencies"], 99),
        answered=statuses[200],
        refused=statuses[429],
        failed=statuses[0],
        candidates_per_second=found["achieved"] * cell.candidates,
        batch_requests=mean("genrank_batch_requests"),
        batch_tokens=mean("genrank_batch_tokens"),
        hits=after.get("genrank_user_cache_totalhits", 0.0) / looked_up if looked_up else 0.0,
        memory_mb=peak,
        late_ms=percentile(found["late"], 99),
        alone_ms=1e3 * alone,
    )


def counters(url: str) -> dict[str, float]:
    """The server's metrics by name, a cache's events behind it."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=60).text)
    return {
        sample.name + sample.labels.get("event", ""): sample.value
        for family in families
        for sample in family.samples
        if not sample.labels or "event" in sample.labels
    }


# ---------------------------------------------------------------------- the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = {"type": lambda text: [int(n) for n in text.split(",")]}
    parser.add_argument("--model", default="mtgr-tiny")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lengths", default=[1_100], **numbers)
    parser.add_argument("--candidates", default=[256], **numbers)
    parser.add_argument("--ways", default=["aggregated", "micro-batched", "cached"], type=lambda text: text.split(","))
    parser.add_argument("--rates", type=lambda text: [float(n) for n in text.split(",")])
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--drain", type=float, default=15.0)
    parser.add_argument("--most", type=int, default=256)
    parser.add_argument("--concurrency", type=int, default=64, help="the server's --max-concurrency: beyond it, 429")
    parser.add_argument("--wait-ms", type=float, default=2.0)
    parser.add_argument("--cache-mb", type=float, default=4_000.0)
    parser.add_argument("--out", type=Path, default=Path("runs/serve_load.jsonl"))
    given = parser.parse_args()
    done = {}
    if given.out.is_file():
        lines = map(json.loads, given.out.read_text().splitlines())
        done = {Cell(**line["cell"]).key: (Cell(**line["cell"]), Found(**line["found"])) for line in lines}
    asked = []
    for length in given.lengths:
        for candidates in given.candidates:
            for way in given.ways:
                cells = [
                    Cell(given.model, given.device, length, candidates, way, *of)
                    for of in ([(0.0, rate) for rate in given.rates] if given.rates else [(load,) for load in LOADS])
                ]
                asked += [cell.key for cell in cells]
                if missing := [cell for cell in cells if cell.key not in done]:
                    done |= _measured(given, missing)
    print_whole(_shown([done[key] for key in asked], given))


def _measured(given: argparse.Namespace, cells: Sequence[Cell]) -> dict[str, tuple[Cell, Found]]:
    """Rates of one server, each written as it is measured."""
    first, found = cells[0], {}
    bodies = bodies_of(first.length, first.candidates, first.way, given.users)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with serving(given, first.length, first.way) as (url, process):
        alone = float(np.median(asyncio.run(one_by_one(url, bodies, TIMED))))
        for cell in cells:
            whole = Cell(**{**asdict(cell), "rate": cell.rate or cell.load / alone})
            one = measure(url, process, whole, bodies, alone, given)
            with given.out.open("a") as file:
                file.write(json.dumps({"cell": asdict(whole), "found": asdict(one)}) + "\n")
            logger.info(f"{first.way}, N = {first.length}, K = {first.candidates}: {whole.rate:.2f} a second measured")
            found[whole.key] = (whole, one)
    return found


def _shown(rows: Sequence[tuple[Cell, Found]], given: argparse.Namespace) -> Shown:
    shown = Shown(
        "N", "K", "way", "offered/s", "achieved/s", "p50 ms", "p90 ms", "p99 ms", "answered", "429", "failed", "candidates/s",
        "requests a batch", "tokens a batch", "cache hits", "peak MB", "sent late ms",
        title=f"{given.model} on {given.device}, {given.users} users, {given.seconds:g} s a rate",
    )  # fmt: skip
    for cell, found in rows:
        times = (f"{ms:,.0f}" for ms in (found.p50_ms, found.p90_ms, found.p99_ms))
        shown.add_row(
            f"{cell.length:,}", f"{cell.candidates:,}", cell.way, f"{found.offered:.2f}", f"{found.achieved:.2f}", *times,
            str(found.answered), str(found.refused), str(found.failed), f"{found.candidates_per_second:,.0f}",
            f"{found.batch_requests:.1f}", f"{found.batch_tokens:,.0f}", f"{found.hits:.0%}", f"{found.memory_mb:,.0f}",
            f"{found.late_ms:.1f}",
        )  # fmt: skip
    return shown


if __name__ == "__main__":
    main()
