"""Token groups: who the user is, what they did, and what is ranked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from genrank.schemas.base import Declaration, Duration, Name
from genrank.schemas.features import Feature


class TokenGroup(Declaration):
    """Features that make one token together."""

    name: Name
    features: tuple[Name, ...] = Field(min_length=1)


class UserGroup(Declaration):
    """The user's profile as of the window's start (snapshots keyed by the user)."""

    features: tuple[Feature, ...] = ()
    tokens: Literal["feature", "group"] = "group"
    """One token per feature, or one for the whole group."""
    token_groups: tuple[TokenGroup, ...] = ()
    """Which features make a token together, each in one group, for models that read a user as several tokens; by default those of one
    source. Others go by `tokens`."""


class Events(Declaration):
    """Events of a log that enter a sequence."""

    kind: Literal["events"] = "events"
    source: Name
    where: str | None = None
    """SQL condition on the event's columns."""
    name: Name | None = None
    """The event's type, as the model sees it; defaults to the source's name."""

    @property
    def type_name(self) -> str:
        """The event's type."""
        return self.name or self.source


class ChangePoints(Declaration):
    """Change points of a slowly changing attribute of the user: one event at the start of the first day with a new value.

    HSTU's sequentialisation of slowly changing sources, arXiv:2402.17152, section 2.1.
    """

    kind: Literal["changes"] = "changes"
    source: Name
    """A snapshot keyed by the user."""
    column: str
    """A feature of the sequence reads the new value under this column's name."""
    name: Name | None = None
    """The event's type; defaults to the column's name."""

    @property
    def type_name(self) -> str:
        """The event's type."""
        return self.name or self.column


class EventSequence(Declaration):
    """Events of one user in the order they became available, newest last, merged from several sources.

    Of events that became available at once, the one that happened first comes first. An event that arrived late thus stands behind
    events that happened after it: `ts` may step back.

    Scope `history`: what was available strictly before the window. Scope `realtime`: what became available inside it.
    Each token carries its event's type (an implicit feature named `type`) and timestamp.
    """

    name: Name
    scope: Literal["history", "realtime"] = "history"
    events: tuple[Annotated[Events | ChangePoints, Field(discriminator="kind")], ...] = Field(min_length=1)
    features: tuple[Feature, ...] = Field(min_length=1)
    max_length: int = Field(default=200, gt=0)
    """The newest so many are kept."""
    lookback: Duration = "90d"
    """Events that became available longer before the window's start are dropped."""
    type_dim: int = Field(default=8, gt=0)
    interleave: tuple[Name, ...] = ()
    """Features that become a token of their own after each event's token (HSTU's interleaved actions); others are side
    information of the event's token."""


class Candidates(Declaration):
    """The exposures that are ranked."""

    source: Name = "exposures"
    item: Name = "item_id"
    request: Name | None = None
    """Column of the request id; without one, a user's exposures of the window are one request."""
    features: tuple[Feature, ...] = Field(min_length=1)
    token_groups: tuple[TokenGroup, ...] = ()
    """Which features make a token together, each in one group, for models that read a candidate as several tokens; by default those of
    one source. Others make one token of a candidate."""
    max_candidates: int = Field(default=1024, gt=0)
    """A user's window with more is split into several samples."""
    negative_keep_rate: float = Field(default=1.0, gt=0, le=1)
    """Share of exposures without any positive label that is kept (by a hash of the exposure, so reproducibly)."""
    keep_correction: bool = True
    """Weight kept negatives by 1 / negative_keep_rate, so that predictions stay calibrated."""
