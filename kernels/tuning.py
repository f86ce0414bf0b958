"""Which configuration a kernel runs with.

Tuned: the first call at a new key (shapes, dtypes, length bucket) times every configuration that fits, and keeps the fastest
in this process and in a file, where later processes find it. The file is JSON, by device and versions, kernel and key;
`GENRANK_TUNING_CACHE` names it (else `genrank/tuning.json` in the user's cache folder), and it can be copied to other machines.

Fixed: the first configuration that fits and is no longer than the samples, without timing, so that two processes run the
same code. `torch.use_deterministic_algorithms(True)`, which `genrank train --deterministic` sets, asks for it, as for
PyTorch's own ops; so does `GENRANK_AUTOTUNE=0`, for short runs and for debugging.

Messages go to the logger `genrank.kernels`: once a process that kernels are compiled and tuned, and what is wrong with a file.
"""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.compiler.errors import CompileTimeAssertionFailure
from triton.runtime.errors import OutOfResources, PTXASError

from genrank import environment

logger = logging.getLogger("genrank.kernels")

FORMAT = "genrank tuning 1"

Timer = Callable[[Callable[[], None]], float]
"""Milliseconds of a launch."""


def time_ms(launch: Callable[[], None]) -> float:
    """Median milliseconds of a launch, on the device."""
    return float(triton.testing.do_bench(launch, warmup=25, rep=100, return_mode="median"))


timer: Timer | None = None if os.environ.get("TRITON_INTERPRET") == "1" else time_ms
"""None: nothing is timed, and a kernel takes its last configuration, the one with the smallest blocks. So in the
interpreter, where time means nothing."""


def fixed() -> bool:
    """Whether kernels take fixed configurations."""
    return torch.are_deterministic_algorithms_enabled() or environment.AUTOTUNE.is_set_to("0")


def fastest(
    configs: Sequence[triton.Config], launch: Callable[[triton.Config], None], timer: Timer
) -> tuple[triton.Config, float]:
    """The configuration of the smallest time, the first of equals, and its milliseconds; infinite for one that does not
    compile or asks for more than the device has."""
    times = []
    for config in configs:
        try:
            times.append(timer(functools.partial(launch, config)))
        except (OutOfResources, PTXASError, CompileTimeAssertionFailure):
            times.append(float("inf"))
    best = min(range(len(times)), key=times.__getitem__)
    return configs[best], times[best]


def fastest_way(kernel: str, key: str, device: torch.device, ways: Mapping[str, Callable[[], object]]) -> str:
    """Which of several ways to one result is the fastest, by name: timed at the first call with a key, and kept as configurations
    are. Where nothing is timed, the first one."""
    names = list(ways)
    if timer is None or fixed():
        return names[0]
    known = (kernel, key, device, *names)
    if known not in _ways:
        configs = [triton.Config({"WAY": name}) for name in names]
        where = Where(machine(device), kernel, key)
        chosen = choices().find(where, configs)
        if chosen is None:
            chosen, ms = fastest(configs, lambda config: void(ways[config.kwargs["WAY"]]), timer)
            choices().keep(where, chosen, ms)
        _ways[known] = chosen.kwargs["WAY"]
    return _ways[known]


_ways: dict[tuple[Any, ...], str] = {}


def void(run: Callable[[], object]) -> None:
    """Run, and drop the result."""
    run()


# --- the file ---------------------------------------------------------------------------------------------------------


class Where(NamedTuple):
    """Under what a choice is kept."""

    machine: str
    """Device and versions of torch and triton."""
    kernel: str
    """Its name, and a digest of its source."""
    key: str
    """What the choice depends on: named arguments, and dtypes of tensors."""


