"""Codes of keys of several columns without a hash of them all: each column's distinct values are numbered by themselves.

A bucket has few users, items and categories and nearly as many combinations of them as exposures. Tables of the few stay in a core's cache,
where looking up a hundred thousand combinations misses it at each; a combination is then a number in mixed radix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrank.pipelines.merge_scan import Int, Keys


class KeyColumns:
    """Codes of distinct rows of int64 columns, of which not all need be there.

    Args:
        columns: one or more, of one length, numbered; several of these may share one.
        most: codes stay below so many (2^30 at most); where combinations are more, those that are there are numbered.
    """

    def __init__(self, columns: Sequence[Keys], most: int) -> None:
        first = columns[0]
        self.codes: Int = first.codes
        self.count: int = first.count
        self._first = first
        self._others: list[tuple[Keys, Keys | None]] = []
        """Of each further column its values, and the combinations up to it if they had to be numbered."""
        for part in columns[1:]:
            there = None
            self.codes = self.codes * part.count + part.codes
            self.count *= part.count
            if self.count > most:
                there = Keys(self.codes)
                self.codes, self.count = there.codes, there.count
            self._others.append((part, there))

    def find(self, columns: Sequence[Int]) -> Int:
        """Codes of other rows; -1 where one of their values isn't there. A combination that isn't there may have a code, which no row has."""
        codes = self._first.find(columns[0])
        if not self._others:
            return codes
        unknown = codes < 0
        for column, (part, there) in zip(columns[1:], self._others, strict=True):
            own = part.find(column)
            unknown |= own < 0
            codes = codes * part.count + own
            if there is not None:
                codes = there.find(np.where(unknown, -1, codes))
                unknown = codes < 0
        return np.where(unknown, -1, codes)
