"""Whether a call of attention, or of span attention, runs in the Gluon kernels or in those that every GPU has.

`GENRANK_GLUON=1`: wherever they can compute it. `tune`: where they were faster, which is timed once for each op, direction, head dim, kind of
bias or number of spans, and length bucket, and kept as other choices are (`kernels.tuning`); fixed configurations never take them. Unset: not at all, until a device has
shown that they are right and pay (`python -m benchmarks.gpu --only gluon`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from genrank import environment
from genrank.kernels import tuning

Result = TypeVar("Result")


def wanted() -> bool:
    """Whether any call may run in the Gluon kernels; they are not imported otherwise.

    Raises: ValueError for a value of `GENRANK_GLUON` that is none.
    """
    value = environment.GLUON.get()
    if value not in ("", "1", "tune"):
        raise ValueError(f"GENRANK_GLUON={value!r} is unknown; use '1', 'tune' or leave it unset")
    return bool(value)


def run(
    name: str, served: bool, key: str, device: torch.device, usual: Callable[[], Result], gluon: Callable[[], Result]
) -> Result:
    """`usual()` or `gluon()`. name: of the op and direction; served: whether the Gluon kernels compute the call; key: what else the choice
    depends on."""
    if not served:
        return usual()
    if environment.GLUON.is_set_to("1"):
        return gluon()
    ways = {"usual": usual, "gluon": gluon}
    return ways[tuning.fastest_way(name, key, device, ways)]()
