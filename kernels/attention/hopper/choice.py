"""Whether a call of attention runs in the Gluon kernels or in those that every GPU has.

`GENRANK_GLUON=1`: wherever they can compute it. `tune`: where they were faster, which is timed once for each direction, head dim, kind of bias and
length bucket, and kept as other choices are (`kernels.tuning`); fixed configurations never take them. Unset: not at all, until a device has
shown that they are right and pay (`python -m benchmarks.gpu --only gluon`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from genrank import environment
from genrank.kernels import tuning
from genrank.kernels.attention.call import AttentionCall

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
    name: str,
    tensors: tuple[Tensor, Tensor, Tensor],
    call: AttentionCall,
    bucket: int,
    usual: Callable[[], Result],
    gluon: Callable[[], Result],
) -> Result:
    """`usual()` or `gluon()`. name: of the direction; tensors: q, k and v, of which the choice depends on the head dim; of
    the call it depends on the tables that the bias has."""
    from genrank.kernels.attention.hopper.gpu import serves

    q, k, v = tensors
    if not serves(q, k, v, call):
        return usual()
    if environment.GLUON.is_set_to("1"):
        return gluon()
    tables = " ".join(f"{t}={getattr(call.bias, t) is not None}" for t in ("position_table", "time_table"))
    key = f"bucket={bucket} DIM={q.shape[2]} {tables}"
    ways = {"usual": usual, "gluon": gluon}
    return ways[tuning.fastest_way(f"attention {name}", key, q.device, ways)]()
