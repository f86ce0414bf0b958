"""The user group of a sample: snapshots of the user as of the window's start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrank.pipelines import sequences
from genrank.pipelines.arrays import single_array
from genrank.pipelines.columns import feature_column, on_snapshot, user_sources
from genrank.pipelines.merge_scan import Int, mix, slot_of
from genrank.pipelines.partials import Bucket, PartialRef, load
from genrank.schemas import Schema
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.schema import USER


@dataclass(frozen=True)
class Profiles:
    """Snapshots of users; travels to tasks by pickle."""

    schema: Schema
    buckets: int
    partials: Mapping[str, Mapping[int, PartialRef]]
    """User snapshot -> day built -> its partial."""
    schemas: Mapping[str, pa.Schema]
    """Source -> Arrow schema of its partials."""

    def as_of(self, day: int, users: Int) -> pa.Array:
        """The user group: snapshots of the user as of the window's start."""
        field = arrow_schema(self.schema).field(USER)
        values: dict[str, pa.Array] = {}
        for feature in self.schema.user.features:
            stored = feature.stored
            if stored is None:
                continue
            column = feature_column(feature)
            assert column is not None
            if column.expression == self.schema.exposures.user:
                values[feature.name] = pa.array(users)
                continue
            snapshots = user_sources(self.schema, column)
            ref = self.partials.get(snapshots[0].name, {}).get(day) if snapshots else None
            if ref is None:
                values[feature.name] = sequences.missing(stored, len(users))
                continue
            name = on_snapshot(snapshots[0], column).name
            bucket = Bucket(int(slot_of(mix(users[:1]), self.buckets)[0]), self.buckets)
            table = load([ref], bucket, ["u", name], self.schemas[snapshots[0].name])
            at = pc.index_in(pa.array(users), value_set=single_array(table.column("u"))).to_numpy(zero_copy_only=False)
            at = np.where(np.isnan(at), table.num_rows, at).astype(np.int64)
            padded = pa.concat_arrays([single_array(table.column(name)), sequences.missing(stored, 1)])
            values[feature.name] = padded.take(pa.array(at))
        return pa.StructArray.from_arrays([values[child.name] for child in field.type], fields=list(field.type))

    def known_users(self, day: int, bucket: int, users: pa.Array) -> dict[str, tuple[int, int]]:
        """(how many of the day's users each user snapshot of the user group knows, how many users there are)."""
        columns = [column for feature in self.schema.user.features if (column := feature_column(feature))]
        known = {}
        for name in sorted({snapshot.name for column in columns for snapshot in user_sources(self.schema, column)}):
            ref = self.partials.get(name, {}).get(day)
            have = load([ref] if ref else [], Bucket(bucket, self.buckets), ["u"], self.schemas[name], users)
            known[f"user → {name}"] = (have.num_rows, len(users))
        return known
