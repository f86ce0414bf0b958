"""Reading in processes of their own: batches arrive in memory that both sides see, in the order in which a thread would make them.

Reading and the training step are Python both; in one process they take turns at its interpreter lock. Window number n of what is left
of an epoch is read by process n mod N, and its batches are taken from there in turn.

Memory is anonymous (`memfd_create`): it has no name that could outlive its users, and the kernel frees it once the last of them has
ended, however it ended. A process ends itself when the pipe that only its parent holds open is closed (`reader_worker`).
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import pickle
import socket
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
import torch

from genrank.schemas.errors import UserError
from genrank.schemas.kind import Kind
from genrank.tokenization.batch import Batch, Packed
from genrank.tokenization.row_group import Position


class Share(NamedTuple):
    """What a process reads: windows first, first + step, ... of what is left."""

    reader: bytes
    """The reader, pickled."""
    modules: dict[str, str]
    """Modules by file that it needs and that no import finds: schemas that declare kinds of their own."""
    first: int
    step: int


class Taken(NamedTuple):
    """To a process: a batch was taken, and these pieces of memory are free again."""

    free: list[int]


class Made(NamedTuple):
    """From it: a batch."""

    position: Position
    """After it."""
    slot: int
    """Number of the piece of memory."""
    size: int
    """Bytes of a new piece, whose descriptor was sent beside; 0 where it is known."""
    dropped: int
    """A piece too small to be used again; -1: none."""
    used: int
    """Bytes."""
    counts: list[int]
    sample_id: list[str]
    like: Batch | None
    """What batches look like, without values: with the first of an epoch."""


class WindowDone(NamedTuple):
    """From it: no more batches of this window."""


class Failed(NamedTuple):
    """From it: reading ended in an error."""

    message: str
    of_user: bool
    """Whether it is a `UserError`; if not, `message` is a traceback."""


class ReaderProcesses:
    """N processes that read for a `SampleReader`.

    Args:
        reader: pickled.
        count: N.
        pinned: page-lock the memory, for copies to a GPU that overlap with its work.

    Raises:
        UserError: the schema has kinds that another process could not load.

    Iterating raises it too where memory can't be page-locked.
    """

    def __init__(self, reader: bytes, count: int, *, pinned: bool) -> None:
        modules = _modules_of_kinds()
        self.workers = [_Worker(Share(reader, modules, first, count), pinned) for first in range(count)]
        self._close = weakref.finalize(self, _close, self.workers)

    def windows(self, start: Position, count: int) -> Iterator[Iterator[tuple[Batch, Position]]]:
        """Each window's batches from `start` on, to be taken in turn, of an epoch of so many windows.

        Raises:
            UserError: as reading does, or a process ended unasked.
        """
        for worker in self.workers:
            worker.start(start)
        for number in range(count - start.window):
            yield self.workers[number % len(self.workers)].window()

    def close(self) -> None:
        """End the processes. Batches that were taken stay."""
        self._close()


class _Worker:
    """One process, seen from its parent."""

    def __init__(self, share: Share, pinned: bool) -> None:
        self.pinned = pinned
        own, its = socket.socketpair()
        self._files, its_files = socket.socketpair()
        its_life, self._life = os.pipe()
        given = (its.fileno(), its_files.fileno(), its_life)
        search = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "genrank.tokenization.reader_worker", *map(str, given)],
            pass_fds=given,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": search, "CUDA_VISIBLE_DEVICES": ""},
        )
        for end in (its, its_files):
            end.close()
        os.close(its_life)
        self._connection = Connection(own.detach())
        self._slots: dict[int, np.ndarray] = {}
        self._free: deque[int] = deque()
        self._like: Batch | None = None
        self._send(share)

    def start(self, position: Position) -> None:
        """Begin to read its share of what is left after `position`."""
        self._send(position)

    def window(self) -> Iterator[tuple[Batch, Position]]:
        """The batches of its next window."""
        while not isinstance(message := self._receive(), WindowDone):
            batch = self._batch(message)
            free = [self._free.popleft() for _ in range(len(self._free))]
            self._send(Taken(free))
            yield batch, message.position

    def close(self) -> None:
        """Let it end, and wait for that."""
        for end in (self._connection, self._files):
            end.close()
        os.close(self._life)
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _batch(self, made: Made) -> Batch:
        if made.dropped >= 0:
            del self._slots[made.dropped]
        if made.size:
            self._slots[made.slot] = self._mapped(made.size)
        if made.like is not None:
            self._like = made.like
        assert self._like is not None
        lent = self._slots[made.slot].view()
        weakref.finalize(lent, self._free.append, made.slot).atexit = False
        memory = torch.frombuffer(lent, dtype=torch.uint8, count=made.used)
        batch = Packed(memory, made.counts).batch(self._like)
        batch.sample_id = made.sample_id
        return batch

    def _mapped(self, size: int) -> np.ndarray:
        _, (descriptor, *_), _, _ = socket.recv_fds(self._files, 1, 1)
        try:
            array = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
        finally:
            os.close(descriptor)
        if self.pinned:
            _page_lock(array)
        return array

    def _send(self, message: object) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise self._ended() from None

    def _receive(self) -> Made | WindowDone:
        try:
            message = self._connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(message, Failed):
            if message.of_user:
                raise UserError(message.message)
            raise RuntimeError(f"a process that reads samples failed:\n{message.message}")
        assert isinstance(message, Made | WindowDone)
        return message

    def _ended(self) -> UserError:
        status = self.process.wait()
        why = f"signal {-status}" if status < 0 else f"status {status}"
        return UserError(
            f"a process that reads samples ended with {why} (out of memory?); run again, with --readers 0 to read in a thread"
        )


def _close(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.close()


def _page_lock(array: np.ndarray) -> None:
    """Page-lock memory until its last user is gone.

    Raises:
        UserError: the system refuses.
    """
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if runtime.cudaHostRegister(array.ctypes.data, array.nbytes, 0) != runtime.cudaError.success:
        raise UserError(
            f"{array.nbytes:,} bytes of shared memory can't be page-locked for the GPU; raise the limit (ulimit -l), or read in a"
            " thread (--readers 0)"
        )
    weakref.finalize(array, runtime.cudaHostUnregister, array.ctypes.data).atexit = False


def _modules_of_kinds() -> dict[str, str]:
    """Modules that declare registered kinds and that another process finds by their file alone.

    Raises:
        UserError: kinds are declared where no other process finds them.
    """
    found: dict[str, str] = {}
    for family in Kind.__subclasses__():
        for tag, kind in family.kinds().items():
            name = kind.__module__
            if name == "__main__":
                raise UserError(
                    f"kind {tag!r} is declared in the script itself, where a process that reads samples can't find it: move it"
                    " to a module, or read in a thread (--readers 0)"
                )
            file = getattr(sys.modules.get(name), "__file__", None)
            if file and importlib.util.find_spec(name.partition(".")[0]) is None:
                found[name] = file
    return found


def pickled(reader: object) -> bytes:
    """A reader as it is sent to a process."""
    return pickle.dumps(reader)
