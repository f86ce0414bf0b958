"""The server: every answer is right or an error, whatever arrives with it, before it, or while it is being closed or given a new model."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
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

from genrank.model.config import TrainConfig
from genrank.model.trainer import train
from genrank.schemas import RequestSize, Schema, UserError
from genrank.schemas.ids import MISSING_ID, hash_string
from genrank.serving.request_arrow import MEDIA_TYPE, write_arrow
from genrank.serving.request_contract import RequestContract
from genrank.serving.request_json import to_json
from genrank.serving.sample_rows import SampleRows
from genrank.serving.scorer import CheckpointScorer
from genrank.serving.server.app import Server, make_app
from genrank.serving.server.batching import Batcher, ScoringError
from genrank.serving.server.config import ServeConfig
from genrank.serving.server.metrics import Metrics
from genrank.serving.server.models import ModelSlot, Served, load_served
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


# ---------------------------------------------------------------------- answers


def test_answers_are_the_scores_in_the_requests_order() -> None:
    rows = rows_of(0)

    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/score", content=body(rows), headers={"content-type": "application/json"})
        assert answer.status_code == 200
        assert [r["sample_id"] for r in answer.json()["results"]] == rows.column("sample_id").to_pylist()
        assert same(scores_in(answer.json()), wanted(rows))
        assert (answer.json()["model"], answer.json()["fingerprint"]) == ("known", SCHEMA.fingerprint)
        arrow = await client.post(
            "/v1/score",
            content=write_arrow([rows], CONTRACT.sent),
            headers={"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE},
        )
        table = pa.ipc.open_stream(arrow.content).read_all()
        assert table["sample_id"].to_pylist() == rows.column("sample_id").to_pylist()
        flat = np.concatenate(wanted(rows))
        for at, task in enumerate(("click", "watch")):
            assert np.array_equal(table[f"scores.{task}"].combine_chunks().flatten().to_numpy(), flat[:, at])
        assert (await client.get("/v1/model")).json()["tasks"] == ["click", "watch"]
        assert "requests" in (await client.get("/v1/schema")).json()["properties"]
        assert [(await client.get(path)).status_code for path in ("/healthz", "/readyz")] == [200, 200]

    run_with(server_of(Known()), work)


def test_requests_that_arrive_together_get_each_their_own() -> None:
    scorer = Known(seconds=0.002)
    server = server_of(scorer, batch_wait_ms=5.0, batch_tokens=400)
    requests = [rows_of(seed, users=1 + seed % 3) for seed in range(20)]

    async def work(client: httpx.AsyncClient) -> None:
        answers = await asyncio.gather(*(client.post("/v1/score", content=body(rows)) for rows in requests))
        for rows, answer in zip(requests, answers, strict=True):
            assert same(scores_in(answer.json()), wanted(rows))

    run_with(server, work)
    assert len(scorer.batches) < 20 and sum(scorer.batches) == sum(map(len, requests)), "batched, and each scored once"
    text = server.metrics.text().decode()
    assert f"genrank_candidates_total {float(sum(len(np.concatenate(wanted(r))) for r in requests))}" in text
    assert 'genrank_answers_total{status="200"} 20.0' in text
    for stage in ("read", "parse", "queue", "score", "write", "total"):
        assert re.search(rf'genrank_stage_seconds_count{{stage="{stage}"}} [1-9]', text)


def test_batches_keep_to_their_budget() -> None:
    scorer = Known()
    served = Served(scorer, CONTRACT, "known")
    requests = [CONTRACT.checked(rows_of(seed, users=2)) for seed in range(12)]
    tokens = [served.sizes(rows)[0] for rows in requests]
    budget = sorted(tokens)[-2] + 1

    async def whole() -> list[Any]:
        batcher = Batcher(budget, 0.01, Metrics())
        batcher.start()
        found = await asyncio.gather(*(batcher.score(served, rows) for rows in requests))
        await batcher.close()
        return found

    found = asyncio.run(whole())
    assert all(same([scores], [np.concatenate(wanted(rows))]) for scores, rows in zip(found, requests, strict=True))
    taken, at = list(map(len, requests)), 0
    for rows in scorer.batches:
        first = at
        while rows:
            rows -= taken[at]
            at += 1
        assert sum(tokens[first:at]) <= budget or at == first + 1


def test_rows_of_one_user_are_scored_apart_where_candidates_are_compared() -> None:
    """Two requests of one user may bear one request id (a retry): neither's size is the sum of both."""
    schema = demo_schema(
        candidates=SCHEMA.candidates.model_copy(
            update={"features": (*SCHEMA.candidates.features, RequestSize(name="rivals"))}
        )
    )
    contract = RequestContract(schema)
    rows = contract.checked(requests_of(random_table(schema, "2026-03-01", users=3), contract, "request"))

    class Sizes(Known):
        def score(self, rows: pa.RecordBatch) -> np.ndarray:
            size = SampleRows(schema).batch(rows).candidates.features["rivals"]
            return np.stack([np.asarray(size), np.asarray(size)], 1).astype(np.float32)

    served = Served(Sizes(schema=schema), contract, "known")
    twice = rows.take(pa.array(np.repeat(np.arange(len(rows)), 2)))
    alone = np.concatenate([served.scorer.score(twice.slice(at, 1)) for at in range(len(twice))])
    assert not np.array_equal(served.scorer.score(twice), alone), "the reader looks across rows of one day"
    assert np.array_equal(served.score(twice), alone)


