"""Which columns files of partials have, and what the others are worked out from."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines.arrays import taken
from genrank.pipelines.columns import needed
from genrank.pipelines.engine import Piece, gather, joined
from genrank.pipelines.messages import NormalizedRows, PartialReport
from genrank.pipelines.normalize import Normalizer
from genrank.pipelines.partial_writer import PartialWriter
from genrank.pipelines.partials import Layout, layout_of
from genrank.pipelines.raw_rows import content_hash, declared
from genrank.schemas import (
    Candidates,
    Categorical,
    EventLog,
    Events,
    EventSequence,
    Hashed,
    Label,
    Numeric,
    Schema,
)
from genrank.schemas.base import ARROW_TYPES, DAY_MS

DAY = 20_000
NAMES = ("item_id", "category")
Row = tuple[int, str, int | None, int]


def schema(user: str = "int64", time: str = "int64", unit: str = "ms", **more: str) -> Schema:
    columns = {"user_id": user, "item_id": "string", "category": "int32", "ts": time} | more
    side = tuple(Categorical(name=name, vocabulary=Hashed(size=8), dim=8) for name in NAMES)
    numbers = tuple(Numeric(name=name) for name in more if more[name].startswith("float"))
    return Schema(
        name="layouts",
        sources=tuple(
            EventLog(name=name, path=f"{name}/dt={{dt}}", columns=columns, time_unit=unit)
            for name in ("exposures", "clicks")
        ),
        sequences=(EventSequence(name="history", events=(Events(source="clicks"),), features=side, max_length=4),),
        candidates=Candidates(features=(*side, *numbers)),
        labels=(Label(name="click", source="clicks", window="10m"),),
    )


def layout(schema: Schema, source: str) -> Layout:
    return layout_of(schema, schema.source(source), needed(schema)[source])


def test_an_id_is_stored_unless_the_files_hold_all_that_it_is_the_hash_of() -> None:
    hashed = ("u", "id(item_id)", "id(category)", "ts")
    for plain in (schema(), schema(user="string"), schema(time="timestamp")):
        for source in ("exposures", "clicks"):
            found = layout(plain, source)
            assert found.hashed == hashed and "id" not in found.stored and "id" in found.names
            assert found.made_of(["ts", "id", "arrived"]) == ["ts", "u", "id(item_id)", "id(category)"]
    assert "id" in layout(schema(unit="s"), "exposures").stored  # Its times are cut.
    for more in ({"price": "float64"}, {"note": "string"}, {"tags": "list<int64>"}):
        found = layout(schema(**more), "exposures")
        assert not found.hashed and found.made_of(["ts", "id", "arrived"]) == ["ts", "id"]


rows_of = st.lists(
    st.tuples(st.integers(-2, 2), st.sampled_from("ab"), st.none() | st.integers(-2, 2), st.integers(0, 3)),
    min_size=1,
    max_size=25,
)


@pytest.mark.parametrize("time", ["int64", "timestamp"])
@given(rows=rows_of)
def test_ids_that_are_worked_out_are_those_of_the_raw_rows(
    rows: list[Row], time: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """And each event is written once, in the order of its user, time and id."""
    of = schema(time=time)
    source = of.event_log("clicks")
    moments = [DAY * DAY_MS + row[3] for row in rows]
    columns = [[row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], moments]
    raw = pa.table(
        {
            name: pa.array(values, ARROW_TYPES[type_])
            for (name, type_), values in zip(source.columns.items(), columns, strict=True)
        }
    )
    normalizer = Normalizer(of, 1, {"clicks": frozenset({DAY})})
    tables = gather(joined(normalizer.normalize(source, DAY, raw)))
    sent = NormalizedRows.of(tables[NormalizedRows.tag("clicks")])
    layout, wanted = normalizer.layouts["clicks"], content_hash(declared(source, raw)[0], tuple(source.columns))
    assert layout.ids(sent.rows).tolist() == wanted.tolist()
    written = once(normalizer, tables, tmp_path_factory.mktemp("partials"))
    read = layout.columns(written, layout.names)
    assert read.column_names == list(layout.names)
    assert layout.columns(read, layout.names).equals(read)  # Files of before have every column.
    keys = [tuple(row[name] for name in ("u", "ts", "id")) for row in read.to_pylist()]
    assert keys == sorted({(row[0], ts, id_) for row, ts, id_ in zip(rows, moments, wanted.tolist(), strict=True)})
    assert read.column("arrived").to_pylist() == read.column("ts").to_pylist()


def once(normalizer: Normalizer, tables: dict[str, pa.Table], folder: Path) -> pa.Table:
    pieces: list[Piece] = list(PartialWriter(str(folder), normalizer.layouts).write(0, tables))
    (report,) = PartialReport.of_table(pa.concat_tables([piece.rows for piece in pieces]))
    table = pq.read_table(report.path)
    assert table.column_names == normalizer.layouts["clicks"].stored
    assert report.rows + report.duplicates == sum(t.num_rows for t in tables.values())
    return taken(table, table.column("u").to_numpy().argsort(kind="stable"))
