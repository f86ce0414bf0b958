"""The report compares settings, not runs: seeds are one row with their spread, differences are paired, settings that differ are named."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tokenization"))
from random_samples import demo_schema, write_random_samples

from genrank.model import metrics
from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.documents import RankingEvaluation, RetrievalEvaluation
from genrank.model.evaluate import evaluate
from genrank.model.metrics import Predictions, RetrievalMetrics
from genrank.model.paired import paired_differences
from genrank.model.report import section, write_report
from genrank.model.report_data import differing, grouped, read_runs
from genrank.model.trainer import train
from genrank.schemas import UserError

DAYS = ["2026-01-01", "2026-01-02", "2026-01-03"]


def predictions(seed: int, noise: float) -> Predictions:
    """Of the same candidates, whatever the noise."""
    common = np.random.default_rng(0)
    user, request = common.integers(0, 15, 400) * 3, common.integers(0, 6, 400)
    truth = common.random(400)
    label = (common.random(400) < truth).astype(float)
    score = truth + noise * np.random.default_rng(seed).normal(size=400)
    found = Predictions(by_request=True)
    found.update(*map(torch.from_numpy, (user, label, score.clip(0.01, 0.99), np.ones(400), request)))
    return found


def test_paired_differences_are_those_of_the_same_users_drawn_for_both() -> None:
    first, second = [predictions(1, 0.1), predictions(2, 0.1)], [predictions(3, 0.5)]
    found = paired_differences(first, second, bootstrap=60, seed=7)
    points = [[each.compute() for each in side] for side in (first, second)]
    for name, estimate in found.items():
        means = [np.mean([one[name].value for one in side]) for side in points]
        assert estimate.value == pytest.approx(means[0] - means[1], abs=1e-12)
    # The interval by copying each drawn user's rows, as anyone would.
    users, labels, *_ = first[0].arrays()
    names, generator, slow = np.unique(users), np.random.default_rng(7), []
    for _ in range(60):
        picks = generator.integers(0, len(names), len(names))
        rows = np.concatenate([np.flatnonzero(users == names[p]) for p in picks])
        copies = np.concatenate([np.full((users == names[p]).sum(), i) for i, p in enumerate(picks)])
        gaucs = [
            np.mean([metrics.gauc(copies, labels[rows], each.arrays()[2][rows]) for each in side])
            for side in (first, second)
        ]
        slow.append(gaucs[0] - gaucs[1])
    assert [found["gauc"].low, found["gauc"].high] == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=1e-12)
    apart = [
        (p[0]["gauc"].low, p[0]["gauc"].high)
        for p in ([each.compute(bootstrap=60) for each in s] for s in (first, second))
    ]
    width = found["gauc"].high - found["gauc"].low  # type: ignore[operator]
    assert width < sum(high - low for low, high in apart), "what both share cancels"
    same = paired_differences(first, first, bootstrap=5)
    assert all(each.low == each.value == each.high == 0 for each in same.values())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of a setting and one of another: a trained run, and copies with other seeds, rates and predictions."""
    schema, folder = demo_schema(), tmp_path_factory.mktemp("runs")
    samples = write_random_samples(folder / "samples", schema, DAYS)
    first = folder / "seed-0"
    train(
        TrainConfig(schema=schema, samples=samples, dates=tuple(DAYS[:2]), out=first, model="dlrm", max_steps=2,
                    eval_dates=(DAYS[2],), eval_every=1)
    )  # fmt: skip
    evaluate(EvaluateConfig(run=first, samples=samples, dates=(DAYS[2],), bootstrap=3))
    for name, changed in (("seed-1", {"seed": 1}), ("other", {"lr": 0.5})):
        shutil.copytree(first, folder / name)
        config = json.loads((first / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps(config | changed | {"out": name}))
        path = folder / name / "predictions" / f"dt={DAYS[2]}.parquet"
        table = pq.read_table(path, partitioning=None)
        score = np.random.default_rng(len(name)).random(len(table))
        path.unlink()
        pq.write_table(
            table.set_column(table.schema.get_field_index("click_score"), "click_score", pa.array(score)), path
        )
        document = json.loads((folder / name / "metrics.json").read_text())
        document["tasks"]["click"]["model"]["gauc"]["value"] += 0.25 if name == "seed-1" else 0
        (folder / name / "metrics.json").write_text(json.dumps(document))
    return [first, folder / "seed-1", folder / "other"]


def test_seeds_of_a_setting_are_one_row_with_their_spread(runs: list[Path]) -> None:
    loaded = read_runs(runs)
    groups = grouped(loaded)
    assert [(group.name, len(group.runs)) for group in groups] == [("dlrm (lr 0.002)", 2), ("dlrm (lr 0.5)", 1)]
    assert differing([group.runs[0] for group in groups]) == {"lr": ["0.002", "0.5"]}
    found = section("click", groups)
    row = next(row for row in found.rows if row.name == "dlrm (lr 0.002)")
    one, other = (run.metrics("click")["gauc"].value for run in loaded[:2])  # type: ignore[index]
    assert row.cells[0].value == f"{(one + other) / 2:.4f}"
    assert row.cells[0].interval == f"± {np.std([one, other], ddof=1):.4f}, 2 seeds"
    assert [row.name for row in found.differences] == ["dlrm (lr 0.002) less dlrm (lr 0.5)"]
    scored = [run.scored("click") for run in loaded]
    expected = np.mean([each.compute()["gauc"].value for each in scored[:2]]) - scored[2].compute()["gauc"].value
    assert float(found.differences[0].cells[0].value) == pytest.approx(expected, abs=1e-4)
    assert {row.dimension for row in found.slices} == {"item", "user", "request", "hour"}


def test_the_page_shows_them(runs: list[Path], tmp_path: Path) -> None:
    write_report(runs, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "± 0." in text and "2 seeds" in text and "Settings that differ" in text and "Paired differences" in text
    assert "AUC by request" in text and re.search(r"best popularity \(click (rate|count) of the item, ", text)
    shutil.rmtree(runs[2] / "predictions")
    write_report(runs, tmp_path / "page.html")
    assert "Paired differences" not in (tmp_path / "page.html").read_text(), (
        "without predictions there is nothing to pair"
    )


def test_a_run_without_config_is_a_setting_of_its_own(runs: list[Path]) -> None:
    for run in runs[:2]:
        (run / "config.json").unlink()
    assert [len(group.runs) for group in grouped(read_runs(runs[:2]))] == [1, 1]


def test_runs_of_two_tasks_share_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = {
        "a": RankingEvaluation(model="m", step=1, dates=DAYS[2:], tasks={}, samples=1, candidates=2, users=1),
        "b": RetrievalEvaluation(model="n", step=1, dates=DAYS[2:], tasks={}, queries=3, catalogue=4),
        "c": RetrievalEvaluation(model="n", step=1, dates=DAYS[2:], tasks={}, queries=3, catalogue=5),
    }

    def read(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(folder=folder, evaluation=judged[folder.name])

    monkeypatch.setattr("genrank.model.report_data.Run.read", read)
    with pytest.raises(
        UserError, match="--run b: a retrieval model, and a a ranking model; give those of one task a page"
    ):
        read_runs([Path("a"), Path("b")])
    with pytest.raises(UserError, match=r"--run c: evaluated on other items \(5\) than b \(4\)"):
        read_runs([Path("b"), Path("c")])


def test_queries_are_paired_as_users_are() -> None:
    generator = np.random.default_rng(0)
    ranks = [torch.from_numpy(generator.integers(1, 30, 50)) for _ in range(3)]
    sides = [RetrievalMetrics((5,)), RetrievalMetrics((5,)), RetrievalMetrics((5,))]
    for side, each in zip(sides, ranks, strict=True):
        side.update(each[:20])
        side.update(each[20:])
    found = paired_differences(sides[:2], sides[2:], bootstrap=40, seed=3)
    assert set(found) == {"mrr", "hr@5", "ndcg@5"} and len(sides[0]) == 50
    each = [1 / np.asarray(one, float) for one in ranks]
    difference = (each[0] + each[1]) / 2 - each[2]
    assert found["mrr"].value == pytest.approx(difference.mean())
    generator = np.random.default_rng(3)
    slow = [difference[generator.integers(0, 50, 50)].mean() for _ in range(40)]
    assert (found["mrr"].low, found["mrr"].high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))
