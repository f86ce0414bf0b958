"""A batch of samples as jagged tensors: per token group one set of offsets, per feature one flat tensor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrank.tokenization import buffer_pool
from genrank.tokenization.buffer_pool import CACHE_LINE

Ints = npt.NDArray[np.int64]
MANY = 1 << 14
"""Rows from which on a gather waits for memory more than for anything else."""


class Runs(NamedTuple):
    """Rows begin[k]:end[k] of each k, one run after another."""

    begin: Tensor
    end: Tensor
    """[K] int64."""
    offsets: Tensor
    """[K+1] int64 of the runs' lengths."""
    rows: Tensor
    """[N] int64: all of them."""


Rows = Tensor | Runs | slice
"""Which rows: [K] int64 in any order, runs of them, or a slice, whose rows are shared with the original instead of copied."""


@dataclass
class Ragged:
    """A list of values per row: a multi-valued feature, or a vector."""

    values: Tensor
    """[M] int64 ids; float32 of vectors."""
    offsets: Tensor
    """[N+1] int64: row n holds values[offsets[n]:offsets[n+1]]."""

    def take(self, rows: Rows) -> Ragged:
        """Some rows, in that order."""
        if isinstance(rows, slice):
            offsets = self.offsets[rows.start : rows.stop + 1]
            return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])
        if isinstance(rows, Runs):
            # The lists of consecutive rows are consecutive, too.
            inner = ranges(pick(self.offsets, rows.begin), pick(self.offsets, rows.end))[1]
            offsets = rows.rows.new_zeros(len(rows.rows) + 1)
            torch.cumsum(pick(self.offsets.diff(), rows.rows), 0, out=offsets[1:])
        else:
            offsets, inner = ranges(pick(self.offsets, rows), pick(self.offsets, rows + 1))
        return Ragged(pick(self.values, inner), offsets)

    def split(self, bounds: Sequence[int]) -> list[Ragged]:
        """Rows bounds[i]:bounds[i+1], which share this one's memory."""
        first = self.offsets[torch.tensor(bounds)].tolist()
        values = cut(self.values, np.diff(first).tolist())
        return [
            Ragged(values[i], self.offsets[begin : end + 1] - first[i])
            for i, (begin, end) in enumerate(itertools.pairwise(bounds))
        ]


@dataclass
class Group:
    """One token group: the user, a sequence's events, or the candidates of every sample, one after another."""

    offsets: Tensor
    """[B+1] int64: sample b owns rows offsets[b]:offsets[b+1]. For the user group arange(B+1)."""
    ts: Tensor
    """[N] int64 epoch ms: the row's own time; `window_start` for users."""
    features: dict[str, Tensor | Ragged] = field(default_factory=dict)
    """Stored leaves by feature name: [N] int64 ids and times, float32 numbers, ragged ids or vectors. Sequences have `type` too."""
    host_offsets: Tensor | None = None
    """`offsets` as they were on the host, of a group that `Batch.to` took to a device."""

    @property
    def lengths(self) -> Tensor:
        """[B] int64: rows of each sample."""
        return self.offsets.diff()

    @property
    def host_lengths(self) -> Tensor:
        """[B] int64: the same on the host, without waiting for the device that `Batch.to` took the group to."""
        return (self.offsets.cpu() if self.host_offsets is None else self.host_offsets).diff()

    def split(self, ends: Sequence[int]) -> list[Group]:
        """The groups of samples ends[i]:ends[i+1], which share this one's memory."""
        bounds = self.offsets[torch.tensor(ends)].tolist()
        sizes = np.diff(bounds).tolist()
        leaves: dict[str, Sequence[Tensor | Ragged]] = {
            name: leaf.split(bounds) if isinstance(leaf, Ragged) else cut(leaf, sizes)
            for name, leaf in self.features.items()
        }
        return [
            Group(self.offsets[begin : end + 1] - bounds[i], ts, {name: parts[i] for name, parts in leaves.items()})
            for i, ((begin, end), ts) in enumerate(zip(itertools.pairwise(ends), cut(self.ts, sizes), strict=True))
        ]

    def take(self, rows: Rows, offsets: Tensor) -> Group:
        """A group of some rows of this one, divided among samples by `offsets`."""
        features: dict[str, Tensor | Ragged] = {
            name: leaf.take(rows) if isinstance(leaf, Ragged) else pick(leaf, rows)
            for name, leaf in self.features.items()
        }
        return Group(offsets, pick(self.ts, rows), features)


