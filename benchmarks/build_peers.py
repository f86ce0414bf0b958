"""The day of `benchmarks.build` by hand: the best scripts we could write or find, for the same columns from the same logs.

- `numpy`: keys and time packed into one 64-bit number, sorted once a key set, every window two binary searches; threads.
- `polars`: the same packing, as-of joins on one sorted column.
- `duckdb`: running counts, as-of joins on the keys and the time.
- `spark_sql`: running counts in window frames, exposures and clicks on one axis; one shuffle and sort a key set.

None of them deduplicates, quarantines, gathers statistics, judges the day, keeps partials for the next or publishes whole; numpy, polars and DuckDB hold all days in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genrank.schemas.base import DAY_MS

Ints = NDArray[np.int64]
Keys = tuple[str, ...]
COLUMNS = ("user_id", "item_id", "category", "ts")
HISTORY, CLICK_WITHIN_MS = 200, 600_000
TIME_BITS = 30
"""Of a packed key: eleven days in milliseconds."""


@dataclass(frozen=True)
class Day:
    """What is to be made."""

    clicks: Path
    exposures: Path
    """The folder of the day's exposures."""
    start: int
    """The day's first moment, epoch ms."""
    windows: Mapping[str, int]
    """Name -> ms."""
    keys: tuple[Keys, ...]

    @property
    def base(self) -> int:
        """Before every time of the logs, epoch ms."""
        return self.start - 10 * DAY_MS

    def counts(self, keys: Keys) -> list[str]:
        """Names of the columns that count a key set's clicks."""
        return [f"c_{'_'.join(keys)}_{window}" for window in self.windows]


# ---------------------------------------------------------------------- numpy


def numpy_day(day: Day, out: Path) -> dict[str, float]:
    """Write the day's samples; returns how many samples and candidates."""
    clicks, shown = _columns(day.clicks), _columns(day.exposures)
    kept = shown["ts"] >= day.start
    shown = {name: values[kept] for name, values in shown.items()}
    codes = {name: _codes(clicks[name], shown[name]) for name in COLUMNS[:3]}
    order = np.argsort(_packed(codes["user_id"][1], shown["ts"] - day.base), kind="stable")
    shown = {name: values[order] for name, values in shown.items()}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:

        def count(keys: Keys) -> dict[str, NDArray[np.generic]]:
            of_clicks, of_shown = _joint_codes([codes[key] for key in keys])
            return _counted(day, keys, of_clicks, of_shown[order], clicks["ts"], shown["ts"])

        counted = {k: v for found in pool.map(count, day.keys) for k, v in found.items()}
        of_clicks, of_shown = codes["user_id"][0], codes["user_id"][1][order]
        first = np.flatnonzero(np.r_[True, of_shown[1:] != of_shown[:-1]])
        bounds = np.r_[first, len(of_shown)].astype(np.int32)
        table: dict[str, pa.Array] = {"user_id": pa.array(shown["user_id"][first])}
        for name, values in ({n: shown[n] for n in COLUMNS[1:]} | counted).items():
            table[name] = pa.ListArray.from_arrays(bounds, pa.array(values))
        table |= _sequences(day, clicks, of_clicks, of_shown[first])
        _write(pa.table(table), out, pool)
    return {"samples": len(first), "candidates": len(of_shown)}


def _columns(folder: Path) -> dict[str, Ints]:
    table = ds.dataset(folder, format="parquet").to_table(columns=list(COLUMNS))
    return {name: table[name].to_numpy() for name in COLUMNS}


def _codes(clicks: Ints, shown: Ints) -> tuple[Ints, Ints, int]:
    """Ids of both logs as numbers from 0, as strings would need, and how many there are."""
    encoded = pa.chunked_array([clicks, shown]).combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int64)
    return codes[: len(clicks)], codes[len(clicks) :], len(encoded.dictionary)


def _joint_codes(parts: Iterable[tuple[Ints, Ints, int]]) -> tuple[Ints, Ints]:
    clicks: Ints | int = 0
    shown: Ints | int = 0
    for of_clicks, of_shown, size in parts:
        clicks, shown = clicks * size + of_clicks, shown * size + of_shown
    assert not isinstance(clicks, int) and not isinstance(shown, int)
    return clicks, shown


