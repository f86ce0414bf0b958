"""`genrank score`: evaluation's scores to the bit, on any number of ranks, killed at any moment."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.evaluate import evaluate
from genrank.model.trainer import train
from genrank.schemas.errors import UserError
from genrank.serving import stored_samples
from genrank.serving.config import ScoreConfig
from genrank.serving.stored_samples import ScoresManifest, score

DAY = "2026-01-02"


@pytest.fixture
def config(run, samples, tmp_path) -> ScoreConfig:
    return ScoreConfig(run=run, samples=samples, dates=DAY, out=tmp_path / "out", token_budget=600, device="cpu")


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part a row group, so that a day has several."""
    plain = stored_samples.SampleReader
    monkeypatch.setattr(stored_samples, "SampleReader", lambda *a, **k: plain(*a, **k, shuffle_buffer=1))


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_scores_are_evaluations_to_the_bit(run, samples, config, tmp_path, monkeypatch, schema) -> None:
    monkeypatch.undo()  # evaluation's own windows
    judged = EvaluateConfig(
        run=run, samples=samples, dates=DAY, token_budget=600, device="cpu", bootstrap=0, out=tmp_path / "m.json"
    )
    evaluate(judged)
    wanted = pq.read_table(run / "predictions" / f"dt={DAY}.parquet")
    assert score(config) == {DAY: len(wanted)}
    got = pq.read_table(config.out / "scores" / f"dt={DAY}" / f"build={manifest(config).build_id}")
    for name in ("user_id", "request", "item", "ts", "click_score", "watch_score"):
        assert got[name].combine_chunks().equals(wanted[name].combine_chunks()), name
    assert got.column_names == ["sample_id", "user_id", "request", "item", "ts", "click_score", "watch_score"]
    assert {s.split(":")[0] for s in got["sample_id"].to_pylist()} == set(map(str, got["user_id"].to_pylist()))


def manifest(config: ScoreConfig) -> ScoresManifest:
    found = ScoresManifest.read(config.out / "scores" / f"dt={DAY}")
    assert found is not None
    return found


def test_killed_at_any_moment_and_given_again_it_writes_the_same_files(config, tmp_path, monkeypatch) -> None:
    score(config)
    wanted = files(config.out)
    assert len(manifest(config).files) > 1

    class Killed(BaseException):
        """As SIGKILL: nothing is tidied up after it."""

    for survives in range(2 * len(wanted)):
        again = dataclasses.replace(config, out=tmp_path / f"killed-{survives}")
        left = [survives]

        def dying(real, left=left):
            def step(*arguments: object) -> None:
                if not left[0]:
                    raise Killed
                left[0] -= 1
                real(*arguments)

            return step

        with monkeypatch.context() as patched:
            for name in ("write_predictions", "publish_build", "point_to"):
                patched.setattr(stored_samples, name, dying(getattr(stored_samples, name)))
            try:
                score(again)
            except Killed:
                assert not (again.out / "scores" / f"dt={DAY}" / "manifest.json").is_file() or left == [0]
        assert score(again)
        assert files(again.out) == wanted


def test_ranks_share_the_windows_and_the_last_one_publishes(config, tmp_path, monkeypatch) -> None:
    score(config)
    wanted = files(config.out)
    shared = dataclasses.replace(config, out=tmp_path / "shared")
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (1, 2, 0):
        monkeypatch.setenv("RANK", str(rank))
        assert bool(score(shared)) is (rank == 0)
    assert files(shared.out) == wanted


def test_another_checkpoint_replaces_the_day_and_the_same_one_is_not_computed_again(
    config, schema, samples, tmp_path, monkeypatch
) -> None:
    score(config)
    first = manifest(config)
    monkeypatch.setattr(stored_samples, "predict", None)  # nothing is left to predict
    score(config)
    monkeypatch.undo()
    other = tmp_path / "other"
    train(
        TrainConfig(
            schema=schema, samples=samples, dates="2026-01-01", out=other, token_budget=600, max_steps=1, device="cpu"
        )
    )
    score(dataclasses.replace(config, run=other))
    second = manifest(config)
    assert second.build_id != first.build_id and second.checkpoint != first.checkpoint
    day = config.out / "scores" / f"dt={DAY}"
    assert [p.name for p in day.glob("build=*")] == [f"build={second.build_id}"]
    assert (config.out / "replaced" / f"dt={DAY}" / f"build={first.build_id}").is_dir()


def test_what_ranks_no_candidates_is_refused(config, schema, samples, tmp_path) -> None:
    other = tmp_path / "retriever"
    train(
        TrainConfig(
            schema=schema,
            samples=samples,
            dates="2026-01-01",
            out=other,
            model="hstu-retrieval-tiny",
            token_budget=600,
            max_steps=1,
            device="cpu",
        )
    )
    with pytest.raises(UserError, match="scores are of ranking models"):
        score(dataclasses.replace(config, run=other))
