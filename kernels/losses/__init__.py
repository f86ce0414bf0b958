"""The losses of all tasks, of several sets of logits over the same labels: sums, and gradients.

op.py           the public op: which implementation, autograd
reference.py    the definition, with its backward written; what runs on CPU
gpu.py          on GPU, a pass forward and one back: triton_losses.py
"""

from genrank.kernels.losses.op import loss_sums
from genrank.kernels.losses.reference import TaskRow, reference_loss_sums

__all__ = ["TaskRow", "loss_sums", "reference_loss_sums"]
