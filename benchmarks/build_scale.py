"""What a day of up to 24 billion exposures would cost, on paper: from slopes that were measured, by the formulas that the code follows.

    python -m benchmarks.build_scale                       # benchmarks/build_scale.md again, from results/build_growth.jsonl
    python -m benchmarks.build_scale --core-hour 0.03 --gb-month 0.02

Processor seconds, bytes moved and bytes stored are lines through the builds of less than `FITTED` exposures; the builds beyond only check
them. The largest of them is some thousand times smaller than what is computed here: take the page as arithmetic, not as a measurement.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genrank.pipelines.partials_job import READ_ROWS
from genrank.pipelines.plan import FEWEST_BUCKETS, MANY_BUCKETS, bucket_count
from genrank.pipelines.samples_job import KEY_ROWS

FOLDER = Path(__file__).parent
GROWTH, SPARK = FOLDER / "results" / "build_growth.jsonl", FOLDER / "results" / "builder.json"
FITTED = 1_000_000
DAYS = (10_000_000, 1_000_000_000, 2_374_000_000, 24_000_000_000)
"""Exposures of a day; the third is a tenth of MTGR's training set (23.74 billion exposures of 0.21 billion users in 10 days)."""
CLICKS, CLICK_DAYS = 0.2, 11
"""Clicks for each exposure and day, and days of them that the measured builds read."""
PIECE_SECONDS, PIECE_BYTES = 450e-6, 1118 - 432
"""What a piece between two of Spark's tasks costs beside its rows (4.0, local[2], pieces of 12 rows)."""
PYTHON_OBJECTS = 4
"""Bytes of Python's lists of floats for each byte of Arrow's."""
HEAP, TASK = 4 * 2**30, 4 * 2**30
"""Memory of a driver and of a task, as they are often given."""

Run = dict[str, Any]


class Line(NamedTuple):
    """A figure of a build, as a line over its exposures."""

    fixed: float
    slope: float

    def at(self, rows: float) -> float:
        """The figure of a day of so many exposures."""
        return self.fixed + self.slope * rows

    @classmethod
    def through(cls, runs: Sequence[Run], figure: str) -> Line:
        """Least squares."""
        slope, fixed = np.polyfit([run["rows"] for run in runs], [run[figure] for run in runs], 1)
        return cls(float(fixed), float(slope))


class Paper(NamedTuple):
    """What larger days are computed from."""

    of_user: int
    """Exposures of a user and day."""
    cpu: Line
    """Processor seconds, what a bucket costs by itself left out."""
    bucket: float
    """Processor seconds of a bucket by itself."""
    moved: Line
    partials: Line
    samples: Line
    """MiB."""

    def seconds(self, rows: float, buckets: int | None = None) -> float:
        """Processor seconds of the local engine."""
        return self.cpu.at(rows) + self.bucket * (bucket_count(int(rows)) if buckets is None else buckets)


def read_runs(path: Path) -> list[Run]:
    """A run a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def papers(runs: Sequence[Run]) -> Iterator[Paper]:
    """One for each number of exposures of a user that was measured."""
    for of_user in sorted({run["per_user"] for run in runs}, reverse=True):
        own = [run for run in runs if run["per_user"] == of_user and run["rows"] < FITTED and not run["smallest"]]
        cost = bucket_cost(runs)
        plain = [run | {"cpu_s": run["cpu_s"] - cost * run["buckets"]} for run in own]
        yield Paper(
            of_user,
            Line.through(plain, "cpu_s"),
            cost,
            *(Line.through(own, figure) for figure in ("moved_mib", "partials_mib", "samples_mib")),
        )


def bucket_cost(runs: Sequence[Run]) -> float:
    """Seconds that each further bucket takes at fixed rows."""
    many = [run for run in runs if run["smallest"]]
    kind = [(run["rows"], run["per_user"]) for run in many]
    few = [run for run in runs if (run["rows"], run["per_user"]) in kind and not run["smallest"]]
    (more_s, more), (less_s, less) = (np.mean([[r["cpu_s"], r["buckets"]] for r in of], 0) for of in (many, few))
    return float((more_s - less_s) / (more - less))


def pieces(rows: float) -> float:
    """Messages between the tasks of a day in a row: what is read goes to buckets, queries and events to keys' slots, answers back."""
    buckets, slots = bucket_count(int(rows)), max(FEWEST_BUCKETS, min(bucket_count(int(rows)), rows / KEY_ROWS))
    return rows * (1 + CLICKS) / READ_ROWS * buckets + 3 * buckets * slots


