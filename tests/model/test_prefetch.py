"""What training steps are given: as many on every rank, none looked up across a pause, the reader's position exact."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.model.config import TrainConfig
from genrank.model.prefetch import Prefetcher, in_step, make_reader
from genrank.model.ranks import Ranks
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.reader import SampleReader

CPU = torch.device("cpu")


class Meeting:
    """Where the threads that stand for ranks exchange values, as processes do by gathering them."""

    def __init__(self, size: int) -> None:
        self.values: list[object] = [None] * size
        self.met = threading.Barrier(size, timeout=60)

    def gather(self, rank: int, value: object) -> list[object]:
        self.values[rank] = value
        self.met.wait()
        values = list(self.values)
        self.met.wait()  # nobody writes the next values before all have read these
        return values


class ThreadRanks(Ranks):
    """A rank among threads."""

    def __init__(self, rank: int, size: int, meeting: Meeting) -> None:
        super().__init__(rank, size, CPU)
        object.__setattr__(self, "meeting", meeting)

    def gather(self, value: object) -> list[object]:
        return cast("Any", self).meeting.gather(self.rank, value)


class Read(str):
    """A batch is its name here."""

    def to(self, device: object) -> Read:
        return self


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_every_rank_takes_as_many_steps_as_the_one_with_most_batches(counts: list[int]) -> None:
    meeting = Meeting(len(counts))

    def steps(rank: int) -> list[tuple[str, bool]]:
        own = (cast("Any", Read(f"{rank}.{number}")) for number in range(counts[rank]))
        return [(str(batch), mine) for batch, mine in in_step(own, ThreadRanks(rank, len(counts), meeting))]

    with ThreadPoolExecutor(len(counts)) as pool:
        taken = list(pool.map(steps, range(len(counts))))
    for rank, of in enumerate(taken):
        assert [batch for batch, mine in of if mine] == [f"{rank}.{number}" for number in range(counts[rank])]
        assert len(of) == max(counts) and all(mine for _, mine in of[: counts[rank]])
        for step, (batch, mine) in enumerate(of):
            if not mine:  # its own last one, or another rank's that has one at this step
                lent = [f"{other}.{at}" for other, most in enumerate(counts) for at in range(most) if at <= step]
                assert batch == f"{rank}.{counts[rank] - 1}" if counts[rank] else batch in lent


class Lookups:
    """Stands for sharded tables: keeps which batches' ids have been sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def dispatch(self, batch: str) -> None:
        self.sent.append(batch)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 7), st.sets(st.integers(0, 7)))
def test_nothing_is_looked_up_across_a_pause(number: int, pauses_after: set[int]) -> None:
    lookups, at = Lookups(), 0
    prefetcher = Prefetcher.__new__(Prefetcher)
    prefetcher.embeddings = cast("Embeddings", lookups)
    prefetcher.pauses = lambda: at in pauses_after
    names = [f"step {step}" for step in range(number)]

    def steps() -> Iterator[list[Any]]:
        yield from ([name] for name in names)

    for (taken,) in prefetcher._ahead(steps()):
        assert str(taken) == names[at]
        known_ahead = [] if at in pauses_after else names[at + 1 : at + 2]
        assert set(lookups.sent) <= {*names[: at + 1], *known_ahead}
        assert set(known_ahead) <= set(lookups.sent), "the next step's ids travel while this one is computed"
        at += 1
    assert at == number
    assert len(lookups.sent) == len(set(lookups.sent)), "nothing is sent twice"


def reader_of(config: TrainConfig) -> SampleReader:
    return make_reader(config, config.samples / "samples", config.schema, config.dates, Ranks(0, 1, CPU), shuffle=True)


def prefetcher_of(config: TrainConfig, reader: SampleReader) -> Prefetcher:
    return Prefetcher(reader, cast("Embeddings", Lookups()), config, Ranks(0, 1, CPU), lambda: False)


def test_the_position_is_that_of_the_batches_taken_however_far_was_read(config: TrainConfig) -> None:
    """Another reader set to it yields exactly the rest."""
    config = replace(config, token_budget=250)
    ids = [batch.sample_id for batch in prefetcher_of(config, reader_of(config)).batches(0)]
    assert len(ids) > 4
    for taken in range(1, len(ids)):
        prefetcher = prefetcher_of(config, reader_of(config))
        running = prefetcher.batches(0)
        for _ in range(taken):
            next(running)
        resumed = reader_of(config)
        resumed.load_state_dict(prefetcher.reader_state)
        assert [batch.sample_id for batch in prefetcher_of(config, resumed).batches(0)] == ids[taken:]


def test_batches_are_grouped_by_accumulate(config: TrainConfig) -> None:
    config = replace(config, token_budget=250, accumulate=3)
    single = [batch.sample_id for batch in prefetcher_of(config, reader_of(config)).batches(0)]
    steps = [[batch.sample_id for batch in step] for step in prefetcher_of(config, reader_of(config)).steps(0)]
    assert steps == [single[at : at + 3] for at in range(0, len(single), 3)]
