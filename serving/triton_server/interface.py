"""The part of `triton_python_backend_utils` that the backend needs; the module itself is Triton's, and only Triton has it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Values(Protocol):
    """A `Tensor`: an input or an output."""

    def as_numpy(self) -> NDArray[np.object_]:
        """Its values; bytes of a TYPE_STRING."""
        ...


class Request(Protocol):
    """`InferenceRequest`."""

    def is_cancelled(self) -> bool:
        """Whether its sender has gone; since Triton 23.10."""
        ...


class Response(Protocol):
    """`InferenceResponse`."""


class Error(Protocol):
    """`TritonError`."""


class Errors(Protocol):
    """The class `TritonError`; with codes since Triton 23.09."""

    INVALID_ARG: int
    INTERNAL: int
    CANCELLED: int

    def __call__(self, message: str, code: int, /) -> Error:
        """Make one."""
        ...


class Responses(Protocol):
    """The class `InferenceResponse`."""

    def __call__(self, output_tensors: list[Values] = ..., error: Error | None = ...) -> Response:
        """Make one, of outputs or of an error."""
        ...


class Tensors(Protocol):
    """The class `Tensor`."""

    def __call__(self, name: str, values: NDArray[np.float32], /) -> Values:
        """Make one."""
        ...


class Utils(Protocol):
    """The module."""

    TritonError: Errors
    InferenceResponse: Responses
    Tensor: Tensors

    def get_input_tensor_by_name(self, request: Request, name: str, /) -> Values | None:
        """A request's input; None: it has none of that name."""
        ...
