"""Tensors in safetensors files, which are read as memory-mapped pages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from genrank.schemas.errors import UserError


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device, none of which may be a view of another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A file's tensors, on the CPU: pages of the file until they are written to, which changes the process's copy alone.

    Raises:
        UserError: it is no such file.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, the file is no mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file ({error}); export the run again") from None
