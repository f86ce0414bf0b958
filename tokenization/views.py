"""What one training sample is: a user's day as stored, or one request, session or exposure of it, as a slice.

A slice is exactly what a build per request (or session) would have stored: the same user and history, the realtime events that
were available before its newest exposure, and its own candidates. Nothing is stored twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from genrank.schemas.base import parse_duration
from genrank.schemas.derive.sample_lengths import by_request, by_session
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.tokenization.batch import Batch, Group, Ints, Rows, cut, pick, runs
from genrank.tokenization.plan import tokens_per_row
from genrank.tokenization.sample_columns import Shape, StoredRows

GATHERED_TOKENS = 1 << 20
"""Tokens of the batches that are gathered together."""


class Slices(NamedTuple):
    """V samples as slices of R stored rows."""

    row: Ints
    """[V]: the stored row a sample is part of."""
    order: Ints
    """[C]: the rows' candidates, each sample's side by side."""
    begin: Ints
    end: Ints
    """[V]: the sample's candidates are order[begin:end]."""
    realtime: Ints
    """[V]: how many of the row's realtime events the sample has."""
    tokens: Ints
    """[V]: tokens of the sample."""


@dataclass
class View:
    """V samples as slices of stored rows."""

    stored: StoredRows
    realtime_name: str | None
    tasks: dict[str, bool]
    """Label -> whether it has an oracle."""
    row: Ints
    """[V]: the stored row a sample is part of."""
    order: Ints
    """[C]: the stored candidates, each sample's side by side."""
    in_order: bool
    """Whether that is the order they are stored in."""
    begin: Ints
    end: Ints
    """[V]: the sample's candidates are order[begin:end]."""
    realtime: Ints
    """[V]: how many of the row's realtime events the sample has."""
    part: pa.Array | None
    """[V] strings: what follows the stored id in the sample's."""
    tokens: Ints
    """[V]: tokens of the sample."""

    def __len__(self) -> int:
        return len(self.row)

    def batches(self, batches: Sequence[Ints]) -> Iterator[Batch]:
        """The batch of each array of sample positions.

        Batches are gathered many at a time and handed out as slices of what was gathered: a leaf's values then pass through the cache
        once, not once a batch.
        """
        first, tokens = 0, 0
        for at, samples in enumerate(batches):
            tokens += int(self.tokens[samples].sum())
            if tokens >= GATHERED_TOKENS or at == len(batches) - 1:
                gathered = self.batch(np.concatenate(batches[first : at + 1]))
                ends = np.cumsum([0, *map(len, batches[first : at + 1])]).tolist()
                yield from self._split(gathered, ends)
                first, tokens = at + 1, 0

    def batch(self, samples: Ints) -> Batch:
        """The batch of some samples ([B] positions), in that order."""
        stored, row = self.stored, torch.from_numpy(self.row[samples])
        begin, end = torch.from_numpy(self.begin[samples]), torch.from_numpy(self.end[samples])
        candidates, together = runs(begin, end)
        ranked: Rows = together if self.in_order else pick(torch.from_numpy(self.order), together)
        users = runs(row, row + 1)[1]
        events: Rows = slice(0, 0)
        groups: dict[str, Group] = {}
        for name, group in stored.groups.items():
            if name == USER:
                groups[name] = group.take(users, torch.arange(len(row) + 1))
            elif name == CANDIDATES:
                groups[name] = group.take(ranked, candidates)
            else:
                begin, end = pick(group.offsets, row), pick(group.offsets, row + 1)
                if name == self.realtime_name:
                    end = begin + torch.from_numpy(self.realtime[samples])
                offsets, own = runs(begin, end)
                events = own if name == self.realtime_name else events
                groups[name] = group.take(own, offsets)
        ids = stored.sample_id.take(row.numpy())
        if self.part is not None:
            ids = pc.binary_join_element_wise(ids, self.part.take(samples), "/")
        labels = {name: pick(values, ranked) for name, values in stored.labels.items()}
        return Batch(
            groups=groups,
            sample_id=ids.to_pylist(),
            user=pick(stored.user, users),
            window_start=pick(stored.window_start, users),
            request=pick(stored.request, ranked),
            item=pick(stored.item, ranked),
            labels={task: labels[task] for task in self.tasks},
            weights={task: labels[f"{task}_weight"] for task in self.tasks},
            oracles={task: labels[f"{task}_oracle"] for task, has_oracle in self.tasks.items() if has_oracle},
            candidate_sees=pick(stored.candidate_sees, ranked),
            realtime_sees=pick(stored.realtime_sees, events),
            realtime_available=pick(stored.realtime_available, events),
        )

    def _split(self, batch: Batch, ends: Sequence[int]) -> Iterator[Batch]:
        """Samples ends[i]:ends[i+1] of a batch, which share its memory."""
        groups = {name: group.split(ends) for name, group in batch.groups.items()}

        def rows_of(group: str | None) -> list[int]:
            return [len(each.ts) for each in groups[group]] if group else [0] * (len(ends) - 1)

        ranked, events = rows_of(CANDIDATES), rows_of(self.realtime_name)
        labels, weights, oracles = (
            {task: cut(values, ranked) for task, values in of.items()}
            for of in (batch.labels, batch.weights, batch.oracles)
        )
        requests, items, sees = (cut(x, ranked) for x in (batch.request, batch.item, batch.candidate_sees))
        seen, available = cut(batch.realtime_sees, events), cut(batch.realtime_available, events)
        for i, (first, last) in enumerate(itertools.pairwise(ends)):
            yield Batch(
                groups={name: parts[i] for name, parts in groups.items()},
                sample_id=batch.sample_id[first:last],
                user=batch.user[first:last],
                window_start=batch.window_start[first:last],
                request=requests[i],
                item=items[i],
                labels={task: parts[i] for task, parts in labels.items()},
                weights={task: parts[i] for task, parts in weights.items()},
                oracles={task: parts[i] for task, parts in oracles.items()},
                candidate_sees=sees[i],
                realtime_sees=seen[i],
                realtime_available=available[i],
            )