def spark_factor() -> float:
    """What Spark takes for an exposure, times the local engine's: between 1 and 20 million, by the committed runs of both."""
    runs = {
        (run["rows"], run["peer"]): run["cpu_s"] for run in json.loads(SPARK.read_text())["results"] if not run["hot"]
    }
    grown = {peer: runs[20_000_000, peer] - runs[1_000_000, peer] for peer in ("spark", "local")}
    return grown["spark"] / grown["local"]


# ---------------------------------------------------------------------- what breaks first


class Limit(NamedTuple):
    """Something that ends at some size."""

    what: str
    exposures: float
    """Of a day."""
    remedy: str


def limits(runs: Sequence[Run], paper: Paper, factor: float) -> list[Limit]:
    """Smallest first."""
    largest = max((run for run in runs if run["per_user"] == paper.of_user), key=lambda run: run["rows"])
    start = min(run["peak_mib"] for run in runs) * 2**20
    task = max(1.0, largest["peak_mib"] * 2**20 - start * 0.5) / 2 / (largest["rows"] / largest["buckets"])
    statistics = largest["statistics_mib"] * 2**20 / largest["buckets"] * (1 + PYTHON_OBJECTS)
    found = [
        Limit(
            "one machine of 16 cores needs more than 8 hours for a day in process",
            16 * 8 * 3600 / paper.cpu.slope,
            "`--engine spark`, which `auto` takes beyond 20 million where Java is found",
        ),
        Limit(
            f"the statistics that the gate gathers, {statistics / 1024:,.0f} KiB a file as Python's objects, fill a driver of 4 GiB",
            first(lambda rows: statistics * bucket_count(rows) > HEAP),
            "a larger driver (`spark.driver.memory`, `spark.driver.maxResultSize`); merging summaries in tasks is not written",
        ),
        Limit(
            f"a bucket's task, {task:,.0f} bytes an exposure, takes more than 4 GiB",
            first(lambda rows: task * rows / bucket_count(rows) > TASK),
            "larger tasks, or more `--buckets`",
        ),
        Limit(
            "messages between Spark's tasks take a tenth of the time of the work itself",
            first(lambda rows: pieces(rows) * PIECE_SECONDS > 0.1 * factor * paper.seconds(rows)),
            "larger reading tasks (`READ_ROWS`), larger buckets",
        ),
        Limit(
            "a day's files (samples, partials of two logs) are more than 100,000: as many lines of records by the driver (tasks rename them)",
            first(lambda rows: 3 * bucket_count(rows) > 100_000),
            "larger buckets",
        ),
    ]
    return sorted(found, key=lambda limit: limit.exposures)


def first(over: Callable[[int], bool]) -> float:
    """The smallest day (a power of 2 ^ 1/4) of which something is true; infinite beyond a trillion."""
    return next((rows for rows in (int(2 ** (quarter / 4)) for quarter in range(60, 160)) if over(rows)), float("inf"))


# ---------------------------------------------------------------------- the page


def page(runs: Sequence[Run], core_hour: float, gb_month: float) -> str:
    """The page, as Markdown."""
    factor = spark_factor()
    made = list(papers(runs))
    parts = [HEAD.format(spark=factor, core_hour=core_hour, gb_month=gb_month, bucket=made[0].bucket)]
    parts += [slopes(made), checks(runs, made)]
    parts += [_days(paper, factor, core_hour, gb_month) for paper in made]
    parts += [_limits(runs, made[0], factor)]
    return "\n\n".join(parts) + "\n"


HEAD = """# The builder on paper: 10 million to 24 billion exposures a day

Made by `python -m benchmarks.build_scale` from [results/build_growth.jsonl](results/build_growth.jsonl); nothing here was run at these sizes. What is
computed: a day of `benchmarks.build` (12 cross features, 0.2 clicks an exposure, 11 days of clicks read as on the first day of an output folder: days that follow read only what
is new). Processor seconds are a line over exposures through the builds of less than a million, and {bucket:.2f} seconds for each bucket; Spark takes {spark:.1f} times the local engine's for
an exposure (1M to 20M, [results/builder.json](results/builder.json), an earlier version on another machine) and 450 us and 686 bytes for each message between tasks. Cost: ${core_hour} a
core-hour and ${gb_month} a GB and month, as examples (`--core-hour`, `--gb-month`)."""


