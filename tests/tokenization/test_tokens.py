"""Tokens lie, look and see as the schema says, sample by sample."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from random_samples import BOUNDARIES, demo_schema, write_random_samples

import genrank.schemas as s
from genrank.tokenization.arrangement import TIME_BUCKETS, Counted, positions_of, time_bucket
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.plan import make_plan
from genrank.tokenization.projections import Projection
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.sample_columns import StoredRows
from genrank.tokenization.tokens import Tokenizer
from genrank.tokenization.views import view_of
from genrank.tokenization.visibility import causal
from genrank.tokenization.wants import Wants

DAY = "2026-01-01"
SCHEMA = demo_schema()
INTERLEAVED = demo_schema(
    user=SCHEMA.user.model_copy(update={"tokens": "feature"}),
    sequences=(
        SCHEMA.sequences[0].model_copy(update={"interleave": ("watched",)}),
        SCHEMA.sequences[1].model_copy(update={"interleave": ("gap",)}),
        s.EventSequence(
            name="exposed",
            events=(s.Events(source="exposures"),),
            features=(s.Numeric(name="price"),),
            max_length=4,
        ),
    ),
)


@pytest.fixture(scope="module", params=[SCHEMA, INTERLEAVED], ids=["plain", "interleaved"])
def case(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[s.Schema, Batch, Tokenizer, Tokens]:
    schema = request.param
    root = write_random_samples(tmp_path_factory.mktemp("samples"), schema, [DAY])
    batch = next(iter(SampleReader(root, schema, [DAY], token_budget=2000)))
    torch.manual_seed(0)
    tokenizer = Tokenizer(Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES), 24)
    return schema, batch, tokenizer, tokenizer(batch)


def expected(schema: s.Schema, batch: Batch, b: int) -> list[tuple[int, int, int | None]]:
    """(group id, timestamp, event or candidate index) of each token of a sample, in order."""
    out: list[tuple[int, int, int | None]] = []
    start = int(batch.window_start[b])
    users = len(schema.user.features) if schema.user.tokens == "feature" else 1
    out += [(0, start, None)] * users
    for name, _ in schema.groups():
        if name == "user":
            continue
        group = batch.groups[name]
        sequence = next((q for q in schema.sequences if q.name == name), None)
        k = 1 + len(sequence.interleave) if sequence else 1
        kind = 3 if sequence is None else 1 if sequence.scope == "history" else 2
        begin, end = int(group.offsets[b]), int(group.offsets[b + 1])
        out += [(kind, int(group.ts[i]), i) for i in range(begin, end) for _ in range(k)]
    return out


def as_block(batch: Batch) -> StoredRows:
    """A batch as the stored rows it could have come from."""
    labels = batch.labels | {f"{task}_weight": v for task, v in batch.weights.items()}
    labels |= {f"{task}_oracle": v for task, v in batch.oracles.items()}
    return StoredRows(
        groups=batch.groups,
        sample_id=pa.array(batch.sample_id),
        user=batch.user,
        window_start=batch.window_start,
        request=batch.request,
        item=batch.item,
        labels=labels,
        candidate_sees=batch.candidate_sees,
        realtime_sees=batch.realtime_sees,
        realtime_available=batch.realtime_available,
    )


def test_order_groups_and_times(case: tuple[s.Schema, Batch, Tokenizer, Tokens]) -> None:
    schema, batch, _, tokens = case
    every = [expected(schema, batch, b) for b in range(len(batch))]
    assert tokens.offsets.diff().tolist() == list(map(len, every))
    assert tokens.max_length == max(map(len, every))
    assert tokens.lengths.tolist() == list(map(len, every))
    assert tokens.history_lengths.tolist() == [sum(kind == 1 for kind, _, _ in sample) for sample in every]
    assert tokens.group_ids.tolist() == [kind for sample in every for kind, _, _ in sample]
    assert tokens.timestamps.tolist() == [ts for sample in every for _, ts, _ in sample]
    flat = [(kind, index) for sample in every for kind, _, index in sample]
    assert [flat[row] for row in tokens.candidate_rows.tolist()] == [(3, i) for i in range(len(batch.item))]


def test_visibility_of_each_token(case: tuple[s.Schema, Batch, Tokenizer, Tokens]) -> None:
    """MTGR's rule read from the moments themselves, not from the stored counts."""
    schema, batch, _, tokens = case
    realtime = batch.groups["realtime"]
    interleaved = len(next(q for q in schema.sequences if q.scope == "realtime").interleave)
    for b in range(len(batch)):
        sample = expected(schema, batch, b)
        first = int(tokens.offsets[b])
        known = sum(kind <= 1 for kind, _, _ in sample)
        events = range(int(realtime.offsets[b]), int(realtime.offsets[b + 1]))
        for q, (kind, ts, index) in enumerate(sample):
            end = known
            if kind >= 2:
                moment = ts if kind == 3 else int(batch.realtime_available[index])
                before = sum(int(batch.realtime_available[e]) < moment for e in events)
                end += before * (1 + interleaved)
                if kind == 2 and before == index - events.start:
                    end = q  # no tie: an interleaved token also sees its own event's earlier tokens
            assert (int(tokens.begin[first + q]), int(tokens.end[first + q])) == (0, end), (b, q, kind)


