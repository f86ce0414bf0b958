"""Seconds between two moments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from genrank.schemas.base import USER, ColumnType
from genrank.schemas.features.base import ColumnFeature, Scope
from genrank.schemas.findings import ColumnValues, Finding
from genrank.schemas.source_meaning import Meaning
from genrank.schemas.stored import Stored
from genrank.schemas.transforms import Log1p, Transform
from genrank.schemas.type_rules import TIMES


class TimeGap(ColumnFeature):
    """Seconds between two moments. Derived.

    In a sequence: since the previous event of the sequence (the first has none: missing); negative where that one happened later and
    became available earlier, for sequences stand in the order of availability. In candidates: since the latest of what
    the candidate sees: each history's last event and the realtime events. With `column` (a timestamp of the row or of a snapshot): since that moment; negative where it lies ahead.
    `Log1p` keeps the sign, buckets put negative gaps below their first boundary.
    """

    kind: Literal["time_gap"] = "time_gap"
    column: str | None = None
    transform: Transform = Log1p()

    @property
    def column_reference(self) -> str | None:
        """`column`, if any."""
        return self.column

    @property
    def stored(self) -> Stored | None:
        """The moment of `column`; without one, the gap is derived."""
        return "time" if self.column else None

    @property
    def comparable(self) -> bool:
        """With a column: a gap since an event is known once a sample is cut."""
        return self.column is not None

    @property
    def number_transform(self) -> Transform:
        """`transform`, of seconds."""
        return self.transform

    def model_meaning(self) -> Meaning:
        """Since the previous event, if without a column."""
        return {} if self.column else {"gap": "previous"}

    def mistakes(self, at: str, group: str, scope: Scope) -> Iterator[str]:
        """The user group has no previous event."""
        if self.column is None and group == USER:
            yield f"{at}: a time gap of the user needs column=: the user group has no previous event"
        yield from super().mistakes(at, group, scope)

    def type_mistakes(self, type_: ColumnType) -> Iterator[str]:
        """A moment."""
        if type_ not in TIMES:
            yield "a time gap needs a moment: timestamp, or int64 in epoch ms"

    def findings(self, values: ColumnValues) -> Iterator[Finding]:
        """None: the column holds moments, the transform encodes gaps."""
        yield from ()

    def value_in_words(self) -> str:
        """`seconds since first_seen`."""
        return f"seconds since {self.column}" if self.column else "seconds since the event before"
