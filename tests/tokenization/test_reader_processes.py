"""Processes that read hand out what a thread does, in its order and from any position; and leave nothing behind, however they end."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from random_samples import demo_schema, write_random_samples

from genrank.schemas import UserError
from genrank.tokenization.batch import Batch, Packed, Ragged, pack, packed_bytes
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.reader_processes import ReaderProcesses, _page_lock, pickled
from genrank.tokenization.row_group import Position

DATES = ["2026-01-01", "2026-01-02"]
SCHEMA = demo_schema()
OPTIONS: dict[str, Any] = {"token_budget": 200, "shuffle_buffer": 12, "view": "request", "seed": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_samples(tmp_path_factory.mktemp("samples"), SCHEMA, DATES)


@pytest.fixture(scope="module")
def processes(root: Path) -> Iterator[ReaderProcesses]:
    started = ReaderProcesses(pickled(SampleReader(root, SCHEMA, DATES, **OPTIONS)), 2, pinned=False)
    yield started
    started.close()


def leaves(batch: Batch) -> dict[str, Any]:
    """Every tensor of a batch by its place, and its ids."""
    out: dict[str, Any] = {"sample_id": batch.sample_id}
    for name, group in batch.groups.items():
        out |= {f"{name}.offsets": group.offsets, f"{name}.ts": group.ts, f"{name}.lengths": group.host_lengths}
        for leaf, values in group.features.items():
            parts = {"values": values.values, "offsets": values.offsets} if isinstance(values, Ragged) else {"": values}
            out |= {f"{name}.{leaf}.{part}": tensor for part, tensor in parts.items()}
    for field in ("labels", "weights", "oracles"):
        out |= {f"{field}.{task}": tensor for task, tensor in getattr(batch, field).items()}
    for field in ("user", "window_start", "request", "item", "candidate_sees", "realtime_sees", "realtime_available"):
        out[field] = getattr(batch, field)
    return out


def same(left: Batch, right: Batch) -> bool:
    a, b = leaves(left), leaves(right)
    assert a.keys() == b.keys()
    for name, value in a.items():
        equal = (
            value.dtype == b[name].dtype and torch.equal(value.nan_to_num(7), b[name].nan_to_num(7))
            if isinstance(value, torch.Tensor)
            else value == b[name]
        )
        assert equal, name
    return True


def in_memory_of_its_own(batch: Batch) -> Packed:
    return pack(batch, torch.empty(packed_bytes(batch) + 64, dtype=torch.uint8))


def test_a_packed_batch_is_the_batch(root: Path) -> None:
    for view in ("user_day", "request"):
        for batch in SampleReader(root, SCHEMA, DATES, token_budget=300, view=view):  # type: ignore[arg-type]
            packed = in_memory_of_its_own(batch).batch(batch.like())
            packed.sample_id = batch.sample_id
            assert same(packed, batch)
            assert packed.packed is not None and dataclasses.replace(packed, filler=True).packed is None
            moved = packed.to("meta")
            assert moved.packed is not None and moved.candidates.ts.device.type == "meta"
            torch.testing.assert_close(moved.candidates.host_lengths, batch.candidates.lengths)
            pointer = moved.candidates.host_offsets
            assert pointer is not None and pointer.data_ptr() != packed.candidates.offsets.data_ptr(), (
                "what the host keeps outlives memory that is used again"
            )
            addresses = [t.data_ptr() % 64 for t in (packed.user, packed.item, packed.candidates.ts) if len(t)]
            assert len(set(addresses)) == 1, "as aligned as the memory itself"


def test_the_same_batches_in_the_same_order_from_any_position(root: Path, processes: ReaderProcesses) -> None:
    reader = SampleReader(root, SCHEMA, DATES, prefetch=0, **OPTIONS)
    expected = [[(batch, reader.position) for batch in reader] for _ in range(2)]
    windows = [len(reader._windows(epoch)) for epoch in range(2)]
    assert min(windows) > 4 and len(expected[0]) > 20
    starts = [dataclasses.replace(expected[0][0][1], batches=0), *(position for _, position in expected[0][:8])]
    starts += [expected[0][-3][1], dataclasses.replace(starts[0], epoch=1)]
    kept: list[tuple[Batch, Batch]] = []
    for start in starts:
        got = [pair for window in processes.windows(start, windows[start.epoch]) for pair in window]
        wanted = [
            pair for pair in expected[start.epoch] if (pair[1].window, pair[1].batches) > (start.window, start.batches)
        ]
        assert [position for _, position in got] == [position for _, position in wanted]
        assert all(same(a, b) for (a, _), (b, _) in zip(got, wanted, strict=True))
        kept += [(got[0][0], wanted[0][0])] if got else []
    assert all(same(a, b) for a, b in kept), "memory that a batch lies in is not used again while it is held"


def test_memory_is_used_again(root: Path, processes: ReaderProcesses) -> None:
    reader = SampleReader(root, SCHEMA, DATES, **OPTIONS)
    start, count = reader.position, len(reader._windows(0))
    for _ in range(2):
        for window in processes.windows(start, count):
            for batch, _position in window:
                del batch
    slots = [len(worker._slots) for worker in processes.workers]
    assert all(slots), "batches came in shared memory"
    for window in processes.windows(start, count):
        for batch, _position in window:
            del batch
    assert [len(worker._slots) for worker in processes.workers] == slots


def test_an_error_arrives_as_it_was(tmp_path: Path) -> None:
    root = write_random_samples(tmp_path, SCHEMA, DATES[:1])
    file = next(root.rglob("*.parquet"))
    reader = SampleReader(root, SCHEMA, DATES[:1], readers=1, **OPTIONS)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError) as raised:
        list(reader)
    assert str(raised.value).startswith(f"{file} is damaged: its digest is not the manifest's")
    assert reader._processes is None


def test_memory_is_page_locked_until_its_last_user_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []

    def locks(address: int, size: int, flags: int) -> int:
        calls.append(("lock", address))
        return int(size > 100)

    runtime = SimpleNamespace(
        cudaHostRegister=locks,
        cudaHostUnregister=lambda address: calls.append(("unlock", address)),
        cudaError=SimpleNamespace(success=0),
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    memory = np.zeros(64, np.uint8)
    at = memory.ctypes.data
    _page_lock(memory)
    lent = torch.frombuffer(memory.view(), dtype=torch.uint8)
    del memory
    assert calls == [("lock", at)]
    del lent
    assert calls == [("lock", at), ("unlock", at)]
    with pytest.raises(UserError, match=r"can't be page-locked .*--readers 0"):
        _page_lock(np.zeros(128, np.uint8))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_orphan_and_no_shared_memory_is_left(root: Path, number: signal.Signals) -> None:
    before = set(os.listdir("/dev/shm"))
    said, says = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            reader = SampleReader(root, SCHEMA, DATES, readers=1, **OPTIONS)
            batches = iter(reader)
            batch = next(batches)
            assert batch.packed is not None and reader._processes is not None
            os.write(says, f"{reader._processes.workers[0].process.pid}\n".encode())
            time.sleep(300)
        finally:
            os._exit(1)
    os.close(says)
    with os.fdopen(said) as lines:
        child = int(lines.readline())
    assert alive(child)
    if number == signal.SIGINT:
        os.killpg(parent, number)  # as a terminal does
    else:
        os.kill(parent, number)
    os.waitpid(parent, 0)
    deadline = time.monotonic() + 60
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)
    assert set(os.listdir("/dev/shm")) <= before


def test_a_process_that_dies_is_one_line(root: Path, processes: ReaderProcesses) -> None:
    """The last one: the others' processes have ended after it."""
    os.kill(processes.workers[1].process.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"ended with signal 9 .* --readers 0"):
        for window in processes.windows(Position(), 6):
            list(window)