def test_a_sample_does_not_depend_on_its_neighbours(case: tuple[s.Schema, Batch, Tokenizer, Tokens]) -> None:
    schema, batch, tokenizer, tokens = case
    view = view_of(as_block(batch), schema, "user_day")
    for b in (0, 3, len(batch) - 1):
        alone = tokenizer(view.batch(view.row[b : b + 1]))
        begin, end = int(tokens.offsets[b]), int(tokens.offsets[b + 1])
        torch.testing.assert_close(alone.x, tokens.x[begin:end], rtol=1e-5, atol=1e-6)
        assert torch.equal(alone.end, tokens.end[begin:end])


def test_token_is_the_projection_of_its_features_plus_position_and_time(
    case: tuple[s.Schema, Batch, Tokenizer, Tokens],
) -> None:
    _, batch, tokenizer, tokens = case
    matrices = tokenizer.embeddings(batch)
    projection = tokenizer.projections["of_candidates"]
    assert isinstance(projection, Projection)
    candidates = batch.candidates
    for c, row in enumerate(tokens.candidate_rows.tolist()):
        wanted = projection.bias.clone()
        for name, columns in tokenizer.embeddings.layout["candidates"].items():
            wanted = wanted + projection.weights.get_parameter(f"of_{name}") @ matrices["candidates"][c, columns]
        sample = int(torch.searchsorted(candidates.offsets, c, right=True)) - 1
        delta = candidates.ts[c] - batch.window_start[sample]
        wanted = wanted + tokenizer.time.weight[time_bucket(delta[None])[0]]
        torch.testing.assert_close(tokens.x[row], wanted, rtol=1e-4, atol=1e-5)


def test_positions_count_from_the_window(case: tuple[s.Schema, Batch, Tokenizer, Tokens]) -> None:
    """History from its newest event, realtime from its oldest: an event's position never depends on what follows it."""
    schema, batch, _, _ = case
    for sequence in schema.sequences:
        group, k = batch.groups[sequence.name], 1 + len(sequence.interleave)
        counted = Counted(10**6, sequence.scope == "history")
        got = positions_of(group, k, counted).tolist()
        wanted = []
        for n in group.lengths.tolist():
            places = range(n * k)
            wanted += [n * k - 1 - p for p in places] if sequence.scope == "history" else list(places)
        assert got == wanted


def test_later_events_change_no_earlier_candidate(case: tuple[s.Schema, Batch, Tokenizer, Tokens]) -> None:
    """A candidate's visible tokens are the same when the sample is cut behind its request."""
    schema, batch, tokenizer, tokens = case
    view = view_of(as_block(batch), schema, "request")
    cut = tokenizer(view.batch(np.arange(len(view))))
    for v in range(0, len(view), 5):
        rows = cut.candidate_rows[(cut.candidate_rows >= cut.offsets[v]) & (cut.candidate_rows < cut.offsets[v + 1])]
        for row, c in zip(rows.tolist(), view.order[view.begin[v] : view.end[v]].tolist(), strict=True):
            whole_row = int(tokens.candidate_rows[c])
            first, whole_first = int(cut.offsets[v]), int(tokens.offsets[int(view.row[v])])
            seen = cut.x[first + int(cut.begin[row]) : first + int(cut.end[row])]
            whole_seen = tokens.x[whole_first + int(tokens.begin[whole_row]) : whole_first + int(tokens.end[whole_row])]
            torch.testing.assert_close(seen, whole_seen, rtol=1e-5, atol=1e-6)


def test_every_parameter_learns(case: tuple[s.Schema, Batch, Tokenizer, Tokens]) -> None:
    _, batch, tokenizer, _ = case
    tokenizer.zero_grad()
    (tokenizer(batch).x * torch.linspace(-1, 1, 24)).sum().backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_time_buckets() -> None:
    ms = torch.tensor([0, 999, 1000, -1, -1000, 86_400_000, -90 * 86_400_000, 2**60, -(2**60)])
    got = time_bucket(ms).tolist()
    for value, bucket in zip(ms.tolist(), got, strict=True):
        octave = min(int(2 * math.log2(1 + abs(value) / 1000)), TIME_BUCKETS - 1)
        assert bucket == (TIME_BUCKETS + octave if value >= 0 else TIME_BUCKETS - 1 - octave)
    assert min(got) == 0 and max(got) == 2 * TIME_BUCKETS - 1


def test_another_rule_of_visibility(case: tuple[s.Schema, Batch, Tokenizer, Tokens]) -> None:
    _, batch, tokenizer, _ = case
    other = Tokenizer(tokenizer.embeddings, 24, Wants(rule=causal))(batch)
    first = int(other.offsets[1])
    history = (other.group_ids[:first] == 1).nonzero().flatten()
    assert torch.equal(other.end[:first][history].long(), history)
