"""SiLU attention over jagged sequences: see `op.py`."""

from genrank.kernels.attention.op import (
    Divisor,
    RelativeBias,
    delta_attention,
    interval_attention,
    local_positions,
    position_row,
    reference_attention,
    reference_keep,
    row_scale,
    time_row,
)

__all__ = [
    "Divisor",
    "RelativeBias",
    "delta_attention",
    "interval_attention",
    "local_positions",
    "position_row",
    "reference_attention",
    "reference_keep",
    "row_scale",
    "time_row",
]
