"""What `genrank export` wrote, as a scorer: no trainer, no TorchRec, no Spark; tables are pages of their files."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer

from genrank.model.documents import FileDigest, ModelIdentity
from genrank.model.interface import Model
from genrank.model.ranker import Ranker
from genrank.model.registry import recorded_model
from genrank.schemas.checked_json import checked
from genrank.schemas.console import logger
from genrank.schemas.errors import UserError
from genrank.schemas.files import file_sha256
from genrank.schemas.schema import Schema
from genrank.serving.compiled import MachineKind
from genrank.serving.model_scorer import ModelScorer
from genrank.serving.programs import ExportedEncoder
from genrank.serving.tensor_file import read_tensors
from genrank.serving.user_cache import UserCache
from genrank.tokenization.dynamic import Entries
from genrank.tokenization.frozen_tables import FrozenTables
from genrank.tokenization.plan import make_plan

FORMAT = 1
EXPORT = "export.json"
SCORES = "scores"
"""Column of the example: all of its scores, in the first row."""
TOLERANCE = 1e-4
"""Of the example's scores: processors and versions of their libraries round differently."""


class ExportManifest(BaseModel):
    """`export.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    format: int
    model: ModelIdentity
    step: int
    checkpoint: str
    """`LoadedModel.checkpoint`."""
    fingerprint: str
    declared: Schema = Field(alias="schema")
    boundaries: dict[str, list[float]]
    device: str
    """cpu or cuda: what the programs were made for."""
    programs: bool
    """Whether the encoder is in programs."""
    compiled: MachineKind | None = None
    """What they were compiled for, too."""
    torch: str
    """The version that wrote it."""
    files: dict[str, FileDigest]

    @field_serializer("declared")
    def _as_schema_json(self, schema: Schema) -> dict[str, Any]:
        return schema.model_dump(mode="json")


class ExportedScorer(ModelScorer):
    """An export's model."""

    manifest: ExportManifest
    compiled: bool
    """Whether its encoder runs as compiled programs."""

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device | str = "cpu",
        *,
        micro_batch: int = 0,
        cache: UserCache | None = None,
        compiled: bool = True,
    ) -> Self:
        """The model of an export, once every file is as it was written and the example's scores are what they were.

        Args:
            micro_batch, cache: as of `ModelScorer`.
            compiled: run compiled programs, where the export has some that fit this machine; else the exported ones.

        Raises:
            UserError: it is no export, damaged, made for another device, or scores the example otherwise.
        """
        manifest, device = _read(folder), torch.device(device)
        if manifest.programs and manifest.device != device.type:
            raise UserError(
                f"{folder} was exported for {manifest.device} and is loaded on {device.type}; export the run with --device {device.type}"
            )
        compiled = compiled and _fits(folder, manifest, device)
        model = _model(folder, manifest, device, compiled)
        # A checkpoint and its export keep users' states in forms of their own: a cache that both use tells them apart.
        kept_as = f"{manifest.checkpoint} exported"
        scorer = cls(model, manifest.declared, kept_as, device, micro_batch=micro_batch, cache=cache)
        scorer.manifest, scorer.compiled = manifest, compiled
        scorer._try(folder)
        return scorer

    def _try(self, folder: Path) -> None:
        """Score the example, past the cache."""
        with pa.memory_map(str(folder / "example.arrow")) as source:
            whole = pa.ipc.open_file(source).get_batch(0)
        wanted = np.array(whole.column(SCORES)[0].as_py(), np.float32).reshape(-1, len(self.tasks))
        rows = whole.drop_columns([SCORES])
        got = ModelScorer(self.model, self.schema, "", self.device).score(rows)
        if not np.allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            which, remedy = (
                ("'s compiled programs score", "again, or without --compiled") if self.compiled else (" scores", "")
            )
            raise UserError(
                f"{folder}{which} its example otherwise than the run did (by up to {np.abs(got - wanted).max():.1e}): it doesn't work with"
                f" PyTorch {torch.__version__} on this machine (it was written by {self.manifest.torch}); export the run here {remedy}".rstrip()
            )


def is_export(folder: Path) -> bool:
    """Whether `genrank export` wrote a folder."""
    return (folder / EXPORT).is_file()


def _read(folder: Path) -> ExportManifest:
    try:
        content = checked((folder / EXPORT).read_bytes())
        if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
            raise UserError(f"{folder} has export format {content['format']}; this version reads {FORMAT}")
        manifest = ExportManifest.model_validate_json(json.dumps(content))
    except FileNotFoundError:
        raise UserError(f"{folder} is no export (no {EXPORT}); give the --out folder of `genrank export`") from None
    except (ValueError, ValidationError) as error:
        raise UserError(
            f"{folder / EXPORT} can't be read ({str(error).splitlines()[0]}); export the run again"
        ) from None
    for name, listed in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != listed.bytes or file_sha256(path) != listed.sha256:
            raise UserError(f"{path} is missing or damaged; export the run again")
    return manifest


def _fits(folder: Path, manifest: ExportManifest, device: torch.device) -> bool:
    """Whether there are compiled programs that run here."""
    if manifest.compiled is None:
        return False
    why = manifest.compiled.unlike(MachineKind.here(device))
    if why:
        logger.warning(f"{folder}: its compiled programs don't fit this machine ({why}); the exported ones are run")
    return not why


def _model(folder: Path, manifest: ExportManifest, device: torch.device, compiled: bool) -> Model:
    chosen, schema = recorded_model(manifest.model), manifest.declared
    names = [table.name for table in make_plan(schema).tables] if chosen.spec.by_steps else []
    weights = {name: read_tensors(folder / "tables" / f"{name}.safetensors")["weight"].to(device) for name in names}
    embeddings = chosen.embeddings(
        schema, device=device, boundaries=manifest.boundaries, backend="torch", tables=FrozenTables(weights)
    )
    for name, vocabulary in embeddings.vocabularies.items():
        stored = read_tensors(folder / "vocabularies" / f"{name}.safetensors")
        vocabulary.load(0, Entries(*(stored[field.name] for field in fields(Entries))))
    model = chosen.build(embeddings)
    state = read_tensors(folder / "dense.safetensors")
    if manifest.programs:
        assert isinstance(model, Ranker)
        programs, compiled_for = (folder / "compiled", device) if compiled else (folder / "encoder", None)
        model.encoder = ExportedEncoder(model.encoder.config, programs, compiled_for)
    model.make_room(state)
    model.load_state_dict(state)
    return model.to(device).eval()
