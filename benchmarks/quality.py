"""Is the ranker better than what a user would pick instead? MTGR, DIN and LightGBM on the same samples of three logs, with intervals.

    pip install lightgbm                        # or the extra genrank[lightgbm]
    python -m benchmarks.quality --out runs/quality --users 6000 --seeds 0 1 2
    python -m benchmarks.quality --out runs/quality --logs kuairand movielens --kuairand KuaiRand-Pure --movielens ml-100k

Makes each log, builds its samples, trains every rival with every seed and judges it on the same day. What is there already is not made
again: an interrupted command goes on, and `--only` adds rivals one by one. benchmarks/train.md has the tables and what was tried.

LightGBM (`--model lightgbm`) reads every number of a candidate and of its user, no ids, no history; 31 leaves and 300 trees at rate 0.05 were
chosen on the day before the judged one (benchmarks/train.md).

A row is the mean over seeds, least and greatest beside it. `less lightgbm` and `less din` are the mean over seeds of a rival's GAUC less that
model's, with the 95 % interval of 2,000 bootstrap replicates over users: both models' AUC of a user are drawn together.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genrank.examples.kuairand import adapter as kuairand
from genrank.examples.marketplace.world import generate
from genrank.examples.movielens100k import adapter as movielens
from genrank.model.config import EvaluateConfig, TrainConfig, samples_folder
from genrank.model.encoders.mtgr import PAPER
from genrank.model.evaluate import evaluate
from genrank.model.metrics import auc_by_key, normalized_entropy
from genrank.model.trainer import train
from genrank.pipelines.build import build
from genrank.pipelines.config import BuildConfig
from genrank.schemas import load_schema
from genrank.schemas.configuration import parse_dates
from genrank.schemas.console import stdout
from genrank.schemas.schema import Schema
from genrank.tokenization.reader import ViewName

Floats = NDArray[np.float64]
REPLICATES = 2_000


@dataclass(frozen=True)
class Log:
    """A log, its schema and its days."""

    schema: str
    built: str
    train: str
    judge: str
    budget: int
    """Tokens of a training batch."""


LOGS = {
    "marketplace": Log(
        "examples/marketplace/schema.py", "2026-01-01:2026-01-10", "2026-01-03:2026-01-09", "2026-01-10", 2048
    ),
    "kuairand": Log(
        "examples/kuairand/schema.py", "2022-04-25:2022-05-08", "2022-04-25:2022-05-06", "2022-05-08", 8192
    ),
    "movielens": Log(
        "examples/movielens100k/schema.py",
        "1997-09-20:1998-01-31",
        "1997-09-21:1997-12-31",
        "1998-01-01:1998-01-31",
        512,
    ),
}

RIVALS: dict[str, tuple[str, dict[str, str]]] = {
    "lightgbm": ("lightgbm", {"leaves": "31", "trees": "300"}),
    "mtgr-tiny": ("mtgr-tiny", {}),
    "mtgr-tiny before": ("mtgr-tiny", {**PAPER, "divisor": "visible"}),
    "din": ("din", {}),
    "din at one scale": ("din", {"feature_norm": "true"}),
}
"""Name -> (--model, --set)."""
BASES = ("lightgbm", "din")
"""What the others are compared with."""


@dataclass
class Scores:
    """A model's probabilities of one label, N candidates in the order of samples."""

    users: NDArray[np.int64]
    labels: Floats
    scores: Floats


# ---------------------------------------------------------------------- a rival


def train_rival(samples: Path, schema: Schema, log: Log, name: str, seed: int, run: Path) -> dict[str, Scores]:
    """Per label: a trained model's scores of the judged days."""
    model, settings = RIVALS[name]
    return train_and_score(samples, schema, log, model, settings, seed, run)


def train_and_score(
    samples: Path,
    schema: Schema,
    log: Log,
    model: str,
    settings: Mapping[str, str],
    seed: int,
    run: Path,
    view: ViewName | None = None,
) -> dict[str, Scores]:
    """Per label: a trained model's scores of the judged days.

    Args:
        view: what a training sample is; judged is a user's day.
    """
    train(
        TrainConfig(
            schema=schema,
            samples=samples,
            dates=tuple(parse_dates(log.train)),
            out=run,
            model=model,
            settings=settings,
            token_budget=log.budget,
            view=view,
            seed=seed,
            device="cpu",
        )
    )
    dates = tuple(parse_dates(log.judge))
    evaluate(EvaluateConfig(run=run, samples=samples, dates=dates, bootstrap=0, device="cpu"))
    return predicted(run, schema, dates)


def predicted(run: Path, schema: Schema, dates: Sequence[str]) -> dict[str, Scores]:
    """Per label: what evaluation wrote of some days."""
    rows = pq.read_table([run / "predictions" / f"dt={date}.parquet" for date in dates])
    result = {}
    for label in schema.labels:
        keep = rows[f"{label.name}_weight"].to_numpy() > 0
        columns = (rows[label.name], rows[f"{label.name}_score"])
        labels, scores = (column.to_numpy().astype(np.float64)[keep] for column in columns)
        result[label.name] = Scores(rows["user_id"].to_numpy()[keep], labels, scores)
    return result


# ---------------------------------------------------------------------- the table


