"""`genrank evaluate`: a trained run on other days, beside the oracle and the counting baselines, with intervals by user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from genrank.model.baselines.counts import Counts, count_days
from genrank.model.checkpoint import find_checkpoint, load_dense, load_weights, read_manifest
from genrank.model.config import EvaluateConfig, samples_folder
from genrank.model.label_guard import require_two_classes
from genrank.model.metrics import Predictions
from genrank.model.predict import candidate_users, predict
from genrank.model.ranker import build_model, model_config
from genrank.model.ranks import join_ranks
from genrank.model.retriever import NEXT_ITEM, Retriever, evaluate_retriever
from genrank.model.run_dir import read_json, write_json
from genrank.schemas.errors import UserError
from genrank.schemas.manifest import sample_files
from genrank.schemas.schema import Schema
from genrank.tokenization.batch import Batch
from genrank.tokenization.checkpoint import load_tables
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan
from genrank.tokenization.reader import SampleReader


class LoadedModel(NamedTuple):
    """A checkpoint as it can be used."""

    model: nn.Module
    """Batch -> {task: logit [C]}, in evaluation mode."""
    schema: Schema
    step: int
    name: str


def load_model(path: Path, *, step: int | None = None, device: torch.device | str = "cpu") -> LoadedModel:
    """The model of a run's (or a checkpoint's) folder.

    Args:
        step: of the checkpoint; default the best, or else the newest.

    Raises:
        UserError: no such checkpoint, or a damaged one.
    """
    folder = find_checkpoint(path, step)
    manifest = read_manifest(folder)
    name, settings = manifest.model["name"], manifest.model["settings"]
    assert isinstance(name, str) and isinstance(settings, dict)
    embeddings = Embeddings(make_plan(manifest.schema), backend="torch", device=device, boundaries=manifest.boundaries)
    own, head = model_config(name, settings)
    model = build_model(own, head, embeddings, [label.name for label in manifest.schema.labels]).to(device)
    load_weights(model, load_dense(folder)["model"], folder)  # type: ignore[arg-type]
    load_tables(embeddings, folder / "tables")
    return LoadedModel(model.eval(), manifest.schema, manifest.step, name)


def evaluate(config: EvaluateConfig) -> dict[str, object]:
    """Score every candidate of some days, write predictions and metrics.json; returns the latter.

    Rows per task: `model`; `oracle`, the true probability, where the schema declares one; `popularity` and `user_item_ctr`, counted over
    the days that the run, and those it went on from, were trained on (absent where their samples are gone).

    Raises:
        UserError: no such run or day, damaged files, days without a candidate.
    """
    ranks = join_ranks(config.device)
    if ranks.size > 1:
        raise UserError("genrank evaluate runs in one process; start it without torchrun")
    loaded = load_model(config.run, step=config.checkpoint, device=ranks.device)
    schema = loaded.schema
    samples = samples_folder(config.samples)
    if isinstance(loaded.model, Retriever):
        return _evaluate_retriever(config, loaded.model, loaded, samples)
    require_two_classes(samples, schema, config.dates, mature=False)
    counts = _counts(config.run, samples, schema)
    rows: dict[str, dict[str, Predictions]] = {label.name: {} for label in schema.labels}
    users: set[int] = set()
    total_samples = total_candidates = 0
    for date in config.dates:
        reader = SampleReader(samples, schema, [date], view="user_day", token_budget=config.token_budget, shuffle=False)
        written: list[pa.RecordBatch] = []
        for batch, scores in predict(loaded.model, reader, schema, ranks):
            batch = batch.to("cpu")
            owner = candidate_users(batch)
            truth = batch.oracles
            for label in schema.labels:
                for name, each in _scores(
                    batch, owner, scores[label.name].cpu(), truth.get(label.name), counts.get(label.name)
                ):
                    found = rows[label.name].setdefault(name, Predictions(label.kind))
                    found.update(owner, batch.labels[label.name], each, batch.weights[label.name])
            users.update(batch.user.tolist())
            total_samples += len(batch)
            total_candidates += len(batch.item)
            written.append(_prediction_rows(schema, batch, owner, scores, truth))
        if not written:
            raise UserError(f"--dates {date}: the samples of this day hold no candidate; nothing to evaluate")
        _write_predictions(config.run / "predictions" / f"dt={date}.parquet", written)
    result: dict[str, object] = {
        "model": loaded.name,
        "step": loaded.step,
        "dates": list(config.dates),
        "samples": total_samples,
        "candidates": total_candidates,
        "users": len(users),
        "tasks": {
            task: {
                name: {m: e.as_dict() for m, e in p.compute(bootstrap=config.bootstrap, seed=config.seed).items()}
                for name, p in each.items()
            }
            for task, each in rows.items()
        },
    }
    write_json(config.out or config.run / "metrics.json", result)
    return result


def _evaluate_retriever(
    config: EvaluateConfig, model: Retriever, loaded: LoadedModel, samples: Path
) -> dict[str, object]:
    """`evaluate` of a retrieval model: a query is a user's day, its candidates are the whole catalogue."""
    rows, queries, items = evaluate_retriever(
        model,
        samples,
        config.dates,
        trained=_published(samples, loaded.schema, _trained_dates(config.run)),
        token_budget=config.token_budget,
        bootstrap=config.bootstrap,
        seed=config.seed,
    )
    result: dict[str, object] = {
        "model": loaded.name,
        "step": loaded.step,
        "dates": list(config.dates),
        "queries": queries,
        "catalogue": items,
        "tasks": {NEXT_ITEM: {n: {m: e.as_dict() for m, e in row.items()} for n, row in rows.items()}},
    }
    write_json(config.out or config.run / "metrics.json", result)
    return result