class Choices:
    """Tuning results in a file that processes share: each adds what it finds, none removes what another found.

    A file that cannot be read, is no such file or cannot be written is one warning, and then left alone.
    """

    def __init__(self, path: Path) -> None:
        """Path: of the file, which need not exist."""
        self.path = path
        self._usable = True
        self._known: dict[str, dict[str, dict[str, Any]]] = {}
        self._read()

    def find(self, where: Where, configs: Sequence[triton.Config]) -> triton.Config | None:
        """The one of `configs` that was kept; None if there is none, or one that is no longer among them."""
        if self._entry(where) is None:
            self._read()  # Another process may have found it meanwhile.
        entry = self._entry(where)
        kept = entry.get("config") if isinstance(entry, dict) else None
        return next((config for config in configs if described(config) == kept), None)

    def keep(self, where: Where, config: triton.Config, ms: float) -> None:
        """Remember a choice and its milliseconds, here and in the file."""
        entry = {"config": described(config), "ms": round(ms, 5)}
        self._known.setdefault(where.machine, {}).setdefault(where.kernel, {})[where.key] = entry
        if not self._usable:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_name(self.path.name + ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._read()
                if self._usable:
                    self._known.setdefault(where.machine, {}).setdefault(where.kernel, {})[where.key] = entry
                    self._write()
        except OSError as error:
            self._give_up(f"cannot be written ({error.strerror}); later processes will tune their kernels again")

    def count(self, machine: str) -> int:
        """Choices known for a machine."""
        return sum(map(len, self._known.get(machine, {}).values()))

    def _entry(self, where: Where) -> Any:
        return self._known.get(where.machine, {}).get(where.kernel, {}).get(where.key)

    def _read(self) -> None:
        if not self._usable:
            return
        try:
            found = json.loads(self.path.read_text())
        except FileNotFoundError:
            return
        except OSError as error:
            return self._give_up(f"cannot be read ({error.strerror})")
        except ValueError as error:
            return self._give_up(f"is damaged ({error}); delete it to have it made anew")
        if not (isinstance(found, dict) and found.get("format") == FORMAT and nested(found.get("choices"))):
            return self._give_up(
                f"has not the format {FORMAT!r}; delete it or set GENRANK_TUNING_CACHE to another path"
            )
        for machine, kernels in found["choices"].items():
            for kernel, entries in kernels.items():
                own = self._known.setdefault(machine, {}).setdefault(kernel, {})
                self._known[machine][kernel] = {**own, **entries}

    def _write(self) -> None:
        text = json.dumps({"format": FORMAT, "choices": self._known}, indent=1, sort_keys=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text + "\n")
            os.replace(name, self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _give_up(self, why: str) -> None:
        self._usable = False
        logger.warning("kernel tuning cache %s is ignored: it %s", self.path, why)


def nested(choices: object) -> bool:
    """Whether it is machine -> kernel -> key -> anything."""
    return isinstance(choices, dict) and all(
        isinstance(kernels, dict) and all(isinstance(entries, dict) for entries in kernels.values())
        for kernels in choices.values()
    )


def described(config: triton.Config) -> dict[str, Any]:
    """A configuration as the file has it."""
    return {**config.kwargs, "num_warps": config.num_warps, "num_stages": config.num_stages}


def choices() -> Choices:
    """Those of the file that is named now."""
    named = environment.TUNING_CACHE.get()
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _opened(Path(named or f"{folder}/genrank/tuning.json").expanduser())


_opened = functools.cache(Choices)


@functools.cache
def machine(device: torch.device) -> str:
    """Name of the device, and the versions of torch and triton."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    return f"{name}, torch {torch.__version__}, triton {triton.__version__}"


# --- messages ---------------------------------------------------------------------------------------------------------


@functools.cache
def report_first_use(device: torch.device) -> None:
    """Before the first launch: why the first step takes longer than the others."""
    if fixed():
        logger.info("kernels: compiling on first use, in fixed configurations")
        return
    kept = choices()
    known = kept.count(machine(device))
    found = f"{known} choices known from {kept.path}, the others are kept there" if known else f"kept in {kept.path}"
    logger.info("kernels: compiling on first use, and tuning for %s (%s)", machine(device), found)
