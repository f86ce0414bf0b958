"""Where rows come from: append-only event logs, and snapshots that state an entity's attributes day by day."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from genrank.schemas.base import ColumnType, Declaration, Duration, Name


def _is_empty(value: object) -> bool:
    return not value  # Declarations of before have no such field: theirs are the fingerprints without it.


class _Source(Declaration):
    name: Name
    path: str | None = None
    """Parquet directory of one day, relative to the data root: `"exposures/dt={dt}"`; `{dt}` is YYYY-MM-DD. Or a whole URI
    (`"s3a://bucket/logs/exposures/dt={dt}"`), which Spark reads."""
    catalog: str | None = None
    """Instead of `path`: a Spark catalog table, read through its `partition` column."""
    partition: Name = "dt"
    columns: dict[str, ColumnType]
    """The columns genrank reads, by the name the schema uses."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Schema name -> physical column name, where they differ."""
    valid: tuple[str, ...] = ()
    """SQL conditions every row must meet; a row that fails (or is null) is quarantined with the condition as reason."""
    max_quarantine_rate: float = Field(default=0.05, ge=0, le=1)
    """A day with a larger share of quarantined rows is not published."""
    defaults: dict[str, bool | int | float | str | None] = Field(default_factory=dict, exclude_if=_is_empty)
    """Column -> its value (None: missing) in files that lack it, such as those written before the column was added."""
    ignore: tuple[str, ...] = Field(default=(), exclude_if=_is_empty)
    """Files under the path that are not to be read, beside writers' markers (`_SUCCESS`, `*.crc`): shell patterns of a path below the
    day's folder (below the folder of the days, for what lies in no day), or of any name on it: `("*.csv", "_temporary", "dt=__HIVE_*")`."""
    description: str = ""

    def __hash__(self) -> int:
        return hash(self.name)  # `columns`, `rename` and `defaults` are dicts, which have no hash of their own

    def physical(self, column: str) -> str:
        """The physical name of a schema column."""
        return self.rename.get(column, column)


class EventLog(_Source):
    """Append-only events of users: exposures, clicks, purchases. One partition per day of event time or of arrival."""

    kind: Literal["events"] = "events"
    user: Name = "user_id"
    time: Name = "ts"
    """When it happened: the column's unit is `time_unit` (or the column is of type timestamp)."""
    time_unit: Literal["s", "ms", "us"] = "ms"
    arrival: Name | None = None
    """When the row became readable; null or absent means at `time`. Same unit as `time`."""
    delay: Duration = "0ms"
    """Serving lag: an event is visible to exposures strictly after max(time, arrival) + delay."""
    lateness: Duration = "3d"
    """A row may lie in a partition at most this long after its event day; later ones are quarantined as too late."""
    dedup: tuple[str, ...] = ()
    """Rows of one user and day that are equal on these columns are one event (the first by arrival stays); empty means equal on
    every column."""
    post_exposure: tuple[str, ...] = ()
    """Columns known only after the exposure (play time, click flag): labels and past events may read them, features
    of a candidate may not."""


class Snapshot(_Source):
    """One row per key and day, stating what was known at the start of that day."""

    kind: Literal["snapshot"] = "snapshot"
    key: Name
    max_age: Duration = "7d"
    """A missing day falls back to the newest one at most this old; beyond it attributes are missing."""


Source = Annotated[EventLog | Snapshot, Field(discriminator="kind")]
