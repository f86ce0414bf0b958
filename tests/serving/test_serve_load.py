"""The load generator: requests at their moments however slow the answers are, and latency from these moments."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
from benchmarks.serve_load import open_loop


async def one_at_a_time(seconds: float, refuse_beyond: int) -> asyncio.Server:
    """An HTTP server that answers one request after another, each in so many seconds; what would wait behind so many gets 429."""
    turn, at_work = asyncio.Lock(), 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal at_work
        try:
            while (await reader.readuntil(b"\r\n\r\n")) and await reader.readexactly(4):
                status = b"429 Too Many Requests" if at_work >= refuse_beyond else b"200 OK"
                if status == b"200 OK":
                    at_work += 1
                    async with turn:
                        await asyncio.sleep(seconds)
                    at_work -= 1
                writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


def loaded(rate: float, seconds: float, **limits: Any) -> dict[str, Any]:
    given = argparse.Namespace(**({"seconds": 1.0, "drain": 20.0, "most": 500} | limits))

    async def whole() -> dict[str, Any]:
        server = await one_at_a_time(seconds, limits.get("refuse_beyond", 1_000))
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await open_loop(f"http://127.0.0.1:{port}", [b"body"], rate, given)

    return asyncio.run(whole())


def test_a_queue_shows_in_the_latency_and_slows_no_arrival() -> None:
    """40 requests a second to a server of 20: the last ones wait about half a second, though each is answered in 50 ms."""
    found = loaded(40, 0.05)
    count = found["statuses"][200]
    assert 20 < count < 65 and found["offered"] == count, "arrivals keep their rate"
    assert found["achieved"] < 25
    assert max(found["latencies"]) > 0.05 * count - 1.0 > 0
    assert np.percentile(found["latencies"], 50) > 0.1, "a closed loop would report 50 ms"


def test_what_is_refused_not_sent_or_never_answered_is_counted() -> None:
    refused = loaded(40, 0.05, refuse_beyond=2)
    assert refused["statuses"][429] > 0 and refused["statuses"][0] == 0
    assert (
        sum(refused["statuses"].values()) == refused["offered"] == refused["statuses"][200] + refused["statuses"][429]
    )
    bounded = loaded(40, 0.3, most=3, drain=0.1)
    assert bounded["statuses"][0] > 0 and sum(bounded["statuses"].values()) == bounded["offered"]
    assert len(bounded["latencies"]) == bounded["statuses"][200]
