"""`genrank scale`: fits that find a law where there is one, runs that see the same samples, and operations counted to the last."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import genrank.model.scaling.sweep as sweep
from genrank.model.config import TrainConfig
from genrank.model.documents import Summary, read_document
from genrank.model.encoders import Counts
from genrank.model.ranker import visible_pairs
from genrank.model.registry import choose_model
from genrank.model.scaling.config import ScaleConfig
from genrank.model.scaling.document import ScaleReport
from genrank.model.scaling.page import in_words, print_scale
from genrank.model.scaling.power_law import STEEPEST, fit, judge
from genrank.model.scaling.sweep import plan, scale
from genrank.model.trainer import train
from genrank.schemas import UserError
from genrank.tokenization.batch import Group
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan
from genrank.tokenization.quantiles import fit_boundaries
from genrank.tokenization.reader import SampleReader

X = np.logspace(10, 13, 7)

# ---------------------------------------------------------------------- fits


@given(b=st.floats(0.02, 1.5), falls=st.booleans(), a=st.floats(0.01, 1), c=st.floats(-2, 2), decades=st.floats(0.5, 4))
def test_a_known_law_is_found(b: float, falls: bool, a: float, c: float, decades: float) -> None:
    """Noise-free: exponent and curve, whatever the scale of x."""
    x = np.logspace(9, 9 + decades, 6)
    b = -b if falls else b
    y = a * (x / x[0]) ** b + c
    found = fit(x, y)
    assert found.b == pytest.approx(b, rel=1e-3, abs=1e-3)
    np.testing.assert_allclose(found.at(x), y, atol=1e-6 * np.ptp(y))


@given(seed=st.integers(0, 2**31))
def test_no_other_exponent_fits_better(seed: int) -> None:
    """Against a slow obvious reference: linear least squares of a and c at each of many exponents."""
    random = np.random.default_rng(seed)
    x = np.sort(10 ** random.uniform(9, 12, 6))
    y = random.normal(0, 1, 6)
    found = fit(x, y)
    u = x / np.exp(np.log(x).mean())
    for b in [*np.linspace(-STEEPEST, STEEPEST, 80), found.b]:
        design = np.stack([u**b, np.ones(6)], 1)
        squares = float(((design @ np.linalg.lstsq(design, y, rcond=None)[0] - y) ** 2).sum())
        assert found.squares <= squares * (1 + 1e-6) + 1e-12
    assert float(((found.at(x) - y) ** 2).sum()) == pytest.approx(found.squares, rel=1e-4, abs=1e-9)


def noisy(y: np.ndarray, noise: float, seeds: int = 3, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [value + random.normal(0, noise, seeds) for value in y]


def test_a_law_is_recovered_from_noisy_seeds() -> None:
    truth = 5 * X**-0.15 + 0.7
    covered = 0
    for seed in range(20):
        verdict = judge(X, noisy(truth, 0.0005, seed=seed), replicates=150)
        assert verdict.holds and verdict.law is not None and verdict.interval is not None
        assert verdict.law.b == pytest.approx(-0.15, abs=0.02) and verdict.law.c == pytest.approx(0.7, abs=0.02)
        covered += verdict.interval[0] <= -0.15 <= verdict.interval[1]
    assert covered >= 15  # of 19 expected: three seeds are few


def test_a_flat_line_is_no_law() -> None:
    held = 0
    for seed in range(40):
        verdict = judge(X, noisy(np.full(7, 0.75), 0.002, seed=seed), replicates=150)
        held += verdict.holds
        assert verdict.holds or any("constant" in why or "includes 0" in why for why in verdict.reasons)
    assert held <= 1


def test_an_exactly_flat_line_is_no_law() -> None:
    verdict = judge(X, [[0.75] * 3] * 7)
    assert any("no better than a constant" in why for why in verdict.reasons) and not verdict.holds


@pytest.mark.parametrize(
    "x, seeds, why",
    [
        (np.logspace(10, 11.4, 7), 3, "x spans 1.40 decades"),
        (X, 2, "2 seeds a point"),
        (X[[0, 3, 6]], 3, "3 points, three parameters"),
        (X[[0, 6]], 3, "2 points, three parameters"),
    ],
)
def test_too_little_is_no_law(x: np.ndarray, seeds: int, why: str) -> None:
    """However well it fits."""
    verdict = judge(x, noisy(5 * x**-0.15 + 0.7, 1e-6, seeds))
    assert [reason for reason in verdict.reasons if why in reason] and not verdict.holds


def test_a_step_is_no_power() -> None:
    x = np.logspace(10, 11.6, 7)
    verdict = judge(x, noisy(np.where(x == x[-1], 0.6, 0.8), 1e-4))
    assert any("bound" in reason for reason in verdict.reasons)


def test_the_order_of_points_does_not_matter() -> None:
    runs = noisy(5 * X**-0.15 + 0.7, 0.001)
    order = [3, 0, 6, 1, 5, 2, 4]
    assert judge(X, runs) == judge(X[order], [runs[i] for i in order])


# ---------------------------------------------------------------------- the newest events


def model_of(schema, samples: Path, **settings: str):
    boundaries = fit_boundaries(samples / "samples", schema, ["2026-01-01"])
    return choose_model("mtgr-tiny", {"tower": "[]", "candidate_numbers": "true", "encoder_loss": "0", **settings}).build(
        Embeddings(make_plan(schema), backend="torch", boundaries=boundaries)
    )  # fmt: skip


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_the_newest_events_are_those_of_a_shorter_history(schema, samples: Path, most: int) -> None:
    """The tokens of a batch cut by hand, sample by sample; but the oldest kept event keeps its gap to the one before it."""
    tokenizer = model_of(schema, samples, history=str(most)).tokenizer
    whole = model_of(schema, samples).tokenizer
    whole.load_state_dict(tokenizer.state_dict())
    batch = next(iter(SampleReader(samples / "samples", schema, ["2026-01-01"], token_budget=1500)))
    group = batch.groups["history"]
    bounds = list(zip(group.offsets[:-1].tolist(), group.offsets[1:].tolist(), strict=True))
    rows = np.concatenate([np.arange(max(begin, end - most), end) for begin, end in bounds])
    offsets = np.cumsum([0, *(min(most, end - begin) for begin, end in bounds)])
    short: Group = group.take(torch.from_numpy(rows), torch.from_numpy(offsets))
    wanted = whole(dataclasses.replace(batch, groups={**batch.groups, "history": short}))
    found = tokenizer(batch)
    assert found.lengths.tolist() == wanted.lengths.tolist()
    user_tokens = 1
    oldest = [
        int(wanted.offsets[b]) + user_tokens for b, (begin, end) in enumerate(bounds) if end - begin > most
    ]  # fmt: skip
    assert bool(oldest) == (most < 30)
    for field in dataclasses.fields(wanted):
        one, other = getattr(found, field.name), getattr(wanted, field.name)
        if field.name == "x":
            kept = [row for row in range(len(other)) if row not in set(oldest)]
            one, other = one[kept], other[kept]
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        else:
            assert one == other, field.name


def test_retrieval_refuses_a_shorter_history() -> None:
    with pytest.raises(UserError, match="retrieval learns from every event"):
        choose_model("hstu-retrieval-tiny", {"history": "8"})


# ---------------------------------------------------------------------- operations of a run


def test_a_runs_operations_are_counted_to_the_last(config: TrainConfig, schema, samples: Path, monkeypatch) -> None:
    """Summed over a run that is killed and resumed, as a second count of its batches has them."""
    from genrank.model.train_step import TrainStep

    config = dataclasses.replace(
        config,
        dates=config.dates[:1],
        epochs=1,
        token_budget=200,
        checkpoint_every=2,
        log_every=3,
        settings={"history": "5"},
    )
    step = TrainStep.run

    def mortal(self, batches, at):
        if at.step == 4:
            raise KeyboardInterrupt
        return step(self, batches, at)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "run", mortal)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    train(config)
    done = read_document(config.out / "summary.json", Summary)
    model = model_of(schema, samples, history="5")
    tokens = pairs = ranked = seen = 0
    reader = SampleReader(
        samples / "samples", schema, config.dates, token_budget=config.token_budget, seed=config.seed, view=config.view
    )
    for _ in range(config.epochs):
        for batch in reader:
            if len(batch.item):
                made = model.tokenizer(batch)
                tokens += len(made.x)
                pairs += int(visible_pairs(made))
                ranked += len(made.candidate_rows)
                seen += sum(int(made.end[row]) - int(made.begin[row]) for row in made.candidate_rows.tolist())
    assert done.flops == 3 * model.encoder.config.flops(Counts(tokens, pairs, ranked, seen))


# ---------------------------------------------------------------------- the command


@pytest.fixture
def small(schema, samples: Path, tmp_path: Path) -> ScaleConfig:
    return ScaleConfig(
        schema=schema, samples=samples, dates=("2026-01-01",), eval_dates=("2026-01-02",), out=tmp_path / "scale",
        history=(4, 64), width=(), depth=(), baselines=("lightgbm",), seeds=(0,), token_budget=600, device="cpu",
        settings={"dim": "32", "qk_dim": "16", "v_dim": "16"},
    )  # fmt: skip


def test_a_sweep_is_trained_reported_and_gone_on_with(small: ScaleConfig, capsys, monkeypatch) -> None:
    trained: list[str] = []
    real = sweep.train

    def counting(config: TrainConfig):
        done = real(config)
        if not done.was_complete:
            trained.append(config.out.name)
        return done

    monkeypatch.setattr(sweep, "train", counting)
    report = scale(small)
    assert trained == ["history-4-seed0", "base-seed0", "lightgbm-seed0"]
    by_axis = {(point.axis, point.value): point for point in report.points}
    # 64 events are more than the schema's 30: the base.
    assert by_axis.keys() == {("history", 4), ("history", 30)}
    assert by_axis["history", 4].flops[0] < by_axis["history", 30].flops[0]
    assert by_axis["history", 4].dense_parameters == by_axis["history", 30].dense_parameters
    assert by_axis["history", 4].steps == by_axis["history", 30].steps  # the same batches
    assert [line.name for line in report.lines] == ["oracle", "lightgbm"]
    assert [(law.axis, law.metric) for law in report.laws] == [("history", "ne"), ("history", "gauc")]
    assert all(any("2 points" in why for why in law.reasons) and "no law" in in_words(law) for law in report.laws)
    assert ScaleReport.model_validate_json((small.out / "scale.json").read_text()) == report
    assert (small.out / "scale.png").read_bytes()[:4] == b"\x89PNG"
    page = (small.out / "scale.html").read_text()
    assert "<svg" in page and "no law" in page and "lightgbm" in page
    print_scale(report)
    assert "history" in (printed := capsys.readouterr().out) and "training FLOPs" in printed

    trained.clear()
    more = scale(dataclasses.replace(small, history=(), width=(16,), baselines=()))
    assert trained == ["width-16-seed0"]
    assert [(point.value, point.runs) for point in more.points] == [(16, ["width-16-seed0"]), (32, ["base-seed0"])]
    config = json.loads((small.out / "width-16-seed0" / "config.json").read_text())
    assert (config["settings"]["dim"], config["settings"]["qk_dim"]) == ("16", "8")
    with pytest.raises(UserError, match="another lr"):
        scale(dataclasses.replace(small, lr=1e-3))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": (33,)}, "--width 33: qk_dim 16 at width 32 would be no whole number; give multiples of 2"),
        ({"model": "din", "settings": {}}, "--model din: its operations can't be counted by size"),
        ({"model": "longer-tiny", "settings": {}}, "--history: --model longer-tiny has no field 'history'"),
        ({"model": "hstu-retrieval-tiny", "settings": {}}, "is a retrieval model"),
        ({"settings": {"dim": "32", "heads": "x"}}, "--set heads=x"),
    ],
)
def test_what_can_not_be_swept_is_refused(small: ScaleConfig, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        plan(dataclasses.replace(small, **changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"eval_dates": ("2026-01-01",)}, "is a training day too"),
        ({"width": (8, 8)}, "--width 8,8: names one twice"),
        ({"history": (), "width": (), "depth": ()}, "nothing is swept"),
        ({"seeds": ()}, "--seeds: give at least one"),
        ({"depth": (0,)}, "--depth.* must be at least 1"),
    ],
)
def test_a_configuration_that_does_not_hold_is_refused(small: ScaleConfig, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(small, **changes)


def test_lists_are_written_with_commas(small: ScaleConfig) -> None:
    values = {"history": "8,16", "width": "", "seeds": "0", "baselines": "din,dlrm"}
    written = dataclasses.replace(small, **values)  # type: ignore[arg-type]
    assert (written.history, written.width, written.seeds) == ((8, 16), (), (0,))
    assert written.baselines == ("din", "dlrm")


def test_a_history_longer_than_any_is_the_base(small: ScaleConfig) -> None:
    series = plan(dataclasses.replace(small, history=(30, 300), settings={**small.settings, "history": "12"}))
    assert [(value, each.name) for value, each in series["history"].items()] == [(12, "base")]


def test_a_missing_package_is_found_before_anything_is_trained(small: ScaleConfig, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(UserError, match="the package lightgbm is not installed"):
        scale(small)
    assert not small.out.exists()