def _published(samples: Path, schema: Schema, dates: list[str]) -> list[str]:
    """Those of some days whose samples are still there."""
    return [date for date in dates if (samples / f"dt={date}").is_dir() and sample_files(samples, date, schema)]


def _counts(run: Path, samples: Path, schema: Schema) -> dict[str, Counts]:
    """Counting baselines of the run's training days."""
    dates = _trained_dates(run)
    try:
        return count_days(samples, schema, dates) if dates else {}
    except UserError:
        return {}


def _trained_dates(run: Path) -> list[str]:
    """The days that a run, and those it went on from, were trained on."""
    dates: set[str] = set()
    seen: set[Path] = set()
    origin: Path | None = run
    while origin is not None and origin not in seen and (origin / "config.json").is_file():
        config = read_json(origin / "config.json")
        assert isinstance(config["dates"], list)
        dates.update(config["dates"])
        seen.add(origin)
        origin = Path(str(config["from_checkpoint"])) if config["from_checkpoint"] else None
    return sorted(dates)


def _scores(
    batch: Batch, owner: Tensor, scores: Tensor, oracle: Tensor | None, counts: Counts | None
) -> Iterator[tuple[str, Tensor]]:
    yield "model", scores
    if oracle is not None:
        yield "oracle", oracle
    if counts:
        items, users = batch.item.numpy(), owner.numpy()
        yield "popularity", torch.from_numpy(counts.popularity(items))
        yield "user_item_ctr", torch.from_numpy(counts.user_item(users, items))


def _prediction_rows(
    schema: Schema, batch: Batch, owner: Tensor, scores: dict[str, Tensor], truth: dict[str, Tensor]
) -> pa.RecordBatch:
    columns: dict[str, np.ndarray] = {
        "user_id": owner.numpy(),
        "request": batch.request.numpy(),
        "item": batch.item.numpy(),
        "ts": batch.candidates.ts.numpy(),
    }
    for label in schema.labels:
        columns[label.name] = batch.labels[label.name].float().numpy()
        columns[f"{label.name}_weight"] = batch.weights[label.name].numpy()
        columns[f"{label.name}_score"] = scores[label.name].float().cpu().numpy()
        if label.name in truth:
            columns[f"{label.name}_oracle"] = truth[label.name].numpy()
    return pa.RecordBatch.from_pydict({name: pa.array(values) for name, values in columns.items()})


def _write_predictions(path: Path, batches: list[pa.RecordBatch]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(pa.Table.from_batches(batches), staging, compression="zstd")
    staging.replace(path)
