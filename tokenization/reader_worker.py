"""A process that reads samples for another: `python -m genrank.tokenization.reader_worker CONTROL FILES LIFE`, descriptors of its parent's.

It ends when LIFE is closed, which only its parent holds open: also where that was killed. Ctrl-C is the parent's to answer.
"""

from __future__ import annotations

import contextlib
import importlib.util
import mmap
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, NamedTuple

import torch

from genrank.schemas.errors import UserError
from genrank.tokenization.batch import Batch, pack, packed_bytes
from genrank.tokenization.reader_processes import Failed, Made, Share, Taken, WindowDone
from genrank.tokenization.row_group import Position

if TYPE_CHECKING:
    from genrank.tokenization.reader import SampleReader

AHEAD_BYTES = 256 << 20
"""Batches that wait to be taken, at most; two in any case."""
SLOT_UNIT = 1 << 20
"""A piece of memory is a multiple of so many bytes."""


def main(control: int, files: int, life: int) -> None:
    """Read what the parent asks for, epoch by epoch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    torch.set_num_threads(1)
    connection = Connection(control)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has closed its end
        share: Share = connection.recv()
        for name, file in share.modules.items():
            _load(name, file)
        outbox = _Outbox(connection, socket.socket(fileno=files))
        reader: SampleReader = pickle.loads(share.reader)
        while True:
            _answer(reader, share, outbox)


def _answer(reader: SampleReader, share: Share, outbox: _Outbox) -> None:
    """Read this process's share of what is left of an epoch."""
    start = outbox.wait_for_start()
    try:
        for window in reader.windows(start, share.first, share.step):
            for batch, position in window:
                outbox.send(batch, position)
            outbox.connection.send(WindowDone())
    except UserError as error:
        outbox.connection.send(Failed(str(error), of_user=True))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception:
        outbox.connection.send(Failed(traceback.format_exc(), of_user=False))


class _Slot(NamedTuple):
    number: int
    memory: torch.Tensor
    """[bytes] uint8."""


class _Outbox:
    """Sends batches, each in a piece of memory of its own until the parent is done with it."""

    def __init__(self, connection: Connection, files: socket.socket) -> None:
        self.connection, self.files = connection, files
        self._slots: dict[int, _Slot] = {}
        self._free: set[int] = set()
        self._waiting: deque[int] = deque()
        """Bytes of each batch sent and not taken."""
        self._made = 0
        self._described = False

    def wait_for_start(self) -> Position:
        """Where to begin the next share."""
        self._described = False
        while (start := self._hear()) is None:
            pass
        return start

    def send(self, batch: Batch, position: Position) -> None:
        """Send a batch, once the ones before it leave room for it."""
        need = packed_bytes(batch)
        while (len(self._waiting) > 1 and sum(self._waiting) + need > AHEAD_BYTES) or self.connection.poll():
            self._hear()
        slot, size, dropped = self._slot(need)
        counts = pack(batch, slot.memory).counts
        like = None if self._described else batch.like()
        self._described = True
        self.connection.send(Made(position, slot.number, size, dropped, need, list(counts), batch.sample_id, like))
        self._waiting.append(need)

    def _hear(self) -> Position | None:
        message: Taken | Position = self.connection.recv()
        if isinstance(message, Position):
            self._waiting.clear()
            return message
        self._waiting.popleft()
        self._free.update(message.free)
        return None

    def _slot(self, need: int) -> tuple[_Slot, int, int]:
        """A free piece, the bytes of a new one (0: it is known), and one that was given up for it (-1: none)."""
        fits = [number for number in self._free if len(self._slots[number].memory) >= need]
        if fits:
            number = min(fits, key=lambda each: len(self._slots[each].memory))
            self._free.remove(number)
            return self._slots[number], 0, -1
        dropped = self._free.pop() if self._free else -1
        self._slots.pop(dropped, None)
        size = -(-(need + need // 4) // SLOT_UNIT) * SLOT_UNIT or SLOT_UNIT
        descriptor = os.memfd_create("genrank-batch", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, size)
        memory = torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8)
        socket.send_fds(self.files, [b"f"], [descriptor])
        os.close(descriptor)
        slot = _Slot(self._made, memory)
        self._slots[slot.number] = slot
        self._made += 1
        return slot, size, dropped


def _end_with(life: int) -> None:
    os.read(life, 1)
    os._exit(0)


def _load(name: str, file: str) -> None:
    """Import a file under a module's name."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, os.path.dirname(os.path.abspath(file)))
    spec.loader.exec_module(module)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
