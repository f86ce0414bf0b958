"""What is each part of MTGR worth? The model with one thing taken out at a time, on the same samples, paired by user.

    python -m benchmarks.ablations --out runs/ablations --users 2000 20000 --seeds 0 1 2
    python -m benchmarks.ablations --out runs/ablations --logs kuairand --kuairand KuaiRand-Pure --seeds 0 1 2

The paper's three (arXiv:2505.18654, section 4.5: cross features -.0137 of GAUC, group LayerNorm -.0017, dynamic mask -.0016), samples of a
request instead of a user's day, the preset's departures from the paper each by itself, and all of them. One pass. Logs, days, budgets and
intervals are benchmarks/quality.py's, and so are samples, scores and runs that both want, where `--out` is the same. What is there is not
made again, `--only` takes arms one by one, and the table is of the arms that are done. benchmarks/ablations.md has it.

A full mask is no arm of that table: its candidates see clicks on themselves, on the judged day too. It is judged twice, as stored and as
served (`--view request`: nothing after the request is there to be seen), beside the models with the other masks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.quality import (
    LOGS,
    RIVALS,
    Scores,
    built_samples,
    compared,
    keep,
    kept,
    predicted,
    print_table,
    train_and_score,
)
from genrank.model.config import EvaluateConfig
from genrank.model.encoders.mtgr import PAPER
from genrank.model.evaluate import evaluate, load_model
from genrank.model.metrics import gauc
from genrank.model.predict import candidate_users, predict
from genrank.model.ranks import join_ranks
from genrank.schemas import CrossFeature, load_schema
from genrank.schemas.configuration import parse_dates
from genrank.schemas.console import logger, show_log_messages, stdout
from genrank.schemas.schema import Schema
from genrank.tokenization.reader import SampleReader, ViewName

FULL = "mtgr-tiny"
"""What the others are compared with."""
FULL_MASK = "full mask"
MASKS = (FULL, "causal mask", FULL_MASK)


def unchanged(schema: Schema) -> Schema:
    return schema


@dataclass(frozen=True)
class Arm:
    """The model with one thing changed."""

    settings: dict[str, str] = field(default_factory=dict)
    """As `--set` has them."""
    view: ViewName | None = None
    schema: Callable[[Schema], Schema] = unchanged
    model: str = FULL


def without_crosses(schema: Schema) -> Schema:
    """Without statistics of the user and the candidate together: what the paper calls cross features. The samples are the same."""
    return _without(schema, lambda each: "user_id" in each.keys and len(each.keys) > 1)


def without_statistics(schema: Schema) -> Schema:
    """Without any statistic."""
    return _without(schema, lambda each: True)


def _without(schema: Schema, left_out: Callable[[CrossFeature], bool]) -> Schema:
    own = schema.candidates
    rest = tuple(each for each in own.features if not (isinstance(each, CrossFeature) and left_out(each)))
    return schema.replace(name=f"{schema.name}_without", candidates=own.replace(features=rest))


ARMS: dict[str, Arm] = {
    FULL: Arm(),
    "no user-candidate statistics": Arm(schema=without_crosses),
    "no statistics": Arm(schema=without_statistics),
    "LayerNorm for GLN": Arm({"input_norm": "layer", "output_norm": "layer"}),
    "causal mask": Arm({"visibility": "causal"}),
    "samples of a request": Arm(view="request"),
    # The preset's departures from the paper, each left out.
    "feature_norm=false": Arm({"feature_norm": "false"}),
    "equal_start=false": Arm({"equal_start": "false"}),
    "activation=uvqk": Arm({"activation": "uvqk"}),
    "gate=gate_norm": Arm({"gate": "gate_norm"}),
    "candidate_numbers=true": Arm({"candidate_numbers": "true"}),
    "encoder_loss=0": Arm({"encoder_loss": "0"}),
    "no tower": Arm({"tower": "[]", "candidate_numbers": "true", "encoder_loss": "0"}),
    "divisor=length": Arm({"divisor": "length"}),
    "the paper's": Arm(PAPER),
    "the paper's, divisor=visible": Arm({**PAPER, "divisor": "visible"}),
    FULL_MASK: Arm(model="benchmarks/full_mask.py:FULL_MASK"),
}


def run_log(name: str, options: argparse.Namespace) -> dict[str, object]:
    """Label -> its table, and the masks' own."""
    log = LOGS[name]
    folder, samples = built_samples(name, options)
    declared = load_schema(log.schema)
    found: dict[str, dict[str, list[Scores]]] = {label.name: {} for label in declared.labels if label.kind == "binary"}
    masks: dict[str, list[dict[str, list[float]]]] = {}
    tables: dict[str, object] = {}
    for seed in options.seeds:  # all arms of a seed before the next one
        for arm in options.only:
            path, run = _places(folder, arm, seed)
            schema = ARMS[arm].schema(declared)
            if not path.is_file():
                logger.info(f"{folder.name}: {arm}, seed {seed}")
                settings, view = ARMS[arm].settings, ARMS[arm].view
                keep(path, train_and_score(samples, schema, log, ARMS[arm].model, settings, seed, run, view))
            if arm != FULL_MASK:
                for label, scores in kept(path).items():
                    if label in found:
                        found[label].setdefault(arm, []).append(scores)
            # Of arms that have as many seeds as the first: means over other seeds would be compared with it.
            for label, arms in found.items():
                most = len(next(iter(arms.values()), []))
                tables[label] = compared({each: own for each, own in arms.items() if len(own) == most}, [FULL])
            _write(folder, tables)
        for arm in MASKS if FULL_MASK in options.only else ():
            if arm in options.only:
                run = _places(folder, arm, seed)[1]
                masks.setdefault(arm, []).append(_judged_twice(run, samples, declared, log.train, log.judge))
        tables["masks"] = masks
        _write(folder, tables)
    for label in found:
        print_table(f"{folder.name}, {label}, {log.judge}", tables[label], [FULL])  # type: ignore[arg-type]
    _print_masks(folder.name, list(found), masks)
    return tables


