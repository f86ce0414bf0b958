"""scale.json: what `genrank scale` measured, as types."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genrank.model.documents import Document

Axis = Literal["history", "width", "depth"]
Values = dict[str, dict[str, list[float | None]]]
"""Label -> metric (`ne`, `gauc`) -> value of each seed; None where it is undefined (labels of one class, or none mature)."""


class Point(Document):
    """A model of one size."""

    axis: Axis
    value: int
    """Events, width of a token, or layers."""
    runs: list[str]
    """Folders beside scale.json, one a seed."""
    flops: list[int]
    """Of training, as summary.json of each run has it."""
    dense_parameters: int
    steps: list[int]
    metrics: Values


class Line(Document):
    """What is compared with: drawn at its height, whatever it cost."""

    name: str
    metrics: Values


class Law(Document):
    """y = a x^b + c of one axis, label and metric, and whether that is a law."""

    axis: Axis
    label: str
    metric: str
    a: float | None = None
    b: float | None = None
    c: float | None = None
    """None: not fitted."""
    interval: tuple[float, float] | None = None
    """95 % of b, by bootstrap over seeds."""
    decades: float
    """Of x."""
    reasons: list[str]
    """Why it is no law; empty: it is one."""


class ScaleReport(Document):
    """A sweep."""

    schema_name: str = Field(alias="schema")
    fingerprint: str
    model: str
    settings: dict[str, str]
    train_dates: list[str]
    eval_dates: list[str]
    token_budget: int
    seeds: list[int]
    labels: list[str]
    points: list[Point]
    lines: list[Line]
    laws: list[Law]
