"""Vectors of fixed length, from stored lists to columns of tokens, of trees and of requests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from random_samples import BOUNDARIES, demo_schema, publish, random_table

from genrank.model.baselines.numbers import Numbers
from genrank.schemas import Vector
from genrank.schemas.errors import UserError
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.serving.request_contract import RequestContract, RequestError
from genrank.serving.request_json import read_json, to_json
from genrank.serving.request_schema import request_object
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.tokens import Tokenizer


def schema_of() -> Schema:
    """The demo's, with a vector of its users, of the events of its histories and of its candidates."""
    demo = demo_schema()
    taste = Vector(name="taste", column="users.taste", length=2)
    content = Vector(name="content", length=3, normalize=True)
    plain = Vector(name="plain", column="content", length=3)
    new = {"users": {"taste": "list<float32>"}} | {log: {"content": "list<float32>"} for log in ("exposures", "clicks")}
    sources = tuple(source.replace(columns=source.columns | new[source.name]) for source in demo.sources)
    history, *others = demo.sequences
    return demo.replace(
        sources=sources,
        user=demo.user.replace(features=(*demo.user.features, taste)),
        sequences=(history.replace(features=(*history.features, plain)), *others),
        candidates=demo.candidates.replace(features=(*demo.candidates.features, content, plain)),
    )


DAY = "2026-01-01"
SCHEMA = schema_of()


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return random_table(SCHEMA, DAY, 6)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory, table: pa.Table):
    root = tmp_path_factory.mktemp("samples")
    publish(root, SCHEMA, DAY, table)
    return next(iter(SampleReader(root, SCHEMA, [DAY], shuffle=False, token_budget=10**9)))


def stored(table: pa.Table, group: str, name: str) -> list[list[float]]:
    rows = [row[name] for row in table[group].to_pylist()]
    return rows if group == USER else [vector for row in rows for vector in row]


def test_columns_are_the_stored_numbers_and_zeros_where_missing(table: pa.Table, batch) -> None:
    embeddings = Embeddings(make_plan(SCHEMA), backend="torch", boundaries=BOUNDARIES)
    matrices = embeddings(batch)
    history = SCHEMA.histories[0].name
    for group, name, length, normal in (
        (USER, "taste", 2, 0),
        (history, "plain", 3, 0),
        (CANDIDATES, "content", 3, 1),
        (CANDIDATES, "plain", 3, 0),
    ):
        wanted = torch.tensor([vector or [0.0] * length for vector in stored(table, group, name)])
        if normal:
            wanted = wanted / wanted.norm(dim=1, keepdim=True).clamp(min=1e-12)
        torch.testing.assert_close(matrices[group][:, embeddings.layout[group][name]], wanted)
    tokens = Tokenizer(embeddings, 8)
    tokens(batch).x.square().sum().backward()
    (weight,) = (p for n, p in tokens.named_parameters() if "of_candidates" in n and n.endswith("of_content"))
    assert weight.shape == (8, 3) and weight.grad.abs().sum() > 0


def test_trees_read_each_number_by_name(table: pa.Table, batch) -> None:
    numbers = Numbers(SCHEMA)
    found = numbers(batch)
    assert numbers.names[-8:] == [
        *(f"candidates.{n}[{at}]" for n in ("content", "plain") for at in range(3)), "user.taste[0]", "user.taste[1]",
    ]  # fmt: skip
    wanted = [vector or [np.nan] * 3 for vector in stored(table, CANDIDATES, "plain")]
    torch.testing.assert_close(found[:, -5:-2], torch.tensor(wanted), equal_nan=True)


def test_another_length_is_refused_by_name(tmp_path: Path, table: pa.Table) -> None:
    publish(tmp_path, SCHEMA, DAY, table)
    candidates = SCHEMA.candidates
    longer = tuple(f.replace(length=4) if f.name == "plain" else f for f in candidates.features)
    with pytest.raises(UserError, match=r"candidates\.plain"):
        next(iter(SampleReader(tmp_path, SCHEMA.replace(candidates=candidates.replace(features=longer)), [DAY])))


def test_requests_hold_vectors_of_their_length() -> None:
    contract = RequestContract(SCHEMA)
    rows = random_table(SCHEMA, DAY, 3).select(contract.sent.names).combine_chunks().to_batches()[0]
    rows = pa.RecordBatch.from_arrays(rows.columns, schema=contract.sent)
    sent = list(to_json(rows))
    body = f'{{"requests": [{", ".join(sent)}]}}'
    assert list(to_json(read_json(contract, body.encode()).select(contract.sent.names))) == sent
    for vector, message in (([1.0], "of 1 numbers; send 3"), ([1.0, None, 2.0], "with a missing number")):
        request = json.loads(sent[1])
        request["candidates"]["content"][0] = vector
        with pytest.raises(RequestError, match=rf"requests\[0\]: candidates\.content has a vector {message}"):
            read_json(contract, json.dumps({"requests": [request]}).encode())
    item = request_object(contract)["properties"]["candidates"]["properties"]["content"]["items"]
    assert item["anyOf"][0] == {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}
