"""Every encoder and baseline by name on the same samples, with one budget, several seeds, and the papers' ablations.

    python -m benchmarks.encoders --schema FILE:NAME --samples DIR --dates 2026-01-03:2026-01-09 --eval-dates 2026-01-10

Each run is an ordinary one of `genrank train` under --out, so that the command goes on where it was interrupted; what is complete is
kept. After every run the table is written again: GAUC and NE of the first label on the evaluation days (mean over seeds and, from two
seeds on, half the range), operations of a forward pass a candidate, dense parameters, candidates and operations trained on (a step is
three forward passes), and with --speed candidates a second of training. The budget is the same samples for all, or at most --flops operations each. benchmarks/encoders.md
says what the rows mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.train import cycle, timed
from genrank.model.config import EvaluateConfig, TrainConfig, samples_folder
from genrank.model.documents import RankingEvaluation, Summary, read_document
from genrank.model.evaluate import evaluate, load_model
from genrank.model.interface import Model
from genrank.model.ranks import join_ranks
from genrank.model.registry import MODELS as REGISTERED
from genrank.model.trainer import Trainer, train
from genrank.schemas import Schema, load_schema
from genrank.schemas.configuration import parse_dates
from genrank.schemas.console import stdout
from genrank.tokenization.reader import SampleReader

MODELS = (
    *("lightgbm", "din", "dlrm", "dcn", "sasrec", "mtgr-tiny", "hstu-tiny", "heteroatt-tiny", "hiformer-tiny", "hhft-tiny", "rankmixer-tiny"),
    *("tokenmixer-tiny", "longer-tiny", "onetrans-tiny", "grab-tiny", "ultra-hstu-tiny"),
)  # fmt: skip

SWEEP = {
    "no warm-up": "train.warmup_steps=0",
    "200 steps of warm-up": "train.warmup_steps=200",
    "half the initial weights": "initial_scale=0.5",
    "twice the initial weights": "initial_scale=2",
}
"""What HHFT's ablation found to matter most (arXiv:2511.20235), beside the norm's place."""

STAGES = "two stages"
"""In settings' place: `--phase sparse --view exposure` over the days, then `--phase dense` from its checkpoint over them again."""

ABLATIONS: dict[str, dict[str, str]] = {
    "rankmixer-tiny": {
        "no mixing": "mixing=none",
        "one feed-forward for all tokens": "own_ffn=false",
        "pre-norm": "norm=pre",
        "four experts, half of them used": "experts=4",
        "groups of features as tokens, one a sequence": "tokens=groups,sequence_tokens=0,mixing=none",
        **SWEEP,
    },
    "tokenmixer-tiny": {"not reverted": "revert=false", "no residual between layers": "residual_every=0"},
    "heteroatt-tiny": {"one set of weights for all tokens": "own_weights=false", "pre-norm": "norm=pre"},
    "hiformer-tiny": {"full rank": "rank=0", **SWEEP},
    "onetrans-tiny": {
        "one set of weights for all tokens": "mixed=false",
        "no pyramid": "length=0",
        "no separators": "separators=false",
        **SWEEP,
    },
    "longer-tiny": {
        "merge 2": "merge=2",
        "merge 8": "merge=8",
        "InnerTrans": "inner=1",
        "all ask": "recent=0",
        "4 ask, the newest": "recent=4",
        "4 ask, evenly spread": "recent=4,asking=evenly",
    },
    "grab-tiny": {"two stages: rows by exposures, then the network": STAGES},
    "mtgr-tiny": {"candidates of a request see each other": "listwise=true"},
    "ultra-hstu-tiny": {"one stack for all sequences": "channels=false", "not truncated": "truncate_after=0"},
    "hstu-tiny": {
        "divided by the sample's length": "divisor=length",
        "causal user tokens": "visibility=causal",
        "loss on history events, too": "visibility=causal,history_loss=1",
        "a norm a head": "output_norm=head",
    },
}
"""Model -> what is changed, in words -> `--set` fields, and `train.` fields of the training run, joined by commas."""

SAMPLED_BATCHES = 8
"""Of the evaluation days, over which a candidate's operations are counted."""

BY_STEPS = {name for name, spec in REGISTERED.items() if spec.by_steps}
"""Models that a budget of steps means anything to."""


@dataclass(frozen=True)
class Case:
    """A line of the table."""

    model: str
    change: str = ""
    """In words; empty for the preset itself."""
    settings: str = ""

    @property
    def folder(self) -> str:
        """Its name under --out."""
        changed = self.settings.replace("=", "-").replace(",", "_").replace(" ", "-")
        return "_".join(filter(None, (self.model, changed)))

    @property
    def fields(self) -> dict[str, str]:
        """As `--set` takes them."""
        return {name: value for name, value in self._changed().items() if not name.startswith("train.")}

    @property
    def training(self) -> dict[str, int]:
        """Fields of `TrainConfig`."""
        return {name.removeprefix("train."): int(v) for name, v in self._changed().items() if name.startswith("train.")}

    def _changed(self) -> dict[str, str]:
        return dict(part.split("=") for part in self.settings.split(",") if "=" in part)


