"""Runs the source of the Gluon kernels on a CPU, in float64: what Triton's interpreter does for Triton's language.

Each role of a kernel is a thread, and one thread runs at a time; at every wait for a barrier another one, drawn by a seed, goes on. What a
GPU promises late comes late: a tile lands when somebody waits for it and is NaN until then, a product reads its operands when it is
waited for. So a tile that is used too early, overwritten too early or never asked for is NaN, a wrong result or a deadlock, which is raised.
Shared memory that was written by threads needs a fence before TMA or a product touches it; loads and stores beyond a tensor raise.
"""

from __future__ import annotations

import importlib.util
import math
import random
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import genrank.kernels
from genrank.kernels.launch import Launch

FOLDER = Path(genrank.kernels.__path__[0])
ELEMENT = 2
"""Bytes of a bfloat16, which barriers count; values are float64 here."""


# --- roles, one at a time ---------------------------------------------------------------------------------------------


class Stopped(BaseException):
    """Ends the threads of a run that failed."""


@dataclass
class Role:
    work: Callable[[], None]
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ready: Callable[[], bool] = lambda: True
    done: bool = False
    error: BaseException | None = None
    products: list[Product] = field(default_factory=list)
    unfenced: bool = False


class Machine:
    """One program at a time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.program = 0
        self.roles: list[Role] = []
        self.outside = Role(lambda: None)
        self.role = self.outside
        self.back = threading.Semaphore(0)
        self.stopped = False

    def specialize(self, works: list[Callable[[], None]]) -> None:
        self.roles = [Role(work) for work in works]
        for role in self.roles:
            threading.Thread(target=self.live, args=(role,), daemon=True).start()
        while alive := [role for role in self.roles if not role.done]:
            able = [role for role in alive if role.ready()]
            if not able:
                self.stop()
                raise AssertionError("deadlock: every role waits for a barrier")
            self.role = self.random.choice(able)
            self.role.go.release()
            self.back.acquire()
            if self.role.error is not None:
                error = self.role.error
                self.stop()
                raise error
        assert not any(role.products for role in self.roles), "a product is never waited for"
        self.role = self.outside

    def live(self, role: Role) -> None:
        role.go.acquire()
        try:
            if not self.stopped:
                role.work()
        except Stopped:
            pass
        except BaseException as error:
            role.error = error
        role.done = True
        self.back.release()

    def wait(self, ready: Callable[[], bool]) -> None:
        role = self.role
        role.ready = ready
        self.back.release()
        role.go.acquire()
        if self.stopped:
            raise Stopped
        role.ready = lambda: True

    def stop(self) -> None:
        self.stopped = True
        for role in self.roles:
            if not role.done:
                role.go.release()


class Int(int):
    """A scalar of a kernel."""

    def to(self, _: Any) -> Int:
        return self


# --- memory -----------------------------------------------------------------------------------------------------------


@dataclass
class Pointer:
    data: Tensor
    offset: Any = 0

    def __add__(self, step: Any) -> Pointer:
        return Pointer(self.data, self.offset + step)

    def __getitem__(self, key: Any) -> Pointer:
        return Pointer(self.data, self.offset[key])

    def at(self, mask: Any) -> Tensor:
        offset = torch.as_tensor(self.offset)
        used = offset if mask is None else offset[torch.as_tensor(mask).expand(offset.shape)]
        inside = used.numel() == 0 or (int(used.min()) >= 0 and int(used.max()) < self.data.numel())
        assert inside, "beyond the tensor"
        return offset.clamp(0, self.data.numel() - 1)


def load(pointer: Pointer, mask: Any = None, other: Any = 0) -> Any:
    values = pointer.data[pointer.at(mask)]
    if values.dim() == 0:
        return Int(values) if values.dtype == torch.int32 else float(values)
    return values if mask is None else torch.where(mask, values, other)


def store(pointer: Pointer, values: Tensor, mask: Tensor) -> None:
    at = pointer.at(mask)
    mask = mask.expand(at.shape)
    pointer.data[at[mask]] = values.expand(at.shape)[mask].to(pointer.data.dtype)


@dataclass
class Descriptor:
    """Of a matrix [tokens, columns] in tiles of `block`; beyond it lie zeros."""

    matrix: Tensor
    block: tuple[int, int]
    layout: Any = None

    def tile(self, row: int, column: int) -> Tensor:
        rows, columns = self.block
        assert column >= 0 and column % 8 == 0
        out = torch.zeros(rows, columns, dtype=self.matrix.dtype)
        there = self.matrix[max(row, 0) : max(row + rows, 0), column : column + columns]
        out[max(-row, 0) : max(-row, 0) + len(there), : there.shape[1]] = there
        return out


class Shared:
    """A part of shared memory."""

    def __init__(self, machine: Machine, values: Tensor) -> None:
        self.machine, self.values = machine, values

    def index(self, at: int) -> Shared:
        assert 0 <= at < len(self.values)
        return Shared(self.machine, self.values[int(at)])

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.machine, self.values.permute(order))

    def load(self, layout: Any) -> Tensor:
        return self.values.clone()

    def store(self, values: Tensor) -> None:
        assert values.shape == self.values.shape
        self.values.copy_(values)
        # Tables have rows of one dimension: neither TMA nor products touch them.
        self.machine.role.unfenced |= values.dim() > 1

    def gather(self, at: Tensor, axis: int) -> Tensor:
        assert axis == 0 and at.dim() == 1
        return self.values[at]

    def _reinterpret(self, dtype: Any, shape: list[int], layout: Any) -> Any:
        assert math.prod(shape) == self.values.numel()
        return Pieces(self, shape) if len(shape) > 1 else Shared(self.machine, self.values.view(-1))


@dataclass
class Pieces:
    """Tiles [slots, rows, columns] as shared memory has them: panels of 64 columns, of which groups of rows are pieces."""

    whole: Shared
    shape: list[int]

    def index(self, at: int) -> Shared:
        _slots, rows, columns = self.whole.values.shape
        groups, panels = rows // self.shape[1], columns // 64
        slot, panel, group = at // (groups * panels), at // groups % panels, at % groups
        tile = self.whole.values[slot, group * self.shape[1] :][: self.shape[1], 64 * panel :][:, :64]
        return Shared(self.whole.machine, tile)


@dataclass
class Barrier:
    arrivals: int = 0
    missing: int = 0
    bytes: int = 0
    phase: int = 0
    coming: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def arrive(self) -> None:
        assert self.missing > 0, "more arrivals than the barrier counts"
        self.missing -= 1
        self.settle()

    def settle(self) -> None:
        if self.missing == 0 and self.bytes == 0:
            self.phase += 1
            self.missing = self.arrivals

    def land(self) -> None:
        """What is on its way arrives."""
        for target, values in self.coming:
            target.copy_(values)
            self.bytes -= values.numel() * ELEMENT
        if self.coming:
            self.coming.clear()
            self.settle()

    def over(self, parity: int) -> bool:
        self.land()
        return self.phase & 1 != parity


@dataclass
class Barriers:
    members: list[Barrier]

    def index(self, at: int) -> Barrier:
        return self.members[int(at)]


@dataclass
class Product:
    """A product that runs: its operands are read when it is waited for."""

    left: Any
    right: Shared
    start: Any
    value: Tensor | None = None

    def finish(self) -> None:
        left = self.left.values if isinstance(self.left, Shared) else self.left
        self.value = left @ self.right.values + (0.0 if self.start is None else self.start)


# --- the modules that the kernels import ------------------------------------------------------------------------------


class Language:
    """`triton.experimental.gluon.language`, as far as the kernels use it."""

    bfloat16 = float32 = torch.float64
    int32, int64 = torch.int32, torch.int64

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def __getattr__(self, name: str) -> Any:
        if name.endswith("Layout"):
            return type(name, (), {"__init__": lambda self, *given, **named: None})
        raise AttributeError(name)

    load, store = staticmethod(load), staticmethod(store)
    static_range = staticmethod(range)
    constexpr = staticmethod(lambda value: value)
    convert_layout = staticmethod(lambda values, layout: values)
    zeros_like = staticmethod(torch.zeros_like)
    abs, reshape, exp2, log2 = (staticmethod(f) for f in (torch.abs, torch.reshape, torch.exp2, torch.log2))
    max = staticmethod(torch.amax)
    sum = staticmethod(torch.sum)

    def program_id(self, axis: int) -> int:
        return self.machine.program

    def barrier(self) -> None:
        """Threads of a role are one here."""

    def zeros(self, shape: list[int], dtype: Any, layout: Any) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64)

    def full(self, shape: list[int], value: float, dtype: Any, layout: Any) -> Tensor:
        return torch.full(shape, value, dtype=torch.float64)

    def arange(self, low: int, high: int, layout: Any) -> Tensor:
        return torch.arange(low, high)

    def where(self, condition: Any, yes: Any, no: Any) -> Any:
        if isinstance(condition, bool):
            return yes if condition else no
        return torch.where(condition, yes, no)

    def maximum(self, a: Any, b: Any) -> Any:
        return a.clamp(min=b) if isinstance(a, Tensor) else max(a, b)

    def minimum(self, a: Tensor, b: float) -> Tensor:
        return a.clamp(max=b)

    def fma(self, a: Tensor, b: Tensor, c: Any) -> Tensor:
        return a * b + c

    def inline_asm_elementwise(self, asm: str, constraints: str, args: list[Tensor], **named: Any) -> Tensor:
        return {"tanh.approx": torch.tanh, "lg2.approx": torch.log2}[asm[: asm.index(".f32")]](args[0])

    def allocate_shared_memory(self, dtype: torch.dtype, shape: list[int], layout: Any) -> Any:
        if dtype == torch.int64:
            return Barriers([Barrier() for _ in range(shape[0])])
        return Shared(self.machine, torch.full(shape, torch.nan, dtype=dtype))

    def warp_specialize(self, parts: list[tuple[Any, tuple[Any, ...]]], warps: list[int], registers: list[int]) -> None:
        assert all(r % 8 == 0 for r in registers) and sum(registers) + 240 <= 504 + 8 * (registers[0] < 240)
        self.machine.specialize([lambda part=part: part[0](*part[1]) for part in parts])


class Hopper:
    """`triton.experimental.gluon.language.nvidia.hopper`; its `tma` and `mbarrier` are itself."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.tma = self.mbarrier = self

    class MBarrierLayout:
        """Barriers have no layout here."""

    def init(self, barrier: Barrier, count: int) -> None:
        barrier.arrivals = barrier.missing = count

    def expect(self, barrier: Barrier, size: int) -> None:
        barrier.bytes += size
        barrier.arrive()

    def arrive(self, barrier: Barrier) -> None:
        barrier.arrive()

    def wait(self, barrier: Barrier, parity: int, pred: Any = True) -> None:
        if pred:
            self.machine.wait(lambda: barrier.over(parity))

    def async_copy_global_to_shared(self, source: Descriptor, at: list[int], barrier: Barrier, target: Shared) -> None:
        assert not self.machine.role.unfenced, "TMA after stores without a fence"
        target.values.fill_(torch.nan)
        barrier.coming.append((target.values, source.tile(*at)))

    def fence_async_shared(self) -> None:
        self.machine.role.unfenced = False

    def warpgroup_mma(
        self, left: Any, right: Shared, start: Any, use_acc: bool = True, is_async: bool = False
    ) -> Product:
        product = Product(left, right, start if use_acc else None)
        self.machine.role.products.append(product)
        return product

    def warpgroup_mma_wait(self, outstanding: int, deps: list[Any]) -> Any:
        running = self.machine.role.products
        while len(running) > outstanding:
            running.pop(0).finish()
        values = [dep.value if isinstance(dep, Product) else dep for dep in deps]
        assert all(value is not None for value in values), "a product is read that still runs"
        return values[0] if len(values) == 1 else tuple(values)


