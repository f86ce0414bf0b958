"""Replay finds nothing where serving is training's, and names what differs where it isn't."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from genrank.command import app
from genrank.schemas import Schema, UserError
from genrank.serving.replay import InProcess, OverHttp, replay
from genrank.serving.scorer import CheckpointScorer, Scores
from genrank.serving.stored_requests import write_requests

DAYS = ["2026-01-01", "2026-01-02"]


@pytest.fixture(scope="module")
def scorer(run: Path) -> CheckpointScorer:
    return CheckpointScorer.load(run)


@pytest.fixture(params=["request", "user_day"])
def requests(request: pytest.FixtureRequest, schema: Schema, samples: Path, tmp_path: Path) -> Path:
    out = tmp_path / "requests.jsonl"
    write_requests(samples / "samples", schema, DAYS, out, request.param, limit=24)
    return out


def changed(path: Path, change: object) -> Path:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change(row)  # type: ignore[operator]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_scores_are_evaluations(run: Path, samples: Path, requests: Path, scorer: CheckpointScorer) -> None:
    found = replay(requests, run, samples / "samples", InProcess(scorer))
    assert found.requests == 24 and found.candidates >= 24
    assert found.worst is not None and found.worst.difference <= 1e-5
    assert not found.skew and not found.absent and found.within(1e-5)


def test_a_feature_that_differs_is_named(run: Path, samples: Path, requests: Path, scorer: CheckpointScorer) -> None:
    def skewed(row: dict[str, dict[str, list[float]]]) -> None:
        row["candidates"]["price"] = [price and price + 40 for price in row["candidates"]["price"]]

    found = replay(changed(requests, skewed), run, samples / "samples", InProcess(scorer))
    assert list(found.skew) == ["candidates.price"] and found.skew["candidates.price"].requests > 12
    assert "the request has" in found.skew["candidates.price"].first
    assert found.worst is not None and found.worst.difference > 1e-5 and not found.within(1e-5)


@pytest.mark.parametrize("requests", ["request"], indirect=True)
def test_a_scorer_that_differs_is_caught(run: Path, samples: Path, requests: Path, scorer: CheckpointScorer) -> None:
    answer = InProcess(scorer)

    def off(rows: pa.RecordBatch) -> list[Scores]:
        return [scores + np.float32(2e-5) * (np.arange(len(scores)) == 0)[:, None] for scores in answer(rows)]

    found = replay(requests, run, samples / "samples", off)
    assert found.worst is not None and found.worst.candidate == 0 and not found.skew
    assert found.worst.difference == pytest.approx(2e-5, rel=0.1) and not found.within(1e-5) and found.within(1e-4)

    def nothing(rows: pa.RecordBatch) -> list[Scores]:
        return [scores * np.float32("nan") for scores in answer(rows)]

    assert not replay(requests, run, samples / "samples", nothing).within(1e9)


@pytest.mark.parametrize("requests", ["request"], indirect=True)
def test_requests_without_their_sample_are_no_success(
    run: Path, samples: Path, requests: Path, scorer: CheckpointScorer
) -> None:
    def renamed(row: dict[str, str]) -> None:
        row["sample_id"] = "9" + row["sample_id"]

    found = replay(changed(requests, renamed), run, samples / "samples", InProcess(scorer))
    assert len(found.absent) == 24 and not found.within(1.0)


def test_the_command_ends_with_its_verdict(run: Path, samples: Path, schema: Schema, tmp_path: Path) -> None:
    out = tmp_path / "requests.arrow"
    write_requests(samples / "samples", schema, DAYS[:1], out, "request", limit=20)
    arguments = ["replay", "--requests", str(out), "--run", str(run), "--samples", str(samples), "--device", "cpu"]
    good = CliRunner().invoke(app, [*arguments, "--model", str(run)])
    assert good.exit_code == 0 and "20 requests" in good.output and "within 1e-05" in good.output
    assert "every feature is as the builder stored it" in good.output
    strict = CliRunner().invoke(app, [*arguments, "--model", str(run), "--tolerance", "0"])
    assert strict.exit_code == (0 if "largest difference 0," in strict.output else 1)
    with pytest.raises(UserError, match="give --server URL, or --model DIR"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    with pytest.raises(UserError, match="gave no answer"):
        OverHttp("http://127.0.0.1:9")


@pytest.fixture
def url(run: Path) -> Iterator[str]:
    """A server in a thread of this process, on a socket of its own."""
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    import threading
    import time

    import uvicorn

    from genrank.serving.server.app import Server, make_app
    from genrank.serving.server.config import ServeConfig
    from genrank.serving.server.metrics import Metrics
    from genrank.serving.server.models import ModelSlot

    metrics = Metrics()
    config = ServeConfig(model=run, reload_seconds=0)
    app = make_app(Server(ModelSlot(run, "cpu", 1_000, metrics), config, metrics))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_server_is_asked_over_http(run: Path, samples: Path, schema: Schema, url: str, tmp_path: Path) -> None:
    out = tmp_path / "requests.jsonl"
    write_requests(samples / "samples", schema, DAYS, out, "request", limit=30)
    found = replay(out, run, samples / "samples", OverHttp(url))
    assert found.requests == 30 and found.within(1e-5) and not found.skew
    with pytest.raises(UserError, match=r"/v1/model answered 404"):
        OverHttp(url + "/elsewhere")
