"""Codes of keys of several columns are those of their distinct rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines.key_columns import KeyColumns
from genrank.pipelines.merge_scan import Int, Keys

small = st.integers(-2, 4) | st.sampled_from([-(2**63), 2**62])


@st.composite
def keys(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """(rows that are there, rows that are looked up), of one to four columns."""
    row = st.tuples(*[small] * draw(st.integers(1, 4)))
    return draw(st.lists(row, max_size=20)), draw(st.lists(row, max_size=20))


@given(keys(), st.integers(1, 400))
def test_rows_that_are_equal_and_no_others_have_one_code(
    given_rows: tuple[list[tuple[int, ...]], list[tuple[int, ...]]], most: int
) -> None:
    there, others = given_rows
    width = len((there + others or [(0,)])[0])
    asked = KeyColumns([Keys(column) for column in columns(there, width)], most)
    code_of = dict(zip(there, asked.codes.tolist(), strict=True))
    assert len(set(code_of.values())) == len(code_of)
    assert all(0 <= code < asked.count for code in code_of.values())
    assert asked.codes.tolist() == [code_of[row] for row in there]
    for row, code in zip(others, asked.find(columns(others, width)).tolist(), strict=True):
        if row in code_of:
            assert code == code_of[row]
        else:
            assert code == -1 or code not in code_of.values()
        assert code < asked.count
        if any(value not in {known[at] for known in there} for at, value in enumerate(row)):
            assert code == -1


def columns(rows: list[tuple[int, ...]], width: int) -> list[Int]:
    return [np.array([row[at] for row in rows], np.int64) for at in range(width)]