def unpacked(time: Tensor) -> list[Tensor]:
    """`gluon_bias.unpacked`, which has the bits of float32 in the place of numbers."""
    return [half.to(torch.int32).view(torch.float32).double() for half in (time >> 32, time)]


def jit(function: Any = None, **options: Any) -> Any:
    return function if function is not None else lambda given: given


@contextmanager
def modules(**replaced: Any) -> Iterator[None]:
    names = {name.replace("__", "."): module for name, module in replaced.items()}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


class Kernels:
    """The kernels of `gluon_*.py`, to be run on a CPU."""

    def __init__(self, seed: int = 0) -> None:
        self.machine = Machine(seed)
        language, hopper = Language(self.machine), Hopper(self.machine)
        gluon = types.SimpleNamespace(jit=jit, language=language)
        with modules(
            triton__experimental=types.SimpleNamespace(gluon=gluon),
            triton__experimental__gluon=gluon,
            triton__experimental__gluon__language__nvidia__hopper=hopper,
        ):
            tiles = self.read("attention", "gluon_tiles")
            bias = self.read("attention", "gluon_bias", tiles)
            bias.unpacked = unpacked
            forward, query, key = (
                self.read("attention", f"gluon_{x}", tiles, bias) for x in ("forward", "query", "key")
            )
            walks = self.read("spans", "gluon_walks")
            of_spans = [self.read("spans", f"gluon_{x}", tiles, walks) for x in ("forward", "query", "key")]
        self.forward = forward.gluon_forward_kernel
        self.narrow_query, self.wide_query = query.narrow_query_kernel, query.wide_query_kernel
        self.narrow_key, self.wide_key = key.narrow_key_kernel, key.wide_key_kernel
        named = (name for module in of_spans for name in vars(module).items())
        self.of_spans = {name: kernel for name, kernel in named if name.endswith("_kernel")}

    def read(self, op: str, name: str, *imported: Any) -> Any:
        """A module of an op's folder, which imports others that were read before."""
        spec = importlib.util.spec_from_file_location(
            f"genrank.kernels.{op}.hopper.{name}", FOLDER / op / "hopper" / f"{name}.py"
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with modules(**{each.__name__: each for each in imported}):
            spec.loader.exec_module(module)
        return module

    def launch(self, launch: Launch) -> None:
        """What a launch of span attention would have run, on its own arguments."""
        named = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
        [config] = launch.configs(90)
        kernel = self.of_spans[launch.kernel.__name__]
        self.run(kernel, len(named["records"]) * named["heads"], launch.arguments, **launch.constants, **config.kwargs)

    def run(self, kernel: Callable[..., None], programs: int, arguments: list[Any], **constants: int) -> None:
        given = [
            Pointer(x.view(-1)) if isinstance(x, Tensor) else Int(x) if isinstance(x, int) else x for x in arguments
        ]
        for program in range(programs):
            self.machine.program = program
            kernel(*given, **constants)
