"""Tensors in the safetensors format: a header in JSON, then the bytes, which are read as memory-mapped pages.

    8 bytes   N, the header's length, little-endian
    N bytes   {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}, padded with spaces
    the rest  row-major little-endian values; offsets count from here

(https://github.com/huggingface/safetensors#format; files of either are read by both.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genrank.schemas.errors import UserError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK_ROWS = 1 << 16


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device. Rows that are zeros take no room on file systems with sparse files."""
    header: dict[str, dict[str, Any]] = {}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        first = file.tell()
        file.truncate(first + at)
        for name, tensor in tensors.items():
            begin = first + header[name]["data_offsets"][0]
            if not tensor.nbytes:
                continue
            rows = tensor.detach().reshape(tensor.shape[0] if tensor.dim() else 1, -1)
            for row in range(0, len(rows), CHUNK_ROWS):
                part = rows[row : row + CHUNK_ROWS]
                if part.any():
                    file.seek(begin + row * rows[:1].nbytes)
                    file.write(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A file's tensors, on the CPU: pages of the file until they are written to, which changes the process's copy alone.

    Raises:
        UserError: it is no such file.
    """
    try:
        whole = np.memmap(path, np.uint8, "c")
        first = 8 + int.from_bytes(whole[:8].tobytes(), "little")
        if first > len(whole):
            raise ValueError(f"its header ends at byte {first} of {len(whole)}")
        header: dict[str, dict[str, Any]] = json.loads(whole[8:first].tobytes())
        found = {}
        for name, each in header.items():
            if name == "__metadata__":
                continue
            begin, end = (int(bound) for bound in each["data_offsets"])
            dtype, shape = DTYPES[each["dtype"]], tuple(map(int, each["shape"]))
            if end - begin != math.prod(shape) * dtype.itemsize or first + end > len(whole):
                raise ValueError(f"{name} has {end - begin} bytes")
            values = torch.from_numpy(whole[first + begin : first + end]).view(dtype)
            found[name] = values.view(shape)
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no safetensors file ({error}); export the run again") from None
