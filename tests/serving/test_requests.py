"""Requests: JSON and Arrow are read exactly or refused by name, and stored samples become the requests they came from."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_samples import demo_schema, random_table, write_random_samples

from genrank.schemas import Schema, UserError, load_schema
from genrank.schemas.ids import MISSING_ID, hash_string
from genrank.serving.request_arrow import read_arrow, write_arrow
from genrank.serving.request_contract import RequestContract, RequestError
from genrank.serving.request_json import read_json, to_json
from genrank.serving.request_schema import request_json_schema
from genrank.serving.stored_requests import read_requests, requests_of, stored_requests, write_requests
from genrank.tokenization.sample_columns import SampleColumns
from genrank.tokenization.views import view_of

DAY = "2026-03-01"


@cache
def contract() -> RequestContract:
    return RequestContract(demo_schema(), max_candidates=50)


@cache
def table(seed: int = 0) -> pa.Table:
    return random_table(demo_schema(), DAY, users=12, seed=seed)


@cache
def stored() -> pa.RecordBatch:
    """Rows as they are sent, with a realtime event and more than one candidate in the first."""
    rows = requests_of(table(), contract(), "user_day")
    events = rows.column("realtime").field("ts").value_lengths().to_numpy()
    candidates = rows.column("candidates").field("ts").value_lengths().to_numpy()
    first = int(np.flatnonzero((events > 2) & (candidates > 2))[0])
    return rows.take(pa.array([first, *[at for at in range(len(rows)) if at != first]]))


def body() -> dict[str, Any]:
    return {"requests": [json.loads(line) for line in to_json(stored())]}


def read(content: dict[str, Any]) -> pa.RecordBatch:
    return read_json(contract(), json.dumps(content).encode())


# ---------------------------------------------------------------------- what is right


def equal_to_the_bit(one: pa.RecordBatch, other: pa.RecordBatch) -> bool:
    """Also where there are NaNs."""
    assert one.schema.names == other.schema.names
    return repr(one.to_pylist()) == repr(other.to_pylist())


def test_json_and_arrow_read_what_was_written_to_the_bit() -> None:
    from_json = read(body())
    from_arrow = read_arrow(contract(), write_arrow([stored()], contract().sent))
    assert equal_to_the_bit(from_json, from_arrow)
    assert from_json.schema.equals(contract().rows)
    assert equal_to_the_bit(from_json.select(contract().sent.names), stored())


def test_what_each_candidate_sees_follows_from_the_times() -> None:
    """The mask that the builder stored (here: the random samples' own) is what requests are given."""
    for seed in range(4):
        samples = table(seed)
        rows = contract().checked(requests_of(samples, contract(), "user_day"))
        assert rows.column("mask").to_pylist() == samples["mask"].to_pylist()


@pytest.mark.parametrize("view", ["request", "user_day"])
def test_requests_are_the_readers_views(view: Any) -> None:
    samples, schema = table(1), demo_schema()
    rows = contract().checked(requests_of(samples, contract(), view))
    columns = SampleColumns(schema)
    wanted = view_of(columns.stored_rows([samples]), schema, view)
    batch = wanted.batch(np.arange(len(wanted)))
    labelled = pa.table(
        [*rows.columns, pa.array([{}] * len(rows), pa.struct([]))], names=[*rows.schema.names, "labels"]
    )
    found = columns.stored_rows([labelled])
    assert rows.column("sample_id").to_pylist() == batch.sample_id
    assert found.item.tolist() == batch.item.tolist()
    assert found.candidate_sees.tolist() == batch.candidate_sees.tolist()
    assert found.realtime_sees.tolist() == batch.realtime_sees.tolist()
    for name, group in batch.groups.items():
        assert found.groups[name].ts.tolist() == group.ts.tolist()
        assert repr(found.groups[name].features) == repr(group.features) or all(
            repr(found.groups[name].features[leaf].tolist()) == repr(values.tolist())
            for leaf, values in group.features.items()
            if hasattr(values, "tolist")
        )


@given(st.integers(MISSING_ID + 1, 2**63 - 1), st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_numbers_survive_json_exactly(number: int, price: float) -> None:
    content = body()
    candidates = content["requests"][0]["candidates"]
    candidates["item_id"][0], candidates["price"][0] = number, price
    first = read(content).column("candidates")
    assert first.field("item_id")[0][0].as_py() == number
    assert np.float32(first.field("price")[0][0].as_py()).tobytes() == np.float32(price).tobytes()


def test_strings_of_string_ids_are_hashed_as_the_builder_does() -> None:
    content = body()
    content["requests"][0]["user"]["city"] = "kyoto"
    assert read(content).column("user").field("city")[0].as_py() == hash_string("kyoto")


def test_null_is_a_missing_value() -> None:
    content = body()
    row = content["requests"][0]
    row["user"] |= {"age": None, "city": None, "tags": None}
    user = read(content).column("user")[0].as_py()
    assert np.isnan(user["age"]) and user["city"] == MISSING_ID and user["tags"] == []


# ---------------------------------------------------------------------- what is wrong

Change = Callable[[dict[str, Any]], object]


def of(group: str, leaf: str, value: object, at: int = 0) -> Change:
    def change(row: dict[str, Any]) -> None:
        row[group][leaf][at] = value

    return change


WRONG: list[tuple[Change, str]] = [
    (lambda row: row["candidates"].pop("price"), r"requests\[0\].candidates has no price \(list<number>\)"),
    (lambda row: row.pop("history"), r"requests\[0\] has no history"),
    (lambda row: row["candidates"].update(prize=[]), r"unknown key 'prize'; did you mean 'price'\?"),
    (lambda row: row["candidates"].update(labels=[]), r"unknown key 'labels'"),
    (of("candidates", "price", "3"), r'candidates.price\[0\] is "3", a string; it must be a number'),
    (of("candidates", "price", True), r"candidates.price\[0\] is true, a boolean"),
    (of("candidates", "price", 1e39), r"candidates.price\[0\] is 1e\+39; it is beyond float32"),
    (of("candidates", "price", 10**400), r"candidates.price\[0\] is 1000.* \.\.\.; it is beyond float32"),
    (of("candidates", "item_id", 2**63, 1), r"candidates.item_id\[1\] is 9223372036854775808; it must lie in"),
    (of("candidates", "item_id", -(2**63)), r"candidates.item_id\[0\] is -9223372036854775808; .*; send null"),
    (of("candidates", "item_id", 1.0), r"candidates.item_id\[0\] is 1.0, a fraction; it must be an integer"),
    (of("candidates", "item_id", "7"), r'candidates.item_id\[0\] is "7", a string; it must be an integer'),
    (of("candidates", "item_id", True), r"candidates.item_id\[0\] is true, a boolean"),
    (of("candidates", "item", None), r"candidates.item\[0\] is null; it must be an integer$"),
    (of("candidates", "ts", None), r"candidates.ts\[0\] is null"),
    (of("candidates", "ts", 5), r"requests\[0\]: candidates.ts 5 lies outside the window"),
    (lambda row: row["candidates"]["price"].pop(), r"candidates.price has \d+ values and candidates.ts has \d+"),
    (lambda row: row["candidates"].update(price=3.0), r"candidates.price is 3.0, a fraction; it must be a list"),
    (lambda row: row["user"].update(tags=[1, 2.5]), r"user.tags\[1\] is 2.5, a fraction"),
    (lambda row: row["user"].update(city=3.5), r"user.city is 3.5, a fraction; it must be an integer or a string"),
    (lambda row: row["user"].update(city="\ud800"), r"user.city holds half of a surrogate pair"),
    (lambda row: row.update(user=[1]), r"requests\[0\].user is a list; it must be an object"),
    (lambda row: row.update(user_id="five"), r'user_id is "five", a string; it must be an integer$'),
    (lambda row: row.update(sample_id=7), r"sample_id is 7, an integer; it must be a string"),
    (lambda row: row.update(window_end=row["window_end"] + 1), r"window \[\d+, \d+\) is no day of .00:00; the day of"),
    (of("history", "type", 9), r"history.type 9 is no event of the sequence; there is 0 clicks, 1 seen"),
    (of("realtime", "available", 2**40 * 2, 0), r"realtime.available is not ascending"),
    (of("realtime", "available", 17, 0), r"realtime.available lies before window_start"),
    (
        lambda row: row.update(candidates={name: [] for name in row["candidates"]}),
        r"requests\[0\]: candidates is empty; send at least one",
    ),
    (
        lambda row: row.update(candidates={name: values[:1] * 51 for name, values in row["candidates"].items()}),
        r"requests\[0\]: 51 candidates; at most 50",
    ),
    (
        lambda row: row.update(history={name: (values * 40)[:31] for name, values in full_history().items()}),
        r"history has 31 events; the schema keeps 30",
    ),
]


def full_history() -> dict[str, list[Any]]:
    return next(row["history"] for row in body()["requests"] if row["history"]["ts"])


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_what_is_wrong_is_named(change: Change, message: str) -> None:
    content = body()
    content["requests"][0]["history"] = full_history()
    change(content["requests"][0])
    with pytest.raises(RequestError, match=message) as caught:
        read(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the body is no JSON"),
        ("[]", 'an object with the key "requests" alone'),
        ('{"requests": []}', "requests is empty"),
        ('{"requests": [NaN]}', "NaN is no JSON value; send null"),
        ('{"requests": [-Infinity]}', "-Infinity is no JSON value"),
        ('{"requests": [7]}', r"requests\[0\] is 7, an integer; it must be an object"),
        ('{"requests": [{"a": 1, "a": 2}]}', "the key 'a' is there twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"requests": ' + "1" * 5000 + "}", "the body is no JSON"),
        (b'{"requests": "\xff"}', "the body is no JSON"),
    ],
)
def test_bodies_that_are_no_requests(text: str | bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_json(contract(), text.encode() if isinstance(text, str) else text)


def changed_leaf(group: str, leaf: str, values: pa.Array) -> pa.RecordBatch:
    rows = stored()
    struct = rows.column(group)
    children = [values if child.name == leaf else struct.field(child.name) for child in struct.type]
    own = pa.StructArray.from_arrays(children, names=[child.name for child in struct.type])
    columns = [own if name == group else rows.column(name) for name in rows.schema.names]
    return pa.RecordBatch.from_arrays(columns, names=rows.schema.names)


def prices() -> list[list[float]]:
    return [list(values) for values in stored().column("candidates").field("price").to_pylist()]


def arrow_mistakes() -> list[tuple[pa.RecordBatch, str]]:
    rows, price = stored(), prices()
    infinite, null = copy.deepcopy(price), copy.deepcopy(price)
    infinite[2][0] = float("inf")
    null[3][0] = None  # type: ignore[call-overload]
    ages = [None, *stored().column("user").field("age").to_pylist()[1:]]
    return [
        (rows.drop_columns(["user_id"]), "column user_id (int64) is missing"),
        (
            rows.append_column("labels", pa.array([1] * len(rows))),
            "column labels is none of a request's; labels are what",
        ),
        (rows.append_column("usr_id", pa.array([1] * len(rows))), "column usr_id is none of a request's; did you mean"),
        (
            changed_leaf("candidates", "price", pa.array(price)),
            "candidates.price is list<double>; it must be list<float>",
        ),
        (
            changed_leaf("candidates", "price", pa.array(infinite, pa.list_(pa.float32()))),
            "requests[2]: candidates.price is infinite",
        ),
        (
            changed_leaf("candidates", "price", pa.array(null, pa.list_(pa.float32()))),
            "requests[3]: candidates.price is null",
        ),
        (changed_leaf("user", "age", pa.array(ages, pa.float32())), "requests[0]: user.age is null"),
        (rows.slice(0, 0), "the stream has no rows"),
    ]


@pytest.mark.parametrize("case", range(8))
def test_arrow_is_never_cast(case: int) -> None:
    rows, message = arrow_mistakes()[case]
    with pytest.raises(RequestError, match=re.escape(message)):
        read_arrow(contract(), write_arrow([rows], rows.schema))


def test_damaged_streams_are_refused_or_read_as_they_are() -> None:
    """A flipped byte is an error with its line, or a value that differs; never a crash."""
    whole = bytearray(write_arrow([stored()], contract().sent))
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(whole), 100).tolist():
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        try:
            read_arrow(contract(), bytes(damaged), max_bytes=20_000_000)
        except RequestError as error:
            assert "\n" not in str(error)
    with pytest.raises(RequestError, match="no Arrow IPC stream"):
        read_arrow(contract(), bytes(whole[: len(whole) // 2]))


# ---------------------------------------------------------------------- JSON Schema


def test_json_schema_takes_requests_and_refuses_what_is_wrong() -> None:
    described = request_json_schema(contract())
    jsonschema.Draft202012Validator.check_schema(described)
    judge = jsonschema.Draft202012Validator(described)
    judge.validate(body())
    # What only a look at several values shows: lists of equal length, times, half surrogates, and float32's range.
    beyond = (
        "outside",
        r"and candidates.ts has",
        "is no day",
        "ascending",
        "before window",
        "surrogate",
        "float32",
        "1.0",
    )
    for change, message in WRONG:
        content = body()
        content["requests"][0]["history"] = full_history()
        change(content["requests"][0])
        if not any(text in message for text in beyond):
            assert not judge.is_valid(content), message


# ---------------------------------------------------------------------- stored samples


@pytest.mark.parametrize("name", ["requests.jsonl", "requests.arrow"])
def test_stored_samples_are_written_and_read_back(tmp_path: Path, name: str) -> None:
    schema = demo_schema()
    root = write_random_samples(tmp_path / "samples", schema, [DAY, "2026-03-02"], users=10, row_group=4)
    done = write_requests(root, schema, [DAY, "2026-03-02"], tmp_path / name, "request")
    wanted = pa.Table.from_batches(list(stored_requests(root, schema, [DAY, "2026-03-02"])))
    found = pa.Table.from_batches([rows.select(wanted.schema.names) for rows in read_requests(tmp_path / name, schema)])
    assert done.requests == len(wanted) > 40
    assert repr(found.to_pylist()) == repr(wanted.to_pylist())
    few = write_requests(root, schema, [DAY], tmp_path / name, "request", limit=3)
    assert few.requests == 3 == sum(map(len, read_requests(tmp_path / name, schema)))


def test_a_file_of_requests_names_its_line(tmp_path: Path) -> None:
    lines = list(to_json(stored()))
    row = json.loads(lines[4])
    row["candidates"]["price"][0] = "dear"
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join([*lines[:4], json.dumps(row)]))
    with pytest.raises(RequestError, match=r"requests.jsonl line 5.candidates.price\[0\] is \"dear\""):
        list(read_requests(path, demo_schema()))
    path.write_text(lines[0] + "\n{")
    with pytest.raises(RequestError, match=r"requests.jsonl line 2: the body is no JSON"):
        list(read_requests(path, demo_schema()))


def test_no_requests_and_unknown_formats_are_refused(tmp_path: Path) -> None:
    schema: Schema = demo_schema()
    with pytest.raises(UserError, match=r"name a file of requests .jsonl"):
        write_requests(tmp_path, schema, [DAY], tmp_path / "requests.json", "request")
    with pytest.raises(UserError, match="no published samples"):
        write_requests(tmp_path, schema, [DAY], tmp_path / "requests.jsonl", "request")
    assert not list(tmp_path.iterdir())


def test_the_documented_request_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    example, _ = re.findall(r"```json\n(.*?)```", page, re.DOTALL)  # the other one is an answer
    minimal = RequestContract(load_schema(str(Path(__file__).parents[2] / "examples" / "minimal" / "schema.py")))
    rows = read_json(minimal, f'{{"requests": [{example}]}}'.encode())
    assert len(rows.column("candidates")[0].as_py()["item"]) == 3
