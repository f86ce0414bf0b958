"""The one place where Triton kernels start: picks a configuration, or records what would have run, for the compiler.

The first call at a new shape tries every configuration and keeps the fastest, which takes seconds.
`TRITON_CACHE_AUTOTUNING=1` keeps the choices for later processes; `GENRANK_AUTOTUNE=0` takes the first configuration
instead: for short runs and for debugging.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton

from genrank import environment

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
"""Kernels run in Triton's interpreter, on CPU. Decided, as Triton does, when the kernels are imported."""

VARYING = ("seed", "tokens", "count")
"""Arguments that differ from batch to batch: Triton must not compile a kernel again for those that are 1 or a multiple of
16, which would be in the middle of training."""

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Launch:
    """One kernel with the arguments of one call."""

    kernel: Any
    arguments: list[Any]
    constants: dict[str, Any]
    tuned: Tuned

    def configs(self, arch: int) -> list[triton.Config]:
        """What the autotuner would try on this generation of GPU (80, 90, 100)."""
        named = {**dict(zip(self.kernel.arg_names, self.arguments, strict=False)), **self.constants}
        return self.tuned.usable(named, arch)


_recorded: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside, kernels do not run: each launch is added to the list instead."""
    global _recorded
    _recorded = []
    try:
        yield _recorded
    finally:
        _recorded = None


class Tuned:
    """A kernel, its configurations, and Triton's autotuner over those that `fits` lets through."""

    def __init__(
        self,
        kernel: Any,
        configs: Sequence[triton.Config],
        key: Sequence[str],
        fits: Callable[[triton.Config, dict[str, Any], int], bool] | None = None,
        sums: Sequence[str] = (),
    ) -> None:
        """key: arguments that a choice depends on (dtypes always); sums: arguments that the kernel adds to."""
        self.kernel = kernel
        self.configs = list(configs)
        self.fits = fits
        self.sums = list(sums)
        prune = {"early_config_prune": lambda configs, named, **kwargs: self.usable({**named, **kwargs})}
        self.tuner = triton.autotune(self.configs, list(key), prune_configs_by=prune, reset_to_zero=self.sums or None)(
            kernel
        )

    def usable(self, arguments: dict[str, Any], arch: int | None = None) -> list[triton.Config]:
        """Configurations that fit this call on `arch`, by default the GPU at hand."""
        if arch is None:
            major, minor = torch.cuda.get_device_capability()
            arch = 10 * major + minor
        kept = [c for c in self.configs if self.fits is None or self.fits(c, arguments, arch)]
        return kept or self.configs[-1:]

    def __call__(
        self,
        grid: Callable[[dict[str, Any]], Grid],
        arguments: list[Any],
        constants: dict[str, Any],
        chosen: triton.Config | None = None,
    ) -> None:
        """Run over `grid(configuration)`. `chosen` overrides the autotuner; the interpreter takes the last
        configuration.
        """
        if _recorded is not None:
            _recorded.append(Launch(self.kernel, arguments, constants, self))
            return
        # Triton launches on the current device, which need not be that of the tensors.
        device = next(x.device for x in arguments if isinstance(x, torch.Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self._run(grid, arguments, constants, chosen)

    def _run(
        self,
        grid: Callable[[dict[str, Any]], Grid],
        arguments: list[Any],
        constants: dict[str, Any],
        chosen: triton.Config | None,
    ) -> None:
        if chosen is None and INTERPRET:
            chosen = self.configs[-1]
        if chosen is None and environment.AUTOTUNE.is_set_to("0"):
            chosen = self.usable({**dict(zip(self.kernel.arg_names, arguments, strict=False)), **constants})[0]
        if chosen is None:
            self.tuner[grid](*arguments, **constants)
            return
        if chosen.pre_hook is not None:
            named = dict(zip(self.kernel.arg_names, arguments, strict=False))
            chosen.pre_hook({**named, **constants, **chosen.kwargs})
        options = {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages}
        self.kernel[grid(chosen.kwargs)](*arguments, **constants, **chosen.kwargs, **options)