def view_of(stored: StoredRows, schema: Schema, name: str) -> View:
    """The samples of stored rows.

    Args:
        stored: the rows.
        schema: what they were built from.
        name: `user_day`: a sample per stored row; `request`: per request; `session`: per run of exposures without a gap above the
            schema's `session_gap`; `exposure`: per candidate.
    """
    shape = stored.shape
    row, order, begin, end, realtime, tokens = slices_of(shape, schema, name)
    part: pa.Array | None = None
    if name != "user_day":
        keys = {"request": shape.request, "session": shape.ts}.get(name, order)
        part = pc.cast(pa.array(keys[order[begin]]), stored.sample_id.type)
    tasks = {label.name: label.oracle is not None for label in schema.labels}
    in_order = bool((order[1:] > order[:-1]).all())
    sequence = schema.realtime.name if schema.realtime else None
    return View(stored, sequence, tasks, row, order, in_order, begin, end, realtime, part, tokens)


def slices_of(shape: Shape, schema: Schema, name: str) -> Slices:
    """A view's samples, from lengths alone.

    Of the candidates' values `request` needs `request` and `sees`, `session` `ts` and `sees`, `exposure` `sees`, `user_day` none.
    """
    candidates = shape.lengths[CANDIDATES]
    rows = len(candidates)
    realtime = schema.realtime.name if schema.realtime else None
    offsets = np.concatenate([[0], np.cumsum(candidates)])
    if name == "user_day":
        row, order, begin, end = np.arange(rows), np.arange(offsets[-1]), offsets[:-1], offsets[1:]
        seen = shape.lengths[realtime] if realtime else np.zeros(rows, np.int64)
    else:
        owner = np.repeat(np.arange(rows), candidates)
        if name == "request":
            order, begin = by_request(owner, shape.request)
        elif name == "exposure":
            order = begin = np.arange(offsets[-1])
        else:
            order, begin = by_session(owner, shape.ts, parse_duration(schema.training.session_gap))
        end = np.append(begin[1:], len(order))
        row = owner[order[begin]]
        seen = np.maximum.reduceat(shape.sees[order], begin) if len(begin) else np.zeros(0, np.int64)
    tokens = token_counts(schema, end - begin, seen, row, shape.lengths)
    return Slices(row, order, begin, end, seen, tokens)


def token_counts(schema: Schema, candidates: Ints, seen: Ints, row: Ints, lengths: Mapping[str, Ints]) -> Ints:
    """[V] tokens of each sample.

    Args:
        candidates, seen: [V] candidates and realtime events of each sample.
        row: [V] the stored row it is part of.
        lengths: history -> [R] events of each stored row.
    """
    realtime = schema.realtime.name if schema.realtime else None
    tokens = candidates + seen * (tokens_per_row(schema, realtime) if realtime else 0) + tokens_per_row(schema, USER)
    for history in schema.histories:
        tokens = tokens + lengths[history.name][row] * tokens_per_row(schema, history.name)
    return tokens


def cut_by_budget(tokens: Ints, budget: int) -> list[int]:
    """Cuts samples, in order, into batches of at most `budget` tokens; a larger sample is a batch by itself.

    Args:
        tokens: [V] tokens of each sample.
        budget: tokens of a batch at most.

    Returns:
        [batches + 1]: batch i is samples cuts[i]:cuts[i+1]. Binary search over the cumulative lengths: O(batches log V).
    """
    total = np.concatenate([[0], np.cumsum(tokens)])
    cuts = [0]
    while cuts[-1] < len(tokens):
        fits = int(np.searchsorted(total, total[cuts[-1]] + budget, side="right")) - 1
        cuts.append(max(fits, cuts[-1] + 1))
    return cuts
