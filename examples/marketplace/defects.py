"""What real logs hold and clean data lack: late, lost and repeated rows, and rows that can't be true.

Every planted row has a kind, counted by source and day in `world.json`, so that a pipeline's quarantine and de-duplication
counts can be reconciled. Late rows are real events that arrive late; duplicates and malformed rows are extra rows, so that
what remains once they are gone is exactly the log that was simulated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genrank.examples.marketplace.preferences import Array

KINDS = (
    "clean",
    "late",  # arrives hours to 2.5 days after it happened
    "too_late",  # arrives 4 to 6 days after it happened
    "null_arrival",  # no arrival time was logged
    "duplicate",  # equal to another row in every column
    "null_user",
    "null_item",
    "null_ts",
    "negative_ts",
    "absurd_ts",  # in the year 2100
    "unknown_item",  # an item no snapshot knows; exposures only
)
EXTRA = KINDS.index("duplicate")  # kinds from here on are extra rows
UNKNOWN_ITEM = 1_000_000_000
YEAR_2100_MS = 4_102_444_800_000
HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Defects:
    """Shares of a source's rows, per kind."""

    late: float = 0.01
    too_late: float = 0.0001
    null_arrival: float = 0.0005
    duplicate: float = 0.005
    null_user: float = 0.0004
    null_item: float = 0.0002
    null_ts: float = 0.0002
    negative_ts: float = 0.0002
    absurd_ts: float = 0.0002
    unknown_item: float = 0.0003


def plant(r: np.random.Generator, defects: Defects, columns: dict[str, Array]) -> dict[str, Array]:
    """The rows with arrival times, extra rows and their `kind`. `columns` needs `ts`; ids are nulled when written (by kind)."""
    n = len(columns["ts"])
    kind = np.zeros(n, np.int8)
    draw = r.random(n)
    delay = 200 + r.exponential(1500, n)
    edge = 0.0
    for name in ("late", "too_late", "null_arrival"):
        share = getattr(defects, name)
        chosen = (edge <= draw) & (draw < edge + share)
        kind[chosen] = KINDS.index(name)
        edge += share
    late, too_late = kind == KINDS.index("late"), kind == KINDS.index("too_late")
    delay[late] = np.clip(r.lognormal(np.log(5.0), 1.0, late.sum()), 1, 60) * HOUR_MS
    delay[too_late] = r.uniform(96, 144, too_late.sum()) * HOUR_MS
    delay[kind == KINDS.index("null_arrival")] = 0
    columns = columns | {"arrival_ts": columns["ts"] + delay.astype(np.int64), "kind": kind}

    extra = [name for name in KINDS[EXTRA:] if name != "unknown_item" or "click_probability" in columns]
    extra = [name for name in extra if name != "null_item" or "item" in columns]
    # Copies of punctual rows, so that a planted row carries one defect.
    punctual = np.flatnonzero(kind == 0)
    sources, kinds = [np.arange(n)], [kind]
    for name in extra:
        count = r.binomial(len(punctual), getattr(defects, name)) if len(punctual) else 0
        sources.append(r.choice(punctual, count, replace=False))
        kinds.append(np.full(count, KINDS.index(name), np.int8))
    rows = np.concatenate(sources)
    columns = {name: values[rows] for name, values in columns.items()}
    columns["kind"] = kind = np.concatenate(kinds)
    columns["partition_ts"] = columns["arrival_ts"].copy()
    # Shards of a log are merged roughly: rows lie up to a minute out of order.
    columns["order"] = columns["arrival_ts"] + r.integers(60_000, size=len(rows))
    negative, absurd = kind == KINDS.index("negative_ts"), kind == KINDS.index("absurd_ts")
    columns["ts"] = columns["ts"].copy()
    columns["ts"][negative] = -r.integers(1, 10**9, negative.sum())
    columns["ts"][absurd] = YEAR_2100_MS + r.integers(10**9, size=absurd.sum())
    if "click_probability" in columns:
        unknown = kind == KINDS.index("unknown_item")
        columns["item"] = columns["item"].copy()
        columns["item"][unknown] = UNKNOWN_ITEM + r.integers(1000, size=unknown.sum())
        for name in ("click_probability", "purchase_probability"):
            columns[name] = np.where(unknown, np.float32(0), columns[name])
    return columns