def _places(folder: Path, arm: str, seed: int) -> tuple[Path, Path]:
    """Where an arm's scores and run are: those of benchmarks/quality.py where that trains the same."""
    own = ARMS[arm]
    same = [rival for rival, (model, settings) in RIVALS.items() if (model, settings) == (own.model, own.settings)]
    if same and not own.view and own.schema is unchanged:
        key = f"{same[0].replace(' ', '_')}-{seed}"
        return folder / "scores" / f"{key}.npz", folder / "runs" / key
    key = f"{''.join(c if c.isalnum() else '_' for c in arm)}-{seed}"
    return folder / "ablations" / "scores" / f"{key}.npz", folder / "ablations" / "runs" / key


def _write(folder: Path, tables: dict[str, object]) -> None:
    path = folder / "ablations" / "ablations.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tables, indent=1) + "\n")


# ---------------------------------------------------------------------- masks


def _judged_twice(run: Path, samples: Path, schema: Schema, trained: str, judge: str) -> dict[str, list[float]]:
    """Label -> GAUC of the last training day and of the judged day by whole user-days, and of the judged day as served."""
    path = run / "masks.json"
    if path.is_file():
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    last, dates = parse_dates(trained)[-1], parse_dates(judge)
    result: dict[str, list[float]] = {label.name: [] for label in schema.labels if label.kind == "binary"}
    out = run / "trained-day.json"
    # Predictions of the judged day are read first: evaluating another day replaces them.
    of_judged = predicted(run, schema, dates)
    evaluate(EvaluateConfig(run=run, samples=samples, dates=(last,), out=out, bootstrap=0, device="cpu"))
    of_trained = predicted(run, schema, [last])
    served = _served(run, samples, dates)
    for label, values in result.items():
        for scores in (of_trained[label], of_judged[label], served[label]):
            values.append(gauc(scores.users, scores.labels, scores.scores))
    path.write_text(json.dumps(result) + "\n")
    return result


def _served(run: Path, samples: Path, dates: Sequence[str]) -> dict[str, Scores]:
    """Per label: scores of samples of a request, which hold what was there when it was served."""
    loaded = load_model(run)
    reader = SampleReader(samples, loaded.schema, dates, view="request", token_budget=16_384, shuffle=False)
    columns: dict[str, list[list[np.ndarray]]] = {label.name: [] for label in loaded.schema.labels}
    for batch, scores in predict(loaded.model, reader, loaded.schema, join_ranks("cpu")):
        for label, found in columns.items():
            known = batch.weights[label] > 0
            rows = (candidate_users(batch), batch.labels[label].double(), scores[label].double())
            found.append([each[known].numpy() for each in rows])
    return {
        label: Scores(*(np.concatenate(column) for column in zip(*found, strict=True)))
        for label, found in columns.items()
    }


def _print_masks(title: str, labels: Sequence[str], masks: dict[str, list[dict[str, list[float]]]]) -> None:
    for label in labels:
        lines = [
            f"\n| {title}, {label} GAUC | last training day | judged day, whole days | judged day, as served |",
            "|---|---|---|---|",
        ]
        for arm, seeds in masks.items():
            mean = np.mean([each[label] for each in seeds], 0)
            lines.append(f"| {arm} | {' | '.join(f'{value:.4f}' for value in mean)} |")
        stdout().print("\n".join(lines), markup=False, soft_wrap=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--logs", nargs="+", choices=list(LOGS), default=["marketplace"])
    parser.add_argument("--users", type=int, nargs="+", default=[2000, 20000], help="of the marketplace; a log each")
    parser.add_argument("--kuairand", type=Path, help="folder with KuaiRand-Pure's files")
    parser.add_argument("--movielens", type=Path, help="folder with MovieLens-100K's files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(ARMS), default=list(ARMS), help="arms; default all")
    options = parser.parse_args()
    if options.only[0] != FULL:
        parser.error(f"--only: begin with {FULL!r}, which the others are compared with")
    for name in options.logs:
        if name != "marketplace" and getattr(options, name) is None:
            parser.error(f"--logs {name} needs --{name} FOLDER")
    show_log_messages()
    for name in options.logs:
        for users in options.users if name == "marketplace" else [0]:
            run_log(name, argparse.Namespace(**{**vars(options), "users": users}))


if __name__ == "__main__":
    main()
