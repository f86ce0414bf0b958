"""Rows of jagged sequences against loops over samples: which stay, where candidates stand beside them, and what is read back."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from hypothesis import given
from hypothesis import strategies as st

from genrank.model.encoders.jagged_rows import Joined, Rows, evenly, in_order, newest, places, rows_of
from genrank.tokenization.jagged_tokens import Candidates, Tokens
from genrank.tokenization.visibility import HISTORY, REALTIME, USER


@dataclass
class Sample:
    """How many rows of each group, and of each realtime row how many realtime rows were available before it."""

    users: int
    history: int
    seen: list[int]

    @property
    def groups(self) -> list[int]:
        return [USER] * self.users + [HISTORY] * self.history + [REALTIME] * len(self.seen)


samples = st.builds(
    Sample,
    st.integers(0, 3),
    st.integers(0, 6),
    st.integers(0, 5).flatmap(lambda n: st.tuples(*(st.integers(0, i) for i in range(n))).map(sorted)),
)
batches = st.lists(samples, min_size=1, max_size=4)


def tokens_of(batch: list[Sample]) -> Tokens:
    """As the tokenizer lays them out; x numbers the rows."""
    groups = [group for sample in batch for group in sample.groups]
    lengths = torch.tensor([len(sample.groups) for sample in batch])
    end = [0] * 0
    for sample in batch:
        known = sample.users + sample.history
        end += [known] * known + [known + n for n in sample.seen]
    count = len(groups)
    return Tokens(
        x=torch.arange(count, dtype=torch.float64)[:, None],
        offsets=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int(),
        group_ids=torch.tensor(groups, dtype=torch.int32),
        begin=torch.zeros(count, dtype=torch.int32),
        end=torch.tensor(end, dtype=torch.int32),
        timestamps=torch.arange(count) * 1500,
        candidate_rows=torch.zeros(0, dtype=torch.int64),
        max_length=int(lengths.max()),
        lengths=lengths,
        history_lengths=torch.tensor([sample.history for sample in batch]),
    )


def plain(rows: Rows) -> list[tuple[int, int, int, int, int]]:
    """(sample, place, group, end of a realtime row, seconds) of each row."""
    ends = torch.where(rows.group == REALTIME, rows.end, -1)
    columns = (rows.sample, rows.place, rows.group, ends, rows.seconds)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(batches)
def test_rows_say_where_each_token_stands(batch: list[Sample]) -> None:
    rows = rows_of(tokens_of(batch))
    expected, number = [], 0
    for at, sample in enumerate(batch):
        known = sample.users + sample.history
        for place, group in enumerate(sample.groups):
            end = known + sample.seen[place - known] if group == REALTIME else -1
            expected.append((at, place, group, end, number * 1500 // 1000))
            number += 1
    assert plain(rows) == expected
    assert rows.users.tolist() == [sample.users for sample in batch]
    assert rows.known.tolist() == [sample.users + sample.history for sample in batch]
    assert rows.realtime.tolist() == [len(sample.seen) for sample in batch]


@given(batches, st.integers(0, 7))
def test_the_newest_history_stays_and_everything_moves_up(batch: list[Sample], most: int) -> None:
    tokens = tokens_of(batch)
    rows = rows_of(tokens)
    kept, dropped = newest(rows, most, tokens.history_lengths)
    expected = [
        number
        for number, (at, place, group, *_) in enumerate(plain(rows))
        if group != HISTORY or place >= batch[at].users + batch[at].history - most
    ]
    assert kept.tolist() == expected
    assert dropped.tolist() == [max(0, sample.history - most) for sample in batch]
    # What is left is what a batch with shorter histories gives, but for the moments of its rows.
    shorter = rows_of(tokens_of([Sample(s.users, min(s.history, most), s.seen) for s in batch]))
    left = rows.take(kept, dropped)
    assert [row[:4] for row in plain(left)] == [row[:4] for row in plain(shorter)]
    assert left.seconds.tolist() == rows.seconds[kept].tolist()
    assert left.offsets.tolist() == shorter.offsets.tolist()
    assert left.known.tolist() == shorter.known.tolist()


@given(batches, st.integers(1, 7))
def test_history_that_is_thinned_evenly_keeps_its_newest_row_and_equal_gaps(batch: list[Sample], most: int) -> None:
    tokens = tokens_of(batch)
    rows = rows_of(tokens)
    kept, dropped = evenly(rows, most, tokens.history_lengths)
    assert dropped.tolist() == [max(0, sample.history - most) for sample in batch]
    chosen = set(kept.tolist())
    assert kept.tolist() == sorted(chosen)
    for at, sample in enumerate(batch):
        own = [row for row in plain(rows) if row[0] == at]
        first = int(rows.offsets[at])
        assert all(first + place in chosen for _, place, group, *_ in own if group != HISTORY)
        stays = [place - sample.users for _, place, group, *_ in own if group == HISTORY and first + place in chosen]
        assert len(stays) == min(most, sample.history)
        assert not stays or stays[-1] == sample.history - 1
        gaps = {later - earlier for earlier, later in itertools.pairwise(stays)}
        assert not gaps or max(gaps) - min(gaps) <= 1


@given(st.lists(st.booleans(), max_size=30))
def test_places_are_where_a_mask_holds(mask: list[bool]) -> None:
    chosen = torch.tensor(mask, dtype=torch.bool)
    assert places(chosen, sum(mask)).tolist() == [at for at, holds in enumerate(mask) if holds]


@given(st.lists(st.integers(0, 3), max_size=12))
def test_candidates_are_put_in_order_and_back(owners: list[int]) -> None:
    owner = torch.tensor(owners, dtype=torch.int64)
    number = torch.arange(len(owners))
    ordered = in_order(Candidates(number[:, None].double(), owner, number.int(), number.int() + 1, number * 10))
    expected = sorted(range(len(owners)), key=lambda at: owners[at])
    moved = ordered.candidates
    assert moved.owner.tolist() == [owners[at] for at in expected]
    for column in (moved.x[:, 0], moved.begin, moved.end - 1, moved.timestamps // 10):
        assert column.tolist() == expected
    assert ordered.back(moved.x)[:, 0].tolist() == number.tolist()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=5), st.integers(1, 3))
def test_candidates_stand_behind_their_sequence(sizes: list[tuple[int, int]], tokens: int) -> None:
    lengths = torch.tensor([length for length, _ in sizes])
    counts = torch.tensor([count for _, count in sizes])
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    owner = torch.repeat_interleave(counts)
    joined = Joined(offsets, owner, tokens)
    sequence = torch.arange(int(lengths.sum()), dtype=torch.float64)
    candidates = -1.0 - torch.arange(len(owner) * tokens, dtype=torch.float64)
    expected, places_of, at, shown = [], [], 0, 0
    for length, count in sizes:
        expected += [*range(at, at + length), *(-1 - i for i in range(shown, shown + count * tokens))]
        places_of += range(length, length + count * tokens)
        at, shown = at + length, shown + count * tokens
    assert joined.rows(sequence, candidates).tolist() == expected
    assert joined.q_positions.tolist() == places_of
    assert joined.k_offsets.diff().tolist() == [length + count * tokens for length, count in sizes]
    assert joined.q_offsets.diff().tolist() == [count * tokens for _, count in sizes]
