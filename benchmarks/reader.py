"""The reader's batches against a bare Parquet scan of the same columns: what assembling batches costs.

    python -m benchmarks.reader [--rows 32768] [--repeats 5] [--samples DIR --schema FILE.py:NAME]

Writes benchmarks/results/reader.json; benchmarks/tokenization.md says what it means. Without `--samples` it writes random samples
of the marketplace's schema. The peer is pyarrow reading every row group with its own threads and doing nothing with it; its
`tokens_per_s` counts the tokens that are stored. `counting` is how long an epoch's batches take to be counted before training, from
footers and from columns (files of older builds), beside the seconds that reading the batches takes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrank.schemas.derive.sample_lengths import lengths_metadata
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.files import file_sha256
from genrank.schemas.load import load_schema
from genrank.schemas.manifest import sample_days, sample_files
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.sample_columns import SampleColumns

RESULT = Path(__file__).parent / "results" / "reader.json"
DAY_MS = 86_400_000
BUDGET = 16_384
VIEWS = ("user_day", "request", "session")


def random_day(schema: Schema, rows: int, seed: int, shorter: int = 1) -> pa.Table:
    """A day of samples as the contract stores them, column by column: log-normal lengths (means divided by `shorter`), uniform values."""
    rng = np.random.default_rng(seed)
    start = 20_454 * DAY_MS
    means = {
        CANDIDATES: 48,
        **{s.name: min(s.max_length, 64 if s.scope == "history" else 12) for s in schema.sequences},
    }

    means = {group: max(1, mean // shorter) for group, mean in means.items()}

    def lengths(group: str) -> np.ndarray:
        return np.minimum(rng.lognormal(np.log(means[group]) - 0.3, 0.8, rows).astype(np.int64) + 1, 8 * means[group])

    def values(type_: pa.DataType, n: int) -> pa.Array:
        if pa.types.is_list(type_):
            inner = rng.integers(0, 5, n)
            return as_lists(type_, inner, values(type_.value_type, int(inner.sum())))
        if pa.types.is_floating(type_):
            return pa.array(rng.random(n, dtype=np.float32))
        high = 2 if type_ == pa.int32() else 100_000
        return pa.array(rng.integers(0, high, n).astype(type_.to_pandas_dtype()))

    def as_lists(type_: pa.DataType, counts: np.ndarray, inner: pa.Array) -> pa.Array:
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), inner, type=type_)

    own = {name: lengths(name) for name in means}
    realtime = schema.realtime.name if schema.realtime else ""
    columns: list[pa.Array] = []
    for field in arrow_schema(schema):
        if not pa.types.is_struct(field.type):
            fixed = {
                "sample_id": pa.array([f"{i}:2026-01-01:0" for i in range(rows)]),
                "user_id": pa.array(np.arange(rows)).cast(field.type),
                "window_start": pa.array(np.full(rows, start)),
                "window_end": pa.array(np.full(rows, start + DAY_MS)),
            }
            columns.append(fixed[field.name])
            continue
        children = []
        for child in field.type:
            counts = own.get(field.name, own[CANDIDATES])
            if child.name == "realtime_sees":
                counts = own[realtime]
            n = int(counts.sum())
            if field.name == USER:
                children.append(values(child.type, rows))
            elif child.name in ("candidate_sees", "realtime_sees"):
                seen = (rng.random(n) * np.repeat(own[realtime], counts)).astype(np.int32)
                children.append(as_lists(child.type, counts, pa.array(seen)))
            elif child.name in ("ts", "available"):
                times = start + np.sort(rng.integers(0, DAY_MS, n))
                children.append(as_lists(child.type, counts, pa.array(times)))
            elif child.name == "request":
                children.append(as_lists(child.type, counts, pa.array(np.arange(n) // 12)))
            else:
                children.append(as_lists(child.type, counts, values(child.type.value_type, n)))
        columns.append(pa.StructArray.from_arrays(children, fields=list(field.type)))
    return pa.Table.from_arrays(columns, schema=arrow_schema(schema))


def publish(root: Path, schema: Schema, table: pa.Table, *, lengths: bool = True) -> None:
    """Writes one day in the layout and with the settings of the builder; `lengths`: with those in the footer."""
    day = root / "dt=2026-01-01"
    day.mkdir(parents=True)
    path = day / "part-00000.parquet"
    rows = len(table)
    with pq.ParquetWriter(path, table.schema, compression="zstd", compression_level=1) as writer:
        writer.write_table(table, row_group_size=4096)
        if lengths:
            writer.add_key_value_metadata(lengths_metadata(table, schema, [*range(0, rows, 4096), rows]))
    file = {"path": path.name, "rows": rows, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    manifest = {
        "schema": schema.name, "fingerprint": schema.fingerprint, "build_id": "random", "dt": "2026-01-01",
        "engine": "local", "as_of": "2026-01-02T00:00:00+00:00", "files": [file], "samples": rows,
        "candidates": len(table[CANDIDATES].combine_chunks().field("ts").flatten()), "inputs": [],
        "counts": {"in": {}, "out": {}, "quarantined": {}, "duplicates": {}}, "created": "2026-01-02T00:00:00+00:00",
    }  # fmt: skip
    (day / "manifest.json").write_text(json.dumps(manifest))


def scan(root: Path, schema: Schema) -> int:
    """The peer: rows of every row group, decoded and dropped."""
    names, rows = SampleColumns(schema).names, 0
    for dt in sample_days(root):
        for path in sample_files(root, dt):
            file = pq.ParquetFile(path, memory_map=True)
            for number in range(file.num_row_groups):
                rows += len(file.read_row_group(number, columns=names, use_threads=True))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32_768)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--schema", default="examples/marketplace/schema.py:schema")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    schema = load_schema(arguments.schema)
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.samples or Path(folder)
        if arguments.samples is None:
            table = random_day(schema, arguments.rows, 0)
            publish(root / "new", schema, table)
            publish(root / "old", schema, table, lengths=False)
        new = root if arguments.samples else root / "new"
        result = measure(new, schema, arguments.repeats)
        if arguments.samples is None:
            reading = {view: result["results"][view]["seconds"] for view in VIEWS}
            result["counting"] = counting(root, schema, arguments.repeats, reading)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def counting(root: Path, schema: Schema, repeats: int, reading: dict[str, float]) -> dict[str, Any]:
    """Seconds to count an epoch's batches, from footers and from columns, each view."""

    def seconds(folder: str, view: Any) -> float:
        reader = SampleReader(root / folder, schema, sample_days(root / folder), view=view, token_budget=BUDGET)
        began = time.perf_counter()
        reader.count_batches([0])
        return time.perf_counter() - began

    table: dict[str, Any] = {}
    for view in VIEWS:
        taken = [(seconds("new", view), seconds("old", view)) for _ in range(repeats)]
        footers, columns = (statistics.median(each) for each in zip(*taken, strict=True))
        table[view] = {
            "footers_seconds": footers, "columns_seconds": columns,
            "footers_share_of_reading": footers / reading[view], "columns_share_of_reading": columns / reading[view],
        }  # fmt: skip
    return table


