"""A shop whose users walk the catalogue in steps of 3: what comes next is known from the last event."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

import genrank.schemas as s

ITEMS = 40
DAYS = ("2026-01-01", "2026-01-02")


def shop(**changes):
    item = s.Table(name="item", dim=16, vocabulary=s.Identity(size=ITEMS))
    columns = {"user_id": "int64", "item_id": "int64", "ts": "int64", "clicked": "bool"}
    fields = {
        "name": "shop",
        "sources": (
            s.EventLog(name="exposures", path="e/dt={dt}", columns=columns, post_exposure=("clicked",)),
            s.EventLog(name="clicks", path="c/dt={dt}", columns={k: columns[k] for k in ("user_id", "item_id", "ts")}),
        ),
        "sequences": (
            s.EventSequence(
                name="history",
                events=(s.Events(source="clicks"),),
                features=(s.Categorical(name="item_id", table=item),),
                max_length=12,
            ),
        ),
        "candidates": s.Candidates(features=(s.Categorical(name="item_id", table=item),)),
        "labels": (s.Label(name="click", column="clicked"),),
    }
    return s.Schema(**(fields | changes))


def write_walk(root: Path, users: tuple[int, int] = (150, 60), longest: int = 12) -> Path:
    """Samples of two days: of so many users each, histories of 4 to `longest` events. Item 0 is shown to all, and what comes next."""
    from random_samples import day_start, publish

    from genrank.schemas.derive.sample_schema import arrow_schema

    schema = shop()
    rng = np.random.default_rng(0)
    for day, dt in enumerate(DAYS):
        start, rows = day_start(schema, dt), []
        for user in range(users[day]):
            n = int(rng.integers(4, longest))
            path = (rng.integers(0, ITEMS) + 3 * np.arange(n + 1)) % ITEMS
            rows.append(
                {
                    "sample_id": f"{user}:{dt}:0",
                    "user_id": user,
                    "window_start": start,
                    "window_end": start + 86_400_000,
                    "user": {},
                    "history": {
                        "item_id": path[:-1].tolist(),
                        "ts": [start - 1000 * (n - i) for i in range(n)],
                        "type": [0] * n,
                    },
                    "candidates": {
                        "item_id": [0, int(path[-1])],
                        "ts": [start, start + 1],
                        "request": [user] * 2,
                        "item": [0, int(path[-1])],
                    },
                    "labels": {"click": [0, 1], "click_weight": [1.0, 1.0]},
                }
            )
        arrow = arrow_schema(schema)
        rows = [{k: v for k, v in row.items() if k in arrow.names} for row in rows]
        publish(root / "samples", schema, dt, pa.Table.from_pylist(rows, arrow))
    return root
