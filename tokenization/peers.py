"""The candidates that a candidate is compared with: those of its request that were exposed no later than it.

Where a request has one time these are the whole request. Where it has several, each time has a group of its own: the candidates so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from genrank.tokenization.batch import Ints, ranges

Floats = npt.NDArray[np.float64]

COMPARED = 1 << 22
"""Candidates of groups that are compared together: what a comparison takes of memory is some ten times 8 bytes each."""


class _Groups(NamedTuple):
    """Some of the groups, side by side."""

    members: Ints
    """[M]: the candidates."""
    offsets: Ints
    """[G+1]: group g is members[offsets[g]:offsets[g+1]]."""
    own: Ints
    """[K]: places among the members of those that the group is of."""


@dataclass(frozen=True)
class Peers:
    """C candidates by group: `order` has a request's candidates side by side, in order of time.

    A group's members are order[begin:end], and it is of those of order[first:end], which have one time.
    """

    order: Ints
    """[C]."""
    begin: Ints
    first: Ints
    end: Ints
    """[G]."""

    @classmethod
    def of(cls, day: Ints, request: Ints, ts: Ints) -> Peers:
        """By request and time.

        Args:
            day: [C] int64: a number of the user and day that a candidate is of.
            request, ts: [C] int64.
        """
        order = np.lexsort((ts, request, day))
        day, request, ts = day[order], request[order], ts[order]
        changes = np.r_[True, (day[1:] != day[:-1]) | (request[1:] != request[:-1])][: len(order)]
        requests = np.flatnonzero(changes)
        first = np.flatnonzero(changes | np.r_[True, ts[1:] != ts[:-1]][: len(order)])
        begin = requests[np.cumsum(changes)[first] - 1]
        return cls(order, begin, first, np.append(first[1:], len(order))[: len(first)])

    @cached_property
    def sizes(self) -> Floats:
        """[C]: members of each candidate's group, itself included."""
        sizes = np.empty(len(self.order))
        sizes[self.order] = np.repeat(self.end - self.begin, self.end - self.first)
        return sizes

    def compare(self, values: Floats, comparison: Callable[[Floats, Ints], Floats]) -> Floats:
        """[C]: each candidate's value compared with its group's.

        Args:
            values: [C], NaN where missing.
            comparison: see `feature_kinds.within_request`.
        """
        compared = np.empty(len(self.order))
        done = 0
        for groups in self._groups():
            found = comparison(values[groups.members], groups.offsets)[groups.own]
            compared[self.order[done : done + len(found)]] = found
            done += len(found)
        return compared

    def _groups(self) -> Iterator[_Groups]:
        """All groups in order, of about `COMPARED` members at a time."""
        total = np.cumsum(self.end - self.begin)
        at = 0
        while at < len(total):
            before = total[at - 1] if at else 0
            stop = max(at + 1, int(np.searchsorted(total, before + COMPARED, "right")))
            begin, first, end = self.begin[at:stop], self.first[at:stop], self.end[at:stop]
            offsets, places = ranges(torch.from_numpy(begin), torch.from_numpy(end))
            own = ranges(offsets[:-1] + torch.from_numpy(first - begin), offsets[1:])[1]
            yield _Groups(self.order[places.numpy()], offsets.numpy(), own.numpy())
            at = stop
