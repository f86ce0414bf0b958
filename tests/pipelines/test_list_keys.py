"""Keys that are lists, against a loop over rows."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines import list_keys
from genrank.schemas.features.cross_feature import Reduction
from genrank.schemas.ids import MISSING_ID

LISTS = st.lists(st.lists(st.integers(0, 9), max_size=4, unique=True), max_size=8)
VALUES = st.just(math.nan) | st.floats(-1e9, 1e9) | st.sampled_from([0.0, -0.0, 0.1, 1e300])


@given(LISTS)
def test_a_row_stands_at_each_id_of_its_list(lists: list[list[int]]) -> None:
    table = pa.table({"ids": pa.array(lists, pa.list_(pa.int64())), "row": pa.array(range(len(lists)), pa.int64())})
    wanted = [{"row": row, "ids": one} for row, ids in enumerate(lists) for one in ids or [MISSING_ID]]
    assert list_keys.exploded(table, "ids").to_pylist() == wanted
    assert list_keys.keys_of(table.column("ids")).tolist() == [len(ids) or 1 for ids in lists]


@pytest.mark.parametrize("how", ["mean", "sum", "max", "min"])
@given(st.lists(st.lists(VALUES, min_size=1, max_size=5), max_size=6), st.randoms())
def test_values_become_one_whatever_their_order(how: Reduction, of_rows: list[list[float]], random: object) -> None:
    number = np.array([len(values) for values in of_rows], np.int64)
    found = list_keys.reduced(how, np.array([value for values in of_rows for value in values]), number)
    for value, values in zip(found.tolist(), of_rows, strict=True):
        there = [Fraction(one) for one in values if not math.isnan(one)]
        if not there:
            assert math.isnan(value)
            continue
        exact = {"mean": sum(there) / len(there), "sum": sum(there), "max": max(there), "min": min(there)}[how]
        assert value == pytest.approx(float(exact), rel=1e-15, abs=0)
    for values in of_rows:
        random.shuffle(values)  # type: ignore[attr-defined]
    again = list_keys.reduced(how, np.array([value for values in of_rows for value in values]), number)
    assert again.tobytes() == found.tobytes()
