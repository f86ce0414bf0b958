"""Kernels run in Triton's interpreter here: a machine with a GPU proves them with benchmarks/gpu instead."""

import os

os.environ["TRITON_INTERPRET"] = "1"