@dataclass(frozen=True)
class Line:
    """What one run came to."""

    gauc: float
    ne: float
    flops: float
    """Of a forward pass, a candidate; NaN where they aren't counted."""
    parameters: int
    candidates: int
    """Trained on."""
    trained_flops: float
    """With; NaN where they aren't counted."""
    candidates_per_s: float
    """Of training; NaN where it hasn't been timed."""


def main() -> None:
    """Train what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schema", required=True, help="FILE.py:NAME or a YAML file")
    parser.add_argument("--samples", type=Path, required=True, help="the --out folder of genrank build")
    parser.add_argument("--dates", required=True, help="training days: FIRST:LAST")
    parser.add_argument("--eval-dates", required=True, help="days after them to judge on")
    parser.add_argument("--out", type=Path, required=True, help="runs, encoders.json and encoders.md")
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="names that genrank train takes")
    parser.add_argument("--ablations", action="store_true", help="the papers' ablations of these models, too")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max-steps", type=int, default=0, help="0: every step of the epochs")
    parser.add_argument("--flops", type=float, default=0, help="operations that a run may train with; 0: any number")
    parser.add_argument("--token-budget", type=int, default=8192)
    parser.add_argument("--speed", action="store_true", help="time training, too, on batches put aside")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    schema = load_schema(arguments.schema)
    found: dict[Case, list[Line]] = {}
    wanted = list(cases(arguments.models, ablations=arguments.ablations))
    # Seed by seed: an interrupted comparison has compared every model.
    for seed in arguments.seeds:
        for case in wanted:
            found.setdefault(case, []).append(run(arguments, schema, case, seed))
            write(arguments.out, found)
    stdout().print(table(found), markup=False)


def cases(models: Sequence[str], *, ablations: bool) -> Iterator[Case]:
    """Each model, and what is changed of it."""
    for model in models:
        yield Case(model)
        for change, settings in ABLATIONS.get(model, {}).items() if ablations else ():
            yield Case(model, change, settings)


def run(arguments: argparse.Namespace, schema: Schema, case: Case, seed: int) -> Line:
    """Train and judge one model, unless that is done."""
    out: Path = arguments.out / case.folder / f"seed-{seed}"
    by_steps = case.model in BY_STEPS
    config = TrainConfig(
        **case.training,
        schema=schema,
        samples=arguments.samples,
        dates=tuple(parse_dates(arguments.dates)),
        out=out,
        model=case.model,
        settings=case.fields,
        epochs=arguments.epochs if by_steps else 1,
        max_steps=arguments.max_steps if by_steps else 0,
        token_budget=arguments.token_budget,
        lr=arguments.lr,
        device=arguments.device,
        seed=seed,
    )
    if by_steps and arguments.flops and not (out / "summary.json").is_file():
        config = within(config, arguments.flops)
    if not (out / "summary.json").is_file():
        if case.settings == STAGES:
            first = dataclasses.replace(config, out=out / "stage-1", phase="sparse", view="exposure")
            if not (first.out / "summary.json").is_file():
                train(first)
            config = dataclasses.replace(config, phase="dense", from_checkpoint=first.out)
        train(config)
    days = tuple(parse_dates(arguments.eval_dates, "--eval-dates"))
    if not (out / "metrics.json").is_file():
        evaluate(EvaluateConfig(run=out, samples=arguments.samples, dates=days, bootstrap=0, device=arguments.device))
    if not (out / "operations.json").is_file():
        counted = operations(out, config, days) if by_steps else None
        (out / "operations.json").write_text(json.dumps({"flops_per_candidate": counted}) + "\n")
    speed_of = arguments.out / case.folder / "speed.json"
    if arguments.speed and by_steps and not speed_of.is_file():
        speed_of.write_text(json.dumps({"candidates_per_s": speed(config)}) + "\n")
    summary = read_document(out / "summary.json", Summary)
    metrics = read_document(out / "metrics.json", RankingEvaluation).tasks[schema.labels[0].name]["model"]
    return Line(
        gauc=value_of(metrics["gauc"].value),
        ne=value_of(metrics["ne"].value if "ne" in metrics else None),
        flops=value_of(json.loads((out / "operations.json").read_text())["flops_per_candidate"]),
        parameters=summary.dense_parameters,
        candidates=summary.candidates,
        trained_flops=value_of(summary.flops),
        candidates_per_s=json.loads(speed_of.read_text())["candidates_per_s"] if speed_of.is_file() else math.nan,
    )


def speed(config: TrainConfig) -> float:
    """Candidates a second of training: forward, backward and both optimizers, the best of three passes over some batches. On a CPU of the
    process's own time, so that a busy machine doesn't change it."""
    trainer = begun(dataclasses.replace(config, spike_factor=0, from_checkpoint=None))
    batches = list(itertools.islice(cycle(trainer), SAMPLED_BATCHES))

    def once() -> None:
        for batch in batches:
            trainer.train_step.run([batch], trainer.position)

    once()
    return sum(len(batch.item) for batch in batches) / min(timed(once, trainer.ranks) for _ in range(3))


def begun(config: TrainConfig) -> Trainer:
    """Of a run that is not gone on with: in a folder without checkpoints."""
    return Trainer(dataclasses.replace(config, out=config.out / "begun"), join_ranks(config.device), None)


def within(config: TrainConfig, flops: float) -> TrainConfig:
    """The run that so many operations allow: over the newest days that they reach, ended by its steps in the last of them."""
    for first in reversed(range(len(config.dates))):
        newest = dataclasses.replace(config, dates=config.dates[first:])
        if steps := steps_within(newest, flops):
            return dataclasses.replace(newest, max_steps=min(steps, config.max_steps or steps))
    return config


def steps_within(config: TrainConfig, flops: float) -> int:
    """Optimizer steps that train with so many operations, at least one; 0 where all of the run takes fewer. Counted in every eighth batch."""
    trainer = begun(config)
    trainer.model.train()
    steps = each = 0
    with torch.no_grad():
        for epoch in range(config.epochs):
            for batch in trainer.prefetcher.batches(epoch):
                if steps % SAMPLED_BATCHES == 0:
                    trainer.model(batch)
                    each = trainer.model.take_flops()
                flops -= each
                if flops < 0:
                    return max(1, steps)
                steps += 1
    return 0


def operations(run_folder: Path, config: TrainConfig, days: Sequence[str]) -> float | None:
    """Of a forward pass over evaluation days, a candidate; None where the model doesn't count them."""
    _, candidates, counted = forward_operations(load_model(run_folder).model, config, days)
    return counted / candidates if counted else None


