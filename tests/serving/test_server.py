"""The server: every answer is right or an error, whatever arrives with it, before it, or while it is being closed or given a new model."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
import httpx
from known_scorer import (
    CONTRACT,
    SCHEMA,
    Known,
    body,
    rows_of,
    run_with,
    same,
    scores_in,
    server_of,
    wanted,
)
from random_samples import demo_schema, random_table

from genrank.schemas import RequestSize
from genrank.schemas.errors import UserError
from genrank.serving.arrow_sizes import decompressed_bytes
from genrank.serving.request_arrow import MEDIA_TYPE, read_arrow, write_arrow
from genrank.serving.request_contract import RequestContract
from genrank.serving.row_scores import ScoringError
from genrank.serving.sample_rows import SampleRows
from genrank.serving.server.batching import Batcher
from genrank.serving.server.metrics import Metrics
from genrank.serving.server.models import Served
from genrank.serving.stored_requests import requests_of

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
    assert re.search(r"^process_resident_memory_bytes [1-9]", text, re.MULTILINE)
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


def test_a_compressed_body_is_bounded_by_what_it_takes_once_decompressed() -> None:
    rows = rows_of(0)
    posted = {"headers": {"content-type": MEDIA_TYPE}}

    def stream(batches: list[pa.RecordBatch], compression: str | None) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, CONTRACT.sent, options=pa.ipc.IpcWriteOptions(compression=compression)) as out:
            for batch in batches:
                out.write_batch(batch)
        return bytes(sink.getvalue())

    many = pa.Table.from_batches([rows.take(pa.array([0] * 4_000))]).combine_chunks().to_batches()
    plain, tight = stream(many, None), stream(many, "zstd")
    assert decompressed_bytes(tight) == decompressed_bytes(plain) > 1_000_000 > 5 * len(tight)
    assert len(plain) * 0.5 < decompressed_bytes(plain) <= len(plain)
    for size in (0, 1, len(tight) // 2, len(tight) - 9):  # cut anywhere: an error in words, nothing else
        with pytest.raises(UserError, match="the body is no Arrow IPC stream"):
            read_arrow(CONTRACT, tight[:size], max_bytes=10**9)
    # The length before a buffer says a terabyte: nobody asks the system for it.
    at = tight.index(np.int64(8 * 4_000).tobytes())
    boasting = tight[:at] + np.int64(1 << 40).tobytes() + tight[at + 8 :]
    assert decompressed_bytes(boasting) > 1 << 40

    async def work(client: httpx.AsyncClient) -> None:
        before = pa.total_allocated_bytes()
        for content, size in ((tight, r"[\d.]+"), (boasting, r"1,099,51\d\.\d")):
            refused = await client.post("/v1/score", content=content, **posted)
            assert refused.status_code == 413 and len(content) < 500_000
            line = rf"the body takes {size} MB once it is decompressed; at most 0\.5 MB are read: send fewer requests at once"
            assert re.fullmatch(line, refused.json()["error"])
        assert pa.total_allocated_bytes() - before < 1_000_000
        small = await client.post("/v1/score", content=stream([rows], "lz4"), **posted)
        assert small.status_code == 200 and same(scores_in(small.json()), wanted(rows))
        zipped = await client.post("/v1/score", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
        assert zipped.status_code == 415 and "Content-Encoding gzip is not read" in zipped.json()["error"]

    run_with(server_of(Known(), max_body_mb=0.5, max_candidates=50), work)


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
