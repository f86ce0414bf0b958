"""`genrank serve` as a process on loopback, asked by several clients at once: whatever it answers is right, however it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
import httpx
from known_scorer import CONTRACT, body, rows_of, scores_in

from genrank.model.config import TrainConfig
from genrank.model.trainer import train
from genrank.schemas import Schema
from genrank.serving.config import ExportConfig
from genrank.serving.export import export
from genrank.serving.model_folder import open_model
from genrank.serving.request_arrow import MEDIA_TYPE, write_arrow

CLIENTS = 4
REQUESTS = [
    rows.filter(pc.equal(rows.column("user_id"), user))
    for rows in [rows_of(0, users=CLIENTS)]
    for user in range(CLIENTS)
]


@dataclass
class Process:
    """A server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    client: httpx.Client

    def metric(self, name: str) -> float:
        text = self.client.get("/metrics").text
        found = re.search(rf"^{re.escape(name)} (.*)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@contextmanager
def serving(folder: Path, log: Path, *flags: str) -> Iterator[Process]:
    command = [
        sys.executable,
        "-m",
        "genrank",
        "serve",
        "--model",
        str(folder),
        "--port",
        "0",
        "--device",
        "cpu",
        *flags,
    ]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file)
    try:
        until = time.monotonic() + 300
        while (found := re.search(r"listening on (http://127.0.0.1:\d+)", log.read_text())) is None or not _ready(
            found[1]
        ):
            assert time.monotonic() < until and process.poll() is None, log.read_text()
            time.sleep(0.05)
        with httpx.Client(base_url=found[1], timeout=60) as client:
            yield Process(found[1], process, log, client)
    finally:
        process.kill()
        process.wait()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


@dataclass
class Answer:
    began: float
    ended: float
    status: int
    """0: the connection failed."""
    model: str = ""
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))


