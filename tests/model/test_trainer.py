"""Training end to end on random samples: resume to the bit, accumulation, T+1 and guards."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import genrank.model.checkpoint
from genrank.kernels import tuning
from genrank.model.checkpoint import find_checkpoint, load_dense, read_manifest, steps_of
from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.documents import as_json
from genrank.model.evaluate import evaluate, load_model
from genrank.model.progressive import progressive
from genrank.model.train_step import TrainStep, decay_factor, warmup
from genrank.model.trainer import train
from genrank.schemas import Categorical, Dynamic, UserError
from genrank.schemas.checked_json import checked
from genrank.tokenization.quantiles import fit_moments
from genrank.tokenization.reader import SampleReader

DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")


def steps(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    untimed = {"time", "step_ms", "input_wait", "samples_per_s", "tokens_per_s", "model_gflops_per_s", "mfu"}
    return [{k: v for k, v in row.items() if k not in untimed} for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Every dense and sparse value of a run's newest checkpoint."""
    loaded = load_model(run, step=steps_of(run)[-1])
    tables = {name: table.weight for name, table in loaded.model.embeddings.tables.tables.items()}
    tables |= {f"{name}/second": table.second for name, table in loaded.model.embeddings.tables.tables.items()}
    state = load_dense(run / "checkpoints" / f"step-{loaded.step}")
    moments = {f"{i}/{k}": v for i, s in state["optimizer"].items() for k, v in s.items()}
    return {**loaded.model.state_dict(), **tables, **moments}


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the trainer may catch it."""


@pytest.mark.parametrize("kill_at", [1, 4, 7])
def test_a_killed_run_resumed_equals_one_never_killed(config: TrainConfig, kill_at: int, monkeypatch, tmp_path) -> None:
    config = dataclasses.replace(
        config, checkpoint_every=2, deterministic=True, eval_dates=DAYS[2:], settings={"attention_dropout": "0.1"}
    )
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    train(whole)
    step = TrainStep.run

    def mortal(self, batches, at):
        if at.step == kill_at:
            raise Killed
        return step(self, batches, at)

    monkeypatch.setattr(TrainStep, "run", mortal)
    with pytest.raises(Killed):
        train(config)
    monkeypatch.setattr(TrainStep, "run", step)
    done = train(config)
    assert done.steps > kill_at
    assert tuning.fixed(), "kernels take configurations that no clock chose"
    assert steps(config.out) == steps(whole.out)
    resumed, expected = weights(config.out), weights(whole.out)
    assert resumed.keys() == expected.keys()
    for name in expected:
        assert torch.equal(resumed[name], expected[name]), name
    torch.use_deterministic_algorithms(False)


def test_reading_in_a_process_changes_nothing(config: TrainConfig, tmp_path: Path) -> None:
    """Nor does going on in a thread, from a checkpoint in the middle of an epoch."""
    config = dataclasses.replace(config, decay="none", warmup_steps=1, deterministic=True, max_steps=5)
    train(dataclasses.replace(config, out=tmp_path / "thread", readers=0))
    train(dataclasses.replace(config, out=tmp_path / "both", readers=1, max_steps=3))
    train(dataclasses.replace(config, out=tmp_path / "both", readers=0))
    torch.use_deterministic_algorithms(False)
    assert steps(tmp_path / "both") == steps(tmp_path / "thread")
    ours, expected = weights(tmp_path / "both"), weights(tmp_path / "thread")
    for name in expected:
        assert torch.equal(ours[name], expected[name]), name


def test_a_run_of_one_epoch_goes_on_from_the_checkpoint_its_clock_asked_for(
    config: TrainConfig, monkeypatch, tmp_path
) -> None:
    import genrank.model.checkpoint_manager

    minutes = itertools.count()
    monkeypatch.setattr(genrank.model.checkpoint_manager, "time", SimpleNamespace(monotonic=lambda: 60 * next(minutes)))
    config = dataclasses.replace(config, epochs=1, token_budget=300, deterministic=True, checkpoint_minutes=3)
    whole = dataclasses.replace(config, checkpoint_minutes=0, out=tmp_path / "whole")
    train(whole)
    step = TrainStep.run

    def mortal(self, batches, at):
        if at.step == 8:
            raise Killed
        return step(self, batches, at)

    monkeypatch.setattr(TrainStep, "run", mortal)
    with pytest.raises(Killed):
        train(config)
    # Asked for after the third minute's step, written after the next one; then again.
    assert steps_of(config.out) == [4, 8] and steps_of(whole.out)[0] > 8
    shutil.rmtree(config.out / "checkpoints" / "step-8")
    monkeypatch.setattr(TrainStep, "run", step)
    train(config)
    resumed, expected = weights(config.out), weights(whole.out)
    for name in expected:
        assert torch.equal(resumed[name], expected[name]), name
    assert steps(config.out) == steps(whole.out)
    torch.use_deterministic_algorithms(False)


def test_another_number_of_processes_resumes_between_epochs_only(config: TrainConfig, monkeypatch) -> None:
    """As if two processes had written the checkpoint; tests/model/test_two_ranks.py has the processes."""
    import genrank.model.checkpoint_manager

    load = genrank.model.checkpoint_manager.load_dense

    def of_two(folder: Path) -> dict:
        state = load(folder)
        return {**state, "readers": state["readers"] * 2}

    train(dataclasses.replace(config, max_steps=1))
    monkeypatch.setattr(genrank.model.checkpoint_manager, "load_dense", of_two)
    with pytest.raises(UserError, match=r"middle of an epoch by 2 processes and 1 resume it; .* --from-checkpoint"):
        train(dataclasses.replace(config, max_steps=3))


def test_a_crash_while_saving_leaves_the_previous_checkpoint(config: TrainConfig, monkeypatch) -> None:
    config = dataclasses.replace(config, checkpoint_every=2)
    sync = genrank.model.checkpoint.sync

    def crash(path):
        if "step-4" in str(path):
            raise Killed
        sync(path)

    monkeypatch.setattr(genrank.model.checkpoint, "sync", crash)
    with pytest.raises(Killed):
        train(config)
    assert steps_of(config.out) == [2]
    monkeypatch.setattr(genrank.model.checkpoint, "sync", sync)
    assert train(config).steps > 4


def test_accumulated_batches_equal_one_batch_of_all(config: TrainConfig, tmp_path) -> None:
    """Unequal batches, weights and tasks: the gradient is normalised by what the whole step saw."""
    one = dataclasses.replace(config, token_budget=10**6, max_steps=1, settings={"dropout": "0"}, out=tmp_path / "one")
    train(dataclasses.replace(one, schema=config.schema))
    many = dataclasses.replace(one, token_budget=500, accumulate=10**6, out=tmp_path / "many")
    train(many)
    a, b = weights(one.out), weights(many.out)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_finished_runs_are_not_run_again_and_other_configurations_refused(config: TrainConfig) -> None:
    first = train(config)
    written = (config.out / "summary.json").stat().st_mtime_ns
    assert train(config).steps == first.steps
    assert (config.out / "summary.json").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="another lr, model"):
        train(dataclasses.replace(config, lr=0.5, model="din"))
    longer = train(dataclasses.replace(config, epochs=3))
    assert longer.steps > first.steps + 2


def test_the_next_day_goes_on_from_the_last(config: TrainConfig, tmp_path) -> None:
    first = dataclasses.replace(config, dates=DAYS[:1], epochs=1, out=tmp_path / "day1")
    train(first)
    second = dataclasses.replace(
        config,
        dates=DAYS[1:2],
        epochs=1,
        out=tmp_path / "day2",
        from_checkpoint=first.out,
        eval_dates=DAYS[2:],
        max_steps=1,
    )
    train(second)
    before, after = weights(first.out), weights(second.out)
    close = [
        torch.dist(after[n].float(), before[n].float()) < 0.2 * before[n].float().norm()
        for n in before
        if n.endswith("weight") and "/" not in n
    ]
    assert sum(close) > 0.8 * len(close), "the second day did not begin with the first day's weights"
    assert (second.out / "summary.json").is_file()
    with pytest.raises(UserError, match="it is of model mtgr-tiny, not of din"):
        train(dataclasses.replace(second, model="din", out=tmp_path / "other"))


def test_early_stopping_keeps_the_best(config: TrainConfig) -> None:
    config = dataclasses.replace(config, eval_dates=DAYS[2:], eval_every=2, patience=2, epochs=50, keep_checkpoints=1)
    result = train(config)
    evaluations = [row for row in steps(config.out) if "eval" in row]
    gauc = {row["step"]: row["eval"]["click"]["gauc"] for row in evaluations}
    best = max(gauc, key=gauc.get)
    assert result.steps == best + 4  # two evaluations without a better one
    kept = config.out / "checkpoints" / "best.json"
    mean = sum(row["eval"][task]["gauc"] for row in evaluations if row["step"] == best for task in ("click",))
    assert checked(kept.read_text()) == {"step": best, "metric": "gauc", "value": pytest.approx(mean)}
    assert read_manifest(find_checkpoint(config.out)).step == best
    assert result.steps > best
    kept.write_text(json.dumps({"step": best, "gauc": mean}))  # as it was written once
    assert read_manifest(find_checkpoint(config.out)).step == best


@pytest.mark.parametrize(
    "changes", [{"accumulate": 3}, {"by_length": True, "view": "request"}, {"max_steps": 7}, {"view": "session"}]
)
def test_the_decay_ends_where_training_does(config: TrainConfig, changes: dict) -> None:
    config = dataclasses.replace(config, token_budget=250, warmup_steps=2, decay="linear", final_lr=0.0, **changes)
    result = train(config)
    position = load_dense(find_checkpoint(config.out, result.steps))["position"]
    assert position["total_steps"] == position["step"] == result.steps
    last = steps(config.out)[-1]
    assert last["lr"] == pytest.approx(config.lr / (result.steps - 2)), "one step more, and it were 0"


def test_log_and_summary_say_what_steps_took(config: TrainConfig, monkeypatch) -> None:
    """Rates leave out the first steps of each process, which compile and tune; what was waited for is input."""
    import time

    step, batches = TrainStep.run, SampleReader.__iter__
    slow = iter([0.8, 0.8, *[0.0] * 99])

    def compiling(self, batches, at):
        time.sleep(next(slow))
        return step(self, batches, at)

    def reading(self):
        for batch in batches(self):
            time.sleep(0.1)
            yield batch

    monkeypatch.setattr(TrainStep, "run", compiling)
    monkeypatch.setattr(SampleReader, "__iter__", reading)
    result = train(dataclasses.replace(config, epochs=1, token_budget=250))
    summary = json.loads((config.out / "summary.json").read_text())
    log = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    assert log[0]["step_ms"] > 800 and log[1]["step_ms"] > 800
    assert summary["timed_steps"] == result.steps - 2 > 3
    assert summary["step_ms"] == pytest.approx(sum(row["step_ms"] for row in log[2:]) / (result.steps - 2), rel=0.01)
    assert summary["seconds"] == pytest.approx(sum(row["step_ms"] for row in log) / 1e3, rel=0.01)
    waited = sum(row["input_wait"] * row["step_ms"] for row in log[2:])
    assert summary["input_wait"] == pytest.approx(waited / sum(row["step_ms"] for row in log[2:]), rel=0.02)
    assert waited > 90 * (result.steps - 3), "the reader's last batch is read while the one before it is computed"
    gflops = [row["model_gflops_per_s"] * row["step_ms"] for row in log[2:]]
    assert summary["model_gflops_per_s"] == pytest.approx(sum(gflops) / sum(r["step_ms"] for r in log[2:]), rel=0.02)
    for row in (*log, summary):
        assert row["peak_gpu_bytes"] is None and 0 < row["mfu"] < 1 and row["tokens_per_s"] > 0


def test_a_run_of_a_step_or_two_has_rates_of_all_of_them(config: TrainConfig) -> None:
    train(dataclasses.replace(config, max_steps=2, model="din"))
    summary = json.loads((config.out / "summary.json").read_text())
    assert summary["timed_steps"] == 0 and summary["step_ms"] == pytest.approx(500 * summary["seconds"], rel=0.01)
    assert summary["input_wait"] is None and summary["mfu"] is None and summary["samples_per_s"] > 0


def test_learning_rate_warms_up_and_decays(config: TrainConfig) -> None:
    config = dataclasses.replace(config, warmup_steps=10, decay="linear", final_lr=0.2)
    assert decay_factor(config, 0, 110) == 1
    assert decay_factor(config, 60, 110) == pytest.approx(0.6)
    assert decay_factor(config, 500, 110) == pytest.approx(0.2)
    assert decay_factor(dataclasses.replace(config, decay="none"), 100, 110) == 1
    assert warmup(config, 110) == 10
    assert warmup(config, 12) == 6, "a short run reaches its learning rate"


def test_a_loss_that_is_not_a_number_names_the_batch_and_learns_nothing(config: TrainConfig, monkeypatch) -> None:
    config = dataclasses.replace(config, checkpoint_every=1, keep_checkpoints=9)
    from genrank.model.encoders.stack import Stack

    forward, calls = Stack.forward, []

    def poisoned(self, tokens):
        calls.append(1)
        return forward(self, tokens) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(Stack, "forward", poisoned)
    with pytest.raises(UserError, match=r"the loss is nan at step 3, on the batch of \d+ samples from \S+ to .* --lr"):
        train(config)
    event = next(row for row in steps(config.out) if row.get("event") == "nan")
    assert len(event["sample_ids"]) > 1
    monkeypatch.setattr(Stack, "forward", forward)
    assert steps_of(config.out) == [1, 2]
    train(config)  # and it goes on from there


def test_a_spike_is_skipped_and_five_in_a_row_stop_training(config: TrainConfig, monkeypatch) -> None:
    import genrank.model.train_step

    monkeypatch.setattr(genrank.model.train_step, "SPIKE_WARMUP", 3)
    from genrank.model.encoders.stack import Stack

    forward, calls = Stack.forward, []

    def spiky(at):
        def run(self, tokens):
            calls.append(1)
            return forward(self, tokens) * (1e4 if len(calls) in at else 1)

        return run

    monkeypatch.setattr(Stack, "forward", spiky({5}))
    train(config)
    assert [row["step"] for row in steps(config.out) if row.get("event") == "spike"] == [4]
    calls.clear()
    monkeypatch.setattr(Stack, "forward", spiky(set(range(5, 99))))
    with pytest.raises(UserError, match=r"5 steps in a row.*diverges"):
        train(dataclasses.replace(config, out=config.out / "again", epochs=9))


def test_evaluation_tells_every_row_with_intervals(config: TrainConfig) -> None:
    train(config)
    result = evaluate(EvaluateConfig(run=config.out, samples=config.samples, dates=DAYS[2:], bootstrap=20))
    assert as_json(result) == json.loads((config.out / "metrics.json").read_text())
    by_order = {"best_popularity", "best_column"}
    assert set(result.tasks["click"]) == {"model", "oracle", "popularity", "user_item_ctr"} | by_order
    order = ("auc", "gauc", "request_auc", "mrr", "ndcg@10")
    for row, found in result.tasks["click"].items():
        names = order if row in by_order else (*order, "ne", "logloss", "calibration")
        assert set(found) == set(names)
        for name in names:
            assert found[name].low <= found[name].value <= found[name].high
    assert set(result.chosen["click"]) == by_order
    for dimension, slices in result.slices["click"].items():
        mature = sum(each.candidates for each in slices.values())
        assert mature == sum(each.candidates for each in result.slices["click"]["hour"].values()), dimension
        assert all(
            each.metrics["gauc"].value is None or 0 <= each.metrics["gauc"].value <= 1 for each in slices.values()
        )
    assert set(result.tasks["watch"]["model"]) == {"rmse", "mae", "bias"}
    import pyarrow.parquet as pq

    table = pq.read_table(config.out / "predictions" / f"dt={DAYS[2]}.parquet", partitioning=None)
    assert len(table) == result.candidates
    assert {"user_id", "request", "item", "ts", "click", "click_weight", "click_score", "click_oracle"} <= set(
        table.column_names
    )
    # The order of the batches is no part of the result.
    other = evaluate(
        EvaluateConfig(run=config.out, samples=config.samples, dates=DAYS[2:], bootstrap=0, token_budget=300)
    )
    for name in ("auc", "gauc"):
        assert other.tasks["click"]["model"][name].value == pytest.approx(
            result.tasks["click"]["model"][name].value, abs=2e-3
        )


def test_progressive_validation_learns_each_day_once_and_judges_on_the_next(config: TrainConfig, tmp_path) -> None:
    from random_samples import write_random_samples

    rare = Categorical(name="rare", column="item_id", vocabulary=Dynamic(capacity=5_000, admit_after=1), dim=8)
    candidates = config.schema.candidates
    schema = config.schema.replace(candidates=candidates.replace(features=(*candidates.features, rare)))
    write_random_samples(tmp_path / "samples", schema, list(DAYS), users=20)
    config = dataclasses.replace(config, schema=schema, samples=tmp_path, dates=DAYS, out=tmp_path / "series", epochs=1)
    rows = progressive(config)
    assert [(row.trained, row.evaluated) for row in rows] == list(itertools.pairwise(DAYS))
    assert all(0 < row.tasks["click"]["model"]["gauc"].value < 1 for row in rows)
    first, later = (row.ids for row in rows)
    assert first and all(0 < first[name] <= later[name] for name in first) and sum(later.values()) > sum(first.values())
    second = json.loads((config.out / f"dt={DAYS[1]}" / "config.json").read_text())
    assert second["from_checkpoint"] == str(config.out / f"dt={DAYS[0]}")
    with pytest.raises(UserError, match="at least two days"):
        progressive(dataclasses.replace(config, dates=DAYS[:1]))


def test_profile_and_mmoe_and_recompute_run(config: TrainConfig) -> None:
    config = dataclasses.replace(
        config, token_budget=250, profile=True, recompute=True, settings={"head.kind": "mmoe"}, eval_dates=DAYS[2:]
    )
    result = train(config)
    assert result.steps > 15 and 0 < result.metrics["click"]["gauc"].value < 1
    assert list((config.out / "profile").glob("*.json*"))
    assert list((config.out / "tensorboard").iterdir())


def test_bf16_follows_fp32(config: TrainConfig, tmp_path) -> None:
    runs = [
        dataclasses.replace(config, precision=p, max_steps=4, out=tmp_path / p, settings={"dropout": "0"})
        for p in ("fp32", "bf16")
    ]
    for each in runs:
        train(each)
    full, half = ([row["loss"] for row in steps(each.out)] for each in runs)
    assert half != full and half == pytest.approx(full, rel=0.03)
    assert all(v.dtype == torch.float32 for n, v in weights(runs[1].out).items() if n.endswith("weight"))


def test_moments_of_numbers_stay_with_the_weights(config: TrainConfig, samples, schema, tmp_path) -> None:
    """Fitted on the first run's days, in its checkpoint, and kept by the run that goes on from it: weights were learned with them."""
    first = dataclasses.replace(
        config, dates=DAYS[:1], epochs=1, out=tmp_path / "day1", settings={"feature_norm": "true"}
    )
    train(first)
    second = dataclasses.replace(first, dates=DAYS[1:2], out=tmp_path / "day2", from_checkpoint=first.out, max_steps=1)
    train(second)
    fitted = fit_moments(samples / "samples", schema, DAYS[:1])
    assert fitted != fit_moments(samples / "samples", schema, DAYS[1:2])
    for run in (first.out, second.out):
        state = load_model(run).model.state_dict()
        for name, moments in fitted.items():
            group, feature = name.split(".")
            stored = state[f"tokenizer.norms.of_{group}.moments.of_{feature}"]
            torch.testing.assert_close(stored, torch.tensor(moments))


