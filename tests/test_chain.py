"""The whole way, from logs to a report, on a small world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genrank.examples.marketplace.schema import schema as marketplace
from genrank.examples.marketplace.world import generate
from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.evaluate import evaluate
from genrank.model.report import write_report
from genrank.model.trainer import train
from genrank.pipelines.build import BuildConfig, build
from genrank.schemas.configuration import parse_dates

DAYS = parse_dates("2026-01-01:2026-01-04")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("chain") / "logs"
    generate(out, users=80, days=5, seed=3, workers=1)
    return out


@pytest.fixture(scope="module")
def built(logs: Path) -> Path:
    build(BuildConfig(schema=marketplace, data=logs, out=logs.parent / "data", first=DAYS[0], last=DAYS[-1]))
    return logs.parent / "data"


def trained(samples: Path, out: Path, model: str) -> Path:
    train(TrainConfig(schema=marketplace, samples=samples, dates=tuple(DAYS[:-1]), out=out, model=model, max_steps=8))
    return out


def test_from_logs_to_report(built: Path, tmp_path: Path) -> None:
    runs = [trained(built, tmp_path / name, name) for name in ("mtgr-tiny", "din")]
    for run in runs:
        evaluate(EvaluateConfig(run=run, samples=built, dates=(DAYS[-1],), bootstrap=20))
    metrics = json.loads((runs[0] / "metrics.json").read_text())
    oracle, model = (metrics["tasks"]["click"][row]["logloss"]["value"] for row in ("oracle", "model"))
    assert oracle < model, "no model knows more than the true probability"

    page = tmp_path / "report.html"
    write_report(runs, page, built)
    text = page.read_text()
    assert text.count("<svg") >= 4 and "data:image/png;base64," in text
    assert 'src="http' not in text and 'href="http' not in text, "the page must be self-contained"
    for name in ("mtgr-tiny", "din", "oracle", "item popularity", "user-item CTR"):
        assert name in text
