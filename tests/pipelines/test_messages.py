"""Messages arrive as they were sent, documents are read as they were written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines.documents import Census, Footer, Footers, Layout
from genrank.pipelines.engine import Piece, gather, joined, scatter
from genrank.pipelines.messages import (
    BucketMessage,
    CompactedReport,
    KeyAnswers,
    KeyCount,
    KeyQueries,
    LeafSummary,
    NormalizedRows,
    PartialReport,
    QuarantinedRows,
    Report,
    SampleReport,
    StagedReport,
    events_tag,
    tag_parts,
)

REPORTS: list[Report] = [
    PartialReport("clicks", 3, 1, "a.parquet", 5, 2, "", {"users": 4, "items": 0}),
    PartialReport("clicks", 3, 1, "q.parquet", 5, 0, "ts is null", {}),
    CompactedReport(0, 3, 6, 1, "", 0, ""),
    KeyCount("item_id", -(2**63), 9),
    SampleReport(3, 1, "part.parquet", 5, 900, "ab", 12, 3),
    StagedReport(3, 1, 5, 9, "ab", {"window": 0, "labels": 2}, {"labels": "labels.click[0] is 2"}),
    LeafSummary(3, "candidates.price", "number", 5, 1, 7.5, -1.0, 4.0, None, [1.0, 2.5], [2.0, 2.0], [], []),
    LeafSummary(3, "candidates.item", "id", 5, 1, None, None, None, 2, [], [], [7, -7], [2.0, 2.0]),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_a_report_arrives_as_it_was_sent(report: Report) -> None:
    tables = gather([report.piece(), report.pieces([report, report])])
    assert type(report).collected(tables) == [report] * 3
    assert type(report).collected({}) == []
    assert tables[report.TAG].schema.equals(report.SCHEMA)


def test_normalized_rows_arrive_as_they_were_sent() -> None:
    rows = pa.table({"u": [1, 2], "ts": [5, 6], "id(item_id)": [7, 8]})
    sent = NormalizedRows(np.array([3, 4]), np.array([11, 12]), rows, {"items": np.array([True, False])})
    found = NormalizedRows.of(sent.table())
    assert found.day.tolist() == [3, 4] and found.same.tolist() == [11, 12]
    assert found.rows.equals(rows)
    assert {name: known.tolist() for name, known in found.found.items()} == {"items": [True, False]}


def test_quarantined_rows_are_counted_by_reason() -> None:
    rows = pa.table({"a": [1, 2, 3]})
    found = QuarantinedRows.of(QuarantinedRows.because(rows, ["x", "y", "x"], np.array([3, 3, 4])).table())
    assert found.on(3).to_pylist() == [{"a": 1, "reason": "x"}, {"a": 2, "reason": "y"}]
    assert QuarantinedRows.counts(found.on(3)) == {"x": 1, "y": 1}
    assert QuarantinedRows.counts(found.on(4)) == {"x": 1}


@given(st.permutations(range(6)))
def test_answers_come_back_in_the_exposures_order(order: list[int]) -> None:
    queries = KeyQueries.of(
        KeyQueries(
            *(np.array(order, np.int64) for _ in range(2)),
            *(np.array(order, np.int32) for _ in range(2)),
            bucket=np.zeros(6, np.int32),
        ).table()
    )
    assert queries.position.tolist() == order and queries.bucket.dtype == np.int32
    sent = KeyAnswers(pa.array(queries.position), {"doubled": pa.array(queries.key * 2)})
    assert KeyAnswers.of(sent.table()).in_order()["doubled"].to_pylist() == [0, 2, 4, 6, 8, 10]


def test_a_tag_names_its_kind_and_what_it_is_of() -> None:
    assert tag_parts(QuarantinedRows.tag("clicks")) == (QuarantinedRows.KIND, "clicks")
    assert tag_parts(NormalizedRows.tag("quarantine")) == ("rows", "quarantine")
    tags = {KeyQueries.tag("a"), KeyAnswers.tag("a"), events_tag("clicks", "a"), events_tag("orders", "a")}
    assert len(tags) == 4
    assert BucketMessage(3).piece().slot == 3


@given(st.lists(st.integers(0, 5), max_size=30))
def test_scattered_rows_are_all_there_in_their_slots_and_order(slots: list[int]) -> None:
    rows = pa.table({"at": pa.array(range(len(slots)), pa.int64())})
    for piece in (pieces := list(scatter(rows, np.array(slots, np.int32), "t"))):
        wanted = [at for at, slot in enumerate(slots) if slot == piece.slot]
        assert piece.rows.column("at").to_pylist() == wanted
    assert sum(piece.rows.num_rows for piece in pieces) == len(slots)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2) | st.lists(st.integers(0, 2), max_size=5)), max_size=9),
    st.sampled_from([1, 40, 1 << 20]),
)
def test_what_a_task_sends_is_joined_and_whole(sent: list[tuple[str, int | list[int]]], most: int) -> None:
    pieces, wanted = [], {}
    for number, (tag, slots) in enumerate(sent):
        of_rows = [slots] * 2 if isinstance(slots, int) else slots
        rows = pa.table({"at": pa.array([(number, place) for place in range(len(of_rows))], pa.list_(pa.int64()))})
        pieces.append(Piece(slots if isinstance(slots, int) else np.array(slots, np.int32), tag, rows))
        for place, slot in enumerate(of_rows):
            wanted.setdefault((slot, tag), []).append([number, place])
    found: dict[tuple[int, str], list[list[int]]] = {}
    for piece in (made := list(joined(pieces, most))):
        found.setdefault((piece.slot, piece.tag), []).extend(piece.rows.column("at").to_pylist())
    assert found == wanted
    if most == 1 << 20:
        assert len(made) == len(wanted), "a table of each tag and slot"


def test_documents_of_before_are_read_and_damaged_ones_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "partials" / "a.json"
    assert Layout.read(path) is None
    Layout(16).write(path)
    assert json.loads(path.read_text())["content"] == 16 and Layout.read(path) == Layout(16)
    path.write_text("16")
    assert Layout.read(path) == Layout(16)
    Footers({"f": Footer(1, 2, "d", 5, (2, 3), None, 7)}).write(path)
    found = Footers.read(path)
    assert found and found.root["f"] == Footer(1, 2, "d", 5, (2, 3), None, 7)
    Census({"h": {20_000: 3}}).write(path)
    census = Census.read(path)
    assert census and census.root == {"h": {20_000: 3}}
    assert Footers.read(path) is None
    path.write_text(path.read_text().replace("20000", "20001"))
    assert Census.read(path) is None, "another day, and a census still"
    path.write_text('{"h": {"20000": 3}}')
    assert Census.read(path) == census
    path.write_text('{"h": ')
    assert Census.read(path) is None
