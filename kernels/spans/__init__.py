"""Attention over several spans of keys a query, by softmax or SiLU, of queries apart from keys.

op.py             the public op, checks, autograd
call.py           which query sees which keys, relative bias, and all of a call in one value
reference.py      the definition
cpu.py            on CPU
gpu.py            on GPU: plan.py (units of work), triton_*.py (kernels); configs.py: which blocks they may have; hopper/: softmax on sm_90, where
                  `GENRANK_GLUON` asks for it
"""

from genrank.kernels.spans.call import SpanBias, SpanCall, Spans, Weighting, make_spans
from genrank.kernels.spans.op import span_attention
from genrank.kernels.spans.reference import reference_span_attention

__all__ = [
    "SpanBias",
    "SpanCall",
    "Spans",
    "Weighting",
    "make_spans",
    "reference_span_attention",
    "span_attention",
]
