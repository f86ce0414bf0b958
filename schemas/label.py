"""What is predicted for each candidate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genrank.schemas.base import Declaration, Duration, Name


class Label(Declaration):
    """One task.

    Either `column`: a post-exposure column of the exposure itself; or `source`: events of another log, matched to the exposure by equal `on` columns, with event time in [exposure, exposure + window].

    Events match within the same user, whatever `on` says. A label is mature, and has weight > 0, where the exposure's time +
    `window` lies strictly before the moment the labels are as of; that of a conditional label must be mature too, and positive
    for it to be.
    """

    name: Name
    kind: Literal["binary", "value"] = "binary"
    """`binary`: 1 if there is such an event (or the column is non-zero). `value`: the sum of `value` (or the column)."""
    column: str | None = None
    source: Name | None = None
    on: tuple[str, ...] = ("user_id", "item_id")
    where: str | None = None
    value: str | None = None
    window: Duration = "0ms"
    attribution: Literal["every", "last"] = "every"
    """An event that matches several exposures counts for every one, or for the last one before it only."""
    given: Name | None = None
    """Conditional task, on a binary label. A binary one: predicted as p(this | given), trained through p(given) * p(this | given) (ESMM). A value:
    its expectation where `given` is positive, learned and judged on those exposures alone."""
    value_transform: Literal["log1p"] | None = None
    """Of a value label: what is learned, predicted and judged in its place; `log1p`: sign(x) * ln(1 + |x|). Samples keep the value."""
    weight: float = Field(default=1.0, ge=0)
    positive_weight: float = Field(default=1.0, gt=0)
    oracle: str | None = None
    """Column of the exposure with the label's true probability (synthetic worlds), of a conditional task too that of the label
    itself, p(given) * p(this | given), as it is predicted: evaluation prints it beside the model."""

    def in_words(self) -> str:
        """`a purchases event within 1d, given click`."""
        if self.column:
            what = self.column if self.kind == "value" else f"{self.column} is not 0"
        else:
            where = f" where {self.where}" if self.where else ""
            event = f"sum of {self.value} of {self.source}" if self.kind == "value" else f"an event of {self.source}"
            what = f"{event}{where} within {self.window} on {', '.join(self.on)}"
        if self.value_transform:
            what = f"{self.value_transform} of {what}"
        return what + (f", given {self.given}" if self.given else "")


class Training(Declaration):
    """How a stored row (a user and day) becomes training samples."""

    view: Literal["user_day", "request", "session"] = "user_day"
    session_gap: Duration = "30m"
