"""What features of a candidate within its request are worth to a tree: the same trees on three sets of columns of the same samples.

python -m benchmarks.context --samples runs/market/data --train 2026-01-03:2026-01-09 --judge 2026-01-10
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from genrank.examples.marketplace.request_context import schema
from genrank.model.baselines.numbers import Numbers
from genrank.model.config import samples_folder
from genrank.model.metrics import Predictions
from genrank.model.paired import paired_differences
from genrank.model.predict import candidate_users
from genrank.schemas.configuration import parse_dates
from genrank.schemas.console import stdout
from genrank.schemas.features import Arithmetic, RequestSize, WithinRequest
from genrank.tokenization.reader import SampleReader

METRICS = ("gauc", "request_auc", "ndcg@10", "auc", "ne")


def read(samples: Path, dates: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The numbers, labels and ids of some days' candidates."""
    numbers, parts = Numbers(schema), {}
    for batch in SampleReader(samples, schema, dates, view="user_day", shuffle=False):
        columns = {
            "numbers": numbers(batch),
            "user": candidate_users(batch),
            "request": batch.request,
            "label": batch.labels["click"],
            "weight": batch.weights["click"],
        }
        for name, values in columns.items():
            parts.setdefault(name, []).append(values.numpy())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def main() -> None:
    import lightgbm

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trees", type=int, default=300)
    parser.add_argument("--bootstrap", type=int, default=100)
    given = parser.parse_args()
    samples = samples_folder(given.samples)
    train, judged = (read(samples, parse_dates(dates)) for dates in (given.train, given.judge))

    kinds = {f"candidates.{feature.name}": type(feature) for feature in schema.candidates.features}
    names = Numbers(schema).names
    request = [name for name in names if kinds.get(name) in (WithinRequest, RequestSize)]
    trend = [name for name in names if kinds.get(name) is Arithmetic]
    plain = [name for name in names if name not in (*request, *trend)]
    settings = {
        f"{len(plain)} numbers": plain,
        f"+ {len(trend)} ratios": [*plain, *trend],
        f"+ {len(request)} within the request": [*plain, *trend, *request],
    }
    parameters = {
        "objective": "binary", "num_leaves": 63, "learning_rate": 0.05, "min_data_in_leaf": 50, "bagging_fraction": 0.8,
        "bagging_freq": 1, "feature_fraction": 0.8, "lambda_l2": 1.0, "seed": given.seed, "deterministic": True,
        "force_row_wise": True, "verbosity": -1,
    }  # fmt: skip
    keep = train["weight"] > 0
    found: dict[str, Predictions] = {}
    for setting, columns in settings.items():
        at = [names.index(name) for name in columns]
        data = lightgbm.Dataset(train["numbers"][keep][:, at], train["label"][keep], weight=train["weight"][keep])
        booster = lightgbm.train(parameters, data, num_boost_round=given.trees)
        found[setting] = Predictions(by_request=True)
        score = torch.from_numpy(booster.predict(judged["numbers"][:, at]))
        others = (torch.from_numpy(judged[name]) for name in ("user", "label", "weight", "request"))
        user, label, weight, asked = others
        found[setting].update(user, label, score, weight, asked)
        metrics = found[setting].compute(bootstrap=given.bootstrap)
        cells = " | ".join(f"{metrics[name].value:.4f}" for name in METRICS)
        stdout().print(f"| {setting} | {cells} |")
    *before, last = found.values()
    for setting, each in zip(settings, before, strict=False):
        gains = paired_differences([last], [each], bootstrap=given.bootstrap)
        for name in ("gauc", "request_auc"):
            one = gains[name]
            stdout().print(f"{name}, everything less {setting}: {one.value:+.4f} [{one.low:+.4f}, {one.high:+.4f}]")


if __name__ == "__main__":
    main()
