"""`torch.compile` of what lies between the ops, which it takes as they are: once for batches of any size."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch.fx.experimental import _config as shapes

Given = ParamSpec("Given")
Made = TypeVar("Made")


def compiled(function: Callable[Given, Made], backend: str = "inductor") -> Callable[Given, Made]:
    """The function, compiled when it is first called: once for training and once for inference. (Inductor may still take a size of 1 for itself: a batch of
    one sample with one candidate was compiled once more.)

    Sizes are symbols, of which PyTorch by default compiles 0 and 1 anew, and also two that were equal once: batches without a realtime event, of one
    sample, or with as many events of two sequences would each cost a compilation, and after eight of them it would give up.

    Args:
        backend: of `torch.compile`. "aot_eager" traces and differentiates alike, and runs the graphs' operations one by one.
    """
    run = torch.compile(function, dynamic=True, backend=backend)

    @functools.wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        with shapes.patch(backed_size_oblivious=True, use_duck_shape=False):  # type: ignore[attr-defined]
            return run(*args, **kwargs)

    return call
