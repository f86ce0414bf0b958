"""Kernels run in Triton's interpreter here: a machine with a GPU proves them with benchmarks/gpu.py instead."""

import os

os.environ["TRITON_INTERPRET"] = "1"
