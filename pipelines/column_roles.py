"""A computed column of a partial, and how its values are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from genrank.schemas.stored import STORED_TYPES

Role = Literal["id", "ids", "number", "time", "amount", "largest", "smallest", "flag", "raw"]

ROLE_TYPES: dict[Role, pa.DataType] = {
    "id": pa.int64(),
    "ids": STORED_TYPES["ids"],
    "number": pa.float32(),
    "time": pa.int64(),
    "amount": pa.float64(),
    "largest": pa.float32(),
    "smallest": pa.float32(),
    "flag": pa.bool_(),
}


NUMBERS: frozenset[Role] = frozenset({"number", "amount", "largest", "smallest"})
"""Roles whose missing value is NaN."""


@dataclass(frozen=True, order=True)
class Column:
    """One computed column: `expression` (a column, `snapshot.column`, or SQL) stored in the way `role` says.

    | role | stored |
    |---|---|
    | id | int64, strings by `hash_strings`, null as MISSING_ID |
    | ids | list<int64>, nulls dropped, the first `limit` kept (0: all) |
    | number | float32, null as NaN |
    | time | int64 epoch ms, null as MISSING_ID |
    | amount | float64 to be summed, null as NaN: whole numbers up to 2^53 as they are, others to 16 digits |
    | largest, smallest | as a number; merged events keep the largest, or smallest |
    | flag | bool, null as false |
    | raw | as declared, nulls kept (what SQL over a joined snapshot reads) |
    """

    role: Role
    expression: str
    sql: bool = False
    limit: int = 0

    @property
    def name(self) -> str:
        """The name in the partial."""
        return f"{self.role}{self.limit or ''}({self.expression})"