def slopes(made: Sequence[Paper]) -> str:
    """What was measured."""
    lines = [
        "## Slopes",
        "",
        "| exposures of a user and day | us an exposure | fixed s | moved B | partials B | samples B |",
        "|---|---|---|---|---|---|",
    ]
    for paper in made:
        sizes = " | ".join(f"{line.slope * 2**20:,.0f}" for line in (paper.moved, paper.partials, paper.samples))
        lines.append(f"| {paper.of_user} | {paper.cpu.slope * 1e6:.1f} | {paper.cpu.fixed:.1f} | {sizes} |")
    lines += [
        "",
        "Bytes are of an exposure and all that belongs to it: moved between the local engine's steps, stored as partials of all days read, stored as samples.",
    ]
    return "\n".join(lines)


def checks(runs: Sequence[Run], made: Sequence[Paper]) -> str:
    """Computed against measured, of builds that no line goes through."""
    lines = [
        "## Checked",
        "",
        "| exposures | a user | buckets | processor s computed | measured | moved MiB computed | measured | samples MiB computed | measured |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    of = {paper.of_user: paper for paper in made}
    for run in runs:
        if run["rows"] >= FITTED:
            paper, rows = of[run["per_user"]], run["rows"]
            lines.append(
                f"| {rows:,} | {run['per_user']} | {run['buckets']} | {paper.seconds(rows, run['buckets']):.1f} | {run['cpu_s']:.1f} | {paper.moved.at(rows):,.0f} |"
                f" {run['moved_mib']:,.0f} | {paper.samples.at(rows):,.0f} | {run['samples_mib']:,.0f} |"
            )
    return "\n".join(lines)


def _days(paper: Paper, factor: float, core_hour: float, gb_month: float) -> str:
    lines = [
        f"## {paper.of_user} exposures of a user and day",
        "",
        "| exposures a day | users | buckets | files a day | core-hours local | Spark | shuffled GB | messages | samples GB | partials GB | $ a day |",
        "|" + "---|" * 11,
    ]
    for rows in DAYS:
        local = paper.seconds(rows) / 3600
        spark = local * factor + pieces(rows) * PIECE_SECONDS / 3600
        moved = paper.moved.at(rows) * 2**20 / 1e9 + pieces(rows) * PIECE_BYTES / 1e9
        samples, partials = (line.at(rows) * 2**20 / 1e9 for line in (paper.samples, paper.partials))
        # Of a day alone: its own rows of all that the measured builds read.
        partials *= (1 + CLICKS) / (1 + CLICKS * CLICK_DAYS)
        buckets = bucket_count(rows)
        cost = spark * core_hour + (samples + partials) * gb_month
        lines.append(
            f"| {rows / 1e6:,.0f}M | {rows / paper.of_user / 1e6:,.1f}M | {buckets:,} | {3 * buckets:,} | {figure(local)} | {figure(spark)} | {figure(moved)} | {pieces(rows):,.0f} |"
            f" {figure(samples)} | {figure(partials)} | {figure(cost)} |"
        )
    lines += [
        "",
        "Core-hours of Spark hold the messages'. $: those core-hours, and a month of the day's samples and partials.",
    ]
    return "\n".join(lines)


def figure(value: float) -> str:
    """Two digits of a small number, whole ones of a large one."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _limits(runs: Sequence[Run], paper: Paper, factor: float) -> str:
    lines = [
        "## What breaks first",
        "",
        f"At {paper.of_user} exposures of a user and day, by the same arithmetic:",
        "",
        "| from about | what | remedy |",
        "|---|---|---|",
    ]
    for limit in limits(runs, paper, factor):
        size = "beyond a trillion" if limit.exposures == float("inf") else f"{limit.exposures / 1e6:,.0f}M"
        lines.append(f"| {size} | {limit.what} | {limit.remedy} |")
    lines += [
        "",
        f"Buckets grow with the square root of a day beyond {MANY_BUCKETS:,} of them, so that messages grow with its rows, and files by the root.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--growth", type=Path, default=GROWTH, help="runs of benchmarks.build_growth")
    parser.add_argument("--core-hour", type=float, default=0.04, help="$")
    parser.add_argument("--gb-month", type=float, default=0.023, help="$")
    parser.add_argument("--out", type=Path, default=FOLDER / "build_scale.md")
    options = parser.parse_args()
    options.out.write_text(page(read_runs(options.growth), options.core_hour, options.gb_month))


if __name__ == "__main__":
    main()
