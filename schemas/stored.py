"""How the sample keeps a raw value."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

Stored = Literal["id", "ids", "number", "time", "vector"]
"""How a feature's raw value is kept: int64 id, list<int64>, float32, int64 epoch ms, list<float32> of one length (empty: missing)."""

STORED_TYPES: dict[Stored, pa.DataType] = {
    "id": pa.int64(),
    "ids": pa.list_(pa.field("element", pa.int64(), nullable=False)),
    "number": pa.float32(),
    "time": pa.int64(),
    "vector": pa.list_(pa.field("element", pa.float32(), nullable=False)),
}
"""Arrow type of one value (a candidate's, an event's, the user's)."""

STORED_TEXT: dict[Stored, str] = {
    "id": "int64",
    "ids": "list<int64>",
    "number": "float32",
    "time": "int64 ms",
    "vector": "list<float32>",
}
"""The types as documentation writes them."""
