"""How long samples are, as their file's footer says it: the builder writes it, and an epoch's batches are counted without reading a column.

Key-value metadata of a sample file has `genrank.lengths.<n>` for row group n: an Arrow IPC stream in base64 (as `ARROW:schema` is, since
readers take such values for text), a record batch with a row for each stored row.

| column | type |
|---|---|
| `rows.<group>` | int32: candidates, or events of a sequence |
| `request.candidates`, `request.sees` | list<int32>: of each request, in the order of its first candidate, its candidates and the realtime events before the last of them |
| `session.candidates`, `session.sees` | the same of each session, in time's order; with the schema's metadata `session_gap`, in ms |
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from genrank.schemas.base import CANDIDATES, parse_duration
from genrank.schemas.declaration import SchemaDeclaration

LENGTHS_KEY = b"genrank.lengths."
_GAP_KEY = b"session_gap"
Ints = npt.NDArray[np.int64]


class Slices(NamedTuple):
    """V parts of R stored rows: their requests, or sessions."""

    of_row: Ints
    """[R]: how many a row has, in its order."""
    candidates: Ints
    sees: Ints
    """[V]: candidates of each, and realtime events available before the last of them."""


class StoredLengths(NamedTuple):
    """Lengths of R stored rows."""

    rows: dict[str, Ints]
    """Candidates and sequences -> [R] rows of it."""
    request: Slices
    session: Slices
    session_gap: int
    """In ms."""


def by_request(owner: Ints, request: Ints) -> tuple[Ints, Ints]:
    """Candidates with each (row, request) side by side, in order of its first candidate.

    Args:
        owner: [C] the stored row of each candidate, ascending.
        request: [C].

    Returns:
        [C] positions of candidates, and [V] where in them each request begins.
    """
    run = np.flatnonzero(_changes(owner) | _changes(request))
    of_runs = np.lexsort((request[run], owner[run]))
    if (_changes(owner[run][of_runs]) | _changes(request[run][of_runs])).all():
        return np.arange(len(owner)), run  # Each lies side by side as it is.
    by_key = np.lexsort((request, owner))
    new = _changes(owner[by_key]) | _changes(request[by_key])
    leader = by_key[new][np.cumsum(new) - 1]
    order = by_key[np.argsort(leader, kind="stable")]
    return order, np.flatnonzero(_changes(np.sort(leader, kind="stable")))


def by_session(owner: Ints, ts: Ints, gap: int) -> tuple[Ints, Ints]:
    """Candidates by (row, time), and where each session begins: a run of exposures without a gap above `gap` ms; as `by_request`."""
    in_order = ((ts[1:] >= ts[:-1]) | (owner[1:] != owner[:-1])).all()
    order = np.arange(len(owner)) if in_order else np.lexsort((ts, owner))
    late = np.concatenate([[False], np.diff(ts[order]) > gap]) if len(order) else np.zeros(0, bool)
    return order, np.flatnonzero(_changes(owner[order]) | late)


def lengths_metadata(table: pa.Table, schema: SchemaDeclaration, bounds: Sequence[int]) -> dict[bytes, bytes]:
    """The footer's entries of a table of samples whose row group n is rows bounds[n]:bounds[n+1]."""
    return {
        LENGTHS_KEY + str(number).encode(): _encoded(_lengths(table.slice(begin, end - begin), schema))
        for number, (begin, end) in enumerate(itertools.pairwise(bounds))
    }


def stored_lengths(metadata: dict[bytes, bytes], row_group: int) -> StoredLengths | None:
    """Of a row group, from its file's key-value metadata; None where the file has none, or none that this version reads."""
    encoded = metadata.get(LENGTHS_KEY + str(row_group).encode())
    if encoded is None:
        return None
    try:
        table = pa.ipc.open_stream(base64.b64decode(encoded, validate=True)).read_all()
        gap = int(table.schema.metadata[_GAP_KEY])
        rows = {
            name.removeprefix("rows."): _ints(table[name]) for name in table.schema.names if name.startswith("rows.")
        }
        return StoredLengths(rows, _slices(table, "request"), _slices(table, "session"), gap)
    except (binascii.Error, pa.ArrowException, KeyError, TypeError, ValueError):
        return None


def _lengths(table: pa.Table, schema: SchemaDeclaration) -> StoredLengths:
    realtime = schema.realtime
    groups = [CANDIDATES, *(s.name for s in schema.histories), *([realtime.name] if realtime else [])]
    rows = {group: np.diff(_list(table, group, "ts").offsets.to_numpy()).astype(np.int64) for group in groups}
    owner = np.repeat(np.arange(table.num_rows), rows[CANDIDATES])
    sees = _values(table, "mask", "candidate_sees") if realtime else np.zeros(len(owner), np.int64)
    gap = parse_duration(schema.training.session_gap)

    def slices(order: Ints, begin: Ints) -> Slices:
        counts = np.diff(np.append(begin, len(order)))
        seen = np.maximum.reduceat(sees[order], begin) if len(begin) else np.zeros(0, np.int64)
        return Slices(np.bincount(owner[order[begin]], minlength=table.num_rows), counts, seen)

    return StoredLengths(
        rows,
        slices(*by_request(owner, _values(table, CANDIDATES, "request"))),
        slices(*by_session(owner, _values(table, CANDIDATES, "ts"), gap)),
        gap,
    )


def _encoded(lengths: StoredLengths) -> bytes:
    columns: dict[str, pa.Array] = {f"rows.{name}": _int32(values) for name, values in lengths.rows.items()}
    for name, slices in (("request", lengths.request), ("session", lengths.session)):
        offsets = _int32(np.concatenate([[0], np.cumsum(slices.of_row)]))
        columns[f"{name}.candidates"] = pa.ListArray.from_arrays(offsets, _int32(slices.candidates))
        columns[f"{name}.sees"] = pa.ListArray.from_arrays(offsets, _int32(slices.sees))
    table = pa.table(columns, metadata={_GAP_KEY: str(lengths.session_gap).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_table(table)
    return base64.b64encode(sink.getvalue())


def _slices(table: pa.Table, name: str) -> Slices:
    candidates, sees = (table[f"{name}.{of}"].combine_chunks() for of in ("candidates", "sees"))
    return Slices(
        np.diff(candidates.offsets.to_numpy()).astype(np.int64), _ints(candidates.flatten()), _ints(sees.flatten())
    )


def _list(table: pa.Table, group: str, leaf: str) -> pa.ListArray:
    column = table[group]
    struct = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return struct.field(leaf)


def _values(table: pa.Table, group: str, leaf: str) -> Ints:
    return _ints(_list(table, group, leaf).flatten())


def _ints(values: pa.Array | pa.ChunkedArray) -> Ints:
    found: Ints = values.to_numpy().astype(np.int64, copy=False)
    return found


def _int32(values: Ints) -> pa.Array:
    return pa.array(values.astype(np.int32))


def _changes(values: Ints) -> npt.NDArray[np.bool_]:
    """True where a value differs from the one before; the first always does."""
    if not len(values):
        return np.zeros(0, bool)
    return np.concatenate([[True], values[1:] != values[:-1]])
