"""Requests as JSON: `{"requests": [row, ...]}`, or in a file a row a line.

A row is an object with the columns of `RequestContract.sent`: a group is an object, a feature of the user a value, one of candidates or
events a list. Values are read exactly or refused:

| the sample keeps | JSON |
|---|---|
| int64 (ids, times) | an integer of 64 bits, no fraction, no exponent; null: missing. Above 2^53 many JSON writers round: send strings where the log has strings |
| an id of a string | the string, or its stored 64-bit hash |
| list<int64> | a list of ids; null: an empty one |
| float32 | a number, rounded to the nearest float32 as the builder does; null: missing. `NaN` and `Infinity` are no JSON |
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrank.schemas.expression import nearest
from genrank.schemas.ids import MISSING_ID, hash_string
from genrank.schemas.schema import CANDIDATES, USER
from genrank.serving.request_contract import RequestContract, RequestError, in_body, offsets

_NEVER_MISSING = {"user_id", "window_start", "window_end", f"{CANDIDATES}.item"}
_NEVER_MISSING_OF_ANY = {"ts", "type", "available"}
_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "an integer", float: "a fraction"}


def read_json(contract: RequestContract, body: bytes) -> pa.RecordBatch:
    """The rows of a JSON body, as a scorer takes them.

    Raises:
        RequestError: it is no JSON, a feature is missing, unknown or of another type, or a value doesn't hold
            (`RequestContract.checked`).
    """
    parsed = parse_json(body)
    if not isinstance(parsed, dict) or set(parsed) != {"requests"} or not isinstance(parsed["requests"], list):
        raise RequestError('the body must be an object with the key "requests" alone: a list of requests')
    if not parsed["requests"]:
        raise RequestError("requests is empty; send at least one")
    return rows_of(contract, parsed["requests"])


def parse_json(text: bytes | str) -> object:
    """What a JSON text holds.

    Raises:
        RequestError: it is none, holds `NaN` or `Infinity`, a key twice, or an integer of thousands of digits.
    """
    try:
        parsed: object = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_object)
        return parsed
    except RecursionError:
        raise RequestError("the JSON is nested too deeply") from None
    except ValueError as error:
        raise RequestError(f"the body is no JSON ({error})") from None


def rows_of(
    contract: RequestContract, requests: Sequence[object], at: Callable[[int], str] = in_body
) -> pa.RecordBatch:
    """Rows as a scorer takes them, of parsed requests.

    Args:
        contract: of the schema.
        requests: a JSON object each.
        at: what messages call a request.

    Raises:
        RequestError: as `read_json`.
    """
    return contract.checked(_Columns(contract, at).read(requests), at)


def to_json(rows: pa.RecordBatch) -> Iterator[str]:
    """A JSON object for each row of `RequestContract.sent`, exact: what `read_json` reads is equal to the bit."""
    columns: dict[str, list[object]] = {}
    for field in rows.schema:
        column = rows.column(field.name)
        if pa.types.is_struct(field.type):
            leaves = {child.name: _plain(column.field(child.name)) for child in field.type}
            columns[field.name] = [dict(zip(leaves, row, strict=True)) for row in zip(*leaves.values(), strict=True)]
        else:
            columns[field.name] = column.to_pylist()
    for row in zip(*columns.values(), strict=True):
        yield json.dumps(dict(zip(columns, row, strict=True)), allow_nan=False, ensure_ascii=False)


def may_be_missing(name: str) -> bool:
    """Whether null is a value of a column (`group.leaf`): a missing one."""
    return name not in _NEVER_MISSING and name.rpartition(".")[2] not in _NEVER_MISSING_OF_ANY


def _plain(values: pa.Array) -> list[object]:
    """Python's values, None where one is missing."""
    if pa.types.is_list(values.type):
        flat = _plain(values.flatten())
        ends = values.offsets.to_numpy() - values.offsets[0].as_py()
        return [flat[begin:end] for begin, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
    if pa.types.is_floating(values.type):
        found: list[object] = [None if math.isnan(value) else value for value in values.to_pylist()]
        return found
    if values.type == pa.int64():
        return [None if value == MISSING_ID else value for value in values.to_pylist()]
    return list(values.to_pylist())


def _no_constant(name: str) -> NoReturn:
    raise RequestError(f"{name} is no JSON value; send null where a number is missing")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"the key {twice!r} is there twice in one object")
    return found


