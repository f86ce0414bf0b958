"""The model of a folder, whether training or `genrank export` wrote it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from genrank.model.checkpoint import find_checkpoint
from genrank.serving.exported import EXPORT, ExportedScorer, is_export
from genrank.serving.model_scorer import ModelScorer
from genrank.serving.scorer import CheckpointScorer
from genrank.serving.user_cache import UserCache

MODEL_FILES = (EXPORT, "manifest.json", "checkpoints/best.json", "checkpoints/step-*/manifest.json")
"""Patterns, under such a folder, of the files whose replacement makes another model."""


def open_model(
    folder: Path, device: torch.device | str = "cpu", *, micro_batch: int = 0, cache: UserCache | None = None
) -> tuple[ModelScorer, str]:
    """An export's model, or a run's or a checkpoint's: the best checkpoint, or else the newest whole one.

    Args:
        micro_batch, cache: as of `ModelScorer`.

    Returns:
        The model, and which one it is: its folder's name and a digest of its manifest.

    Raises:
        UserError: there is none, it is damaged, or it ranks no candidates.
    """
    scorer: ModelScorer
    if is_export(folder):
        manifest = (folder / EXPORT).read_bytes()
        scorer = ExportedScorer.load(folder, device, micro_batch=micro_batch, cache=cache)
    else:
        folder = find_checkpoint(folder)
        manifest = (folder / "manifest.json").read_bytes()
        scorer = CheckpointScorer.load(folder, device, micro_batch=micro_batch, cache=cache)
    return scorer, f"{folder.resolve().name}-{hashlib.sha256(manifest).hexdigest()[:12]}"
