"""SiLU attention over jagged sequences whose every mask is an interval and oneself.

op.py                    the public ops, checks, autograd
bias.py, interval.py     relative bias; which query sees which keys, and its divisor
call.py                  all of that in one value, as every implementation takes it
reference.py             the definition
cpu.py, cpu_plan.py      on CPU
gpu.py                   on GPU: plan.py (units of work), configs.py (block sizes), triton_*.py (kernels)
"""

from genrank.kernels.attention.bias import RelativeBias, position_row, time_row
from genrank.kernels.attention.call import AttentionCall
from genrank.kernels.attention.interval import Divisor, IntervalMask, local_positions, row_scale
from genrank.kernels.attention.op import delta_attention, interval_attention
from genrank.kernels.attention.reference import reference_attention, reference_keep

__all__ = [
    "AttentionCall",
    "Divisor",
    "IntervalMask",
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
