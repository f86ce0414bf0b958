"""A number, shifted and scaled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from genrank.schemas.transforms.base import Transform


class Dense(Transform):
    """(x - shift) * scale, as one input of the token's projection."""

    kind: Literal["dense"] = "dense"
    shift: float = 0.0
    scale: float = 1.0

    def mistakes(self, at: str) -> Iterator[str]:
        """A scale that keeps something."""
        if self.scale == 0:
            yield f"{at}: scale 0 makes every value 0; give 1 / standard deviation"

    def advice(self, *, long_tail: bool) -> Iterator[str]:
        """No long tail as it is."""
        if long_tail and self.scale == 1:
            yield "has a long tail, which Dense passes on; use Log1p or QuantileBuckets"

    def in_words(self) -> str:
        """`(x - 3) · 0.1`."""
        shift = f"x - {self.shift:g}" if self.shift else "x"
        return f"({shift}) · {self.scale:g}" if self.scale != 1 else shift
