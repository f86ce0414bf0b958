"""Labels of exposures against a definition that walks over all pairs of an exposure and an event."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines.labels import Labels, label_exposures
from genrank.schemas import Candidates, Categorical, EventLog, Hashed, Label, Schema, UserError
from genrank.schemas.ids import MISSING_ID

HOUR = 3_600_000
COLUMNS = {"user_id": "int64", "item_id": "int64", "ts": "int64", "price": "float32"}
LANDED = frozenset({0, 1})


def schema_of(attribution: str) -> Schema:
    return Schema(
        name="shop",
        sources=(
            EventLog(name="exposures", path="exposures/dt={dt}", columns=COLUMNS),
            EventLog(name="clicks", path="clicks/dt={dt}", columns=COLUMNS),
            EventLog(name="orders", path="orders/dt={dt}", columns=COLUMNS),
        ),
        candidates=Candidates(features=(Categorical(name="item_id", vocabulary=Hashed(size=9), dim=4),)),
        labels=(
            Label(name="buy", source="orders", window="3h", given="click"),
            Label(name="click", source="clicks", window="1h", attribution=attribution),
            Label(name="spent", kind="value", source="orders", value="price", window="2h", attribution=attribution),
            Label(
                name="paid",
                kind="value",
                source="orders",
                value="price",
                window="2h",
                given="click",
                value_transform="log1p",
            ),
        ),
    )


def rows(draw: random.Random, count: int, hours: int) -> list[dict[str, float]]:
    """A log's rows; times and ids meet often."""
    return [
        {
            "u": (user := draw.randrange(2)),
            "user": user,
            "item": draw.choice([1, 2, MISSING_ID]),
            "ts": draw.randrange(hours * 2) * HOUR // 2,
            "arrived": draw.randrange(hours) * HOUR,
            "id": number,
            "price": draw.choice([1.0, 2.5, float("nan")]),
        }
        for number in range(count)
    ]


def table(log: list[dict[str, float]]) -> pa.Table:
    names = {
        "u": "u",
        "ts": "ts",
        "arrived": "arrived",
        "id": "id",
        "user": "id(user_id)",
        "item": "id(item_id)",
        "price": "amount(price)",
    }
    types = {"price": pa.float64()}
    return pa.table(
        {to: pa.array([row[name] for row in log], types.get(name, pa.int64())) for name, to in names.items()}
    )


def by_definition(
    label: Label, shown: list[dict[str, float]], events: list[dict[str, float]], as_of: int
) -> list[float]:
    window = int(label.window[0]) * HOUR
    totals = [0.0] * len(shown)
    for event in events:
        amount = event["price"] if label.value else 1.0
        if event["arrived"] >= as_of or event["item"] == MISSING_ID or amount != amount:
            continue
        at = [
            number
            for number, one in enumerate(shown)
            if (one["u"], one["item"]) == (event["u"], event["item"]) and one["ts"] <= event["ts"]
        ]
        if label.attribution == "last":
            at = sorted(at, key=lambda number: (shown[number]["ts"], shown[number]["id"]))[-1:]
        for number in at:
            if event["ts"] - shown[number]["ts"] <= window:
                totals[number] += amount
    return [float(total > 0) if label.kind == "binary" else total for total in totals]


@given(seed=st.integers(0, 10**6), as_of=st.integers(0, 60), attribution=st.sampled_from(["every", "last"]))
def test_labels_are_what_the_definition_says(seed: int, as_of: int, attribution: str) -> None:
    draw, schema, moment = random.Random(seed), schema_of(attribution), as_of * HOUR
    logs = {name: rows(draw, draw.randrange(12), 50) for name in ("exposures", "clicks", "orders")}
    landed = dict.fromkeys(logs, LANDED)
    found = label_exposures(
        schema,
        table(logs["exposures"]),
        moment,
        lambda log, columns: table(logs[log]).select([*dict.fromkeys(["u", "ts", "arrived", *columns])]),
        landed,
    )
    want: dict[str, tuple[list[float], list[float]]] = {}
    for label in (schema.labels[1], schema.labels[0], *schema.labels[2:]):
        value = by_definition(label, logs["exposures"], logs[str(label.source)], moment)
        window = int(label.window[0]) * HOUR
        # Mature: the window closed before the moment, and lies in days that landed.
        weight = [float(row["ts"] + window < min(moment, 48 * HOUR)) for row in logs["exposures"]]
        if label.given:
            value = [v * (given > 0) for v, given in zip(value, want[label.given][0], strict=True)]
            weight = [min(pair) for pair in zip(weight, want[label.given][1], strict=True)]
        want[label.name] = value, weight
    assert {name: (one.value.tolist(), one.weight.tolist()) for name, one in found.items()} == want


def test_a_sum_beyond_float32_names_the_label_and_the_remedy() -> None:
    row = {"u": 0, "user": 0, "item": 1, "ts": 0, "arrived": 0, "id": 0, "price": 3e38}
    with pytest.raises(UserError, match=r"label '(spent|paid)': a sum of price is beyond float32.*larger unit"):
        label_exposures(
            schema_of("every"),
            table([row]),
            HOUR,
            lambda log, columns: table([row, row]),
            dict.fromkeys(("exposures", "clicks", "orders"), LANDED),
        )


def test_weights_need_the_days_that_the_window_touches() -> None:
    """An exposure half an hour before midnight asks for the next day of its label's log, and with `last` of the exposures."""
    row = {"u": 0, "user": 0, "item": 1, "ts": 23 * HOUR + HOUR // 2, "arrived": 0, "id": 0, "price": 1.0}

    def weight(attribution: str, **landed: frozenset[int]) -> Labels:
        days = dict.fromkeys(("exposures", "clicks", "orders"), LANDED) | landed
        return label_exposures(schema_of(attribution), table([row]), 90 * HOUR, lambda *_: table([row]), days)["click"]

    assert weight("every").weight.tolist() == [1.0]
    assert weight("every", clicks=frozenset({0})).weight.tolist() == [0.0]
    assert weight("every", exposures=frozenset({0})).weight.tolist() == [1.0]
    assert weight("last", exposures=frozenset({0})).weight.tolist() == [0.0]
