"""What each optimizer step is given: a rank's batches, read, sent and looked up ahead, and as many on every rank."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from genrank.model.config import TrainConfig
from genrank.model.ranks import Ranks
from genrank.schemas.manifest import sample_files
from genrank.schemas.schema import Schema
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.reader import SampleReader


def make_reader(
    config: TrainConfig,
    samples: Path,
    schema: Schema,
    dates: tuple[str, ...],
    ranks: Ranks,
    *,
    shuffle: bool,
    readers: int = 0,
) -> SampleReader:
    """A reader of this rank's share of some days, in `readers` processes of its own.

    Raises:
        UserError: a day isn't published, or its samples don't serve the schema.
    """
    for date in dates:
        sample_files(samples, date, schema)
    return SampleReader(
        samples,
        schema,
        dates,
        view=config.view,
        token_budget=config.token_budget,
        shuffle=shuffle,
        by_length=config.by_length and shuffle,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.size,
        readers=readers,
        pinned=ranks.device.type == "cuda",
    )


def reader_processes(config: TrainConfig, ranks: Ranks) -> int:
    """How many processes read a rank's training samples. Beside a GPU's step one has a core to win; on a CPU the step wants it."""
    on_gpu = ranks.device.type == "cuda"
    return int(on_gpu) if config.readers is None else config.readers


class Prefetcher:
    """The steps of an epoch, from the reader to the device.

    Args:
        pauses: whether training stops after the step last yielded, to save or to evaluate: nothing is looked up across it.
    """

    def __init__(
        self,
        reader: SampleReader,
        embeddings: Embeddings,
        config: TrainConfig,
        ranks: Ranks,
        pauses: Callable[[], bool],
    ) -> None:
        self.reader, self.embeddings, self.config, self.ranks, self.pauses = reader, embeddings, config, ranks, pauses
        self.reader_state = reader.state_dict()
        """The reader's position after the batches yielded so far: what a checkpoint holds."""
        if ranks.device.type == "cuda":
            self._copies: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._sent: deque[tuple[torch.cuda.Event, Batch]] = deque()
            """Batches that may still be on their way: memory shared with a reader's process is free once nothing here refers to it."""

    def steps(self, epoch: int) -> Iterator[list[Batch]]:
        """The batches of each optimizer step that is left of an epoch."""
        steps = self._grouped(in_step(self.batches(epoch), self.ranks))
        return self._ahead(steps) if self.ranks.size > 1 and self.config.lookups_ahead else steps

    def _ahead(self, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """The same; on sharded tables, the next step's ids travel while this one is computed (the third stage beside reading and
        computing). Not across a checkpoint or an evaluation: the dynamic vocabularies would know what comes after it."""
        following = next(steps, None)
        begun = False
        while following is not None:
            current = following
            ahead = not self.pauses()
            if ahead:
                following = next(steps, None)
                if not begun:
                    self.embeddings.dispatch(current[0])
                if following is not None:
                    self.embeddings.dispatch(following[0])
            yield current
            begun = ahead
            if not ahead:
                following = next(steps, None)

    def _grouped(self, batches: Iterator[tuple[Batch, bool]]) -> Iterator[list[Batch]]:
        """By `accumulate`. A rank that has run out of samples while another has not gets batches of weight 0: every rank takes
        every step."""
        while group := list(itertools.islice(batches, self.config.accumulate)):
            yield [batch if own else _without_weight(batch) for batch, own in group]

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The reader's batches with a candidate, on the device. The next one is read, and on a GPU copied on a stream of its own,
        while this one is computed."""
        if self.reader_state["epoch"] > epoch:
            return  # resumed where this rank had read its share of the epoch, and another had not
        ahead: tuple[Batch, torch.cuda.Event | None, dict[str, int]] | None = None
        for batch in itertools.chain((batch for batch in self.reader if len(batch.item)), [None]):
            following = (*self._send(batch), self.reader.state_dict()) if batch is not None else None
            if ahead is not None:
                current, arrived, self.reader_state = ahead
                if arrived is not None:
                    torch.cuda.current_stream().wait_event(arrived)
                    current.record_stream(torch.cuda.current_stream())
                yield current
            ahead = following
        self.reader_state = self.reader.state_dict()

    def _send(self, batch: Batch) -> tuple[Batch, torch.cuda.Event | None]:
        """The batch on the device, and on a GPU when it will have arrived there."""
        if self.ranks.device.type == "cpu":
            return batch, None
        while self._sent and self._sent[0][0].query():  # type: ignore[no-untyped-call]
            self._sent.popleft()
        with torch.cuda.stream(self._copies):
            locked = batch.pin_memory()
            moved, arrived = locked.to(self.ranks.device, non_blocking=True), self._copies.record_event()
        self._sent.append((arrived, locked))
        return moved, arrived


def in_step(batches: Iterator[Batch], ranks: Ranks) -> Iterator[tuple[Batch, bool]]:
    """As many batches on every rank as on the one that has most, and whether each is this rank's own: one that has run out gets its
    last one again, or another rank's where it never had any."""
    if ranks.size == 1:
        yield from ((batch, True) for batch in batches)
        return
    last: Batch | None = None
    while True:
        batch = next(batches, None)
        last = last if batch is None else batch
        has, ever = zip(*ranks.gather((batch is not None, last is not None)), strict=True)
        if not any(has):
            return
        if not all(ever):
            lent = ranks.any_of(None if batch is None else batch.to("cpu"))
            last = last if lent is None or last is not None else lent.to(ranks.device)
        assert last is not None
        yield last, batch is not None


def _without_weight(batch: Batch) -> Batch:
    """The same batch with nothing to learn from, and no samples to count."""
    weights = {task: torch.zeros_like(weight) for task, weight in batch.weights.items()}
    return dataclasses.replace(batch, sample_id=[], weights=weights, filler=True)
