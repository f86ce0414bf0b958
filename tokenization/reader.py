"""Parquet samples -> batches: read ahead in a thread, sliced into the schema's view, cut by token budget.

The order of samples is a function of (seed, epoch, rank, world size): days in order, row groups shuffled within a day, samples
within a buffer of row groups. A position in that order is all that a resume needs.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
import pyarrow.parquet as pq
import torch

from genrank.schemas.console import logger, with_progress
from genrank.schemas.errors import UserError
from genrank.schemas.files import reading
from genrank.schemas.manifest import DataFile, damage, listed_files, opened
from genrank.schemas.schema import Schema
from genrank.tokenization.batch import Batch, Ints
from genrank.tokenization.lengths import SampleLengths, Sizes
from genrank.tokenization.reader_processes import ReaderProcesses, pickled
from genrank.tokenization.row_group import Position, RowGroup
from genrank.tokenization.sample_columns import SampleColumns, StoredRows
from genrank.tokenization.views import cut_by_budget, view_of

T = TypeVar("T")
DECODED_AHEAD = 2
"""Windows that are decoded at once."""
ViewName = Literal["user_day", "request", "session", "exposure"]


class SampleReader:
    """Batches of published samples; iterating goes through one epoch, from wherever the reader is.

    Args:
        samples_root: the folder with `dt=YYYY-MM-DD` folders.
        dates: days to read, in this order.
        view: what a training sample is; default the schema's `training.view`.
        token_budget: tokens of a batch at most; a sample larger than that is a batch by itself.
        shuffle: False keeps the stored order.
        seed: of the shuffling.
        rank, world_size: this reader takes every `world_size`-th row group.
        prefetch: batches made ahead in a background thread; 0 makes them in the caller's.
        readers: processes that make the batches instead (`tokenization.reader_processes`); 0: none.
        pinned: with `readers`, page-lock what batches lie in, for a GPU.
        shuffle_buffer: stored rows that are shuffled together, at least one row group.
        by_length: a batch holds samples of similar length, from all of the shuffle buffer; which batch comes when stays random.
            Attention costs a batch the sum of its squared lengths either way; what pads or waits for the longest gains.

    Raises:
        UserError: no such day, or one built from a schema that means something else by a column this one reads; while reading,
            a file that isn't as its manifest says (checked before the file's first use), or doesn't hold what the schema says, with its
            column and row.
    """

    def __init__(
        self,
        samples_root: Path | str,
        schema: Schema,
        dates: Sequence[str],
        *,
        view: ViewName | None = None,
        token_budget: int = 16_384,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        readers: int = 0,
        pinned: bool = False,
        shuffle_buffer: int = 4_096,
        by_length: bool = False,
    ) -> None:
        if token_budget < 1:
            raise UserError(f"token_budget is {token_budget}; it must be at least 1")
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} of world_size {world_size}: rank must be in 0..{world_size - 1}")
        self.schema = schema
        self.view: ViewName = view or schema.training.view
        self.token_budget = token_budget
        self.shuffle = shuffle
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.prefetch = prefetch
        self.readers, self.pinned = readers, pinned
        self._processes: ReaderProcesses | None = None
        self.shuffle_buffer = shuffle_buffer
        self.by_length = by_length
        self.columns = SampleColumns(schema)
        self._digests = _Digests()
        self.row_groups = [unit for dt in dates for unit in self._row_groups(Path(samples_root), dt)]
        self.position = Position()

    # ------------------------------------------------------------------ reading

    def __iter__(self) -> Iterator[Batch]:
        threads = torch.get_num_threads()
        if self.readers:
            produced = self._from_processes(self.position)
        else:
            produced = self._produce(self.position)
            if self.prefetch:
                produced = _in_background(produced, self.prefetch)
        for batch, position in produced:
            torch.set_num_threads(threads)  # of threads yet to start: the reader's own, by now running, set it to one
            self.position = position
            yield batch
        self.position = Position(epoch=self.position.epoch + 1)

    def _produce(self, start: Position) -> Iterator[tuple[Batch, Position]]:
        for window in self.windows(start):
            yield from window

    def windows(self, start: Position, first: int = 0, step: int = 1) -> Iterator[Iterator[tuple[Batch, Position]]]:
        """The batches of windows `first`, `first + step`, ... of what is left of an epoch, each with the position after it."""
        yield from self.chosen_windows(range(start.window + first, len(self._windows(start.epoch)), step), start)

    def count_windows(self) -> int:
        """Windows of an epoch: what this rank reads at once, `shuffle_buffer` rows or a row group."""
        return len(self._windows(0))

    def chosen_windows(
        self, numbers: Sequence[int], start: Position | None = None
    ) -> Iterator[Iterator[tuple[Batch, Position]]]:
        """The batches of some windows, each with the position after it.

        Args:
            start: of its window the batches before it are left out; its epoch is read, by default the first.
        """
        start = start or Position()
        windows = self._windows(start.epoch)
        own = [windows[number] for number in numbers]
        read = _read_ahead(self._read, own) if self.prefetch else map(self._read, own)
        for number, stored in zip(numbers, read, strict=True):
            yield self._of_window(stored, start, number)

    def _of_window(self, stored: StoredRows, start: Position, number: int) -> Iterator[tuple[Batch, Position]]:
        view = view_of(stored, self.schema, self.view)
        batches = self._batches(view.tokens, start.epoch, number)
        done = start.batches if number == start.window else 0
        for at, batch in enumerate(view.batches(batches[done:]), done + 1):
            yield batch, Position(start.epoch, number, at)

    def start(self) -> None:
        """Start the processes that read, where there are to be some: they are ready by the time that the first batch is wanted."""
        if self.readers and self._processes is None:
            self._processes = ReaderProcesses(pickled(self), self.readers, pinned=self.pinned)

    def stop(self) -> None:
        """End the processes that read."""
        if self._processes is not None:
            self._processes.close()
            self._processes = None

    def _from_processes(self, start: Position) -> Iterator[tuple[Batch, Position]]:
        self.start()
        assert self._processes is not None
        done = False
        try:
            for window in self._processes.windows(start, len(self._windows(start.epoch))):
                yield from window
            done = True
        finally:
            if not done:  # they are in the middle of an epoch that nobody goes on with
                self.stop()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_processes": None}

    def _batches(self, tokens: Ints, epoch: int, window: int) -> list[Ints]:
        """The samples of each batch of a window, by its number, from each sample's tokens."""
        random = np.random.default_rng([self.seed, 1, epoch, self.rank, window])
        order = np.arange(len(tokens))
        if self.shuffle:
            random.shuffle(order)
        if self.by_length:
            order = order[np.argsort(tokens[order], kind="stable")]
        batches = np.split(order, cut_by_budget(tokens[order], self.token_budget)[1:-1])
        if self.by_length and self.shuffle:
            batches = [batches[at] for at in random.permutation(len(batches))]
        return batches

    def _read(self, window: list[RowGroup]) -> StoredRows:
        tables = []
        for unit in window:
            self._digests.check(unit.path)
            with reading(unit.path):
                file = pq.ParquetFile(opened(unit.path), memory_map=True, page_checksum_verification=True)
                table = file.read_row_group(unit.number, columns=self.columns.names, use_threads=True)
            self.columns.check(table, unit.path, unit.first_row)
            tables.append(table)
        return self.columns.stored_rows(tables)

    # ------------------------------------------------------------------ order

    def _row_groups(self, root: Path, dt: str) -> Iterator[RowGroup]:
        for path, listed in listed_files(root, dt, self.schema):
            self._digests.add(path, listed)
            with reading(path):
                metadata = pq.read_metadata(path)
            self.columns.check_schema(metadata.schema.to_arrow_schema(), path)
            first_row = 0
            for index in range(metadata.num_row_groups):
                rows = metadata.row_group(index).num_rows
                if rows:
                    yield RowGroup(dt, path, index, first_row, rows)
                first_row += rows

    def _windows(self, epoch: int) -> list[list[RowGroup]]:
        """This rank's row groups in reading order, cut into windows of about `shuffle_buffer` rows."""
        units: list[RowGroup] = []
        for dt in dict.fromkeys(unit.dt for unit in self.row_groups):
            day = [unit for unit in self.row_groups if unit.dt == dt]
            if self.shuffle:
                order = np.random.default_rng([self.seed, 0, epoch, len(units)]).permutation(len(day))
                day = [day[i] for i in order]
            units += day
        windows: list[list[RowGroup]] = []
        for unit in units[self.rank :: self.world_size]:
            if not windows or sum(u.rows for u in windows[-1]) + unit.rows > self.shuffle_buffer:
                windows.append([])
            windows[-1].append(unit)
        return windows

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, int]:
        """The position after the last batch handed out, and what it is a position in."""
        return {
            "epoch": self.position.epoch,
            "window": self.position.window,
            "batches": self.position.batches,
            **self._order(),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on exactly behind the batch after which `state` was taken.

        Raises:
            UserError: this reader hands samples out in another order.
        """
        for name, value in self._order().items():
            if state[name] != value:
                raise UserError(
                    f"the reader's position was saved with {name}={state[name]} and this reader has {name}={value}; "
                    "resume with the same data, budget, seed and number of ranks, or start the epoch anew"
                )
        self.position = Position(state["epoch"], state["window"], state["batches"])

    def _order(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "shuffle": int(self.shuffle),
            "token_budget": self.token_budget,
            "shuffle_buffer": self.shuffle_buffer,
            "by_length": int(self.by_length),
            "rank": self.rank,
            "world_size": self.world_size,
            "view": get_args(ViewName).index(self.view),
            "row_groups": len(self.row_groups),
            "rows": self.stored_rows,
        }

    @property
    def stored_rows(self) -> int:
        """Stored rows (a user and day) of all days, on all ranks."""
        return sum(unit.rows for unit in self.row_groups)

    def count_batches(self, epochs: Sequence[int], limit: int = 0) -> list[int]:
        """How many batches with a candidate this rank hands out in each of some epochs: exactly, by the same order, on lengths alone.

        Lengths are in the files' footers (`tokenization.lengths`). Of files without, which release 0.1 built, they are read from columns,
        of each row group that falls to this rank in any of the epochs once: 10 to 20 million tokens a second and core, a tenth of the
        time of reading the batches by user-days and up to a third of it by requests or sessions; a bar shows it.

        Args:
            epochs: which, from 0.
            limit: batches of all the epochs after which counting may stop; 0: none.

        Raises:
            UserError: a file is corrupt, or holds a null.
        """
        lengths = SampleLengths(self.columns, self.view, remember=len(epochs) > 1)
        counts = [0] * len(epochs)
        windows = [self._windows(epoch) for epoch in epochs]
        sizes: Iterator[Sizes] = (pair for of_epoch in windows for pair in _read_ahead(lengths.of, of_epoch))
        numbered = ((at, number) for at, of_epoch in enumerate(windows) for number in range(len(of_epoch)))
        if any(not lengths.in_footer(unit) for unit in self.row_groups[:: max(1, len(self.row_groups) // 8)]):
            logger.info("counting steps from columns: footers of release 0.1, and views by exposure, have no lengths")
            sizes = with_progress(sizes, "counting steps", sum(map(len, windows)), unit="window")
        for (at, number), (tokens, ranked) in zip(numbered, sizes, strict=True):
            batches = self._batches(tokens, epochs[at], number)
            counts[at] += sum(bool(ranked[samples].any()) for samples in batches)
            if limit and sum(counts) >= limit:
                break
        return counts


class _Digests:
    """Checks each file against its manifest before its first use, once for all epochs; threads that read at once wait for it."""

    def __init__(self) -> None:
        self._left: dict[Path, tuple[DataFile, threading.Lock]] = {}

    def __getstate__(self) -> dict[Path, DataFile]:
        return {path: listed for path, (listed, _) in self._left.items()}

    def __setstate__(self, left: dict[Path, DataFile]) -> None:
        self._left = {path: (listed, threading.Lock()) for path, listed in left.items()}

    def add(self, path: Path, listed: DataFile) -> None:
        """A file that may be read."""
        self._left[path] = (listed, threading.Lock())

    def check(self, path: Path) -> None:
        """Before a read of a file.

        Raises:
            UserError: it isn't as it was written.
        """
        if (left := self._left.get(path)) is None:
            return
        listed, lock = left
        with lock:
            if path in self._left and (why := damage(opened(path), listed)):
                raise UserError(
                    f"{path} {why}; build the day again with --force (`genrank verify` lists damaged files)"
                )
            self._left.pop(path, None)


def _read_ahead(read: Callable[[list[RowGroup]], T], windows: list[list[RowGroup]]) -> Iterator[T]:
    """What is read of each window, the next ones meanwhile: one decode alone leaves cores idle."""
    pool = ThreadPoolExecutor(DECODED_AHEAD, "genrank-reader", initializer=torch.set_num_threads, initargs=(1,))
    try:
        ahead: deque[Future[T]] = deque()
        for window in windows:
            ahead.append(pool.submit(read, window))
            if len(ahead) > DECODED_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Failed(NamedTuple):
    error: BaseException


def _in_background(items: Iterator[T], ahead: int) -> Iterator[T]:
    """The same items, made up to `ahead` ahead in a thread that ends when the consumer does."""
    made: queue.Queue[tuple[T] | _Failed | None] = queue.Queue(ahead)
    stop = threading.Event()

    def put(item: tuple[T] | _Failed | None) -> bool:
        while not stop.is_set():
            try:
                made.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        # The thread is one already; torch's own would spin beside it, waiting for its next small operation.
        torch.set_num_threads(1)
        try:
            for item in items:
                if not put((item,)):
                    return
            put(None)
        except BaseException as error:  # handed to the consumer, whatever it is
            put(_Failed(error))
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=run, name="genrank-reader", daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, _Failed):
                raise item.error
            yield item[0]
    finally:
        stop.set()
        thread.join()
