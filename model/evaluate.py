"""`genrank evaluate`: a trained run on other days, beside what its task compares it with, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from genrank.model.checkpoint import find_checkpoint, load_dense, load_weights, read_manifest
from genrank.model.config import EvaluateConfig, samples_folder
from genrank.model.documents import Evaluation, write_document
from genrank.model.interface import Model
from genrank.model.ranks import join_ranks
from genrank.model.registry import recorded_model
from genrank.model.run_dir import read_json
from genrank.model.tasks.base import AnyTask, LoadedRun
from genrank.schemas.console import logger
from genrank.schemas.errors import UserError
from genrank.schemas.files import file_sha256
from genrank.schemas.manifest import build_ids
from genrank.schemas.schema import Schema
from genrank.tokenization.checkpoint import load_tables


class LoadedModel(NamedTuple):
    """A checkpoint as it can be used."""

    model: Model
    """In evaluation mode. A ranker maps a Batch to {label: logit [C]}."""
    schema: Schema
    step: int
    name: str
    task: AnyTask
    builds: Mapping[str, str]
    """Day of samples -> the build that it was trained or evaluated on, as its checkpoint has them."""
    checkpoint: str
    """Which checkpoint: 16 hex digits of its manifest, which has the digest of every file."""


def load_model(path: Path, *, step: int | None = None, device: torch.device | str = "cpu") -> LoadedModel:
    """The model of a run's (or a checkpoint's) folder.

    Args:
        step: of the checkpoint; default the best, or else the newest.

    Raises:
        UserError: no such checkpoint, or a damaged one, or its model's file is gone or lies inside the run.
    """
    folder = find_checkpoint(path, step)
    manifest = read_manifest(folder)
    schema, identity = manifest.declared, manifest.model
    _refuse_code_of_the_run(identity.name, folder)
    chosen = recorded_model(identity)
    embeddings = chosen.embeddings(schema, device=device, boundaries=manifest.boundaries, backend="torch")
    model = chosen.build(embeddings).to(device)
    state = load_dense(folder)["model"]
    model.make_room(state)
    load_weights(model, state, folder)
    load_tables(embeddings, folder / "tables")
    return LoadedModel(
        model.eval(),
        schema,
        manifest.step,
        identity.name,
        chosen.task(schema),
        manifest.builds,
        file_sha256(folder / "manifest.json")[:16],
    )


def _refuse_code_of_the_run(model: str, folder: Path) -> None:
    """A checkpoint names the file of a user's own model; one that came with the run would be the sender's."""
    path = Path(model.partition(":")[0])
    run = folder.parents[1] if folder.parent.name == "checkpoints" else folder
    if path.suffix == ".py" and run.resolve() in path.resolve().parents:
        raise UserError(
            f"{folder} is of model {model}, a file inside {run}: code that came with a run is not run; keep a model's file outside of"
            " the runs' folders, and train with it there"
        )


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Judge a run by its task on some days; writes metrics.json, and what else the task writes, and returns the former.

    Raises:
        UserError: no such run or day, damaged files, days with nothing to judge on.
    """
    ranks = join_ranks(config.device)
    if ranks.size > 1:
        raise UserError("genrank evaluate runs in one process; start it without torchrun")
    loaded = load_model(config.run, step=config.checkpoint, device=ranks.device)
    run = LoadedRun(config.run, loaded.name, loaded.step, _trained_dates(config.run))
    samples = samples_folder(config.samples)
    builds = build_ids(samples, config.dates)
    for day, build in builds.items():
        if (before := loaded.builds.get(day, build)) != build:
            logger.warning(f"{day} was built again since {config.run} read it (build {before}, now {build})")
    result = loaded.task.evaluate(loaded.model, run, config, samples, ranks).model_copy(update={"builds": builds})
    write_document(config.out or config.run / "metrics.json", result)
    return result


def _trained_dates(run: Path) -> list[str]:
    """The days that a run, and those it went on from, were trained on."""
    dates: set[str] = set()
    seen: set[Path] = set()
    origin: Path | None = run
    while origin is not None and origin not in seen and (origin / "config.json").is_file():
        config = read_json(origin / "config.json")
        days, earlier = config.get("dates"), config.get("from_checkpoint")
        if not isinstance(days, list) or not all(isinstance(day, str) for day in days):
            raise UserError(f"{origin / 'config.json'} lacks dates; write it again with `genrank train`")
        dates.update(days)
        seen.add(origin)
        origin = Path(str(earlier)) if earlier else None
    return sorted(dates)
