"""Spans of labels, read off Parquet's footers, are those of the labels themselves."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from genrank.model.label_guard import require_two_classes, spans
from genrank.schemas import Schema, UserError
from genrank.schemas.manifest import sample_files
from tests.model.conftest import DAYS


def of_values(samples: Path, schema: Schema, dates: list[str], leaf: str) -> pa.Array:
    """All values of a label's leaf."""
    files = [file for date in dates for file in sample_files(samples, date, schema)]
    tables = [pq.read_table(file, partitioning=None) for file in files]
    return pa.chunked_array([pc.list_flatten(pc.struct_field(c, leaf)) for t in tables for c in t["labels"].chunks])


@pytest.mark.parametrize("dates", [list(DAYS), list(DAYS[:1])])
def test_spans_are_the_least_and_the_greatest_value(samples: Path, schema: Schema, dates: list[str]) -> None:
    found = spans(samples / "samples", schema, dates)
    assert set(found) == {label.name for label in schema.labels}
    for name, span in found.items():
        extremes = pc.min_max(of_values(samples / "samples", schema, dates, name))
        assert (span.low, span.high) == (extremes["min"].as_py(), extremes["max"].as_py())
        assert span.weight == pc.max(of_values(samples / "samples", schema, dates, f"{name}_weight")).as_py()


def test_days_of_both_classes_pass_and_a_day_without_a_build_is_named(samples: Path, schema: Schema) -> None:
    require_two_classes(samples / "samples", schema, list(DAYS), mature=True)
    with pytest.raises(UserError, match="2030-01-01"):
        spans(samples / "samples", schema, ["2030-01-01"])
