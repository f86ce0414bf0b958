"""JSON records that notice damage: each ends with a checksum of all the rest of it.

What a flipped bit makes of a record is often a record still: another number of rows, another file's name. Records of earlier releases
have no checksum and are read as they are.
"""

from __future__ import annotations

import json
from typing import Any

from genrank.schemas.digest import digest

CHECKSUM = "checksum"


def with_checksum(text: str, indent: int | None = 1) -> str:
    """The text of a JSON object with its checksum as its last field."""
    content = json.loads(text)
    return json.dumps(content | {CHECKSUM: digest(content)}, indent=indent, ensure_ascii=False)


def checked(raw: bytes | str) -> Any:
    """What a JSON text holds, a checksum aside.

    Raises:
        ValueError: it is no JSON, or its checksum is another's.
    """
    try:
        content = json.loads(raw)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if isinstance(content, dict) and CHECKSUM in content:
        wanted = content.pop(CHECKSUM)
        if wanted != digest(content):
            raise ValueError("it is damaged: its checksum is not that of its content")
    return content