# ---------------------------------------------------------------------- errors


def test_what_cannot_be_scored_is_said() -> None:
    content = json.loads(body(rows_of(0, users=1)))
    server = server_of(Known(), max_body_mb=0.5, max_candidates=50)

    async def work(client: httpx.AsyncClient) -> None:

        async def answer(change: Callable[[dict[str, Any]], object]) -> tuple[int, str]:
            changed = json.loads(json.dumps(content))
            change(changed["requests"][0])
            found = await client.post("/v1/score", content=json.dumps(changed))
            return found.status_code, found.json()["error"]

        def candidates(row: dict[str, Any], count: int) -> None:
            row["candidates"] = {name: values[:1] * count for name, values in row["candidates"].items()}

        assert (await answer(lambda row: row["candidates"].pop("price")))[0] == 422
        assert "has no price" in (await answer(lambda row: row["candidates"].pop("price")))[1]
        assert (await answer(lambda row: row["candidates"]["price"].__setitem__(0, float("nan"))))[0] == 422
        assert (
            "NaN is no JSON" in (await answer(lambda row: row["candidates"]["price"].__setitem__(0, float("nan"))))[1]
        )
        assert "must lie in" in (await answer(lambda row: row["candidates"]["item_id"].__setitem__(0, 2**63)))[1]
        assert "candidates is empty" in (await answer(lambda row: candidates(row, 0)))[1]
        assert "51 candidates; at most 50" in (await answer(lambda row: candidates(row, 51)))[1]
        status, why = await answer(lambda row: candidates(row, 100_000))
        assert status == 413 and "larger than 0.5 MB" in why

        async def blanks() -> AsyncIterator[bytes]:
            for _ in range(9):
                yield b" " * 100_000

        streamed = await client.post("/v1/score", content=blanks())
        assert streamed.status_code == 413
        lying = await client.post("/v1/score", content=b"{}", headers={"content-length": "7000000000"})
        assert lying.status_code == 413
        typed = await client.post("/v1/score", content=b"<a/>", headers={"content-type": "text/xml"})
        assert typed.status_code == 415 and "send application/json" in typed.json()["error"]
        assert (await client.post("/v1/score", content=b"")).status_code == 422
        assert (await client.get("/v1/score")).status_code == 405

    run_with(server, work)


def test_too_many_at_once_are_sent_away_and_the_others_answered() -> None:
    server = server_of(Known(seconds=0.2), max_concurrency=3)
    rows = rows_of(0)

    async def work(client: httpx.AsyncClient) -> None:
        answers = await asyncio.gather(*(client.post("/v1/score", content=body(rows)) for _ in range(10)))
        good = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert (len(good), len(refused)) == (3, 7)
        assert all(same(scores_in(answer.json()), wanted(rows)) for answer in good)
        assert refused[0].headers["retry-after"] == "1" and "3 requests are at work" in refused[0].json()["error"]
        assert (await client.post("/v1/score", content=body(rows))).status_code == 200, "there is room again"

    run_with(server, work)


