"""Stored samples as the requests that a server would have been sent: to replay them, to load a server, to try a client."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrank.schemas.console import logger, with_progress
from genrank.schemas.errors import UserError
from genrank.schemas.files import reading, sync
from genrank.schemas.manifest import opened, sample_files
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.serving.request_arrow import read_arrow
from genrank.serving.request_contract import RequestContract, RequestError, in_file, offsets
from genrank.serving.request_json import parse_json, rows_of, to_json
from genrank.tokenization.batch import Ints
from genrank.tokenization.sample_columns import SampleColumns, Shape, list_lengths, list_values
from genrank.tokenization.views import slices_of

RequestView = Literal["request", "user_day"]
"""What becomes one request: those of the log, or a whole stored row."""
BATCH = 1_024
"""Requests that are held at once."""


class Written(NamedTuple):
    """What was written."""

    requests: int
    candidates: int


def stored_requests(
    samples_root: Path, schema: Schema, dates: Sequence[str], view: RequestView = "request"
) -> Iterator[pa.RecordBatch]:
    """Rows of `RequestContract.sent` of the published samples of some days, a row group at a time, in stored order.

    `sample_id` is that of the reader's view (`tokenization.views`), so that requests find the scores of `genrank evaluate`.

    Raises:
        UserError: a day isn't published, or a file doesn't serve the schema.
    """
    columns, contract = SampleColumns(schema), RequestContract(schema)
    files = [file for dt in dates for file in sample_files(samples_root, dt, schema)]
    for path in files:
        with reading(path):
            file = pq.ParquetFile(opened(path))
        columns.check_schema(file.schema_arrow, path)
        first_row = 0
        for number in range(file.num_row_groups):
            with reading(path):
                table = file.read_row_group(number, columns=columns.names)
            columns.check(table, path, first_row)
            first_row += len(table)
            if len(table):
                yield requests_of(table, contract, view)


def requests_of(table: pa.Table, contract: RequestContract, view: RequestView) -> pa.RecordBatch:
    """The requests of a row group's samples.

    Args:
        table: columns of the schema's samples.
        contract: of the same schema.
        view: what becomes one request.
    """
    schema = contract.schema
    rows = table.combine_chunks()
    realtime = schema.realtime.name if schema.realtime else None
    lengths = {name: list_lengths(rows, f"{name}.ts") for name, _ in schema.groups() if name != USER}
    ts, request = (list_values(rows, f"{CANDIDATES}.{leaf}") for leaf in ("ts", "request"))
    sees = list_values(rows, "mask.candidate_sees") if realtime else np.zeros(len(ts), np.int64)
    cut = slices_of(Shape(lengths, ts, request, sees), schema, view)
    taken = rows.select([name for name in contract.sent.names if name not in (CANDIDATES, realtime)])
    columns = {name: _one(taken[name]).take(pa.array(cut.row)) for name in taken.column_names}
    if view == "request":
        part = pa.array(request[cut.order[cut.begin]]).cast(pa.string())
        columns["sample_id"] = pc.binary_join_element_wise(columns["sample_id"], part, "/")
    columns[CANDIDATES] = _lists(
        contract.sent.field(CANDIDATES), _one(rows[CANDIDATES]), cut.order, cut.end - cut.begin
    )
    if realtime:
        first = np.concatenate([[0], np.cumsum(lengths[realtime])])[cut.row]
        events = np.repeat(first - np.cumsum(cut.realtime) + cut.realtime, cut.realtime) + np.arange(cut.realtime.sum())
        columns[realtime] = _lists(contract.sent.field(realtime), _one(rows[realtime]), events, cut.realtime)
    arrays = [columns[field.name].cast(field.type) for field in contract.sent]
    return pa.RecordBatch.from_arrays(arrays, schema=contract.sent)


def split_requests(rows: pa.RecordBatch) -> int:
    """How many requests of the log lie in more than one row: of a long day that the builder divided."""
    seen: set[tuple[object, ...]] = set()
    split: set[tuple[object, ...]] = set()
    ids = rows.column(CANDIDATES).field("request").to_pylist()
    for user, start, own in zip(*(rows.column(n).to_pylist() for n in ("user_id", "window_start")), ids, strict=True):
        for request in set(own):
            key = (user, start, request)
            (split if key in seen else seen).add(key)
    return len(split)


def write_requests(
    samples_root: Path, schema: Schema, dates: Sequence[str], out: Path, view: RequestView, limit: int = 0
) -> Written:
    """Write stored samples as requests: JSON lines (`.jsonl`), or an Arrow IPC stream (`.arrow`).

    Args:
        samples_root: the folder with `dt=YYYY-MM-DD` folders.
        schema: what the requests are for.
        dates: days, in this order.
        out: the file; it is there whole or not at all.
        view: what becomes one request.
        limit: requests at most; 0: all.

    Raises:
        UserError: as `stored_requests`; another file name; no request in these days.
    """
    kind = _kind(out)
    compares = bool(SampleColumns(schema).read_time)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    requests = candidates = split = 0
    try:
        with temporary.open("wb") as file:
            stream = pa.ipc.new_stream(file, RequestContract(schema).sent) if kind == ".arrow" else None
            for rows in with_progress(stored_requests(samples_root, schema, dates, view), "requests"):
                split += split_requests(rows) if compares else 0
                rows = rows.slice(0, limit - requests) if limit else rows
                requests += len(rows)
                candidates += int(list_lengths(pa.table(rows), f"{CANDIDATES}.ts").sum())
                if stream is not None:
                    stream.write_batch(rows)
                else:
                    file.writelines(f"{line}\n".encode() for line in to_json(_compact(rows)))
                if limit and requests >= limit:
                    break
            if stream is not None:
                stream.close()
        if not requests:
            raise UserError(f"{samples_root} has no samples on {', '.join(dates)}")
        sync(temporary)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    if split:
        logger.warning(
            f"{split:,} requests of the log lie in two stored rows of a long day: features that compare the candidates of a request "
            "see each part alone here, and all of it in training; raise max_candidates or the realtime sequence's max_length"
        )
    return Written(requests, candidates)


def read_requests(path: Path, schema: Schema) -> Iterator[pa.RecordBatch]:
    """Rows as a scorer takes them, of a file of requests.

    Raises:
        RequestError: a line or row doesn't hold; with its number.
    """
    contract = RequestContract(schema)
    if _kind(path) == ".arrow":
        try:
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
                first = 0
                for batch in stream:
                    body = pa.BufferOutputStream()
                    with pa.ipc.new_stream(body, batch.schema) as own:
                        own.write_batch(batch)
                    yield read_arrow(contract, body.getvalue(), partial(in_file, f"{path} row", first))
                    first += len(batch)
        except pa.ArrowException as error:
            raise RequestError(f"{path} is no Arrow IPC stream ({str(error).splitlines()[0]})") from None
        return
    with path.open("rb") as lines:
        pending: list[object] = []
        first = 1
        for number, line in enumerate(lines, 1):
            try:
                pending.append(parse_json(line))
            except RequestError as error:
                raise RequestError(f"{path} line {number}: {error}") from None
            if len(pending) == BATCH:
                yield rows_of(contract, pending, partial(in_file, f"{path} line", first))
                pending, first = [], number + 1
        if pending:
            yield rows_of(contract, pending, partial(in_file, f"{path} line", first))


def _kind(path: Path) -> str:
    if path.suffix not in (".jsonl", ".arrow"):
        raise UserError(f"{path}: name a file of requests .jsonl (JSON lines) or .arrow (an Arrow IPC stream)")
    return path.suffix


def _compact(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows with buffers of their own, so that a slice's offsets begin at 0."""
    return rows.take(pa.array(np.arange(len(rows))))


def _lists(field: pa.Field, values: pa.StructArray, order: Ints, lengths: Ints) -> pa.StructArray:
    """Lists of `lengths`, side by side, of the flat positions `order` in every list of a struct."""
    index, ends = pa.array(order), offsets(lengths)
    children = [
        pa.ListArray.from_arrays(ends, values.field(child.name).flatten().take(index), type=child.type)
        for child in field.type
    ]
    return pa.StructArray.from_arrays(children, fields=list(field.type))


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
