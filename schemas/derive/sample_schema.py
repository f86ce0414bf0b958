"""Schema -> the sample's Arrow schema: what the builder writes and the reader reads, leaf by leaf.

One row per user and window (a day). A struct per token group, a list per feature:

| column | type |
|---|---|
| `sample_id` | string: `<user>:<dt>:<chunk>` |
| `user_id` | int64 or string, as the exposures declare it |
| `window_start`, `window_end` | int64, epoch ms: `[start, end)` |
| `user` | struct, a scalar per feature |
| `<sequence>` | struct, a list per feature, and `ts` (int64 ms), `type` (int32: position in the sequence's `events`); realtime also `available` (int64 ms) |
| `candidates` | struct, a list per feature, and `ts`, `request` (int64), `item` (int64) |
| `labels` | struct of lists, one value per candidate: `<task>` (int32, float32 for values), `<task>_weight`, `<task>_oracle` (float32) |
| `mask` | struct of list<int32>: `candidate_sees`, `realtime_sees` (only with a realtime sequence) |

No leaf holds a null: a missing id is `MISSING_ID`, a missing number NaN, a missing list or vector empty.
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from genrank.schemas.base import CANDIDATES, USER
from genrank.schemas.declaration import SchemaDeclaration
from genrank.schemas.derive.fingerprints import whole_meaning
from genrank.schemas.digest import digest
from genrank.schemas.stored import STORED_TYPES, Stored

SCHEMA_KEY = b"genrank.schema"
FINGERPRINT_KEY = b"genrank.fingerprint"
BUILD_KEY = b"genrank.build_id"


class Leaf(NamedTuple):
    """One stored column of a token group."""

    group: str
    name: str
    stored: Stored

    @property
    def type(self) -> pa.DataType:
        """Arrow type of one value (a candidate's, an event's, the user's)."""
        return STORED_TYPES[self.stored]


def leaves(schema: SchemaDeclaration) -> list[Leaf]:
    """Every stored feature, group by group in token order, by name within a group."""
    return [
        Leaf(group, feature.name, stored)
        for group, features in schema.groups()
        for feature in features
        if (stored := feature.stored)
    ]


def arrow_schema(schema: SchemaDeclaration) -> pa.Schema:
    """The exact Arrow schema of a sample file, with the declaration and its fingerprint as metadata."""
    user_type = schema.exposures.columns[schema.exposures.user]
    fields = [
        _field("sample_id", pa.string()),
        _field("user_id", pa.string() if user_type == "string" else pa.int64()),
        _field("window_start", pa.int64()),
        _field("window_end", pa.int64()),
    ]
    by_group: dict[str, list[Leaf]] = {}
    for leaf in leaves(schema):
        by_group.setdefault(leaf.group, []).append(leaf)
    if USER in by_group:
        fields.append(_struct(USER, {leaf.name: leaf.type for leaf in by_group[USER]}))
    for sequence in (*schema.histories, *([schema.realtime] if schema.realtime else [])):
        own = {leaf.name: leaf.type for leaf in by_group.get(sequence.name, [])}
        own |= {"ts": pa.int64(), "type": pa.int32()}
        if sequence.scope == "realtime":
            own["available"] = pa.int64()
        fields.append(_struct(sequence.name, _lists(own)))
    own = {leaf.name: leaf.type for leaf in by_group.get(CANDIDATES, [])}
    fields.append(_struct(CANDIDATES, _lists(own | {"ts": pa.int64(), "request": pa.int64(), "item": pa.int64()})))
    tasks: dict[str, pa.DataType] = {}
    for label in sorted(schema.labels, key=lambda label: label.name):
        tasks[label.name] = pa.int32() if label.kind == "binary" else pa.float32()
        tasks[f"{label.name}_weight"] = pa.float32()
        if label.oracle:
            tasks[f"{label.name}_oracle"] = pa.float32()
    fields.append(_struct("labels", _lists(tasks)))
    if schema.realtime:
        fields.append(_struct("mask", _lists({"candidate_sees": pa.int32(), "realtime_sees": pa.int32()})))
    metadata = {SCHEMA_KEY: schema.model_dump_json().encode(), FINGERPRINT_KEY: digest(whole_meaning(schema)).encode()}
    return pa.schema(fields, metadata=metadata)


def _field(name: str, type_: pa.DataType) -> pa.Field:
    return pa.field(name, type_, nullable=False)


def _struct(name: str, children: dict[str, pa.DataType]) -> pa.Field:
    return _field(name, pa.struct([_field(child, type_) for child, type_ in children.items()]))


def _lists(children: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
    return {name: pa.list_(_field("element", type_)) for name, type_ in children.items()}