def test_a_body_that_comes_too_slowly_is_given_up() -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)

    async def work(client: httpx.AsyncClient) -> None:
        assert (await client.post("/v1/score", content=slowly())).status_code == 408

    run_with(server_of(Known(), body_seconds=0.05), work)


def test_a_request_that_the_model_fails_on_fails_alone() -> None:
    requests = [rows_of(seed, users=1) for seed in range(6)]
    bad = requests[2].column("candidates").field("item")[0][0].as_py()
    failing = [bad in r.column("candidates").field("item").flatten().to_pylist() for r in requests]

    async def work(client: httpx.AsyncClient) -> None:
        answers = await asyncio.gather(*(client.post("/v1/score", content=body(rows)) for rows in requests))
        for rows, answer, fails in zip(requests, answers, failing, strict=True):
            assert answer.status_code == (500 if fails else 200)
            assert fails or same(scores_in(answer.json()), wanted(rows))
        assert "log says why" in answers[2].json()["error"] and "index" not in answers[2].json()["error"]

    run_with(server_of(Known(poison=bad), batch_wait_ms=20.0), work)
    assert 1 <= sum(failing) < 6


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda good: good * np.nan, "no number"),
        (lambda good: good[:-1], "scores for"),
        (lambda good: good[:, :1], "scores for"),
    ],
)
def test_scores_that_are_none_are_no_answer(broken: Callable[[np.ndarray], np.ndarray], message: str) -> None:
    class Broken(Known):
        def score(self, rows: pa.RecordBatch) -> np.ndarray:
            return broken(super().score(rows))

    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/score", content=body(rows_of(0)))
        assert answer.status_code == 500 and message in answer.json()["error"]

    run_with(server_of(Broken()), work)


def test_closing_answers_what_was_taken_and_takes_no_more() -> None:
    scorer = Known(seconds=0.1)
    served = Served(scorer, CONTRACT, "known")
    requests = [CONTRACT.checked(rows_of(seed)) for seed in range(5)]

    async def whole() -> None:
        batcher = Batcher(1, 0.0, Metrics())
        batcher.start()
        asked = [asyncio.create_task(batcher.score(served, rows)) for rows in requests]
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        assert not batcher.alive
        with pytest.raises(ScoringError, match="closing"):
            await batcher.score(served, requests[0])
        await closing
        for rows, task in zip(requests, asked, strict=True):
            assert np.array_equal(await task, np.concatenate(wanted(rows)))

    asyncio.run(whole())


# ---------------------------------------------------------------------- a new model


@pytest.fixture
def second(schema: Schema, samples: Path, tmp_path: Path) -> Path:
    """Another run of the same schema: other weights."""
    out = tmp_path / "second"
    train(
        TrainConfig(
            schema=schema,
            samples=samples,
            dates=("2026-01-01",),
            out=out,
            token_budget=600,
            max_steps=2,
            seed=5,
            device="cpu",
        )
    )
    return out


