"""The logarithm of a number."""

from __future__ import annotations

from typing import Literal

from genrank.schemas.transforms.base import Transform


class Log1p(Transform):
    """sign(x) * log(1 + |x|), as one input of the token's projection."""

    kind: Literal["log"] = "log"

    def in_words(self) -> str:
        """`log(1 + x)`."""
        return "log(1 + x)"
