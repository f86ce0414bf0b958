"""A log in Yambda's columns and published proportions (arXiv:2505.22238; MLPerf recommendation_v4's statistics of the 5B variant), smaller."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KINDS = ("listen_plus", "skip", "like", "dislike", "unlike", "undislike")
SHARES = (0.613, 0.359, 0.019, 0.004, 0.004, 0.001)
"""Of all events; the three last share what is published as 1 % of "other"."""
MEDIAN_EVENTS, MEAN_EVENTS, MOST_EVENTS, DAYS = 2695, 4763, 27_738, 301
"""A user's events over all days: they fit a log-normal, cut at the most that any user has."""
TRACKS_AN_ALBUM, ALBUMS_AN_ARTIST = 2.8, 2.6
"""9,390,623 tracks, 3,367,691 albums, 1,293,394 artists."""


def write_log(folder: Path, users: int, days: int, items: int = 400, seed: int = 0) -> pa.Table:
    """The three published files of a made variant; returns the events as `multi_event.parquet` holds them."""
    rng = np.random.default_rng(seed)
    spread = np.sqrt(2 * np.log(MEAN_EVENTS / MEDIAN_EVENTS))
    many = np.minimum(rng.lognormal(np.log(MEDIAN_EVENTS), spread, users), MOST_EVENTS) * days / DAYS
    counts = np.maximum(1, many.astype(int))
    uid = np.repeat(np.arange(1, users + 1) * 10, counts)
    # Uneven over the day, in bins of 5 seconds, as published.
    hour = rng.choice(24, len(uid), p=_busy_hours())
    second = rng.integers(0, days, len(uid)) * 86_400 + hour * 3600 + rng.integers(0, 720, len(uid)) * 5
    order = np.lexsort((second, uid))
    uid, second = uid[order], second[order]
    kind = rng.choice(len(KINDS), len(uid), p=SHARES)
    listen = kind < 2
    ratio = np.where(kind == 0, rng.integers(50, 140, len(uid)), rng.integers(0, 50, len(uid)))
    length = rng.integers(12, 70, len(uid)) * 5
    item = np.minimum(rng.zipf(1.3, len(uid)), items)
    events = pa.table(
        {
            "uid": pa.array(uid, pa.uint32()),
            "timestamp": pa.array(second, pa.uint32()),
            "item_id": pa.array(item, pa.uint32()),
            "is_organic": pa.array(rng.integers(0, 2, len(uid)), pa.uint8()),
            "event_type": pa.array(np.where(listen, "listen", np.array(KINDS)[kind])).dictionary_encode(),
            "played_ratio_pct": pa.array(ratio, pa.uint16(), mask=~listen),
            "track_length_seconds": pa.array(length, pa.uint32(), mask=~listen),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(events, folder / "multi_event.parquet", row_group_size=1000)
    tracks = np.arange(1, items + 1)
    album = (tracks / TRACKS_AN_ALBUM).astype(np.uint32) + 1
    for name, ids in (("album", album), ("artist", (album / ALBUMS_AN_ARTIST).astype(np.uint32) + 1)):
        mapping = pa.table({f"{name}_id": pa.array(ids, pa.uint32()), "item_id": pa.array(tracks, pa.uint32())})
        pq.write_table(mapping, folder / f"{name}_item_mapping.parquet")
    return events


def _busy_hours() -> np.ndarray:
    weight = 1.2 + np.sin((np.arange(24) - 9) * np.pi / 12)
    return weight / weight.sum()
