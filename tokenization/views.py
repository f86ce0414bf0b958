"""What one training sample is: a user's day as stored, or one request or session of it, as a slice.

A slice is exactly what a build per request (or session) would have stored: the same user and history, the realtime events that
were available before its newest exposure, and its own candidates. Nothing is stored twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from schemas.base import parse_duration
from schemas.schema import CANDIDATES, USER, Schema
from tokenization.batch import Batch, Group, pick, ranges
from tokenization.blocks import Block
from tokenization.plan import tokens_per_row

Ints = npt.NDArray[np.int64]


@dataclass
class View:
    """V samples as slices of a block's rows."""

    block: Block
    realtime_name: str | None
    tasks: dict[str, bool]
    """Label -> whether it has an oracle."""
    row: Ints
    """[V]: the stored row a sample is part of."""
    order: Ints
    """[C]: the block's candidates, each sample's side by side."""
    begin: Ints
    end: Ints
    """[V]: the sample's candidates are order[begin:end]."""
    realtime: Ints
    """[V]: how many of the row's realtime events the sample has."""
    part: list[str] | None
    """[V]: what follows the stored id in the sample's."""
    tokens: Ints
    """[V]: tokens of the sample."""

    def __len__(self) -> int:
        return len(self.row)

    def batch(self, samples: Ints) -> Batch:
        """The batch of some samples ([B] positions), in that order."""
        block, row = self.block, torch.from_numpy(self.row[samples])
        candidates, at = ranges(torch.from_numpy(self.begin[samples]), torch.from_numpy(self.end[samples]))
        at = pick(torch.from_numpy(self.order), at)
        groups: dict[str, Group] = {}
        realtime_at = torch.zeros(0, dtype=torch.int64)
        for name, group in block.groups.items():
            if name == USER:
                groups[name] = group.take(row, torch.arange(len(row) + 1))
            elif name == CANDIDATES:
                groups[name] = group.take(at, candidates)
            else:
                begin = pick(group.offsets, row)
                if name == self.realtime_name:
                    offsets, index = ranges(begin, begin + torch.from_numpy(self.realtime[samples]))
                    realtime_at = index
                else:
                    offsets, index = ranges(begin, pick(group.offsets, row + 1))
                groups[name] = group.take(index, offsets)
        ids: list[str] = block.sample_id.take(row.numpy()).to_pylist()
        labels = {name: pick(values, at) for name, values in block.labels.items()}
        return Batch(
            groups=groups,
            sample_id=[f"{i}/{self.part[v]}" for i, v in zip(ids, samples, strict=True)] if self.part else ids,
            user=pick(block.user, row),
            window_start=pick(block.window_start, row),
            request=pick(block.request, at),
            item=pick(block.item, at),
            labels={task: labels[task] for task in self.tasks},
            weights={task: labels[f"{task}_weight"] for task in self.tasks},
            oracles={task: labels[f"{task}_oracle"] for task, has_oracle in self.tasks.items() if has_oracle},
            candidate_sees=pick(block.candidate_sees, at),
            realtime_sees=pick(block.realtime_sees, realtime_at),
            realtime_available=pick(block.realtime_available, realtime_at),
        )


def view_of(block: Block, schema: Schema, name: str) -> View:
    """The samples of a block: one per stored row (`user_day`), request (`request`) or run of exposures without a gap above the
    schema's `session_gap` (`session`)."""
    candidates = block.groups[CANDIDATES]
    realtime = schema.realtime.name if schema.realtime else None
    owner = torch.repeat_interleave(candidates.lengths, output_size=len(candidates.ts)).numpy()
    part: list[str] | None = None
    if name == "user_day":
        offsets = candidates.offsets.numpy()
        row, order, begin, end = np.arange(len(block)), np.arange(len(owner)), offsets[:-1], offsets[1:]
        seen = _lengths(block, realtime)
    else:
        ts, request = candidates.ts.numpy(), block.request.numpy()
        if name == "request":
            order, first = _requests(owner, request)
        else:
            order, first = _sessions(owner, ts, parse_duration(schema.training.session_gap))
        begin, end = first, np.append(first[1:], len(order))
        row = owner[order[begin]]
        sees = block.candidate_sees.numpy()[order].astype(np.int64)
        seen = np.maximum.reduceat(sees, begin) if len(begin) else np.zeros(0, np.int64)
        keys = request if name == "request" else ts
        part = [str(key) for key in keys[order[begin]].tolist()]
    tokens = (end - begin) + seen * (tokens_per_row(schema, realtime) if realtime else 0) + tokens_per_row(schema, USER)
    for history in schema.histories:
        tokens = tokens + _lengths(block, history.name)[row] * tokens_per_row(schema, history.name)
    tasks = {label.name: label.oracle is not None for label in schema.labels}
    return View(block, realtime, tasks, row, order, begin, end, seen, part, tokens)


def cut_by_budget(tokens: Ints, budget: int) -> list[int]:
    """Cuts samples, in order, into batches of at most `budget` tokens; a larger sample is a batch by itself.

    Args:
        tokens: [V] tokens of each sample.

    Returns:
        [batches + 1]: batch i is samples cuts[i]:cuts[i+1]. Binary search over the cumulative lengths: O(batches log V).
    """
    total = np.concatenate([[0], np.cumsum(tokens)])
    cuts = [0]
    while cuts[-1] < len(tokens):
        fits = int(np.searchsorted(total, total[cuts[-1]] + budget, side="right")) - 1
        cuts.append(max(fits, cuts[-1] + 1))
    return cuts


def _lengths(block: Block, group: str | None) -> Ints:
    lengths: Ints = block.groups[group].lengths.numpy() if group else np.zeros(len(block), np.int64)
    return lengths


def _requests(owner: Ints, request: Ints) -> tuple[Ints, Ints]:
    """Candidates with each (row, request) side by side, in order of its first candidate; and where each begins."""
    by_key = np.lexsort((request, owner))
    new = _changes(owner[by_key]) | _changes(request[by_key])
    leader = by_key[new][np.cumsum(new) - 1]
    order = by_key[np.argsort(leader, kind="stable")]
    return order, np.flatnonzero(_changes(np.sort(leader, kind="stable")))


def _sessions(owner: Ints, ts: Ints, gap: int) -> tuple[Ints, Ints]:
    """Candidates by (row, time), and where each session begins."""
    order = np.lexsort((ts, owner))
    late = np.concatenate([[False], np.diff(ts[order]) > gap]) if len(order) else np.zeros(0, bool)
    return order, np.flatnonzero(_changes(owner[order]) | late)


def _changes(values: Ints) -> npt.NDArray[np.bool_]:
    """True where a value differs from the one before; the first always does."""
    if not len(values):
        return np.zeros(0, bool)
    return np.concatenate([[True], values[1:] != values[:-1]])
