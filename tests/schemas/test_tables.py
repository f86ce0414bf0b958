"""Which logical tables a schema implies."""

from __future__ import annotations

from genrank.schemas import (
    Candidates,
    Categorical,
    CrossFeature,
    Dynamic,
    Enumerated,
    EventLog,
    Events,
    EventSequence,
    FixedBuckets,
    Identity,
    Label,
    Numeric,
    QuantileBuckets,
    Schema,
    SparseOptimizer,
    Table,
    TimeGap,
    TimePart,
)
from genrank.schemas.derive.tables import logical_tables, table_name
from genrank.schemas.table import LogicalTable

ITEMS = Table(name="items", dim=16, vocabulary=Dynamic(capacity=1000), optimizer=SparseOptimizer(kind="rowwise_adam"))


def schema() -> Schema:
    columns = {
        "user_id": "int64",
        "item_id": "int64",
        "ts": "int64",
        "price": "float32",
        "tab": "string",
        "click": "int32",
    }
    return Schema(
        name="tiny",
        sources=(
            EventLog(name="exposures", path="exposures/dt={dt}", columns=columns, post_exposure=("click",)),
            EventLog(
                name="clicks", path="clicks/dt={dt}", columns={k: columns[k] for k in ("user_id", "item_id", "ts")}
            ),
        ),
        sequences=(
            EventSequence(
                name="history",
                events=(Events(source="clicks", name="click"), Events(source="exposures", where="price > 1")),
                features=(Categorical(name="item_id", table=ITEMS), TimeGap(name="gap")),
                type_dim=4,
            ),
        ),
        candidates=Candidates(
            features=(
                Categorical(name="item_id", table=ITEMS),
                Categorical(name="tab", vocabulary=Enumerated(values=("home", "search")), dim=4),
                Numeric(name="price", transform=FixedBuckets(boundaries=(1.0, 10.0), dim=3)),
                CrossFeature(
                    name="clicks_7d",
                    op="count",
                    source="clicks",
                    keys=("item_id",),
                    window="7d",
                    transform=QuantileBuckets(buckets=10, dim=5),
                ),
                CrossFeature(name="ctr", op="rate", source="clicks", per="exposures", keys=("item_id",), window="1d"),
                TimePart(name="hour", part="hour", dim=6),
            )
        ),
        labels=(Label(name="click", column="click"),),
    )


def test_every_lookup_has_its_table_by_name() -> None:
    tables = {table.name: table for table in logical_tables(schema())}
    assert list(tables) == sorted(tables)
    assert tables == {
        "candidates.clicks_7d": LogicalTable("candidates.clicks_7d", ("candidates.clicks_7d",), 5, Identity(size=10)),
        "candidates.hour": LogicalTable("candidates.hour", ("candidates.hour",), 6, Identity(size=24)),
        "candidates.price": LogicalTable("candidates.price", ("candidates.price",), 3, Identity(size=3)),
        "candidates.tab": LogicalTable("candidates.tab", ("candidates.tab",), 4, Enumerated(values=("home", "search"))),
        "history.type": LogicalTable("history.type", ("history.type",), 4, Enumerated(values=("click", "exposures"))),
        "items": LogicalTable(
            "items", ("history.item_id", "candidates.item_id"), 16, ITEMS.vocabulary, ITEMS.initializer, ITEMS.optimizer
        ),
    }


def test_bytes_count_special_rows_and_optimizer_state() -> None:
    tables = {table.name: table for table in logical_tables(schema())}
    items, tab = tables["items"], tables["candidates.tab"]
    assert (items.rows, items.weight_bytes, items.optimizer_bytes) == (1002, 1002 * 16 * 4, 1002 * 17 * 4)
    assert (tab.rows, tab.weight_bytes, tab.optimizer_bytes) == (4, 4 * 4 * 4, 4 * 4)
    assert items.dynamic and not tab.dynamic


def test_numbers_that_are_not_bucketed_look_nothing_up() -> None:
    by_name = {feature.name: feature for feature in schema().candidates.features}
    assert table_name("candidates", by_name["ctr"]) is None
    assert by_name["ctr"].number_transform.kind == "dense"  # a rate's default; other statistics default to log
    assert table_name("candidates", by_name["item_id"]) == "items"
    assert by_name["item_id"].number_transform is None