def _packed(codes: Ints, since: Ints) -> Ints:
    return (codes << TIME_BITS) | since


def _counted(
    day: Day, keys: Keys, clicks: Ints, shown: Ints, clicked: Ints, seen: Ints
) -> dict[str, NDArray[np.generic]]:
    """The columns that a key set's clicks decide: its counts; of user and item the label; of the user how many of the day's clicks are visible."""
    happened = np.sort(_packed(clicks, clicked - day.base))
    asked = _packed(shown, seen - day.base)
    at = np.argsort(asked)
    asked = asked[at]  # searched in order, the cache holds what is near
    before = np.searchsorted(happened, asked, "left")

    def placed(values: NDArray[np.generic], dtype: type[np.generic]) -> NDArray[np.generic]:
        out = np.empty(len(values), dtype)
        out[at] = values
        return out

    found: dict[str, NDArray[np.generic]] = {}
    for name, ms in zip(day.counts(keys), day.windows.values(), strict=True):
        found[name] = placed(before - np.searchsorted(happened, asked - ms, "right"), np.float32)
    if keys == ("user_id", "item_id"):
        following = np.append(happened, np.iinfo(np.int64).max)[before]
        found["click"] = placed(following - asked <= CLICK_WITHIN_MS, np.int32)
    if keys == ("user_id",):
        today = (asked >> TIME_BITS << TIME_BITS) | (day.start - day.base)
        found["sees"] = placed(before - np.searchsorted(happened, today, "left"), np.int32)
    return found


def _sequences(day: Day, clicks: dict[str, Ints], users: Ints, wanted: Ints) -> dict[str, pa.Array]:
    """History (`h_`) and the day's events (`r_`) of the wanted users' codes."""
    packed = _packed(users, clicks["ts"] - day.base)
    order = np.argsort(packed, kind="stable")
    packed = packed[order]
    low, middle, high = (
        np.searchsorted(packed, bound, "left")
        for bound in (
            wanted << TIME_BITS,
            (wanted << TIME_BITS) | (day.start - day.base),
            (wanted + 1) << TIME_BITS,
        )
    )
    found = {}
    for prefix, begin, end in (("h_", np.maximum(low, middle - HISTORY), middle), ("r_", middle, high)):
        bounds = np.r_[0, np.cumsum(end - begin)]
        rows = order[np.arange(bounds[-1]) + np.repeat(begin - bounds[:-1], end - begin)]
        for name in COLUMNS[1:]:
            found[prefix + name] = pa.ListArray.from_arrays(bounds.astype(np.int32), pa.array(clicks[name][rows]))
    return found


