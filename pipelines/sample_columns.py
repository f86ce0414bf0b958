"""Names of a sample's columns and of the leaves of its structs (their types: `genrank.schemas.derive.sample_schema`)."""

from __future__ import annotations

SAMPLE_ID = "sample_id"
USER_ID = "user_id"
WINDOW_START = "window_start"
WINDOW_END = "window_end"
LABELS = "labels"
MASK = "mask"

TS = "ts"
TYPE = "type"
AVAILABLE = "available"
REQUEST = "request"
ITEM = "item"
CANDIDATE_SEES = "candidate_sees"
REALTIME_SEES = "realtime_sees"

TIMES = frozenset({TS, AVAILABLE, WINDOW_START, WINDOW_END})
"""Leaves that hold epoch ms in ascending runs."""


def weight_of(label: str) -> str:
    """The leaf of a label's weight."""
    return f"{label}_weight"


def oracle_of(label: str) -> str:
    """The leaf of a label's true probability, where the world knows it."""
    return f"{label}_oracle"
