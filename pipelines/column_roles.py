"""A computed column of a partial, and how its values are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from genrank.schemas.stored import STORED_TYPES

Role = Literal[
    "id", "ids", "set", "number", "time", "amount", "largest", "smallest", "spread", "decayed", "vector", "flag", "raw"
]

ROLE_TYPES: dict[Role, pa.DataType] = {
    "id": pa.int64(),
    "ids": STORED_TYPES["ids"],
    "set": STORED_TYPES["ids"],
    "number": pa.float32(),
    "time": pa.int64(),
    "amount": pa.float64(),
    "largest": pa.float32(),
    "smallest": pa.float32(),
    "spread": pa.float64(),
    "decayed": pa.float64(),
    "vector": STORED_TYPES["vector"],
    "flag": pa.bool_(),
}


NUMBERS: frozenset[Role] = frozenset({"number", "amount", "largest", "smallest", "spread", "decayed"})
"""Roles whose missing value is NaN."""


@dataclass(frozen=True, order=True)
class Column:
    """One computed column: `expression` (a column, `snapshot.column`, or SQL) stored in the way `role` says.

    | role | stored |
    |---|---|
    | id | int64, strings by `hash_strings`, null as MISSING_ID |
    | ids | list<int64>, nulls dropped, the first `limit` kept (0: all) |
    | set | list<int64>, the different ids of a list in ascending order |
    | number | float32, null as NaN |
    | time | int64 epoch ms, null as MISSING_ID |
    | amount | float64 to be summed, null as NaN: whole numbers up to 2^53 as they are, others to 16 digits |
    | largest, smallest | as a number; merged events keep the largest, or smallest |
    | spread | an amount; merged events keep their mean here, and their squared differences from it, summed, in the column `squares` |
    | decayed | an amount, 1 without `expression`; merged events keep the sum as of the newest's time, halved every `half_life` ms until then |
    | vector | list<float32> of `limit` values, null as an empty list |
    | flag | bool, null as false |
    | raw | as declared, nulls kept (what SQL over a joined snapshot reads) |
    """

    role: Role
    expression: str
    sql: bool = False
    limit: int = 0
    half_life: int = 0

    @property
    def name(self) -> str:
        """The name in the partial, or among events at keys."""
        return f"{self.role}{self.limit or self.half_life or ''}({self.expression})"

    @property
    def kept(self) -> Column | None:
        """The partial's column that events take it from; None where it is 1 for each."""
        if self.role not in ("spread", "decayed"):
            return self
        return Column("amount", self.expression) if self.expression else None

    @property
    def squares(self) -> str:
        """Beside a `spread` of merged events: float64, the sum of squared differences from their mean; 0 for an event as it is."""
        return f"squares({self.expression})"
