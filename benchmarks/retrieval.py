"""HSTU and SASRec on MovieLens-1M by the published protocol: leave one out, every unseen film ranked, HR@10 and NDCG@10 by epoch.

    python -m benchmarks.retrieval --data ml-1m --out runs/ml1m
    python -m benchmarks.retrieval --data ml-1m --out runs/ml1m --models hstu-large --seeds 0 1 2
    python -m benchmarks.retrieval --data ml-1m --out runs/choose --choose --epochs 20

Converts the sequences, builds their samples, trains each model (examples/movielens1m/*.yaml) on all but the last rating of every user, and judges it
on that one: at the end, with intervals; on the way (`eval_every`) for the curve alone. Nothing is chosen by that curve: what counts is the last
epoch. `--choose` does the same one rating earlier, for choosing settings. What is there already is not made again, and an interrupted training goes on.

Writes OUT/<model>-<seed>/ (run folders: log, checkpoints, metrics), OUT/curve.csv and OUT/report.html. MovieLens' licence lets nobody pass its data on.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from genrank.examples.movielens1m.adapter import DAYS, convert
from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.documents import EvalRow, RetrievalEvaluation
from genrank.model.evaluate import evaluate
from genrank.model.presentation import cell
from genrank.model.report import write_report
from genrank.model.run_dir import read_log
from genrank.model.trainer import train
from genrank.pipelines.build import build
from genrank.pipelines.config import BuildConfig
from genrank.schemas import load_schema
from genrank.schemas.configuration import from_values
from genrank.schemas.console import stdout

EXAMPLE = Path("examples/movielens1m")
PUBLISHED = {"sasrec": (0.2853, 0.1603), "hstu": (0.3097, 0.1720), "hstu-large": (0.3294, 0.1893)}
"""HR@10 and NDCG@10 in the README of github.com/meta-recsys/generative-recommenders."""
METRICS = ("hr@10", "ndcg@10", "mrr")


def prepare(data: Path, out: Path) -> Path:
    """Samples of the last three ratings of every user, in OUT/data."""
    if not (out / "logs").is_dir():
        out.mkdir(parents=True, exist_ok=True)
        convert(data, out / "logs")
    if not (out / "built").is_file():
        schema = load_schema(str(EXAMPLE / "schema.py"))
        build(BuildConfig(schema=schema, data=out / "logs", out=out / "data", first=DAYS[1], last=DAYS[3]))
        (out / "built").touch()
    return out / "data"


def configuration(
    model: str, samples: Path, run: Path, dates: tuple[str, str], seed: int, device: str = "auto"
) -> TrainConfig:
    """The model's YAML, with what differs by run.

    Args:
        dates: the day to train on, and the one to judge on.
    """
    days = {"dates": dates[0], "eval_dates": dates[1]}
    given = {"samples": samples, "out": run, "seed": seed, "device": device, **days}
    return from_values(TrainConfig, given, EXAMPLE / f"{model}.yaml")


def run_model(config: TrainConfig, epochs: int | None) -> RetrievalEvaluation:
    """Train, or go on, to the last epoch; then judge."""
    train(dataclasses.replace(config, epochs=epochs or config.epochs))
    found = evaluate(
        EvaluateConfig(run=config.out, samples=config.samples, dates=config.eval_dates, device=config.device)
    )
    assert isinstance(found, RetrievalEvaluation)
    return found


def curve(run: Path) -> list[tuple[int, list[float | None]]]:
    """(step, `METRICS`) of each evaluation on the way."""
    rows = [row for row in read_log(run) if isinstance(row, EvalRow)]
    return [(row.step, [row.eval["next_item"].get(metric) for metric in METRICS]) for row in rows]


def print_table(rows: Sequence[tuple[str, int, RetrievalEvaluation]]) -> None:
    """In Markdown, beside the published figures."""
    lines = ["| model | seed | steps | HR@10 | NDCG@10 | published |", "|---|---|---|---|---|---|"]
    for model, seed, found in rows:
        own = found.tasks["next_item"]["model"]
        hr, ndcg = (" ".join(cell(own[metric])) for metric in METRICS[:2])
        published = " / ".join(f"{value:.4f}" for value in PUBLISHED[model])
        lines.append(f"| {model} | {seed} | {found.step} | {hr} | {ndcg} | {published} |")
    popular = rows[0][2].tasks["next_item"]["popularity"]
    lines.append(f"| popularity | | | {' | '.join(' '.join(cell(popular[metric])) for metric in METRICS[:2])} | |")
    stdout().print("\n".join(lines), markup=False, soft_wrap=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ratings.dat or sequences.parquet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=list(PUBLISHED), default=["sasrec", "hstu"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="default: as the configuration says")
    parser.add_argument("--choose", action="store_true", help="one rating earlier, for choosing settings")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    options = parser.parse_args()
    samples = prepare(options.data, options.out)
    dates = (DAYS[1], DAYS[2]) if options.choose else (DAYS[2], DAYS[3])
    rows, points = [], []
    for model in options.models:
        for seed in options.seeds:
            run = options.out / f"{model}-{seed}"
            config = configuration(model, samples, run, dates, seed, options.device)
            rows.append((model, seed, run_model(config, options.epochs)))
            points += [[model, seed, step, *values] for step, values in curve(run)]
    with (options.out / "curve.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["model", "seed", "step", *METRICS], *points])
    write_report([options.out / f"{model}-{seed}" for model, seed, _ in rows], options.out / "report.html")
    print_table(rows)


if __name__ == "__main__":
    main()
