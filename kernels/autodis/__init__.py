"""AutoDis (Guo et al., KDD 2021, arXiv:2012.08986, equations 6 to 9): numbers to vectors by soft buckets, several numbers at once.

op.py           the public op
layout.py       the numbers of one op
reference.py    the definition
gpu.py          launches on GPU; triton_autodis.py: the kernels
"""

from genrank.kernels.autodis.layout import LARGEST, Number, table
from genrank.kernels.autodis.op import autodis
from genrank.kernels.autodis.reference import reference_autodis

__all__ = ["LARGEST", "Number", "autodis", "reference_autodis", "table"]
