"""A short name for plain data: equal data, equal name, whatever the order of its keys."""

from __future__ import annotations

import hashlib
import json


def digest(value: object) -> str:
    """16 hex digits of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
