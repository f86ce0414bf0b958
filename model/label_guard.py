"""Whether some days' labels are of more than one class. Read off Parquet's footers, before the first row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from genrank.model.sample_files import read_footer
from genrank.schemas.errors import UserError
from genrank.schemas.manifest import sample_files
from genrank.schemas.schema import Schema


class Span(NamedTuple):
    """Of one label over all candidates of some days."""

    low: float
    high: float
    weight: float
    """The largest; 0 if no label is mature."""


def spans(samples: Path, schema: Schema, dates: Sequence[str]) -> dict[str, Span]:
    """By task; without a task whose statistics the files lack, as where there is no candidate."""
    found: dict[str, tuple[float, float]] = {}
    for file in (file for date in dates for file in sample_files(samples, date, schema)):
        metadata = read_footer(file)
        for group in range(metadata.num_row_groups):
            for at in range(metadata.num_columns):
                column = metadata.row_group(group).column(at)
                name, _, rest = column.path_in_schema.partition(".")
                if name == "labels" and column.statistics is not None and column.statistics.has_min_max:
                    leaf = rest.partition(".")[0]
                    low, high = found.get(leaf, (math.inf, -math.inf))
                    found[leaf] = (min(low, column.statistics.min), max(high, column.statistics.max))
    return {
        label.name: Span(*found[label.name], found.get(f"{label.name}_weight", (0.0, 1.0))[1])
        for label in schema.labels
        if label.name in found
    }


def require_two_classes(samples: Path, schema: Schema, dates: Sequence[str], *, mature: bool) -> None:
    """Refuse days whose labels are all of one class: a ranker learns nothing from them, and AUC says nothing on them.

    Args:
        mature: refuse days without a mature label, too.

    Raises:
        UserError: as said, with the labels' names. A number among the mature labels is enough to learn from.
    """
    known = spans(samples, schema, dates)
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    ripe = [label for label in schema.labels if label.name in known and known[label.name].weight > 0]
    if known and not ripe:
        if mature:
            raise UserError(
                f"--dates {days}: no label of these days is mature, their windows had not closed when the samples were built; build"
                " the days again with a later --as-of, or take earlier ones"
            )
        return
    if ripe and all(label.kind == "binary" and known[label.name].low == known[label.name].high for label in ripe):
        all_of_one = ", ".join(f"every {label.name} is {known[label.name].low:g}" for label in ripe)
        raise UserError(
            f"--dates {days}: labels are all of one class ({all_of_one}), so there is nothing to learn; look at the label's"
            " source and window in the schema, or take other days"
        )