def _write(table: pa.Table, out: Path, pool: ThreadPoolExecutor) -> None:
    out.mkdir(parents=True)
    encodings = {}
    for field in table.schema:
        path = field.name + (".list.element" if pa.types.is_list(field.type) else "")
        encodings[path] = "DELTA_BINARY_PACKED" if field.name.endswith("ts") else "PLAIN"
    size = -(-len(table) // len(os.sched_getaffinity(0)))

    def write(start: int) -> None:
        pq.write_table(
            table.slice(start, size), out / f"samples-{start}.parquet", compression="zstd", compression_level=1,
            row_group_size=4096, use_dictionary=False, column_encoding=encodings,
        )  # fmt: skip

    list(pool.map(write, range(0, len(table), size)))


# ---------------------------------------------------------------------- polars


def polars_day(day: Day, out: Path) -> dict[str, float]:
    """Write the day's samples; returns how many samples and candidates."""
    import polars as pl

    clicks = pl.read_parquet(day.clicks / "*/*.parquet")
    shown = pl.read_parquet(day.exposures / "*.parquet").filter(pl.col("ts") >= day.start)
    shown = shown.sort("user_id", "ts").with_row_index("row")
    sizes = {name: max(clicks[name].max(), shown[name].max()) + 1 for name in COLUMNS[:3]}  # type: ignore[type-var, operator]
    found = []
    for keys in day.keys:
        code = pl.col(keys[0])
        for key in keys[1:]:
            code = code * sizes[key] + pl.col(key)
        packed = (code * (1 << TIME_BITS) + (pl.col("ts") - day.base)).alias("key")
        happened = clicks.select(packed).sort("key").with_row_index("n", 1)
        asked = shown.select("row", packed).sort("key")
        columns = {"before": asked.join_asof(happened, on="key", allow_exact_matches=False)["n"]}
        for name, ms in zip(day.counts(keys), day.windows.values(), strict=True):
            columns[name] = asked.select(pl.col("key") - ms).join_asof(happened, on="key")["n"]
        if keys == ("user_id",):
            today = pl.col("key") // (1 << TIME_BITS) * (1 << TIME_BITS) + (day.start - day.base - 1)
            columns["sees"] = asked.select(today).join_asof(happened, on="key")["n"]
        counts = pl.DataFrame(columns).with_columns(pl.all().fill_null(0).cast(pl.Int64))
        gone = counts.columns[1:]
        counts = counts.select(asked["row"], *((pl.col("before") - pl.col(name)).alias(name) for name in gone))
        counts = counts.with_columns(pl.col(day.counts(keys)).cast(pl.Float32))
        if keys == ("user_id", "item_id"):
            times = happened.select("key", pl.col("key").alias("following"))
            following = asked.select("key").join_asof(times, on="key", strategy="forward")
            click = (following["following"] - following["key"] <= CLICK_WITHIN_MS).fill_null(False)
            counts = counts.with_columns(click.cast(pl.Int32).alias("click"))
        found.append(counts.sort("row").drop("row"))
    shown = pl.concat([shown.drop("row"), *found], how="horizontal")
    in_order = clicks.lazy().sort("user_id", "ts")
    of_user = {
        "h_": in_order.filter(pl.col("ts") < day.start), "r_": in_order.filter(pl.col("ts") >= day.start)
    }  # fmt: skip
    samples = shown.lazy().group_by("user_id", maintain_order=True).agg(pl.all())
    for prefix, events in of_user.items():
        last = pl.col(COLUMNS[1:]).tail(HISTORY) if prefix == "h_" else pl.col(COLUMNS[1:])
        lists = events.group_by("user_id", maintain_order=True).agg(last.name.prefix(prefix))
        samples = samples.join(lists, on="user_id", how="left", maintain_order="left")
    written = samples.collect()
    out.mkdir(parents=True)
    written.write_parquet(out / "samples.parquet", compression="zstd", compression_level=1, row_group_size=4096)
    return {"samples": written.height, "candidates": shown.height}


# ---------------------------------------------------------------------- DuckDB


def duckdb_day(day: Day, out: Path) -> dict[str, float]:
    """Write the day's samples; returns how many samples and candidates. DuckDB is no dependency of this project: `pip install duckdb`."""
    import duckdb

    columns = ", ".join(COLUMNS)
    sql = duckdb.connect(config={"threads": len(os.sched_getaffinity(0)), "preserve_insertion_order": False}).execute
    sql(f"create table clicks as select {columns} from read_parquet('{day.clicks}/*/*.parquet')")
    sql(
        f"create table shown as select row_number() over () as row, {columns}"
        f" from read_parquet('{day.exposures}/*.parquet') where ts >= {day.start}"
    )
    joined = "shown"
    for number, keys in enumerate(day.keys):
        of = ", ".join(keys)
        # Clicks of one moment have one count, whichever of them the join takes.
        sql(
            f"create table n{number} as select {of}, ts, count(*) over (partition by {of} order by ts) as n from clicks"
        )

        def asof(table: str, alias: str, when: str, keys: Keys = keys) -> str:
            same = " and ".join(f"shown.{key} = {alias}.{key}" for key in keys)
            return f" asof left join {table} {alias} on {same} and {when} {alias}.ts"

        made, joins = [], asof(f"n{number}", "past", "shown.ts >")
        for name, ms in zip(day.counts(keys), day.windows.values(), strict=True):
            joins += asof(f"n{number}", name, f"shown.ts - {ms} >=")
            made.append(f"(coalesce(past.n, 0) - coalesce({name}.n, 0))::float as {name}")
        if keys == ("user_id", "item_id"):
            joins += asof("clicks", "following", "shown.ts <=")
            made.append(f"coalesce(following.ts - shown.ts <= {CLICK_WITHIN_MS}, false)::int as click")
        if keys == ("user_id",):
            counted = f"select user_id, ts, count(*) over (partition by user_id order by ts) as n from clicks where ts >= {day.start}"
            joins += asof(f"({counted})", "today", "shown.ts >")
            made.append("coalesce(today.n, 0)::int as sees")
        sql(f"create table c{number} as select shown.row, {', '.join(made)} from shown{joins}")
        joined += f" join c{number} using (row)"
    names = [*COLUMNS[1:], *(name for keys in day.keys for name in day.counts(keys)), "click", "sees"]

    def lists(rows: str, fields: Iterable[str], prefix: str, order: str) -> str:
        made = ", ".join(f"list({name} order by {order}) as {prefix}{name}" for name in fields)
        return f"(select user_id, {made} from {rows} group by user_id)"

    newest = f"""(select * from (
        select *, row_number() over (partition by user_id order by ts desc) as age from clicks where ts < {day.start}
    ) where age <= {HISTORY})"""
    today = f"(select * from clicks where ts >= {day.start})"
    out.mkdir(parents=True)
    sql(
        f"copy (select * from {lists(joined, names, '', 'ts, row')}"
        f" left join {lists(newest, COLUMNS[1:], 'h_', 'ts')} using (user_id)"
        f" left join {lists(today, COLUMNS[1:], 'r_', 'ts')} using (user_id))"
        f" to '{out}/samples.parquet' (format parquet, compression zstd, compression_level 1, row_group_size 4096)"
    )
    samples, candidates = sql("select count(distinct user_id), count(*) from shown").fetchone() or (0, 0)
    return {"samples": samples, "candidates": candidates}


# ---------------------------------------------------------------------- Spark SQL


def spark_sql_day(session: Any, day: Day, out: Path) -> None:
    """Write the day's samples."""
    columns = ", ".join(COLUMNS)
    session.read.parquet(str(day.clicks)).selectExpr(*COLUMNS).createOrReplaceTempView("clicks")
    shown = session.read.parquet(str(day.exposures)).where(f"ts >= {day.start}").selectExpr(*COLUMNS)
    shown.createOrReplaceTempView("shown")
    session.sql(
        f"select 1 as exposed, {columns} from shown union all select 0 as exposed, {columns} from clicks"
    ).createOrReplaceTempView("axis")
    # Key sets in an order in which one's shuffle by the user serves the next.
    for keys in sorted(day.keys, key=lambda keys: (keys[0] != "item_id", len(keys), keys)):
        over = f"partition by {', '.join(keys)} order by ts range between"

        def until(ms: int, what: str = "1 - exposed", over: str = over) -> str:
            return f"coalesce(sum({what}) over ({over} unbounded preceding and {ms} preceding), 0)"

        made = [
            f"cast({until(1)} - {until(ms)} as float) as {name}"
            for name, ms in zip(day.counts(keys), day.windows.values(), strict=True)
        ]
        if keys == ("user_id", "item_id"):
            following = f"min(case when exposed = 0 then ts end) over ({over} current row and unbounded following)"
            made.append(f"cast(coalesce({following} - ts <= {CLICK_WITHIN_MS}, false) as int) as click")
        if keys == ("user_id",):
            today = f"case when exposed = 0 and ts >= {day.start} then 1 else 0 end"
            made.append(f"cast({until(1, today)} as int) as sees")
        session.sql(f"select *, {', '.join(made)} from axis").createOrReplaceTempView("axis")
    names = [*COLUMNS[1:3], *(name for keys in day.keys for name in day.counts(keys)), "click", "sees"]
    newest = f"""(select * from (
        select *, row_number() over (partition by user_id order by ts desc) as age from clicks where ts < {day.start}
    ) where age <= {HISTORY})"""
    groups = {
        "": ("(select * from axis where exposed = 1)", names),
        "h_": (newest, list(COLUMNS[1:3])),
        "r_": (f"(select * from clicks where ts >= {day.start})", list(COLUMNS[1:3])),
    }
    joined, chosen = "", []
    for prefix, (rows, fields) in groups.items():
        alias = f"of_{prefix}"
        lists = f"select user_id, array_sort(collect_list(struct(ts, {', '.join(fields)}))) as rows from {rows} group by user_id"
        joined += f"({lists}) {alias}" if not joined else f" left join ({lists}) {alias} using (user_id)"
        chosen += [f"{alias}.rows.{name} as {prefix}{name}" for name in ("ts", *fields)]
    session.sql(f"select user_id, {', '.join(chosen)} from {joined}").write.parquet(str(out))
