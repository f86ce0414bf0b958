"""Samples in memory, without labels: the rows that a request is made of, and the batch that a model reads.

Columns are those of `schemas.derive.sample_schema`, but for `labels`; what the labels' place holds, if anything, is not read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.errors import UserError
from genrank.schemas.schema import CANDIDATES, Schema
from genrank.tokenization.batch import Batch
from genrank.tokenization.sample_columns import SampleColumns
from genrank.tokenization.views import view_of

LABELS = "labels"


def request_schema(schema: Schema) -> pa.Schema:
    """The Arrow schema of samples to score: that of stored ones without labels."""
    stored = arrow_schema(schema)
    return pa.schema([field for field in stored if field.name != LABELS], metadata=stored.metadata)


class SampleRows:
    """Record batches of samples -> batches, checked as files are.

    Args:
        schema: what the samples are of.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.columns = SampleColumns(schema)
        self.wanted = request_schema(schema)
        self._labels = self.columns.expected.field(LABELS)

    def batch(self, rows: pa.RecordBatch, where: str = "the request") -> Batch:
        """Every row a sample with all of its candidates, in the rows' order. On the CPU; labels and weights are 0.

        Args:
            where: what messages call the rows.

        Raises:
            UserError: a column is missing, is of another type, holds a null, or is not as long as its group.
        """
        table = self._with_blank_labels(rows, where)
        self.columns.check(table, Path(where), 0)
        stored = self.columns.stored_rows([table])
        view = view_of(stored, self.schema, "user_day")
        return view.batch(np.arange(len(view)))

    def _with_blank_labels(self, rows: pa.RecordBatch, where: str) -> pa.Table:
        columns = []
        for field in self.wanted:
            at = rows.schema.get_field_index(field.name)
            if at < 0:
                raise UserError(
                    f"{where} has no column {field.name} (or several); samples of schema {self.schema.name!r} have"
                    f" {', '.join(self.wanted.names)}"
                )
            columns.append(_as(rows.column(at), field, where))
        candidates = columns[self.wanted.get_field_index(CANDIDATES)]
        blank = _zeros_beside(candidates.field("ts"), self._labels.type)
        names = [*self.wanted.names, LABELS]
        return pa.Table.from_arrays([*columns, blank], schema=pa.schema([*self.wanted, self._labels])).select(names)


def _as(column: pa.Array, field: pa.Field, where: str) -> pa.Array:
    """A column of the type that the schema says; list and field names apart, nothing is converted."""
    if column.null_count:
        raise UserError(f"{where}: column {field.name} holds a null; samples hold none: give a value for every row")
    if column.type.equals(field.type):
        return column
    if pa.types.is_struct(field.type) and pa.types.is_struct(column.type):
        children = []
        for child in field.type:
            if column.type.get_field_index(child.name) < 0:
                raise UserError(f"{where} has no column {field.name}.{child.name}; add it to {field.name}")
            own = column.field(child.name)
            if str(_value_type(own.type)) != str(_value_type(child.type)):
                raise UserError(f"{where}: column {field.name}.{child.name} is {own.type}, give {child.type}")
            children.append(own.cast(child.type))
        return pa.StructArray.from_arrays(children, fields=list(field.type))
    raise UserError(f"{where}: column {field.name} is {column.type}, give {field.type}")


def _value_type(type_: pa.DataType) -> pa.DataType:
    return pa.list_(_value_type(type_.value_type)) if pa.types.is_list(type_) else type_


def _zeros_beside(lists: pa.ListArray, labels: pa.StructType) -> pa.StructArray:
    """A zero of each label for each of the candidates."""
    offsets = lists.offsets.to_numpy()
    count = int(offsets[-1] - offsets[0])
    starts = pa.array(offsets - offsets[0], pa.int32())
    own = [pa.ListArray.from_arrays(starts, pa.array(np.zeros(count), f.type.value_type), type=f.type) for f in labels]
    return pa.StructArray.from_arrays(own, fields=list(labels))