def measure(root: Path, schema: Schema, repeats: int) -> dict[str, Any]:
    """Medians of interleaved rounds, so that a busy machine slows all of them alike."""
    days = sample_days(root)
    tokens: dict[str, int] = {}

    def read(view: str) -> int:
        rows = 0
        for batch in SampleReader(root, schema, days, view=view, token_budget=BUDGET):  # type: ignore[arg-type]
            rows += len(batch)
            tokens[view] = tokens.get(view, 0) + sum(len(group.ts) for group in batch.groups.values())
        return rows

    runs: dict[str, Callable[[], int]] = {
        "scan": lambda: scan(root, schema),
        "user_day": lambda: read("user_day"),
        "request": lambda: read("request"),
        "session": lambda: read("session"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    busy: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    tokens.clear()
    for _ in range(repeats):
        for name, run in runs.items():
            began, worked = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(time.perf_counter() - began)
            busy[name].append(time.process_time() - worked)
    stored = scan(root, schema)
    scanned = statistics.median(seconds["scan"])
    table = {
        name: {
            "seconds": statistics.median(times),
            "stored_rows_per_s": stored / statistics.median(times),
            "share_of_scan": statistics.median(s / t for s, t in zip(seconds["scan"], times, strict=True)),
            "share_of_scan_best_round": min(seconds["scan"]) / min(times),
            "share_of_scan_cpu": statistics.median(s / t for s, t in zip(busy["scan"], busy[name], strict=True)),
            "tokens_per_s": tokens.get(name, tokens["user_day"]) / repeats / statistics.median(times),
        }
        for name, times in seconds.items()
    }
    return {
        "schema": schema.name, "stored_rows": stored, "token_budget": BUDGET, "repeats": repeats, "scan_seconds": scanned,
        "results": table, "cores": os.cpu_count(), "machine": platform.machine(), "pyarrow": pa.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    main()
