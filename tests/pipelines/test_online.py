"""Online features are the batch build's to the bit: every kind of feature, seeded users and moments, events from partials and as they come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.pipelines.build import build
from genrank.pipelines.columns import cross_features
from genrank.pipelines.config import BuildConfig
from genrank.pipelines.days import day_number
from genrank.pipelines.online.features import OnlineFeatures
from genrank.pipelines.sources import read_rows
from genrank.schemas import Schema, UserError
from genrank.schemas.ids import hash_string
from genrank.schemas.manifest import sample_files
from genrank.serving.request_contract import RequestContract
from genrank.serving.stored_requests import requests_of
from tests.pipelines.worlds import full_schema, write_world

SHOWN = ("user_id", "ts", "item_id", "request_id", "position", "price", "tags")
"""Columns of the exposures that are known when they are shown."""


def raw(data: Path, schema: Schema, source: str, dt: str) -> pa.Table:
    files = sorted((data / source / f"dt={dt}").glob("*.parquet"))
    groups = ((file, range(pq.read_metadata(file).num_row_groups)) for file in files)
    return pa.concat_tables([read_rows(schema.source(source), str(file), own) for file, own in groups])


def stored(out: Path, schema: Schema, dt: str) -> Iterator[dict[str, Any]]:
    for file in sample_files(out / "samples", dt):
        yield from requests_of(pq.read_table(file), RequestContract(schema), "request").to_pylist()


def exposures_of(row: dict[str, Any], shown: list[dict[str, Any]]) -> pa.Table:
    """The raw rows of a stored request's candidates, in its order."""
    by_key = {
        (
            each["user_id"],
            each["ts"],
            each["item_id"] and hash_string(each["item_id"]),
            hash_string(each["request_id"]),
        ): each
        for each in shown
    }
    own = row["candidates"]
    keys = zip(own["ts"], own["item"], own["request"], strict=True)
    rows = [by_key[row["user_id"], *key] for key in keys]
    types = {"tags": pa.list_(pa.string()), "position": pa.int32()}
    return pa.table({name: pa.array([each[name] for each in rows], types.get(name)) for name in SHOWN})


@pytest.mark.parametrize("seed", range(3))
def test_requests_are_what_the_build_stored(tmp_path: Path, seed: int) -> None:
    schema, data, out = full_schema(), tmp_path / "data", tmp_path / "out"
    days = write_world(data, seed=seed, days=4)
    build(BuildConfig(schema, data, out, days[-1], days[-1], recompute_users=0))
    rows = list(stored(out, schema, days[-1]))
    shown = raw(data, schema, "exposures", days[-1]).to_pylist()
    loaded = OnlineFeatures.load(schema, out, days[-1])
    live = OnlineFeatures.load(schema, out, days[-1], live_from=days[-1])
    for log in ("exposures", "clicks", "orders"):
        events = raw(data, schema, log, days[-1]).sort_by(schema.event_log(log).time)
        for at in range(0, events.num_rows, 7):
            live.add(log, events.slice(at, 7), days[-1])
        live.add(log, events.slice(3, 9), days[-1])  # once more
    of_rows = [row["candidates"] for row in rows]
    varied = [f.name for f in cross_features(schema) if len({repr(v) for own in of_rows for v in own[f.name]}) > 1]
    assert len(varied) >= 12, "a comparison of missing values alone would show nothing"
    for features in (loaded, live):
        for row in rows:
            (found,) = features.request(exposures_of(row, shown), row["sample_id"]).to_pylist()
            for column, value in row.items():
                for leaf, values in value.items() if isinstance(value, dict) else [(column, value)]:
                    own = found[column][leaf] if isinstance(value, dict) else found[column]
                    assert repr(own) == repr(values), (features is live, row["sample_id"], column, leaf)


def test_what_it_refuses(tmp_path: Path) -> None:
    schema, data, out = full_schema(), tmp_path / "data", tmp_path / "out"
    days = write_world(data, seed=1, days=3)
    build(BuildConfig(schema, data, out, days[-1], days[-1], recompute_users=0))
    features = OnlineFeatures.load(schema, out, days[-1])
    start = schema.local_days.start(day_number(days[-1]))
    one = {"user_id": 1, "ts": start + 5, "item_id": "i1", "request_id": "r", "position": 1, "price": 2.0, "tags": []}

    def request(*changes: dict[str, Any]) -> pa.RecordBatch:
        return features.request(pa.Table.from_pylist([one | change for change in changes]))

    assert request({}, {"item_id": "i2"}).num_rows == 1
    with pytest.raises(UserError, match="at least one candidate"):
        request()
    with pytest.raises(UserError, match="several users or days"):
        request({}, {"user_id": 2})
    with pytest.raises(UserError, match="item_id is null; the build would quarantine it"):
        request({"item_id": None}, {})
    with pytest.raises(UserError, match="not valid: price >= 0"):
        request({"price": -1.0})
    with pytest.raises(UserError, match="has no time"):
        request({"ts": None}, {})
    with pytest.raises(UserError, match="no published samples"):
        OnlineFeatures.load(schema, out, "2031-01-01")
    assert features.add(
        "clicks",
        pa.table({"user": [None], "at": [0]}, pa.schema({"user": pa.int64(), "at": pa.timestamp("ms")})),
        days[-1],
    )
    with pytest.raises(UserError, match="is a snapshot"):
        features.add("users", pa.table({"user_id": [1]}), days[-1])
    np.testing.assert_equal(len(list((out / "samples").iterdir())), 1)