@dataclass
class Batch:
    """Samples of a batch; B samples, C candidates, R realtime events."""

    groups: dict[str, Group]
    """By group name in token order: `user`, histories, realtime, `candidates`."""
    sample_id: list[str]
    user: Tensor
    """[B] int64: the user's id (hashed if the column is a string)."""
    window_start: Tensor
    """[B] int64 epoch ms."""
    request: Tensor
    """[C] int64."""
    item: Tensor
    """[C] int64 (hashed if the column is a string)."""
    labels: dict[str, Tensor]
    """Task -> [C] float32."""
    weights: dict[str, Tensor]
    """Task -> [C] float32; 0 where the label's window had not closed."""
    oracles: dict[str, Tensor]
    """Task -> [C] float32, the true probability; only tasks that declare one."""
    candidate_sees: Tensor
    """[C] int32: how many of the sample's realtime events were available strictly before the exposure."""
    realtime_sees: Tensor
    """[R] int32: how many were available strictly before this one was."""
    realtime_available: Tensor
    """[R] int64 epoch ms."""
    filler: bool = False
    """Whether it only stands in for one, on a rank that has no batch left: nothing of it is looked up, counted or learned."""
    packed: Packed | None = field(default=None, init=False, repr=False, compare=False)
    """The one piece of memory that all its tensors are views of, where they are: then a copy moves it. `dataclasses.replace` leaves it out."""

    def __len__(self) -> int:
        return len(self.user)

    @property
    def candidates(self) -> Group:
        """The group that is ranked."""
        return self.groups["candidates"]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The batch on `device`; one copy, if it is packed."""
        if self.packed is not None:
            return self.packed.to(device, non_blocking).batch(self)
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, for copies that overlap with compute."""
        if self.packed is not None:
            return self if self.packed.memory.is_pinned() else self.packed.pin_memory().batch(self)
        return self._map(lambda tensor: tensor.pin_memory())

    def like(self) -> Batch:
        """The batch without its values and ids: names and dtypes."""
        batch = self._map(lambda tensor: tensor.new_empty(0))
        for group in batch.groups.values():
            group.host_offsets = None
        batch.sample_id = []
        return batch

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory from being reused before `stream` is done with it."""
        if self.packed is not None:
            self.packed.memory.record_stream(stream)
            return

        def keep(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self._map(keep)

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        def group(g: Group) -> Group:
            leaves: dict[str, Tensor | Ragged] = {
                name: Ragged(fn(leaf.values), fn(leaf.offsets)) if isinstance(leaf, Ragged) else fn(leaf)
                for name, leaf in g.features.items()
            }
            host = g.offsets if g.host_offsets is None and g.offsets.device.type == "cpu" else g.host_offsets
            if self.packed is not None and host is not None:
                host = host.clone()  # its memory is used again once the batch has been copied
            return Group(fn(g.offsets), fn(g.ts), leaves, host)

        def each(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: fn(tensor) for name, tensor in tensors.items()}

        return Batch(
            groups={name: group(g) for name, g in self.groups.items()},
            sample_id=self.sample_id,
            user=fn(self.user),
            window_start=fn(self.window_start),
            request=fn(self.request),
            item=fn(self.item),
            labels=each(self.labels),
            weights=each(self.weights),
            oracles=each(self.oracles),
            candidate_sees=fn(self.candidate_sees),
            realtime_sees=fn(self.realtime_sees),
            realtime_available=fn(self.realtime_available),
            filler=self.filler,
        )


@dataclass(frozen=True)
class Packed:
    """The tensors of a batch one behind another, each at a multiple of `ALIGNMENT` bytes, in the order in which `Batch` has them."""

    memory: Tensor
    """[bytes] uint8, at least `packed_bytes` of them."""
    counts: Sequence[int]
    """Values of each tensor."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Packed:
        """The same on `device`."""
        return Packed(self.memory.to(device, non_blocking=non_blocking), self.counts)

    def pin_memory(self) -> Packed:
        """The same in page-locked memory."""
        return Packed(self.memory.pin_memory(), self.counts)

    def batch(self, like: Batch) -> Batch:
        """The batch whose tensors these are; all else (names, dtypes, ids) is as in `like`."""
        dtypes = [tensor.dtype for tensor in _tensors(like)]
        sizes = [n * dtype.itemsize for n, dtype in zip(self.counts, dtypes, strict=True)]
        bounds = [part for size in sizes for part in (size, -size % ALIGNMENT)]
        pieces = torch.split_with_sizes(self.memory, [*bounds, len(self.memory) - sum(bounds)])[:-1:2]
        views = iter([piece.view(dtype) for piece, dtype in zip(pieces, dtypes, strict=True)])
        batch = like._map(lambda _: next(views))
        if self.memory.device.type == "cpu":
            for group in batch.groups.values():
                group.host_offsets = None
        batch.packed = self
        return batch


