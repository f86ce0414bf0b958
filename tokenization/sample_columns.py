"""Stored rows in memory: Arrow's buffers seen as tensors, without a copy, once they are known to hold what the schema says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from genrank.schemas.derive.sample_schema import Leaf, arrow_schema, leaves
from genrank.schemas.derive.tables import TYPE
from genrank.schemas.errors import UserError
from genrank.schemas.ids import hash_strings
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.tokenization.batch import Group, Ints, Ragged, ranges
from genrank.tokenization.feature_kinds import number_function
from genrank.tokenization.read_time import StoredNumbers, user_days
from genrank.tokenization.value_labels import learned


class Shape(NamedTuple):
    """What decides which samples R stored rows hold, and of how many tokens each."""

    lengths: dict[str, Ints]
    """Candidates and sequences -> [R] rows of it."""
    ts: Ints
    request: Ints
    sees: Ints
    """Of each candidate, [C] int64: exposure, epoch ms; request; realtime events before it (0 without such a sequence)."""


@dataclass
class StoredRows:
    """Stored rows: what `Batch` holds, for all rows at once."""

    groups: dict[str, Group]
    sample_id: pa.Array
    user: Tensor
    window_start: Tensor
    request: Tensor
    item: Tensor
    labels: dict[str, Tensor]
    """Task, `<task>_weight` and `<task>_oracle` -> [C] float32."""
    candidate_sees: Tensor
    realtime_sees: Tensor
    realtime_available: Tensor

    def __len__(self) -> int:
        return len(self.user)

    @property
    def shape(self) -> Shape:
        """Lengths and candidates, as numpy."""
        return Shape(
            {name: group.lengths.numpy() for name, group in self.groups.items() if name != USER},
            self.groups[CANDIDATES].ts.numpy(),
            self.request.numpy(),
            self.candidate_sees.numpy().astype(np.int64),
        )


class SampleColumns:
    """The columns of a schema's samples: which to read, how to check them, how to see them as tensors."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.expected = arrow_schema(schema)
        self.names = list(_paths(self.expected))
        self.leaves: dict[str, list[Leaf]] = {}
        for leaf in leaves(schema):
            self.leaves.setdefault(leaf.group, []).append(leaf)
        self.list_limits = {
            (group, feature.name): feature.list_limit
            for group, features in schema.groups()
            for feature in features
            if feature.list_limit
        }
        self.vector_lengths = {
            (group, feature.name): feature.vector_length
            for group, features in schema.groups()
            for feature in features
            if feature.vector_length
        }
        candidates = dict(schema.groups())[CANDIDATES]
        self.candidates = {feature.name: feature for feature in candidates}
        self.read_time = [feature.name for feature in candidates if number_function(feature)]
        """Features of the candidates that are computed when samples are read."""
        self.lists = [field.name for field in self.expected if field.name != USER and pa.types.is_struct(field.type)]

    # ------------------------------------------------------------------ checks

    def check_schema(self, found: pa.Schema, path: Path) -> None:
        """UserError unless the file has every column of the schema, of its type."""
        has = _paths(found)
        for name, wanted in _paths(self.expected).items():
            if name not in has:
                raise UserError(f"{path} has no column {name}; it was built from another schema: build the day again")
            if has[name] != wanted:
                raise UserError(
                    f"{path}: column {name} is {has[name]}, and schema {self.schema.name!r} says {wanted}; "
                    "build the day again"
                )

    def check(self, table: pa.Table, path: Path, first_row: int) -> None:
        """Check the values that a file's rows hold.

        Raises:
            UserError: a null, a list of another length than its group's, or a count of visible events beyond the sequence; with its row.
        """

        def wrong(row: int, what: str) -> UserError:
            return UserError(f"{path} row {first_row + row}: {what}: build the day again")

        self.check_nulls(table, path, first_row)
        for group, names in self.same_length().items():
            wanted = list_lengths(table, group)
            for name in names:
                own = list_lengths(table, name)
                if not np.array_equal(own, wanted):
                    row = int(np.flatnonzero(own != wanted)[0])
                    raise wrong(
                        row,
                        f"column {name} has {own[row]} values and {group} has {wanted[row]}; "
                        "the lists of one group must be of equal length",
                    )
        if self.schema.realtime:
            events = list_lengths(table, f"{self.schema.realtime.name}.ts")
            for column in _struct(table, "mask").type:
                seen = _struct(table, "mask").field(column.name)
                owner = np.repeat(np.arange(len(table)), np.diff(seen.offsets.to_numpy()))
                counts = _inner(seen).to_numpy()
                beyond = np.flatnonzero((counts < 0) | (counts > events[owner]))
                if len(beyond):
                    row = int(owner[beyond[0]])
                    raise wrong(
                        row, f"mask.{column.name} says {counts[beyond[0]]} of {events[row]} realtime events are visible"
                    )

    def check_nulls(self, table: pa.Table, path: Path, first_row: int) -> None:
        """UserError, naming the row, for a null at any depth of the table's columns."""
        for field in table.schema:
            for name, array in _children(field.name, _one(table[field.name])):
                if (row := _null_row(array)) is not None:
                    raise UserError(
                        f"{path} row {first_row + row}: column {name} is null; samples hold no nulls: build the day again"
                    )

    def same_length(self) -> dict[str, list[str]]:
        """First list of a token group -> every list of that length."""
        groups: dict[str, list[str]] = {}
        realtime = self.schema.realtime.name if self.schema.realtime else ""
        owners = {"labels": CANDIDATES, "mask.candidate_sees": CANDIDATES, "mask.realtime_sees": realtime}
        for field in self.expected:
            if field.name in self.lists:
                for child in field.type:
                    name = f"{field.name}.{child.name}"
                    owner = owners.get(name) or owners.get(field.name) or field.name
                    groups.setdefault(f"{owner}.ts", []).append(name)
        return groups

    # ------------------------------------------------------------------ tensors

    def stored_rows(self, tables: Sequence[pa.Table]) -> StoredRows:
        """The rows of checked tables, each a row group: one after another, with what is computed when samples are read."""
        table = pa.concat_tables(tables)
        structs = {name: _struct(table, name) for name in (USER, *self.lists) if name in table.schema.names}
        n = len(table)
        start = _tensor(_one(table["window_start"]))
        users = [self._leaf(leaf, structs[USER].field(leaf.name)) for leaf in self.leaves.get(USER, [])]
        groups = {USER: Group(torch.arange(n + 1), start, dict(users))}
        for name, _ in self.schema.groups():
            if name != USER:
                groups[name] = self._group(name, structs[name])
        candidates, labels = structs[CANDIDATES], structs["labels"]
        none32, none64 = torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int64)
        rows = len(groups[CANDIDATES].ts)
        realtime = self.schema.realtime
        user_id = _one(table["user_id"])
        user = _tensor(hash_strings(user_id) if pa.types.is_string(user_id.type) else user_id)
        request = _values(candidates.field("request"))
        if self.read_time:
            # A day that is divided into rows lies in one row group: what is compared doesn't depend on which groups are read together.
            day = user_days(user.numpy(), start.numpy(), np.repeat(np.arange(len(tables)), list(map(len, tables))))
            numbers = StoredNumbers(self.candidates, groups[CANDIDATES], day, request)
            for name in self.read_time:
                groups[CANDIDATES].features[name] = torch.from_numpy(numbers.number(name).astype(np.float32))
        return StoredRows(
            groups=groups,
            sample_id=_one(table["sample_id"]),
            user=user,
            window_start=start,
            request=request,
            item=_values(candidates.field("item")),
            labels=learned(
                {field.name: _values(labels.field(field.name)).float() for field in labels.type}, self.schema.labels
            ),
            candidate_sees=_values(structs["mask"].field("candidate_sees"))
            if realtime
            else torch.zeros(rows, dtype=torch.int32),
            realtime_sees=_values(structs["mask"].field("realtime_sees")) if realtime else none32,
            realtime_available=_values(structs[realtime.name].field("available")) if realtime else none64,
        )

    def _group(self, name: str, struct: pa.StructArray) -> Group:
        ts = struct.field("ts")
        features = dict(self._leaf(leaf, _inner(struct.field(leaf.name))) for leaf in self.leaves.get(name, []))
        if name != CANDIDATES:
            features[TYPE] = _values(struct.field(TYPE)).long()
        return Group(_offsets(ts), _values(ts), features)

    def _leaf(self, leaf: Leaf, values: pa.Array) -> tuple[str, Tensor | Ragged]:
        if leaf.stored not in ("ids", "vector"):
            return leaf.name, _tensor(values)
        offsets, ids = _offsets(values), _values(values)
        if length := self.vector_lengths.get((leaf.group, leaf.name)):
            sizes = offsets.diff()
            odd = sizes[(sizes != length) & (sizes != 0)]
            if len(odd):
                raise UserError(
                    f"{leaf.group}.{leaf.name}: a stored vector has {int(odd[0])} numbers, and the schema declares {length}; build the day again"
                )
        limit = self.list_limits.get((leaf.group, leaf.name))
        if limit is not None and len(offsets) > 1 and int(offsets.diff().max()) > limit:
            begin = offsets[:-1]
            offsets, kept = ranges(begin, torch.minimum(offsets[1:], begin + limit))
            ids = ids[kept]
        return leaf.name, Ragged(ids, offsets)


