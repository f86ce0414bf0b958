"""Conditions that are seen to hold without evaluating SQL: `price > 0 AND item_id IS NOT NULL` of numbers that are all there.

Only a yes counts: where a value is missing, is no number or lies outside, SQL decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from sqlglot import exp

from genrank.schemas import EventLog, expression

_OPERATORS: dict[type[exp.Expr], np.ufunc] = {
    exp.GT: np.greater,
    exp.GTE: np.greater_equal,
    exp.LT: np.less,
    exp.LTE: np.less_equal,
}
_EXACT = 1 << 24
"""Whole numbers below are the same in every type of number."""


class Bound(NamedTuple):
    """A column without nulls, all on one side of a whole number."""

    column: str
    operator: np.ufunc | None
    """None where it only has to be there."""
    number: int = 0


def bounds_of(log: EventLog, condition: str) -> list[Bound] | None:
    """Bounds that together are a condition; None where it says something else."""
    tree = expression.parse(condition).tree
    bounds = []
    for part in tree.flatten() if isinstance(tree, exp.And) else [tree]:
        bound = _bound(log, part.unnest())
        if bound is None:
            return None
        bounds.append(bound)
    return bounds


def surely_met(bounds: list[Bound] | None, declared: Mapping[str, pa.Array]) -> bool:
    """Whether every row lies within the bounds."""
    for bound in bounds or ():
        array = declared.get(bound.column)
        if array is None or array.null_count:
            return False
        if bound.operator is not None and not bound.operator(array.to_numpy(), bound.number).all():
            return False
    return bounds is not None


def _bound(log: EventLog, part: exp.Expr) -> Bound | None:
    if isinstance(part, exp.Not) and isinstance(part.this, exp.Is) and isinstance(part.this.expression, exp.Null):
        name = _column(log, part.this.this)
        return Bound(name, None) if name else None
    operator, left, right = _OPERATORS.get(type(part)), part.this, part.args.get("expression")
    name = _column(log, left)
    if operator is None or name is None or log.columns[name] not in ("int32", "int64", "float32", "float64"):
        return None
    if not isinstance(right, exp.Literal) or right.is_string or not right.this.isdigit() or int(right.this) >= _EXACT:
        return None
    return Bound(name, operator, int(right.this))


def _column(log: EventLog, part: exp.Expr) -> str | None:
    """The log's own column that a part of an expression is."""
    name = part.name if isinstance(part, exp.Column) and not part.table else None
    return name if name in log.columns else None
