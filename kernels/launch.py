"""The one place where Triton kernels start, in the configuration that `kernels.tuning` chooses; or where what would have run
is recorded, for the compiler."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton

from genrank.kernels import tuning

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
        """What tuning would try on this generation of GPU (80, 90, 100)."""
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
    """A kernel, its configurations, and what has been chosen of those that `fits` lets through."""

    def __init__(
        self,
        kernel: Any,
        configs: Sequence[triton.Config],
        key: Sequence[str],
        fits: Callable[[triton.Config, dict[str, Any], int], bool] | None = None,
        sums: Sequence[str] = (),
        length: str = "",
    ) -> None:
        """configs: the order is that of preference where none is timed; key: arguments that a choice depends on (dtypes
        always); sums: arguments that the kernel adds to; length: the argument that says how long the samples are, if blocks
        longer than them are a waste."""
        self.kernel = kernel
        self.configs = list(configs)
        self.key = list(key)
        self.fits = fits
        self.sums = list(sums)
        self.length = length
        self.latest: triton.Config | None = None
        """Of the last launch."""
        self._chosen: dict[tuple[Any, ...], triton.Config] = {}

    def usable(self, arguments: dict[str, Any], arch: int) -> list[triton.Config]:
        """Configurations that fit this call on a generation of GPU (80, 90, 100)."""
        kept = [c for c in self.configs if self.fits is None or self.fits(c, arguments, arch)]
        return kept or self.configs[-1:]

    def fixed(self, arguments: dict[str, Any], arch: int) -> triton.Config:
        """The first that fits and has no block longer than the samples; the last that fits where all have."""
        fitting = self.usable(arguments, arch)
        if not self.length:
            return fitting[0]
        longest = arguments[self.length]
        short = (c for c in fitting if max(v for k, v in c.kwargs.items() if k.startswith("BLOCK_")) <= longest)
        return next(short, fitting[-1])

    def __call__(
        self,
        grid: Callable[[dict[str, Any]], Grid],
        arguments: list[Any],
        constants: dict[str, Any],
        chosen: triton.Config | None = None,
    ) -> None:
        """Run over `grid(configuration)`. `chosen` overrides `kernels.tuning`."""
        if _recorded is not None:
            _recorded.append(Launch(self.kernel, arguments, constants, self))
            return
        # Triton launches on the current device, which need not be that of the tensors.
        device = next(x.device for x in arguments if isinstance(x, torch.Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self._run(grid, arguments, constants, chosen, device)

    def _run(
        self,
        grid: Callable[[dict[str, Any]], Grid],
        arguments: list[Any],
        constants: dict[str, Any],
        chosen: triton.Config | None,
        device: torch.device,
    ) -> None:
        named = {**dict(zip(self.kernel.arg_names, arguments, strict=False)), **constants}

        def launch(config: triton.Config) -> None:
            if config.pre_hook is not None:
                config.pre_hook({**named, **config.kwargs})
            options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
            self.kernel[grid(config.kwargs)](*arguments, **constants, **config.kwargs, **options)

        self.latest = chosen or self._choose(named, launch, device)
        launch(self.latest)

    def _choose(
        self, named: dict[str, Any], launch: Callable[[triton.Config], None], device: torch.device
    ) -> triton.Config:
        if tuning.timer is None:
            return self.configs[-1]
        fixed = tuning.fixed()
        dtypes = (x.dtype for x in named.values() if isinstance(x, torch.Tensor))
        key = (fixed, device, *(named[name] for name in self.key), *dtypes)
        if key not in self._chosen:
            tuning.report_first_use(device)
            arch = generation(device)
            self._chosen[key] = self.fixed(named, arch) if fixed else self._tuned(named, launch, device, arch)
        return self._chosen[key]

    def _tuned(
        self, named: dict[str, Any], launch: Callable[[triton.Config], None], device: torch.device, arch: int
    ) -> triton.Config:
        """What was kept, or else the fastest, which is kept."""
        fitting = self.usable(named, arch)
        if len(fitting) == 1:
            return fitting[0]
        dtypes = [str(x.dtype).removeprefix("torch.") for x in named.values() if isinstance(x, torch.Tensor)]
        key = " ".join([*(f"{name}={named[name]}" for name in self.key), *dtypes])
        # The interpreter's kernels have no digest.
        source = getattr(self.kernel, "cache_key", "")[:12]
        where = tuning.Where(tuning.machine(device), f"{self.kernel.__name__} {source}".strip(), key)
        kept = tuning.choices().find(where, fitting)
        if kept is not None:
            return kept
        sums = [named[name] for name in self.sums]

        def trial(config: triton.Config) -> None:
            for total in sums:
                total.zero_()
            launch(config)

        assert tuning.timer is not None
        chosen, ms = tuning.fastest(fitting, trial, tuning.timer)
        for total in sums:
            total.zero_()
        if ms < float("inf"):
            tuning.choices().keep(where, chosen, ms)
        return chosen


def to_device(table: list[int], device: torch.device) -> torch.Tensor:
    """[n] int64 on the device by one copy that doesn't wait: addresses and sizes of a batch, for a kernel that reads many tensors."""
    host = torch.tensor(table, dtype=torch.int64)
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def generation(device: torch.device) -> int:
    """Of a GPU: 80, 90, 100; in the interpreter the oldest, whose configurations every other can run."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
