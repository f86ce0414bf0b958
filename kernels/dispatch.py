"""Which implementation serves a tensor: Triton on CUDA, blocked PyTorch on CPU, the plain reference on request."""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch import Tensor

from genrank import environment

Backend = Literal["reference", "blocked", "triton"]


def backend_for(tensor: Tensor) -> Backend:
    """Implementation that runs an op whose data is `tensor`.

    `GENRANK_KERNELS=reference` runs the slow, obvious PyTorch references (to find out whether a kernel is to blame),
    `GENRANK_KERNELS=triton` the Triton kernels (on CPU they need `TRITON_INTERPRET=1`). Unset: Triton on CUDA,
    elsewhere PyTorch arranged to be fast there ("blocked").

    `GENRANK_KERNELS_CHECK=1` has the kernels' values checked too, which waits for the device (`kernels.attention.interval`).

    Raises ValueError for any other value, and for `triton` on a CPU tensor without the interpreter.
    """
    choice = environment.KERNELS.get()
    if choice == "reference":
        return "reference"
    if choice == "triton":
        if tensor.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                "GENRANK_KERNELS=triton on a CPU tensor needs TRITON_INTERPRET=1; unset it to run on the CPU"
            )
        return "triton"
    if choice:
        raise ValueError(f"GENRANK_KERNELS={choice!r} is unknown; use 'reference', 'triton' or leave it unset")
    return "triton" if tensor.device.type == "cuda" else "blocked"


def draw_seed(seed: int | None) -> int:
    """`seed`, or one drawn from PyTorch's default generator, so that `torch.manual_seed` makes dropout repeatable."""
    return int(torch.randint(0, 2**31 - 1, ()).item()) if seed is None else seed
