"""Training of a model that learns all days at once instead of by steps; its run's folder is like any other's."""

from __future__ import annotations

import dataclasses
import platform
import resource
import time

import torch

from genrank.model.checkpoint import save_checkpoint
from genrank.model.checkpoint_manager import Position
from genrank.model.config import TrainConfig, samples_folder
from genrank.model.documents import EvalRow, ModelIdentity, Summary, Versions
from genrank.model.prefetch import make_reader
from genrank.model.ranks import Ranks
from genrank.model.registry import ChosenModel
from genrank.model.run_dir import RunDir
from genrank.model.tasks.base import Metrics
from genrank.schemas.errors import UserError
from genrank.schemas.manifest import build_ids


def fit_whole(config: TrainConfig, chosen: ChosenModel, ranks: Ranks, run: RunDir | None) -> Metrics:
    """Learn, evaluate on `eval_dates`, and write the run's checkpoint (of step 1), log and summary; returns the metrics.

    Raises:
        UserError: several processes, a flag that only steps have, or days with nothing to learn.
    """
    if ranks.size > 1 or run is None:
        raise UserError(f"--model {config.model}: it trains in one process; start it without torchrun")
    for flag, given in (
        ("--from-checkpoint", config.from_checkpoint is not None),
        ("--max-steps", config.max_steps > 0),
        ("--epochs", config.epochs > 1),
        ("--patience", config.patience > 0),
        ("--compile", config.compile),
        ("--recompute", config.recompute),
    ):
        if given:
            raise UserError(f"--model {config.model}: it learns all days at once and takes no {flag}; leave it out")
    samples = samples_folder(config.samples)
    task = chosen.task(config.schema)
    reader = make_reader(config, samples, config.schema, config.dates, ranks, shuffle=False)
    builds = build_ids(samples, [*config.dates, *config.eval_dates])
    if not reader.stored_rows:
        raise UserError(f"--dates {', '.join(config.dates)}: the samples of these days are empty; nothing to train on")
    task.require_learnable(samples, config.dates)
    torch.manual_seed(config.seed)
    embeddings = chosen.embeddings(config.schema, device=ranks.device)
    model = chosen.build(embeddings).to(ranks.device)
    began = time.monotonic()
    candidates = model.learn(samples, config.dates, config.seed)
    seconds = time.monotonic() - began
    model.eval()

    metrics: Metrics = {}
    if config.eval_dates:
        metrics = task.validate(model, config, samples, ranks, bf16=False)
        kept = {name: {n: e.value for n, e in each.items() if n != "logloss"} for name, each in metrics.items()}
        run.log(EvalRow(step=1, eval=kept, time=round(time.time(), 3)))
    position = Position(
        step=1, epoch=1, total_steps=1, samples=reader.stored_rows, candidates=candidates, seconds=seconds
    )
    save_checkpoint(
        config.out,
        1,
        schema=config.schema,
        model=ModelIdentity(name=config.model, settings=dict(config.settings), fields=chosen.fields()),
        dense={
            "model": model.state_dict(),
            "optimizer": {},
            "position": dataclasses.asdict(position),
            "readers": [reader.state_dict()],
        },
        embeddings=embeddings,
        ranks=ranks,
        builds=builds,
        keep=config.keep_checkpoints,
    )
    run.finish(
        Summary(
            model=config.model,
            settings=dict(config.settings),
            schema=config.schema.name,
            fingerprint=config.schema.fingerprint,
            train_dates=list(config.dates),
            eval_dates=list(config.eval_dates),
            samples_root=str(config.samples),
            builds=builds,
            dense_parameters=0,
            sparse_rows=0,
            ids={},
            steps=1,
            best_step=None,
            epochs=config.epochs,
            max_steps=config.max_steps,
            samples=reader.stored_rows,
            candidates=candidates,
            seconds=round(seconds, 3),
            samples_per_s=reader.stored_rows / max(seconds, 1e-9),
            tokens_per_s=0.0,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * (1 if platform.system() == "Darwin" else 1024),
            device=str(ranks.device),
            ranks=1,
            versions=Versions(torch=torch.__version__, python=platform.python_version()),
        )
    )
    return metrics