class _Columns:
    """Parsed rows as Arrow columns; the first value that doesn't fit is named by its place."""

    def __init__(self, contract: RequestContract, at: Callable[[int], str]) -> None:
        self.contract, self.at = contract, at
        self.text = contract.text_ids

    def read(self, requests: Sequence[object]) -> pa.RecordBatch:
        schema = self.contract.sent
        types = {field.name: str(field.type) for field in schema}
        rows = [self._object(request, types, self.at(row), "") for row, request in enumerate(requests)]
        columns: list[pa.Array] = []
        for field in schema:
            values = [row[field.name] for row in rows]
            if pa.types.is_struct(field.type):
                columns.append(self._group(field, values))
            elif pa.types.is_string(field.type):
                columns.append(self._strings(field.name, values))
            else:
                columns.append(self._flat(field.name, field.type, values, self._place(field.name, None)))
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _object(self, value: object, types: dict[str, str], place: str, group: str) -> dict[str, object]:
        if not isinstance(value, dict):
            raise RequestError(f"{place} is {_named(value)}; it must be an object with {', '.join(types)}")
        if missing := [name for name in types if name not in value]:
            first = f"{missing[0]} ({types[missing[0]]})" if group else missing[0]
            others = f", nor {', '.join(missing[1:])}" if len(missing) > 1 else ""
            remedy = "null stands for a missing value, an empty list for no events"
            raise RequestError(f"{place} has no {first}{others}; {remedy}")
        if unknown := [name for name in value if name not in types]:
            raise RequestError(f"{place} has an unknown key {unknown[0]!r}{nearest(str(unknown[0]), set(types))}")
        return value

    def _group(self, field: pa.Field, values: Sequence[object]) -> pa.StructArray:
        types = {child.name: _in_words(child.type) for child in field.type}
        rows = [
            self._object(value, types, f"{self.at(row)}.{field.name}", field.name) for row, value in enumerate(values)
        ]
        scalars = field.name == USER
        children = []
        for child in field.type:
            name, own = f"{field.name}.{child.name}", [row[child.name] for row in rows]
            if scalars:
                children.append(self._flat(name, child.type, own, self._place(name, None)))
                continue
            lengths, flat = self._lists(own, self._place(name, None), null=False)
            inner = self._flat(name, child.type.value_type, flat, self._place(name, lengths))
            children.append(pa.ListArray.from_arrays(offsets(lengths), inner, type=child.type))
        return pa.StructArray.from_arrays(children, fields=list(field.type))

    def _place(self, name: str, lengths: np.ndarray | None) -> Callable[[int], str]:
        """Where a value of a flat list stands."""

        def place(number: int) -> str:
            if lengths is None:
                return f"{self.at(number)}.{name}"
            ends = np.cumsum(lengths)
            row = int(np.searchsorted(ends, number, "right"))
            return f"{self.at(row)}.{name}[{number - int(ends[row] - lengths[row])}]"

        return place

    def _lists(
        self, values: Sequence[object], place: Callable[[int], str], null: bool
    ) -> tuple[np.ndarray, list[object]]:
        """([n] lengths, what the lists hold)."""
        lists: list[list[object]] = []
        for number, value in enumerate(values):
            if value is None and null:
                value = []
            if not isinstance(value, list):
                raise RequestError(f"{place(number)} is {_named(value)}; it must be a list")
            lists.append(value)
        return np.array([len(each) for each in lists], np.int64), list(chain.from_iterable(lists))

    def _flat(self, name: str, type_: pa.DataType, values: list[object], place: Callable[[int], str]) -> pa.Array:
        if pa.types.is_list(type_):
            lengths, flat = self._lists(values, place, null=True)
            ends = np.cumsum(lengths)

            def inner(number: int) -> str:
                row = int(np.searchsorted(ends, number, "right"))
                return f"{place(row)}[{number - int(ends[row] - lengths[row])}]"

            return pa.ListArray.from_arrays(
                offsets(lengths), self._flat(name, type_.value_type, flat, inner), type=type_
            )
        if pa.types.is_floating(type_):
            return _numbers(values, place)
        return self._integers(name, type_, values, place)

    def _integers(self, name: str, type_: pa.DataType, values: list[object], place: Callable[[int], str]) -> pa.Array:
        kinds = set(map(type, values))
        text = name in self.text
        fits = {int} | ({str} if text else set()) | ({type(None)} if may_be_missing(name) else set())
        if not kinds <= fits:
            at, bad = next((at, value) for at, value in enumerate(values) if type(value) not in fits)
            wanted = "an integer or a string" if text else "an integer"
            missing = "" if type(None) not in fits else ", or null where it is missing"
            raise RequestError(f"{place(at)} is {_named(bad)}; it must be {wanted}{missing}")
        if str in kinds:
            values = [_hashed(value, place, at) if isinstance(value, str) else value for at, value in enumerate(values)]
        ends = np.iinfo(type_.to_pandas_dtype())
        low = int(ends.min) + (type_ == pa.int64())  # -2^63 stands for a missing value
        try:
            array = pa.array(values, type_)
            within = type_ != pa.int64() or pc.min(array).as_py() != MISSING_ID
        except (OverflowError, pa.ArrowInvalid):
            within = False
        if not within:
            at, bad = next(
                (at, v) for at, v in enumerate(values) if isinstance(v, int) and not low <= v <= int(ends.max)
            )
            remedy = "; send null where it is missing" if bad == MISSING_ID and type(None) in fits else ""
            raise RequestError(f"{place(at)} is {_short(bad)}; it must lie in {low} .. {ends.max}{remedy}")
        return array.fill_null(MISSING_ID) if array.null_count else array

    def _strings(self, name: str, values: list[object]) -> pa.Array:
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise RequestError(f"{self.at(row)}.{name} is {_named(value)}; it must be a string")
            _utf8(value, f"{self.at(row)}.{name}")
        return pa.array(values, pa.string())