def test_a_new_model_is_picked_up_without_a_wrong_answer(run: Path, second: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(run)
    metrics = Metrics()
    slot = ModelSlot(link, "cpu", 1_000, metrics)
    old = slot.current.name
    expected = {
        name.name: CheckpointScorer.load(path)
        for path, name in ((run, load_served(run, "cpu", 9)), (second, load_served(second, "cpu", 9)))
    }
    config = ServeConfig(model=link, reload_seconds=0.05, batch_wait_ms=1.0)
    rows = rows_of(3, users=3)
    scores = {name: scorer.score(CONTRACT.checked(rows)) for name, scorer in expected.items()}
    (new,) = set(scores) - {old}
    assert np.abs(scores[old] - scores[new]).max() > 1e-3
    seen: list[str] = []

    async def work(client: httpx.AsyncClient) -> None:
        async def ask() -> None:
            while len(seen) < 40 or seen[-1] != new:
                answer = await client.post("/v1/score", content=body(rows))
                assert answer.status_code == 200, answer.text
                by = answer.json()["model"]
                np.testing.assert_allclose(np.concatenate(scores_in(answer.json())), scores[by], atol=1e-5)
                seen.append(by)
                assert len(seen) < 5_000

        async def point_elsewhere() -> None:
            await asyncio.sleep(0.1)
            following = tmp_path / "following"
            following.symlink_to(second)
            os.replace(following, link)

        await asyncio.gather(ask(), ask(), ask(), point_elsewhere())

    run_with(Server(slot, config, metrics), work)
    assert seen[0] == old and seen[-1] == new
    assert f'model="{new}"' in metrics.text().decode() and f'model="{old}"' not in metrics.text().decode()


def test_a_damaged_model_is_not_picked_up(
    run: Path, second: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    metrics = Metrics()
    slot = ModelSlot(copy, "cpu", 1_000, metrics)
    before = slot.current
    assert not slot.look()
    shutil.rmtree(copy / "checkpoints")
    shutil.copytree(second / "checkpoints", copy / "checkpoints")
    (dense,) = copy.glob("checkpoints/*/dense.pt")
    dense.write_bytes(dense.read_bytes()[:-7])
    assert not slot.look() and slot.current is before
    assert "can't be served" in caplog.text and "goes on" in caplog.text
    assert 'genrank_model_loads_total{result="refused"} 1.0' in metrics.text().decode()
    with pytest.raises(UserError):
        ModelSlot(copy, "cpu", 1_000, Metrics())


def test_ids_without_a_row_are_counted(run: Path) -> None:
    """Against the batch's own values, by a loop over the schema's words for a row."""
    served = load_served(run, "cpu", 1_000)
    rows = CONTRACT.checked(rows_of(5, users=25))
    metrics = Metrics()

    async def whole() -> None:
        batcher = Batcher(1_000, 0.0, metrics)
        batcher.start()
        await batcher.score(served, rows)
        await batcher.close()

    asyncio.run(whole())
    cities = [hash_string(name) for name in ("oslo", "rome", "kyoto")]
    asked = [city for city in rows.column("user").field("city").to_pylist() if city != MISSING_ID]
    tags = [tag for own in rows.column("user").field("tags").to_pylist() for tag in own if tag != MISSING_ID]
    text = metrics.text().decode()
    for table, known, total in (
        ("user.city", sum(city in cities for city in asked), len(asked)),
        ("user.tags", sum(0 <= tag < 50 for tag in tags), len(tags)),
    ):
        assert 0 < known < total
        assert f'genrank_ids_total{{row="own",table="{table}"}} {float(known)}' in text
        assert f'genrank_ids_total{{row="none",table="{table}"}} {float(total - known)}' in text
    assert "item" not in re.findall(r'genrank_ids_total{row="own",table="(.*?)"', text), "hashed: every id has a row"


# ---------------------------------------------------------------------- a process


def test_kill_under_load_leaves_right_answers_and_errors(run: Path, tmp_path: Path) -> None:
    """A server process on loopback, asked by four threads until it is killed: whatever was answered is right."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "genrank", "serve", "--model", str(run), "--port", "0", "--device", "cpu"]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file)
    try:
        port = _port(log, process)
        scorer = CheckpointScorer.load(run)
        requests = [rows_of(seed, users=2) for seed in range(4)]
        expected = [scorer.score(CONTRACT.checked(rows)) for rows in requests]
        answered, wrong, failed = [0] * 4, [], [0] * 4

        def ask(at: int) -> None:
            content = body(requests[at])
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                while True:
                    try:
                        answer = client.post("/v1/score", content=content)
                        found = np.concatenate(scores_in(answer.json()))
                    except (httpx.HTTPError, ValueError):
                        failed[at] += 1
                        return
                    if answer.status_code != 200 or np.abs(found - expected[at]).max() > 1e-5:
                        wrong.append((at, answer.status_code))
                        return
                    answered[at] += 1

        threads = [threading.Thread(target=ask, args=(at,)) for at in range(4)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 30
        while min(answered) < 2 and time.monotonic() < until and not wrong:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join(30)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
    assert not wrong
    assert min(answered) >= 2 and failed == [1] * 4, log.read_text()


def _port(log: Path, process: subprocess.Popen[bytes]) -> int:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if (found := re.search(r"listening on http://127.0.0.1:(\d+)", log.read_text())) and _answers(int(found[1])):
            return int(found[1])
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.HTTPError:
        return False
