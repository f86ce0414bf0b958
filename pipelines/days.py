"""Days as integers: number of days since 1970-01-01. When each begins: `Schema.local_days`."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from genrank.schemas import UserError
from genrank.schemas.base import DAY_MS

_EPOCH = date(1970, 1, 1)


def day_number(dt: str, flag: str = "a day") -> int:
    """Of `YYYY-MM-DD`; UserError otherwise."""
    try:
        return (date.fromisoformat(dt) - _EPOCH).days
    except ValueError:
        raise UserError(f"{flag} {dt!r} is not a day; write it as YYYY-MM-DD") from None


def dt_of(day: int) -> str:
    """`YYYY-MM-DD`."""
    return (_EPOCH + timedelta(days=day)).isoformat()


def whole_days(ms: int) -> int:
    """Days that cover a duration."""
    return -(-ms // DAY_MS)


def moment(text: str, flag: str = "--as-of") -> int:
    """Epoch ms of an ISO 8601 moment (UTC where it names no zone); UserError otherwise."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{flag} {text!r} is not a moment; write it as 2026-01-31T00:00:00+00:00") from None
    return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp() * 1000)


def moment_text(ms: int) -> str:
    """ISO 8601, UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
