"""The user group of requests, from snapshots in memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import pyarrow as pa

from genrank.pipelines import sequences
from genrank.pipelines.arrays import single_array
from genrank.pipelines.columns import feature_column, on_snapshot, user_sources
from genrank.pipelines.merge_scan import Int
from genrank.pipelines.online.snapshots import SnapshotDays
from genrank.schemas import Schema
from genrank.schemas.stored import Stored


class _Attribute(NamedTuple):
    name: str
    stored: Stored
    snapshot: str | None
    """None where no snapshot has it."""
    column: str
    """In the snapshot's partial."""


class UserProfiles:
    """What of the user's features depends on the schema alone.

    Args:
        schema: that declares them.
        snapshots: by name.
    """

    def __init__(self, schema: Schema, snapshots: Mapping[str, SnapshotDays]) -> None:
        self._snapshots = snapshots
        self._ids: list[str] = []
        """Features that are the user's id."""
        self._attributes: list[_Attribute] = []
        for feature in schema.user.features:
            column = feature_column(feature)
            if column is None or feature.stored is None:
                continue
            if column.expression == schema.exposures.user:
                self._ids.append(feature.name)
                continue
            of = user_sources(schema, column)
            name, kept = (of[0].name, on_snapshot(of[0], column).name) if of else (None, "")
            self._attributes.append(_Attribute(feature.name, feature.stored, name, kept))

    def of(self, users: Int, day: int) -> dict[str, pa.Array]:
        """Feature -> its value of each user (hashed ids) as of a day."""
        values = dict.fromkeys(self._ids, pa.array(users))
        places: dict[str, pa.Array] = {}
        for name, stored, snapshot, column in self._attributes:
            if snapshot is None:
                values[name] = sequences.missing(stored, len(users))
                continue
            rows = self._snapshots[snapshot].as_of(day)
            if snapshot not in places:
                places[snapshot] = pa.array(rows.places(users))
            padded = rows.padded(f"{stored} {column}", partial(_padded, column, stored))
            values[name] = padded.take(places[snapshot])
        return values


def _padded(column: str, stored: Stored, rows: pa.Table) -> pa.Array:
    """A column whose last row, the one that stands for none, is missing as samples have it."""
    known = single_array(rows.column(column).slice(0, rows.num_rows - 1))
    return pa.concat_arrays([known, sequences.missing(stored, 1).cast(known.type)])
