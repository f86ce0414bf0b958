"""A row of each sample added to every row of the sample: what a user's features give to each of its candidates.

op.py           the public op: which implementation, autograd
reference.py    the definition; what runs on CPU
gpu.py          on GPU, a pass forward and one back: triton_shared.py
"""

from genrank.kernels.shared_rows.op import add_shared_relu
from genrank.kernels.shared_rows.reference import reference_add_shared_relu

__all__ = ["add_shared_relu", "reference_add_shared_relu"]