def compared(rivals: Mapping[str, Sequence[Scores]], bases: Sequence[str]) -> dict[str, dict[str, float | list[float]]]:
    """Rival -> its figures over seeds, and its GAUC less that of each base, with the interval.

    Args:
        rivals: name -> scores of each seed, all of the same candidates.
    """
    aucs: dict[str, list[Floats]] = {}
    rows: dict[str, dict[str, float | list[float]]] = {}
    impressions = np.zeros(0)
    for name, seeds in rivals.items():
        found = [auc_by_key(each.users, each.labels, each.scores, None) for each in seeds]
        impressions = found[0][2]
        aucs[name] = [each for _, each, _ in found]
        gaucs = [float(np.average(each[~np.isnan(each)], weights=impressions[~np.isnan(each)])) for each in aucs[name]]
        nes = [normalized_entropy(each.labels, each.scores) for each in seeds]
        rows[name] = {"gauc": float(np.mean(gaucs)), "gauc_seeds": gaucs, "ne": float(np.mean(nes)), "ne_seeds": nes}
    generator = np.random.default_rng(0)
    users = len(impressions)
    draws = [np.bincount(generator.integers(0, users, users), minlength=users) for _ in range(REPLICATES)]
    for name, base in itertools.product(rivals, bases):
        if name in bases[: bases.index(base) + 1] or base not in rivals:
            continue
        difference = np.mean(aucs[name], 0) - np.mean(aucs[base], 0)
        valid = ~np.isnan(difference)
        d, w = difference[valid], impressions[valid]
        drawn = [float(np.average(d, weights=w * draw[valid])) for draw in draws]
        low, high = np.quantile(drawn, [0.025, 0.975])
        rows[name][f"less {base}"] = [float(np.average(d, weights=w)), float(low), float(high)]
    return rows


def print_table(
    title: str, rows: Mapping[str, Mapping[str, float | list[float]]], bases: Sequence[str] = BASES
) -> None:
    """One label of one log, in Markdown."""
    lines = [
        f"\n| {title} | GAUC | NE | {' | '.join(f'GAUC less {base}' for base in bases)} |",
        "|---" * (3 + len(bases)) + "|",
    ]
    for name, row in rows.items():
        seeds = row["gauc_seeds"]
        assert isinstance(seeds, list)
        cells = [name, f"{row['gauc']:.4f} ({min(seeds):.4f} to {max(seeds):.4f})", f"{row['ne']:.4f}"]
        for base in bases:
            found = row.get(f"less {base}")
            cells.append(f"{found[0]:+.4f} [{found[1]:+.4f}, {found[2]:+.4f}]" if isinstance(found, list) else "")
        lines.append(f"| {' | '.join(cells)} |")
    stdout().print("\n".join(lines), markup=False, soft_wrap=True)


# ---------------------------------------------------------------------- the command


def make_log(name: str, folder: Path, options: argparse.Namespace) -> None:
    """The log's sources, in `folder`."""
    if name == "marketplace":
        generate(folder, users=options.users, days=11, seed=0)
    elif name == "kuairand":
        kuairand.convert(options.kuairand, folder)
    else:
        movielens.convert(options.movielens, folder)


def built_samples(name: str, options: argparse.Namespace) -> tuple[Path, Path]:
    """A log's folder, and its samples in it, made where they aren't there."""
    log = LOGS[name]
    folder = options.out / (f"{name}-{options.users}" if name == "marketplace" else name)
    if not (folder / "built").is_file():
        if not (folder / "logs").is_dir():
            make_log(name, folder / "logs", options)
        schema = load_schema(log.schema)
        build(
            BuildConfig(
                schema=schema, data=folder / "logs", out=folder / "data", first=log.built[:10], last=log.built[-10:]
            )
        )
        (folder / "built").touch()
    return folder, samples_folder(folder / "data")


def run_log(name: str, options: argparse.Namespace) -> dict[str, dict[str, dict[str, float | list[float]]]]:
    """Label -> the table of one log."""
    log = LOGS[name]
    folder, samples = built_samples(name, options)
    schema = load_schema(log.schema)
    found: dict[str, dict[str, list[Scores]]] = {label.name: {} for label in schema.labels}
    for rival in options.only or RIVALS:
        for seed in options.seeds:
            key = f"{rival.replace(' ', '_')}-{seed}"
            path = folder / "scores" / f"{key}.npz"
            if not path.is_file():
                keep(path, train_rival(samples, schema, log, rival, seed, folder / "runs" / key))
            for label, scores in kept(path).items():
                found[label].setdefault(rival, []).append(scores)
    tables = {label: compared(rivals, BASES) for label, rivals in found.items()}
    for label, rows in tables.items():
        print_table(f"{folder.name}, {label}, {log.judge}", rows)
    return tables


def keep(path: Path, scores: Mapping[str, Scores]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}")
    np.savez(staging, **{f"{label}.{k}": v for label, each in scores.items() for k, v in vars(each).items()})
    staging.replace(path)


def kept(path: Path) -> dict[str, Scores]:
    with np.load(path) as arrays:
        labels = dict.fromkeys(name.rpartition(".")[0] for name in arrays.files)
        return {label: Scores(*(arrays[f"{label}.{k}"] for k in ("users", "labels", "scores"))) for label in labels}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--logs", nargs="+", choices=list(LOGS), default=["marketplace"])
    parser.add_argument("--users", type=int, default=6000, help="of the marketplace")
    parser.add_argument("--kuairand", type=Path, help="folder with KuaiRand-Pure's files")
    parser.add_argument("--movielens", type=Path, help="folder with MovieLens-100K's files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(RIVALS), help="rivals; default all")
    options = parser.parse_args()
    for name in options.logs:
        if name != "marketplace" and getattr(options, name) is None:
            parser.error(f"--logs {name} needs --{name} FOLDER")
    tables = {name: run_log(name, options) for name in options.logs}
    (options.out / "quality.json").write_text(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