def _numbers(values: list[object], place: Callable[[int], str]) -> pa.Array:
    kinds = set(map(type, values))
    if not kinds <= {int, float, type(None)}:
        at, bad = next((at, v) for at, v in enumerate(values) if type(v) not in (int, float, type(None)))
        raise RequestError(f"{place(at)} is {_named(bad)}; it must be a number, or null where it is missing")
    if type(None) in kinds:
        values = [math.nan if value is None else value for value in values]
    try:
        wide = np.array(values, np.float64)
    except OverflowError:  # an integer beyond float64
        wide = np.array([value if abs(value) < 2**1000 else math.inf for value in values], np.float64)  # type: ignore[arg-type]
    with np.errstate(over="ignore"):
        numbers = wide.astype(np.float32)
    if len(beyond := np.flatnonzero(np.isinf(numbers))):
        at = int(beyond[0])
        raise RequestError(f"{place(at)} is {_short(values[at])}; it is beyond float32 (3.4e38)")
    return pa.array(numbers)


def _hashed(text: str, place: Callable[[int], str], at: int) -> int:
    _utf8(text, place(at) if not text.isascii() else "")
    return hash_string(text)


def _utf8(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{place} holds half of a surrogate pair, which is no text") from None


def _named(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, (dict, list)):
        return _NAMES[type(value)]
    return f"{_short(value)}, {_NAMES[type(value)]}"


def _short(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 1 << 4_000:
        return "an integer of thousands of digits"
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 40 else f"{text[:36]} ..."


def _in_words(type_: pa.DataType) -> str:
    if pa.types.is_list(type_):
        return f"list<{_in_words(type_.value_type)}>"
    return {"int64": "integer", "int32": "integer", "float": "number"}[str(type_)]
