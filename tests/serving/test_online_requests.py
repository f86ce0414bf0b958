"""From logs to scores: what is built, trained on, asked online and scored in process or by a server agrees, by the code that docs/serving.md shows."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
import uvicorn
from known_scorer import server_of

from genrank.model.config import TrainConfig
from genrank.model.trainer import train
from genrank.pipelines.build import build
from genrank.pipelines.config import BuildConfig
from genrank.serving.replay import InProcess, replay
from genrank.serving.request_arrow import write_arrow
from genrank.serving.scorer import CheckpointScorer
from genrank.serving.server.app import make_app
from tests.pipelines.test_online import exposures_of, raw, stored
from tests.pipelines.worlds import full_schema, write_world

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def shown_code() -> dict[str, Any]:
    """The functions of the page's listing."""
    listings = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    (listing,) = (each for each in listings if "def start(" in each)
    names: dict[str, Any] = {}
    exec(compile(listing, str(PAGE), "exec"), names)
    return names


@contextmanager
def served(scorer: CheckpointScorer) -> Iterator[str]:
    """A server's address."""
    config = uvicorn.Config(make_app(server_of(scorer)), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        (port,) = {sock.getsockname()[1] for own in server.servers for sock in own.sockets}
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def test_what_is_asked_online_is_what_was_trained_on(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    days = write_world(data, seed=2, days=4, per_day=60)
    for snapshot in ("items", "users"):  # The day being served has none of its own yet.
        shutil.rmtree(data / snapshot / f"dt={days[-1]}", ignore_errors=True)
    own = full_schema()
    build(BuildConfig(own, data, out, days[-2], days[-1], recompute_users=0))
    run = tmp_path / "run"
    train(
        TrainConfig(
            schema=own, samples=out / "samples", dates=(days[-2],), out=run, token_budget=600, max_steps=2, device="cpu"
        )
    )
    code, scorer = shown_code(), CheckpointScorer.load(run)
    module = tmp_path / "own_schema.py"
    module.write_text("from tests.pipelines.worlds import full_schema\nschema = full_schema()\n")
    features = code["start"](str(module), out, days[-2])
    for log in ("exposures", "clicks", "orders"):
        code["follow"](features, log, raw(data, own, log, days[-1]), days[-1])
    shown = raw(data, own, "exposures", days[-1]).to_pylist()
    rows = list(stored(out, own, days[-1]))
    requests = features.requests([exposures_of(row, shown) for row in rows], [row["sample_id"] for row in rows])

    file = tmp_path / "requests.arrow"
    file.write_bytes(write_arrow([requests], requests.schema))
    found = replay(file, run, out / "samples", InProcess(scorer), device="cpu")
    assert found.requests == len(rows) > 5 and not found.skew and not found.absent
    assert found.worst is not None and found.worst.difference <= 1e-5

    here = code["scored_here"](scorer, requests)
    with served(scorer) as server:
        there = code["scored_there"](server, requests)
    assert [each["sample_id"] for each in there] == [row["sample_id"] for row in rows]
    for scores, answer in zip(here, there, strict=True):
        one = np.stack([np.array(answer["scores"][label.name], np.float32) for label in own.labels], 1)
        np.testing.assert_allclose(one, scores, atol=1e-5)