def forward_operations(model: Model, config: TrainConfig, days: Sequence[str]) -> tuple[int, int, float]:
    """(batches, their candidates, operations of a forward pass over them), of the first batches of some days."""
    reader = SampleReader(
        samples_folder(config.samples),
        config.schema,
        list(days),
        token_budget=config.token_budget,
        shuffle=False,
        prefetch=0,
    )
    model.train()  # which counts
    batches = candidates = 0
    with torch.no_grad():
        for batch in itertools.islice(reader, SAMPLED_BATCHES):
            model(batch.to(config.device))
            batches, candidates = batches + 1, candidates + len(batch.item)
    return batches, candidates, model.take_flops() / 3


def write(out: Path, found: dict[Case, list[Line]]) -> None:
    """encoders.json and encoders.md."""
    rows = [{**vars(case), "seeds": [vars(line) for line in lines]} for case, lines in found.items()]
    (out / "encoders.json").write_text(json.dumps(rows, indent=1) + "\n")
    (out / "encoders.md").write_text(table(found) + "\n")


def table(found: dict[Case, list[Line]]) -> str:
    """Markdown: a line a case; GAUC's difference from the preset where something is changed."""
    heads = ("model", "GAUC", "NE", "MFLOP/candidate", "parameters", "candidates", "training TFLOP", "candidates/s")
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    base: dict[str, float] = {}
    for case, seeds in found.items():
        gauc = statistics.mean(line.gauc for line in seeds)
        one = seeds[0]
        if not case.change:
            base[case.model] = gauc
        difference = f" ({gauc - base[case.model]:+.4f})" if case.change and case.model in base else ""
        cells = (
            f"- {case.change} (`{case.settings}`)" if case.change else f"`{case.model}`",
            spread([line.gauc for line in seeds], 4) + difference,
            spread([line.ne for line in seeds], 4),
            number(one.flops / 1e6, 3),
            f"{one.parameters:,}" if one.parameters else "-",
            f"{one.candidates:,}",
            number(one.trained_flops / 1e12, 4),
            "-" if math.isnan(one.candidates_per_s) else f"{one.candidates_per_s:,.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int) -> str:
    """`.7012 ± .0009`: the mean, and half the range of several."""
    half = (max(values) - min(values)) / 2
    mean = number(statistics.mean(values), digits)
    return f"{mean} ± {half:.{digits}f}" if len(values) > 1 else mean


def number(value: float, digits: int) -> str:
    """A dash for what isn't known."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def value_of(value: float | None) -> float:
    """NaN for None."""
    return math.nan if value is None else value


if __name__ == "__main__":
    main()
