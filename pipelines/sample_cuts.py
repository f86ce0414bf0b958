"""Where a user's day is cut into samples.

Samples are cut from left to right and each begins with the newest realtime events as of its first candidate, so that what a candidate
sees depends only on what was available strictly before it, truncation included; labels never move a cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from genrank.pipelines.merge_scan import Bool, Int
from genrank.pipelines.sequences import Timeline
from genrank.schemas import Schema


class Cuts(NamedTuple):
    """One row per sample: candidates [begin, end) of the day's exposures, realtime [r_begin, r_end) of the timeline."""

    user: Int
    chunk: Int
    begin: Int
    end: Int
    r_begin: Int
    r_end: Int

    def keep(self, rows: Bool) -> Cuts:
        """The samples marked."""
        return Cuts(*(column[rows] for column in self))


def cut(
    schema: Schema, user: Int, begins: Int, ts: Int, start: int, end: int, timelines: Mapping[str, Timeline]
) -> Cuts:
    """Samples of a day: one per user, or several where candidates or realtime events exceed the schema's limits."""
    stops = np.append(begins[1:], len(user))
    most = schema.candidates.max_candidates
    realtime = schema.realtime
    users = len(begins)
    if realtime is None:
        r_begin = r_end = np.zeros(users, np.int64)
        seen = np.zeros(len(user), np.int64)
        limit = 1
    else:
        timeline = timelines[realtime.name]
        code = timeline.codes(user[begins])
        r_begin, r_end = timeline.before(code, np.full(users, start)), timeline.before(code, np.full(users, end))
        seen = timeline.before(np.repeat(code, stops - begins), ts)
        limit = realtime.max_length
    long = (stops - begins > most) | (seen[stops - 1] - r_begin > limit)
    cuts = [
        (
            np.flatnonzero(~long),
            np.zeros(users - int(long.sum()), np.int64),
            begins[~long],
            stops[~long],
            r_begin[~long],
            np.minimum(r_end[~long], r_begin[~long] + limit),
        )
    ]
    # Few users are cut, and each step of this loop makes a whole sample.
    for at in np.flatnonzero(long):
        pieces = list(_split(int(begins[at]), int(stops[at]), int(r_begin[at]), int(r_end[at]), seen, most, limit))
        chunk = np.arange(len(pieces))
        columns = np.array(pieces, np.int64).T
        cuts.append((np.full(len(pieces), at), chunk, *columns))
    joined = [np.concatenate([cut[i] for cut in cuts]).astype(np.int64) for i in range(6)]
    order = np.argsort(joined[2], kind="stable")
    return Cuts(*(column[order] for column in joined))


def _split(
    begin: int, stop: int, r_begin: int, r_end: int, seen: Int, most: int, limit: int
) -> Iterator[tuple[int, int, int, int]]:
    """Samples of one user's day, left to right: at most `most` candidates and `limit` realtime events each."""
    while begin < stop:
        if seen[begin] - r_begin > limit:
            r_begin = int(seen[begin]) - (limit + 1) // 2
        end = min(begin + most, begin + int(np.searchsorted(seen[begin:stop], r_begin + limit, "right")))
        last = end == stop
        yield begin, end, r_begin, min(r_end, r_begin + limit) if last else int(seen[end - 1])
        begin = end
