"""Predictions in Parquet, a row a candidate: what `genrank evaluate` leaves beside a run and `genrank score` publishes.

| column | of | |
|---|---|---|
| `sample_id` | score | string |
| `user_id` | both | int64 (evaluate: hashed where users are strings; score: as the samples have it) |
| `request`, `item` | both | int64, hashed where the column is a string |
| `ts` | both | int64: exposure, epoch ms |
| `<label>_score` | both | float32: probability of a binary label, expected value of another |
| `<label>`, `<label>_weight`, `<label>_oracle` | evaluate | float32 |
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from genrank.model.predict import candidate_users
from genrank.schemas.files import move
from genrank.schemas.schema import Schema
from genrank.tokenization.batch import Batch

Columns = dict[str, NDArray[np.generic]]


def judged_rows(schema: Schema, batch: Batch, scores: Mapping[str, Tensor]) -> pa.RecordBatch:
    """A row a candidate of a batch on the CPU, with what its scores are judged by.

    Args:
        scores: per label [C].
    """
    columns: Columns = {"user_id": candidate_users(batch).numpy(), **_exposures(batch)}
    for label in schema.labels:
        columns[label.name] = batch.labels[label.name].float().numpy()
        columns[f"{label.name}_weight"] = batch.weights[label.name].numpy()
        columns |= _scores(label.name, scores)
        if label.name in batch.oracles:
            columns[f"{label.name}_oracle"] = batch.oracles[label.name].numpy()
    return pa.RecordBatch.from_pydict({name: pa.array(values) for name, values in columns.items()})


def scored_schema(schema: Schema) -> pa.Schema:
    """The columns of `scored_rows`."""
    user = pa.string() if _users_are_strings(schema) else pa.int64()
    fields = [("sample_id", pa.string()), ("user_id", user)]
    fields += [(name, pa.int64()) for name in ("request", "item", "ts")]
    return pa.schema([*fields, *((f"{label.name}_score", pa.float32()) for label in schema.labels)])


def scored_rows(schema: Schema, batch: Batch, scores: Mapping[str, Tensor]) -> pa.RecordBatch:
    """A row a candidate of a batch of user-days on the CPU, by `scored_schema`.

    Args:
        scores: per label [C].
    """
    owner = pa.array(np.repeat(np.arange(len(batch)), batch.candidates.lengths.numpy()))
    samples = pa.array(batch.sample_id, pa.string()).take(owner)
    users = pa.array(candidate_users(batch).numpy())
    if _users_are_strings(schema):  # A batch has their hashes; a sample's id is `<user>:<dt>:<chunk>`.
        users = pa.array([sample.rsplit(":", 2)[0] for sample in batch.sample_id], pa.string()).take(owner)
    columns: Columns = _exposures(batch)
    for label in schema.labels:
        columns |= _scores(label.name, scores)
    arrays = [samples, users, *map(pa.array, columns.values())]
    return pa.RecordBatch.from_arrays(arrays, schema=scored_schema(schema))


def write_predictions(path: Path, batches: Sequence[pa.RecordBatch], schema: pa.Schema | None = None) -> None:
    """One file, whole or not there.

    Args:
        schema: of the columns, where there may be no batch.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(pa.Table.from_batches(batches, schema), staging, compression="zstd")
        move(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


def _exposures(batch: Batch) -> Columns:
    return {"request": batch.request.numpy(), "item": batch.item.numpy(), "ts": batch.candidates.ts.numpy()}


def _scores(label: str, scores: Mapping[str, Tensor]) -> Columns:
    return {f"{label}_score": scores[label].float().cpu().numpy()}


def _users_are_strings(schema: Schema) -> bool:
    return schema.exposures.columns[schema.exposures.user] == "string"
