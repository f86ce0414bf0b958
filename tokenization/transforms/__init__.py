"""Transforms on the tensor side: how numbers become buckets or inputs of a token, one file a family.

A transform from outside the package is an `InputEncoder` (or a `BucketTransform`) and one call of `register_input` (or
`register_buckets`).
"""

from genrank.tokenization.transforms.autodis import AutoDisInputs
from genrank.tokenization.transforms.buckets import FixedEdges, QuantileEdges
from genrank.tokenization.transforms.interface import (
    BucketTransform,
    InputEncoder,
    buckets_of,
    input_families,
    register_buckets,
    register_input,
)
from genrank.tokenization.transforms.scalars import ScalarInputs

register_buckets("fixed", FixedEdges())
register_buckets("quantile", QuantileEdges())
# The order of the inputs' columns.
register_input("autodis", AutoDisInputs)
register_input("log", ScalarInputs)
register_input("dense", ScalarInputs)

__all__ = ["BucketTransform", "InputEncoder", "buckets_of", "input_families", "register_buckets", "register_input"]