class Load:
    """Clients that ask, each the same request again and again, until a connection fails or the server says that it is closing."""

    def __init__(self, server: Process) -> None:
        self.server = server
        self.answers: list[list[Answer]] = [[] for _ in REQUESTS]
        self.began = [0.0] * CLIENTS
        """Of each client's request under way."""
        self.threads = [threading.Thread(target=self._ask, args=(at,)) for at in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.server.process.poll() is None and any(thread.is_alive() for thread in self.threads):
            self.server.process.kill()  # a failed test: clients end, too
        for thread in self.threads:
            thread.join(60)

    def _ask(self, at: int) -> None:
        content = body(REQUESTS[at])
        with httpx.Client(base_url=self.server.url, timeout=60) as client:
            while not self.answers[at] or self.answers[at][-1].status == 200:
                self.began[at] = began = time.monotonic()
                try:
                    got = client.post("/v1/score", content=content)
                    said = got.json() if got.status_code == 200 else {}
                except (httpx.HTTPError, ValueError):
                    self.answers[at].append(Answer(began, time.monotonic(), 0))
                    return
                scores = np.concatenate(scores_in(said)) if said else np.zeros(0)
                self.answers[at].append(Answer(began, time.monotonic(), got.status_code, said.get("model", ""), scores))

    def until(self, reached: Any) -> None:
        """Wait for what the answers so far must have."""
        deadline = time.monotonic() + 120
        while not all(reached(own) for own in self.answers):
            assert time.monotonic() < deadline and any(t.is_alive() for t in self.threads), self.server.log.read_text()
            time.sleep(0.02)

    def assert_right(self, expected: dict[str, list[np.ndarray]], ends: set[int]) -> None:
        """Every answer but each client's last is a model's scores; the last is one of `ends`."""
        for at, own in enumerate(self.answers):
            for answer in own[:-1]:
                assert answer.status == 200
                np.testing.assert_allclose(answer.scores, expected[answer.model][at], atol=1e-5)
            assert own[-1].status in ends, own[-1]


def expected_of(folder: Path) -> dict[str, list[np.ndarray]]:
    scorer, name = open_model(folder)
    return {name: [scorer.score(CONTRACT.checked(rows)) for rows in REQUESTS]}


def run_of(schema: Schema, samples: Path, out: Path, seed: int) -> Path:
    """A run of the model that trains and exports fastest."""
    train(
        TrainConfig(
            schema=schema, samples=samples, dates=("2026-01-01",), out=out, model="dlrm", token_budget=600, max_steps=2,
            seed=seed, device="cpu",
        )
    )  # fmt: skip
    return out


def test_a_new_export_under_load_and_then_sigterm(schema: Schema, samples: Path, tmp_path: Path) -> None:
    live = tmp_path / "live"
    export(ExportConfig(run=run_of(schema, samples, tmp_path / "a", 1), out=live, device="cpu"))
    following = run_of(schema, samples, tmp_path / "b", 2)
    old = expected_of(live)
    with serving(live, tmp_path / "log", "--reload-seconds", "0.1", "--batch-wait-ms", "400") as server:
        _errors_are_said(server.url)
        with Load(server) as load:
            load.until(lambda own: len(own) >= 2)
            export(ExportConfig(run=following, out=live, device="cpu"))
            new = expected_of(live)
            load.until(lambda own: len(own) >= 2 and own[-1].model in new)
            accepted = _all_at_work(load)
            observed = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0, server.log.read_text()
            ended = time.monotonic()
    assert ended - observed < 40
    (was,), (now,) = old, new
    assert np.abs(np.concatenate(old[was]) - np.concatenate(new[now])).max() > 1e-3
    load.assert_right(old | new, ends={0, 503})
    for own in load.answers:
        models = [answer.model for answer in own[:-1]]
        assert models == sorted(models, key=[was, now].index) and set(models) == {was, now}, (
            "and none of the old one after"
        )
    for began, own in zip(accepted, load.answers, strict=True):
        assert [answer.status for answer in own if answer.began == began] == [200], "accepted before the signal"


def _all_at_work(load: Load) -> list[float]:
    """When each client's request began, once the server has said that all of these are at work."""
    deadline = time.monotonic() + 120
    while True:
        began = list(load.began)
        asked = time.monotonic()
        at_work = load.server.metric("genrank_bodies_at_work")
        if at_work == CLIENTS and began == load.began and max(began) < asked:
            return began
        assert time.monotonic() < deadline, load.server.log.read_text()
        time.sleep(0.02)


def test_kill_under_load_leaves_right_answers_and_errors(run: Path, tmp_path: Path) -> None:
    """With users kept, and candidates in parts."""
    flags = ("--user-cache-mb", "16", "--micro-batch", "3")
    with serving(run, tmp_path / "log", *flags) as server, Load(server) as load:
        load.until(lambda own: len(own) >= 4)
        hits = server.metric('genrank_user_cache_total{event="hits"}')
        server.process.kill()
        server.process.wait(30)
    assert hits > 0
    load.assert_right(expected_of(run), ends={0})


def _errors_are_said(url: str) -> None:
    """What can't be scored, over the wire."""

    def answer(change: Any) -> tuple[int, str]:
        one = REQUESTS[0].slice(0, 1)
        text = change(body(one).decode())
        got = httpx.post(f"{url}/v1/score", content=text)
        return got.status_code, got.json()["error"]

    def first(name: str, value: str) -> Any:
        """The first value of a list of the candidates replaced."""
        return lambda text: re.sub(rf'("candidates": .*?"{name}": \[)[^,\]]*', rf"\g<1>{value}", text)

    assert answer(lambda text: text.replace('"price"', '"prize"'))[0] == 422
    assert (
        "has no price (list<number>)"
        in answer(lambda text: re.sub(r'("candidates": .*?)"price": \[.*?\], ', r"\1", text))[1]
    )
    assert answer(first("price", "NaN")) == (422, "NaN is no JSON value; send null where a number is missing")
    status, why = answer(first("item_id", str(2**63)))
    assert status == 422 and "candidates.item_id[0] is 9223372036854775808; it must lie in" in why
    for count, line in ((0, "requests[0]: candidates is empty; send at least one candidate"),
                        (100_000, "requests[0]: 100,000 candidates; at most 10,000 are scored in one request")):  # fmt: skip
        got = httpx.post(f"{url}/v1/score", content=_with_candidates(count), headers={"content-type": MEDIA_TYPE})
        assert (got.status_code, got.json()["error"]) == (422, line)


def _with_candidates(count: int) -> bytes:
    row = REQUESTS[0].slice(0, 1)
    ranked, at = row.column("candidates"), row.schema.get_field_index("candidates")
    lists = [
        pa.ListArray.from_arrays(
            pa.array([0, count], pa.int32()), ranked.field(f.name).flatten().take(pa.array([0] * count, pa.int64()))
        )
        for f in ranked.type
    ]
    columns = [
        pa.StructArray.from_arrays(lists, names=[f.name for f in ranked.type]) if i == at else c
        for i, c in enumerate(row.columns)
    ]
    return write_arrow([pa.RecordBatch.from_arrays(columns, schema=row.schema)], row.schema)
