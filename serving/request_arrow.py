"""Requests as an Arrow IPC stream: record batches of `RequestContract.sent`, column for column, nothing cast."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pyarrow as pa

from genrank.schemas.errors import UserError
from genrank.schemas.expression import nearest
from genrank.serving.arrow_sizes import decompressed_bytes
from genrank.serving.request_contract import RequestContract, RequestError, in_body

MEDIA_TYPE = "application/vnd.apache.arrow.stream"


class ExpandsTooMuch(RequestError):
    """A stream that takes more memory than is allowed."""


def read_arrow(
    contract: RequestContract, body: bytes, at: Callable[[int], str] = in_body, *, max_bytes: int | None = None
) -> pa.RecordBatch:
    """The rows of an Arrow IPC stream, as a scorer takes them.

    Args:
        contract: of the schema.
        at: what messages call a row.
        max_bytes: that the stream may take once its buffers are decompressed; None: any number.

    Raises:
        ExpandsTooMuch: it takes more; found before any of it is decompressed.
        RequestError: it is no such stream, a column is missing, unknown or of another type, or a value doesn't hold
            (`RequestContract.checked`).
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(body)) as stream:
            _check_types(contract, stream.schema)
            if max_bytes is not None and (size := decompressed_bytes(body)) > max_bytes:
                raise ExpandsTooMuch(
                    f"the body takes {size / 1e6:,.1f} MB once it is decompressed; at most {max_bytes / 1e6:g} MB are read:"
                    " send fewer requests at once"
                )
            table = stream.read_all()
        table.validate(full=True)  # offsets of a damaged or hostile stream would be read out of bounds
    except UserError:
        raise
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
        raise RequestError(
            f"the body is no Arrow IPC stream ({(str(error) or 'it is damaged').splitlines()[0]})"
        ) from None
    batches = table.select(contract.sent.names).combine_chunks().to_batches()
    if not batches:
        raise RequestError("the stream has no rows; send one for each request")
    rows = pa.RecordBatch.from_arrays(batches[0].columns, names=contract.sent.names)
    return contract.checked(rows, at)


def write_arrow(rows: Iterable[pa.RecordBatch], schema: pa.Schema) -> bytes:
    """An IPC stream of record batches."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        for batch in rows:
            stream.write_batch(batch)
    return bytes(sink.getvalue())


def _check_types(contract: RequestContract, found: pa.Schema) -> None:
    wanted, has = _paths(contract.sent), _paths(found)
    for name, type_ in wanted.items():
        if name not in has:
            raise RequestError(f"column {name} ({type_}) is missing{nearest(name, set(has) - set(wanted) or set(has))}")
        if has[name] != type_:
            raise RequestError(f"column {name} is {has[name]}; it must be {type_}")
    for name in has:
        if name not in wanted:
            why = "labels are what the model predicts, mask follows from the times; leave both out"
            known = (
                why if name.partition(".")[0] in ("labels", "mask") else nearest(name, set(wanted)).removeprefix("; ")
            )
            raise RequestError(f"column {name} is none of a request's; {known}")


def _paths(schema: pa.Schema) -> dict[str, str]:
    """`group.leaf` -> type, whatever is said of nulls: values are looked at for these."""
    out: dict[str, str] = {}
    for field in schema:
        if pa.types.is_struct(field.type):
            out |= {f"{field.name}.{child.name}": _text(child.type) for child in field.type}
        else:
            out[field.name] = _text(field.type)
    return out


def _text(type_: pa.DataType) -> str:
    return f"list<{_text(type_.value_type)}>" if pa.types.is_list(type_) else str(type_)
