"""Files as they come from elsewhere: each value is right, or its row is quarantined by its column's name, or the file is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.pipelines.build import build
from genrank.pipelines.config import BuildConfig
from genrank.pipelines.days import day_number
from genrank.pipelines.normalize import Normalizer
from genrank.schemas import (
    Candidates,
    Categorical,
    CrossFeature,
    EventLog,
    Events,
    EventSequence,
    Hashed,
    Label,
    MultiValued,
    Numeric,
    Schema,
    Table,
    UserError,
)
from genrank.schemas.manifest import SampleManifest, sample_files
from genrank.schemas.review.check import check

DAY = "2026-01-01"
NOON = int(datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp() * 1000)
BASE = {"user_id": "int64", "item_id": "int64", "ts": "int64"}
Columns = Mapping[str, Any]


@dataclass
class World:
    """A day of exposures and clicks, and what is built of it."""

    root: Path
    exposures: Mapping[str, str]
    clicks: Mapping[str, str]
    rate: float = 1.0
    unit: str = "ms"

    @property
    def schema(self) -> Schema:
        log: Callable[..., EventLog] = lambda name, columns: EventLog(  # noqa: E731
            name=name,
            path=name + "/dt={dt}",
            columns=columns,
            max_quarantine_rate=self.rate,
            time_unit=self.unit,
            arrival="loaded" if "loaded" in columns else None,
        )
        item = Categorical(name="item_id", table=Table(name="item", dim=8, vocabulary=Hashed(size=100)))
        features: list[Any] = [item]
        features.append(CrossFeature(name="clicks_7d", op="count", source="clicks", keys=("item_id",), window="7d"))
        if "ctr" in self.exposures:
            features.append(Numeric(name="ctr"))
        if "tags" in self.exposures:
            features.append(MultiValued(name="tags", vocabulary=Hashed(size=50), dim=4))
        labels = [Label(name="click", source="clicks", window="10m")]
        for value in ("amount", "units", "rate"):
            if value in self.clicks:
                for op in ("sum", "mean"):
                    name = f"{op}_{value}"
                    features.append(
                        CrossFeature(name=name, op=op, source="clicks", keys=("user_id",), window="7d", value=value)
                    )
        if "amount" in self.clicks:
            labels.append(Label(name="spent", kind="value", source="clicks", value="amount", window="10m"))
        return Schema(
            name="m",
            sources=(log("exposures", self.exposures), log("clicks", self.clicks)),
            sequences=(EventSequence(name="history", events=(Events(source="clicks"),), features=(item,)),),
            candidates=Candidates(features=tuple(features)),
            labels=tuple(labels),
        )

    def put(self, source: str, columns: Columns | pa.Table, **how: object) -> None:
        path = self.root / "logs" / source / f"dt={DAY}" / "a.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(dict(columns)), path, **how)

    def build(self) -> SampleManifest:
        config = BuildConfig(
            schema=self.schema,
            data=self.root / "logs",
            out=self.root / "out",
            first=DAY,
            last=DAY,
            engine="local",
            buckets=2,
        )
        manifest = build(config).manifests[DAY]
        counts = manifest.counts.model_dump(by_alias=True)
        for source in ("exposures", "clicks"):
            footer = pq.read_metadata(self.root / "logs" / source / f"dt={DAY}" / "a.parquet").num_rows
            accounted = (
                counts["out"][source] + counts["duplicates"][source] + sum(counts["quarantined"][source].values())
            )
            assert accounted == counts["in"][source] == footer
        return manifest

    def rows(self) -> list[dict[str, Any]]:
        files = sample_files(self.root / "out" / "samples", DAY, self.schema)
        rows = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
        return sorted(rows, key=lambda row: str(row["sample_id"]))

    def findings(self) -> str:
        return "\n".join(str(finding) for finding in check(self.schema, self.root / "logs").findings)


def world(path: Path, exposures: Mapping[str, str] = {}, clicks: Mapping[str, str] = {}, **how: Any) -> World:
    made = World(path, BASE | dict(exposures), BASE | dict(clicks), **how)
    made.put("exposures", {"user_id": [1, 1], "item_id": [10, 11], "ts": [NOON, NOON + 100_000]})
    made.put("clicks", {"user_id": [1], "item_id": [10], "ts": [NOON + 60_000]})
    return made


def test_an_id_beyond_its_type_is_no_other_id(tmp_path: Path) -> None:
    made = world(tmp_path, exposures={"item_id": "int32"})
    made.put("exposures", {"user_id": [1, 1], "item_id": [7, 7 + 2**32], "ts": [NOON, NOON + 1]})
    assert made.build().counts.quarantined["exposures"] == {"item_id does not fit int32": 1}
    assert [row["candidates"]["item_id"] for row in made.rows()] == [[7]]
    assert "error: exposures.item_id: 50.0% of 2026-01-01 does not fit int32" in made.findings().replace(
        "warning", "error"
    )
    strict = World(tmp_path, made.exposures, made.clicks, rate=0.05)
    with pytest.raises(UserError, match=r"50.0% of .* are quarantined.*\(1 item_id does not fit int32\)"):
        build(
            BuildConfig(
                schema=strict.schema, data=tmp_path / "logs", out=tmp_path / "x", first=DAY, last=DAY, engine="local"
            )
        )


def test_sums_hold(tmp_path: Path) -> None:
    made = world(tmp_path, clicks={"amount": "float64", "units": "int64", "rate": "float64"})
    made.put(
        "clicks",
        {
            "user_id": [1, 1],
            "item_id": [10, 10],
            "ts": [NOON + 1000, NOON + 2000],
            "amount": [1e13, 1e13],
            "units": [2**62 + 2**61, 2**62],
            "rate": [1e-9, 3e-9],
        },
    )
    made.build()
    (row,) = made.rows()
    found = {name: row["candidates"][name][1] for name in ("sum_amount", "sum_units", "mean_units", "mean_rate")}
    want = {"sum_amount": 2e13, "sum_units": 2.0**63 + 2.0**61, "mean_units": 2.0**62 + 2.0**60, "mean_rate": 2e-9}
    assert found == pytest.approx(want, rel=1e-6)
    assert row["labels"]["spent"][0] == pytest.approx(2e13)


def test_an_amount_beyond_float32_is_named(tmp_path: Path) -> None:
    made = world(tmp_path, clicks={"amount": "float64"})
    click = {"user_id": [1] * 3, "item_id": [10] * 3, "ts": [NOON + 1, NOON + 2, NOON + 3]}
    made.put("clicks", click | {"amount": [1e39, 1.0, 2.0]})
    assert made.build().counts.quarantined["clicks"] == {"amount does not fit float32": 1}
    made.put("clicks", click | {"amount": [3e38, 3e38, 2.0]})
    with pytest.raises(UserError, match="sum of amount is beyond float32"):
        made.build()


@pytest.mark.parametrize("int96", [False, True])
def test_a_click_that_never_arrives_counts_nowhere(tmp_path: Path, int96: bool) -> None:
    made = world(tmp_path, exposures={"ts": "timestamp"}, clicks={"ts": "timestamp", "loaded": "timestamp"})
    noon, stamp = datetime(2026, 1, 1, 12), pa.timestamp("us", tz="UTC")
    how = {"use_deprecated_int96_timestamps": int96}
    shown = pa.array([noon, noon + timedelta(seconds=120)], stamp)
    made.put("exposures", {"user_id": [1, 1], "item_id": [10, 11], "ts": shown}, **how)
    click = {"user_id": [1], "item_id": [10], "ts": pa.array([noon + timedelta(seconds=60)], stamp)}
    made.put("clicks", click | {"loaded": pa.array([datetime(9999, 12, 31)], stamp)}, **how)
    assert made.build().counts.quarantined["clicks"] == {"arrives later than 3d": 1}
    (row,) = made.rows()
    assert (row["labels"]["click"], row["history"]["item_id"], row["candidates"]["clicks_7d"]) == ([0, 0], [], [0, 0])


@pytest.mark.parametrize("declared", ["float64", "float32"])
def test_an_infinite_number_is_no_feature(tmp_path: Path, declared: str) -> None:
    made = world(tmp_path, exposures={"ctr": declared})
    shown = {"user_id": [1] * 4, "item_id": [1, 2, 3, 4], "ts": [NOON, NOON + 1, NOON + 2, NOON + 3]}
    made.put("exposures", shown | {"ctr": [0.5, np.inf, np.nan, 1e300]})
    quarantined = made.build().counts.quarantined["exposures"]
    assert quarantined == {"ctr is infinite": 1, "ctr does not fit float32": 1}
    (row,) = made.rows()
    assert np.isfinite(row["candidates"]["ctr"][0]) and np.isnan(row["candidates"]["ctr"][1])
    assert "exposures.ctr" in made.findings() and "is infinite" in made.findings()


def test_decimal_ids_are_ids(tmp_path: Path) -> None:
    made = world(tmp_path)

    def ids(*values: int) -> pa.Array:
        return pa.array([Decimal(value) for value in values], pa.decimal128(38, 0))

    shown = {"user_id": ids(1, 1, 1), "item_id": ids(10, 11, 2**70), "ts": ids(NOON, NOON + 1000, NOON + 2000)}
    made.put("exposures", shown)
    assert made.build().counts.quarantined["exposures"] == {"item_id does not fit int64": 1}
    assert [row["candidates"]["item_id"] for row in made.rows()] == [[10, 11]]


@pytest.mark.parametrize(
    "tags",
    [
        pa.array([[1, 2], None], pa.list_(pa.int64(), 2)),
        pa.array([[1, 2], None], pa.large_list(pa.int32())),
        pa.array([[1, 2], None], pa.list_view(pa.int64())),
    ],
    ids=str,
)
def test_lists_of_any_layout(tmp_path: Path, tags: pa.Array) -> None:
    made = world(tmp_path, exposures={"tags": "list<int64>"})
    shown = {"user_id": [1, 1], "item_id": [10, 11], "ts": [NOON, NOON + 1]}
    made.put("exposures", shown | {"tags": tags})
    made.build()
    assert [row["candidates"]["tags"] for row in made.rows()] == [[[1, 2], []]]


@pytest.mark.parametrize(
    "tags", [pa.nulls(2), pa.array([[None], []], pa.list_(pa.null()))], ids=["null", "list of null"]
)
def test_lists_of_nothing(tmp_path: Path, tags: pa.Array) -> None:
    made = world(tmp_path, exposures={"tags": "list<string>"})
    shown = {"user_id": [1, 1], "item_id": [10, 11], "ts": [NOON, NOON + 1]}
    made.put("exposures", shown | {"tags": tags})
    made.build()
    assert [row["candidates"]["tags"] for row in made.rows()] == [[[], []]]


def test_files_of_another_column_order_and_one_linked_twice(tmp_path: Path) -> None:
    made = world(tmp_path)
    file = tmp_path / "logs" / "clicks" / f"dt={DAY}" / "a.parquet"
    table = pq.ParquetFile(file).read()
    other = table.set_column(0, "user_id", pa.array([2])).select(["ts", "item_id", "user_id"])
    pq.write_table(other, file.with_name("b.parquet"))
    pq.write_table(table.slice(0, 0), file.with_name("c.parquet"))
    file.with_name("d.parquet").symlink_to(file)
    config = BuildConfig(made.schema, tmp_path / "logs", tmp_path / "out", DAY, DAY, buckets=2)
    counts = build(config).manifests[DAY].counts
    assert (counts.rows_in["clicks"], counts.out["clicks"], counts.duplicates["clicks"]) == (3, 2, 1)


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    made = world(tmp_path)
    array = pa.array([1])
    made.put(
        "clicks", pa.Table.from_arrays([array, array, array, array], names=["user_id", "item_id", "ts", "item_id"])
    )
    assert "several columns 'item_id'" in made.findings()
    with pytest.raises(UserError, match=r"a.parquet has several columns 'item_id'; write the file with one"):
        made.build()


ANY = st.integers(-(2**63), 2**63 - 1)
NEAR = st.integers(NOON - 5 * 86_400_000, NOON + 2 * 86_400_000)
TIMES = st.lists(st.none() | ANY | NEAR | st.sampled_from([-(2**63), 2**63 - 1, 0, NOON]), min_size=1, max_size=12)


@settings(deadline=None)
@given(TIMES, TIMES, st.sampled_from(["s", "ms", "us"]))
def test_every_row_goes_somewhere(times: list[int | None], arrivals: list[int | None], unit: str) -> None:
    """Any 64-bit time and arrival: all rows of a partition go to the partial or the quarantine of a day within lateness."""
    log = World(Path(), BASE, BASE | {"loaded": "int64"}, unit=unit).schema
    day = day_number(DAY)
    rows = {"user_id": [1] * len(times), "item_id": [1] * len(times), "ts": pa.array(times, pa.int64())}
    raw = pa.table(rows | {"loaded": pa.array((arrivals * len(times))[: len(times)], pa.int64())})
    normalizer = Normalizer(log, 2, {"clicks": frozenset(range(day - 3, day + 1))})
    sent = list(normalizer.normalize(log.event_log("clicks"), day, raw))
    assert sum(piece.rows.num_rows for piece in sent) == len(times)


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_times_at_the_ends_of_64_bits_are_quarantined(tmp_path: Path, unit: str) -> None:
    made = world(tmp_path, clicks={"loaded": "int64"}, unit=unit)
    now = {"s": NOON // 1000, "ms": NOON, "us": NOON * 1000}[unit]
    made.put("exposures", {"user_id": [1, 1], "item_id": [1, 2], "ts": [now, now + 1]})
    times = [now, -(2**63), 2**63 - 1, now, now, now, now]
    loaded = pa.array([now, now, now, -(2**63), 2**63 - 1, None, now], pa.int64())
    made.put("clicks", {"user_id": [1] * 7, "item_id": [1] * 7, "ts": times, "loaded": loaded})
    counts = made.build().counts
    outside = "lies outside the years 1 to 9999"
    assert counts.quarantined["clicks"] == {
        "ts does not fit int64": 1,
        "loaded does not fit int64": 1,
        f"ts {outside}": 1,
        f"loaded {outside}": 1,
    }
    assert (counts.out["clicks"], counts.duplicates["clicks"]) == (2, 1)
