"""Which model answers: a new one is picked up, a damaged one is not, ids without a row are counted, and users are kept."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
import httpx
from known_scorer import (
    CONTRACT,
    body,
    rows_of,
    run_with,
    scores_in,
)

from genrank.model.config import TrainConfig
from genrank.model.trainer import train
from genrank.schemas import Schema, UserError
from genrank.schemas.ids import MISSING_ID, hash_string
from genrank.serving.scorer import CheckpointScorer
from genrank.serving.server.app import Server
from genrank.serving.server.batching import Batcher
from genrank.serving.server.config import ServeConfig
from genrank.serving.server.metrics import Metrics
from genrank.serving.server.models import ModelSlot, load_served
from genrank.serving.user_cache import UserCache

# ---------------------------------------------------------------------- a new model


@pytest.fixture(scope="module")
def second(schema: Schema, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another run of the same schema: other weights. Read only."""
    out = tmp_path_factory.mktemp("runs") / "second"
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


def test_cached_users_get_the_same_scores_and_are_counted(run: Path) -> None:
    """Several requests of a user in one batch, then each again: equal to a model without a cache."""
    metrics, cache = Metrics(), UserCache(1 << 26, storage="float32")
    metrics.watch(cache)
    cached = load_served(run, "cpu", 1_000, micro_batch=3, cache=cache)
    plain = load_served(run, "cpu", 1_000)
    rows = CONTRACT.checked(rows_of(3))
    for _ in range(2):
        np.testing.assert_allclose(cached.score(rows), plain.score(rows), atol=1e-5)
    text = metrics.text().decode()
    assert float(re.findall(r'genrank_user_cache_total{event="hits"} (.*)', text)[0]) >= len(rows)
    assert float(re.findall(r'genrank_user_cache_bytes{where="device"} (.*)', text)[0]) == cache.bytes[0] > 0