@pytest.mark.parametrize("feature_norm", ["false", "true"])
def test_a_feature_added_or_dropped_goes_on_from_the_checkpoint(
    feature_norm: str, config: TrainConfig, schema, tmp_path
) -> None:
    config = dataclasses.replace(config, settings={"feature_norm": feature_norm})
    first = dataclasses.replace(config, dates=DAYS[:1], epochs=1, out=tmp_path / "day1")
    train(first)
    candidates = schema.candidates
    fewer = schema.replace(
        candidates=candidates.replace(
            features=tuple(f for f in candidates.features if f.name not in ("hour", "since_seen"))
        )
    )
    dropped = dataclasses.replace(
        config, schema=fewer, dates=DAYS[1:2], epochs=1, out=tmp_path / "less", from_checkpoint=first.out, max_steps=1
    )
    train(dropped)
    before, after = weights(first.out), weights(dropped.out)
    groups = ("of_candidates.", "tower.candidate.")
    lost = {
        n for n in before if any(g in n for g in groups) and n.endswith((".of_hour", ".of_since_seen")) and "/" not in n
    }
    # Both in the tower, the hour in the token, the number's moments.
    assert len(lost) == 3 + (feature_norm == "true") and not lost & after.keys()
    name = "heads.towers.click.0.weight"
    assert torch.dist(after[name], before[name]) < 0.1 * before[name].norm()
    grown = dataclasses.replace(dropped, schema=schema, out=tmp_path / "more", from_checkpoint=dropped.out)
    train(grown)
    assert weights(grown.out).keys() == before.keys()


def test_compiling_needs_a_compiler(config: TrainConfig, monkeypatch) -> None:
    """What is compiled learns the same: `test_compiled` and `test_combinations`."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="--compile: no C\\+\\+ compiler found"):
        train(dataclasses.replace(config, compile=True))