def _paths(schema: pa.Schema) -> dict[str, pa.DataType]:
    """`group.leaf` -> type, scalars under their own name; nullability is checked on the data."""
    out: dict[str, pa.DataType] = {}
    for field in schema:
        if pa.types.is_struct(field.type):
            out |= {f"{field.name}.{child.name}": _bare(child.type) for child in field.type}
        else:
            out[field.name] = field.type
    return out


def _bare(type_: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", _bare(type_.value_type))) if pa.types.is_list(type_) else type_


def _children(name: str, array: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    """An array and everything nested in it, down to the lists' values."""
    yield name, array
    if pa.types.is_struct(array.type):
        for field in array.type:
            yield from _children(f"{name}.{field.name}", array.field(field.name))


def _null_row(array: pa.Array) -> int | None:
    """The first row that is null, or holds a null at any depth."""
    if array.null_count:
        return int(np.flatnonzero(array.is_null())[0])
    if pa.types.is_list(array.type):
        inner = _null_row(array.flatten())
        if inner is not None:
            offsets = array.offsets.to_numpy()
            return int(np.searchsorted(offsets - offsets[0], inner, side="right")) - 1
    return None


def _one(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; `combine_chunks` of a single chunk is that chunk."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _struct(table: pa.Table, name: str) -> pa.StructArray:
    return _one(table[name])


def list_lengths(table: pa.Table, path: str) -> Ints:
    """[R] int64: values in each row of a list column, `group.leaf`."""
    group, _, leaf = path.partition(".")
    lengths: Ints = np.diff(_struct(table, group).field(leaf).offsets.to_numpy()).astype(np.int64)
    return lengths


def list_values(table: pa.Table, path: str) -> Ints:
    """[N] int64: every row's values of a list column without nulls, side by side."""
    group, _, leaf = path.partition(".")
    values: Ints = _inner(_struct(table, group).field(leaf)).to_numpy().astype(np.int64, copy=False)
    return values


def _inner(array: pa.ListArray) -> pa.Array:
    """The values of a list array, those of its rows only."""
    return array.flatten()


def _values(array: pa.ListArray) -> Tensor:
    return _tensor(_inner(array))


def _offsets(array: pa.ListArray) -> Tensor:
    offsets = _tensor(array.offsets).long()
    return offsets - offsets[0]


def _tensor(array: pa.Array) -> Tensor:
    """A view of a primitive array without nulls."""
    return from_dlpack(array)
