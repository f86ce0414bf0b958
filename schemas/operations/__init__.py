"""Operations of cross features, one a module: which arguments each takes and what it gives.

`register_operation` makes another known; its evaluation is registered with `genrank.pipelines.cross_feature_ops`.
"""

from __future__ import annotations

from typing import Annotated

from genrank.schemas.kind import RegisteredName
from genrank.schemas.operations.base import Operation, Statistic
from genrank.schemas.operations.count import Count
from genrank.schemas.operations.decayed_count import DecayedCount
from genrank.schemas.operations.decayed_sum import DecayedSum
from genrank.schemas.operations.distinct import Distinct
from genrank.schemas.operations.last import Last
from genrank.schemas.operations.max import Max
from genrank.schemas.operations.mean import Mean
from genrank.schemas.operations.min import Min
from genrank.schemas.operations.rate import Rate
from genrank.schemas.operations.recency import Recency
from genrank.schemas.operations.std import Std
from genrank.schemas.operations.sum import Sum

_OPERATIONS: dict[str, Operation] = {}


def register_operation(operation: type[Operation]) -> type[Operation]:
    """Make an operation known by its name; a decorator.

    Raises:
        ValueError: another class has the name.
    """
    known = _OPERATIONS.get(operation.name)
    if known and (type(known).__module__, type(known).__qualname__) != (operation.__module__, operation.__qualname__):
        raise ValueError(
            f"operation {operation.name!r} is {type(known).__name__}'s; give {operation.__name__} another name"
        )
    _OPERATIONS[operation.name] = operation()
    return operation


def operation_names() -> tuple[str, ...]:
    """Names of all operations, in the order they were registered."""
    return tuple(_OPERATIONS)


def operation_of(name: str) -> Operation:
    """The operation of that name; KeyError if none is registered."""
    return _OPERATIONS[name]


OperationName = Annotated[str, RegisteredName(operation_names)]
"""The name of a registered operation."""

for _operation in (Count, Rate, Sum, Mean, Max, Min, Std, DecayedCount, DecayedSum, Last, Recency, Distinct):
    register_operation(_operation)

__all__ = [
    "Count",
    "DecayedCount",
    "DecayedSum",
    "Distinct",
    "Last",
    "Max",
    "Mean",
    "Min",
    "Operation",
    "OperationName",
    "Rate",
    "Recency",
    "Statistic",
    "Std",
    "Sum",
    "operation_names",
    "operation_of",
    "register_operation",
]