ALIGNMENT = 64
"""Of a packed tensor, in bytes: a cache line, and what vectorised loads of kernels ask for at most."""


def packed_bytes(batch: Batch) -> int:
    """Bytes that a batch takes when it is packed."""
    return sum(tensor.nbytes + -tensor.nbytes % ALIGNMENT for tensor in _tensors(batch))


def pack(batch: Batch, memory: Tensor) -> Packed:
    """Copy a batch on the CPU to a piece of memory, [bytes] uint8."""
    tensors, at = _tensors(batch), 0
    for tensor in tensors:
        memory[at : at + tensor.nbytes].view(tensor.dtype).copy_(tensor)
        at += tensor.nbytes + -tensor.nbytes % ALIGNMENT
    return Packed(memory, [len(tensor) for tensor in tensors])


def _tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    batch._map(note)
    return found


def pick(values: Tensor, rows: Rows) -> Tensor:
    """values[rows]; `index_select` takes a quarter of the time that indexing does, a slice copies nothing."""
    if isinstance(rows, slice):
        return values[rows]
    if isinstance(rows, Runs):
        rows = rows.rows
    if len(rows) < MANY or values.device.type != "cpu":
        return values.index_select(0, rows)
    if len(values) < 4 * len(rows):
        # Reading one value of each cache line in order brings the rest along; gathering then takes half the time.
        values[:: CACHE_LINE // values.element_size()].sum()
    return torch.index_select(values, 0, rows, out=buffer_pool.empty(len(rows), values.dtype))


def cut(values: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Consecutive views of so many values each."""
    parts: Sequence[Tensor] = torch.split_with_sizes(values, sizes)
    return parts


def runs(begin: Tensor, end: Tensor) -> tuple[Tensor, Runs | slice]:
    """The rows of K runs, [K] int64 `begin <= end`, and the offsets that divide them; a slice if they follow one another."""
    if len(begin) and torch.equal(begin[1:], end[:-1]):
        offsets = torch.cat([begin, end[-1:]])
        return offsets - offsets[0], slice(int(begin[0]), int(end[-1]))
    offsets, index = ranges(begin, end)
    return offsets, Runs(begin, end, offsets, index)


def ranges(begin: Tensor, end: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
    """Concatenated integer ranges, without a loop.

    Args:
        begin: [K] int64, the first of each range.
        end: [K] int64, one past the last, `begin <= end`.
        total: sum of end - begin, where the caller knows it: saves a GPU a synchronisation.

    Returns:
        offsets [K+1] int64 of the ranges' lengths, and [sum(end - begin)] int64: begin[0], ..., end[0]-1, begin[1], ...
    """
    # Memory that is used again can't be traced, where an encoder that `--compile` traces asks for ranges.
    if begin.device.type == "cpu" and not torch.compiler.is_compiling():
        return _ranges_in_numpy(begin.numpy(), end.numpy())
    lengths = end - begin
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=begin.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    total = int(offsets[-1]) if total is None else total
    shift = torch.repeat_interleave(begin - offsets[:-1], lengths, output_size=total)
    return offsets, shift.add_(torch.arange(total, device=begin.device))


def _ranges_in_numpy(begin: Ints, end: Ints) -> tuple[Tensor, Tensor]:
    """The running sum of ones, with a jump where a range begins.

    In a third of torch's time, and without its threads, which would spin on beside a reader's.
    """
    lengths = end - begin
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    index = buffer_pool.empty(int(offsets[-1]), torch.int64)
    if len(index):
        some = lengths > 0
        starts, first, last = offsets[:-1][some], begin[some], end[some]
        steps = index.numpy()
        steps.fill(1)
        steps[starts[1:]] += first[1:] - last[:-1]
        steps[0] = first[0]
        np.cumsum(steps, out=steps)
    return torch.from_numpy(offsets), index
