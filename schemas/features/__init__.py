"""What a token is made of. A feature is a value (where it comes from) and an encoding (how it becomes a vector).

A column is written `"item_id"` (a column of the row itself: the exposure, the event) or `"items.category"` (a column of a
snapshot, joined by its key as of the start of the row's own day: of an exposure's day, of a history event's day).

Stored or derived: the sample keeps raw values, so vocabularies, buckets, pooling and dims change without a rebuild. Time
parts, time gaps and crossed ids are derived from what is stored and take no space.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from genrank.schemas.base import ColumnType, Declaration, Duration, Name
from genrank.schemas.table import Table
from genrank.schemas.transforms import Log1p, Transform
from genrank.schemas.vocabularies import Hashed, Vocabulary

# ---------------------------------------------------------------------- features


class _Feature(Declaration):
    name: Name
    description: str = ""
    owner: str = ""


class _Embedded(_Feature):
    """Encoded by a row of a table: a shared `table`, or one of its own from `vocabulary` and `dim`."""

    table: Table | None = None
    vocabulary: Vocabulary | None = None
    dim: int | None = Field(default=None, gt=0)


class Categorical(_Embedded):
    """One id."""

    kind: Literal["categorical"] = "categorical"
    column: str | None = None
    """Defaults to the feature's name."""


class MultiValued(_Embedded):
    """A list of ids, pooled to one vector."""

    kind: Literal["multi_valued"] = "multi_valued"
    column: str | None = None
    pooling: Literal["sum", "mean"] = "mean"
    max_values: int = Field(default=20, gt=0)
    """The first so many are kept."""


class Numeric(_Feature):
    """One number."""

    kind: Literal["numeric"] = "numeric"
    column: str | None = None
    transform: Transform = Log1p()


class TimePart(_Feature):
    """A part of the row's own timestamp in the schema's `utc_offset`; of `window_start` for user features. Derived."""

    kind: Literal["time_part"] = "time_part"
    part: Literal["hour", "weekday", "hour_of_week", "day_of_month", "month"]
    dim: int = Field(default=8, gt=0)


class TimeGap(_Feature):
    """Seconds between two moments. Derived.

    In a sequence: since the previous event of the sequence (the first has none: missing). In candidates: since the newest
    event visible to the candidate. With `column` (a timestamp of the row or of a snapshot): since that moment.
    """

    kind: Literal["time_gap"] = "time_gap"
    column: str | None = None
    transform: Transform = Log1p()


class HashedCross(_Embedded):
    """One id from the combination of other features' ids, hashed. Derived.

    `of` names categorical features of the same group, or of the user group as `"user.<feature>"`.
    """

    kind: Literal["crossed"] = "crossed"
    of: tuple[str, ...] = Field(min_length=2)
    vocabulary: Hashed | None = None


class CrossFeature(_Feature):
    """A statistic of past events at one key, point-in-time: as of each exposure's own millisecond, strictly before it.

    An exposure at t reads the events that were available strictly before t and happened inside the window, both ends excluded:
    `available < t` and `t - window < ts < t`. With `as_of="window_start"`, t is the start of the exposure's day.

    `keys` are columns of the exposure (`"user_id"`, `"item_id"`, `"items.category"`) that the events carry too (their own column
    of that name, or through the same snapshot). Empty keys: over all events.

    Ops: `count`; `rate` = (count of `where` + prior * strength) / (count of all + strength); `sum`, `mean`, `last` of `value`;
    `recency` = seconds since the newest event; `distinct` = number of different `value`.
    Without any event: 0 for count, sum and distinct; the prior for rate; missing for mean, last and recency.
    """

    kind: Literal["cross_feature"] = "cross_feature"
    op: Literal["count", "rate", "sum", "mean", "last", "recency", "distinct"]
    source: Name
    """The event log counted; for `rate` the numerator's."""
    per: Name | None = None
    """`rate`: the denominator's event log (impressions). Without it, `where` over `source` is the numerator and all of
    `source` the denominator."""
    keys: tuple[str, ...] = ()
    window: Duration
    value: str | None = None
    """The event's column summed, averaged, kept or counted distinct; or a snapshot's (`"items.category"`)."""
    where: str | None = None
    """SQL condition on the event's columns and its snapshots'."""
    prior: float = Field(default=0.0, ge=0)
    strength: float = Field(default=0.0, ge=0)
    """Pseudo-count of the prior in `rate`."""
    as_of: Literal["exposure", "window_start"] = "exposure"
    """`window_start` is the cheaper snapshot: the statistic as of the day's start, one value for the whole day."""
    transform: Transform | None = None
    """How the number is encoded; default `Log1p()`, and `Dense()` for rates."""
    table: Table | None = None
    """`last` of an id: its table."""


class Sql(_Feature):
    """Escape hatch: a SQL expression over the row's columns and its snapshots' (`price / items.list_price`)."""

    kind: Literal["sql"] = "sql"
    expression: str
    type: ColumnType
    transform: Transform | None = None
    table: Table | None = None
    vocabulary: Vocabulary | None = None
    dim: int | None = Field(default=None, gt=0)


Feature = Annotated[
    Categorical | MultiValued | Numeric | TimePart | TimeGap | HashedCross | CrossFeature | Sql,
    Field(discriminator="kind"),
]
