"""`genrank export`: a run as one folder that is served without the trainer.

    export.json                        what it is: model, schema, checkpoint, and size and digest of every file; written last
    encoder/known.pt2, extend.pt2, score.pt2     the encoder by torch.export (`serving.programs`), of MTGR and HSTU
    compiled/                          with --compiled, the same by AOTInductor, for this kind of machine (`serving.compiled`)
    dense.safetensors                  every other parameter: projections, positions, tower, heads; of other models, all of them
    tables/<merged table>.safetensors  rows, read as memory-mapped pages
    vocabularies/<table>.safetensors   which id has which row, of dynamic tables; frozen
    example.arrow                      made-up samples and their scores, which a loader must get, too

An export is tried before it is published: what was written is loaded, and scores the example as the run's checkpoint does. With --triton
it is a version of a model of Triton Inference Server (`serving.triton_server`).
"""

from __future__ import annotations

import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import TypeGuard

import pyarrow as pa
import torch

from genrank.model.checkpoint import find_checkpoint, read_manifest
from genrank.model.documents import FileDigest, ModelIdentity
from genrank.model.interface import Model
from genrank.model.ranker import Ranker
from genrank.model.ranks import own_device
from genrank.schemas.checked_json import with_checksum
from genrank.schemas.console import logger
from genrank.schemas.errors import UserError
from genrank.schemas.files import file_sha256, move, sync, write_atomically
from genrank.serving.compiled import MachineKind, compile_programs
from genrank.serving.config import ExportConfig
from genrank.serving.example_rows import example_rows
from genrank.serving.exported import EXPORT, FORMAT, SCORES, ExportedScorer, ExportManifest
from genrank.serving.programs import has_programs, save_programs
from genrank.serving.scorer import CheckpointScorer
from genrank.serving.tensor_file import write_tensors
from genrank.serving.triton_server.repository import INSIDE, add_version, next_version
from genrank.tokenization.dynamic import Entries


def export(config: ExportConfig) -> ExportManifest:
    """Write the folder, whole or not at all; an export that is there is replaced.

    Raises:
        UserError: no such run, a model whose code lies in a file of the user's, a folder that holds something else, or programs are to be
            compiled that there are none of, or nothing to compile them with.
    """
    out = next_version(config.triton) if config.triton is not None else config.target
    if out.exists() and not (out / EXPORT).is_file() and any(out.iterdir()):
        raise UserError(f"--out {out} holds files and no {EXPORT}; give a new folder, or an export to replace")
    device = own_device(config.device)
    folder = find_checkpoint(config.run, config.checkpoint)
    identity = read_manifest(folder).model
    if identity.name.partition(":")[0].endswith(".py"):
        raise UserError(
            f"{config.run} is of {identity.name}, a model in a file of yours, and an export holds no code; serve its checkpoint instead"
        )
    scorer = CheckpointScorer.load(folder, device)
    if config.compiled and not _has_programs(scorer.model):
        raise UserError(
            f"--compiled: {identity.name} has no exported programs to compile (mtgr and hstu have, but for divisor=length and listwise=true); export it without"
            " --compiled"
        )
    staged = out.with_name(f".{out.name}.{os.getpid()}.incomplete")
    inside = staged / INSIDE if config.triton is not None else staged
    try:
        inside.mkdir(parents=True)
        manifest = _write(scorer, identity, inside, config.compiled)
        ExportedScorer.load(inside, device)  # refuses what doesn't score the example alike
        if config.compiled:
            ExportedScorer.load(inside, device, compiled=False)
        if config.triton is not None:
            add_version(config.triton, staged, manifest)
        _publish(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return manifest


def _has_programs(model: Model) -> TypeGuard[Ranker]:
    return isinstance(model, Ranker) and has_programs(model.encoder)


def _write(scorer: CheckpointScorer, identity: ModelIdentity, folder: Path, compiled: bool) -> ExportManifest:
    model, schema = scorer.model, scorer.schema
    embeddings = model.embeddings
    rows = example_rows(schema)
    state = model.state_dict()
    exported = _has_programs(model)
    if _has_programs(model):
        with torch.no_grad():
            tokens = model.tokenizer(scorer.rows.batch(rows).to(scorer.device))
        assert has_programs(model.encoder)
        save_programs(model.encoder, tokens, folder / "encoder")
        if compiled:
            logger.info("compiling the encoder's programs, which takes a minute or more")
            compile_programs(folder / "encoder", folder / "compiled")
        state = {name: value for name, value in state.items() if not name.startswith("encoder.")}
    write_tensors(folder / "dense.safetensors", state)
    for table in embeddings.plan.tables:
        (shard,) = embeddings.tables.shards(table.name)
        write_tensors(folder / "tables" / f"{table.name}.safetensors", {"weight": shard.weight})
    for name, vocabulary in embeddings.vocabularies.items():
        _, entries = vocabulary.state()
        tensors = {field.name: getattr(entries, field.name) for field in fields(Entries)}
        write_tensors(folder / "vocabularies" / f"{name}.safetensors", tensors)
    _write_example(scorer, rows, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = ExportManifest(
        format=FORMAT,
        model=identity,
        step=scorer.loaded.step,
        checkpoint=scorer.loaded.checkpoint,
        fingerprint=schema.fingerprint,
        schema=schema,
        boundaries=embeddings.boundaries,
        device=scorer.device.type,
        programs=exported,
        compiled=MachineKind.here(scorer.device) if compiled else None,
        torch=torch.__version__,
        files={
            str(path.relative_to(folder)): FileDigest(bytes=path.stat().st_size, sha256=file_sha256(path))
            for path in files
        },
    )
    for path in files:
        sync(path)
    write_atomically(folder / EXPORT, with_checksum(manifest.model_dump_json(by_alias=True)))
    return manifest


def _write_example(scorer: CheckpointScorer, rows: pa.RecordBatch, folder: Path) -> None:
    scores = scorer.score(rows).ravel()
    whole = rows.append_column(SCORES, pa.array([scores.tolist()] + [[]] * (len(rows) - 1), pa.list_(pa.float32())))
    with pa.OSFile(str(folder / "example.arrow"), "wb") as sink, pa.ipc.new_file(sink, whole.schema) as writer:
        writer.write_batch(whole)


def _publish(staged: Path, out: Path) -> None:
    before = out.with_name(f".{out.name}.{os.getpid()}.replaced")
    if out.exists():
        os.rename(out, before)  # whoever has it open goes on with it
    move(staged, out)
    shutil.rmtree(before, ignore_errors=True)
