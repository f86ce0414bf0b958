"""Triton Inference Server's side of a Python model, as its documentation has it: `triton_python_backend_utils`, and what calls the model.

A stand-in of Triton's `src/python.cc`: it reads config.pbtxt, imports `<version>/model.py`, hands `TritonPythonModel` batches of requests, and
holds it to the rules of a model that isn't decoupled.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\w.+-]+|[{}\[\]:,;]')
_names = (f"triton_model_{n}" for n in itertools.count())


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        assert isinstance(message, str) and isinstance(code, int)
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    def __init__(self, name: str, values: np.ndarray) -> None:
        assert isinstance(name, str) and values.dtype.kind not in "UV", "Triton takes strings as np.object_"
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._values


class InferenceRequest:
    def __init__(self, inputs: Sequence[Tensor], cancelled: bool = False) -> None:
        self._inputs, self._cancelled = list(inputs), cancelled

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def is_cancelled(self) -> bool:
        return self._cancelled


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        assert error is not None or type(output_tensors) is list, '"output_tensors" must be a list'
        self._outputs, self._error = output_tensors or [], error

    def output_tensors(self) -> list[Tensor]:
        return self._outputs

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((each for each in request.inputs() if each.name() == name), None)


UTILS = SimpleNamespace(
    TritonError=TritonError,
    Tensor=Tensor,
    InferenceRequest=InferenceRequest,
    InferenceResponse=InferenceResponse,
    get_input_tensor_by_name=get_input_tensor_by_name,
)


class LoadedModel:
    """A version of a model, initialized."""

    def __init__(self, folder: Path, version: int, **parameters: str) -> None:
        self.config = read_config((folder / "config.pbtxt").read_text())
        for name, value in parameters.items():
            self.config["parameters"][name] = {"string_value": value}
        assert self.config["name"] == folder.name and self.config["backend"] == "python"
        spec = importlib.util.spec_from_file_location(next(_names), folder / str(version) / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["triton_python_backend_utils"] = UTILS  # type: ignore[assignment]
        try:
            spec.loader.exec_module(module)
        finally:
            del sys.modules["triton_python_backend_utils"]
        self.model = module.TritonPythonModel()
        (group,) = self.config["instance_group"]
        self.model.initialize(
            {
                "model_config": json.dumps(self.config),
                "model_instance_kind": group["kind"].removeprefix("KIND_"),
                "model_instance_device_id": "0",
                "model_instance_name": f"{folder.name}_0",
                "model_repository": str(folder),
                "model_version": str(version),
                "model_name": folder.name,
            }
        )

    def execute(self, requests: list[InferenceRequest]) -> list[InferenceResponse]:
        assert len(requests) <= self.config["max_batch_size"]
        responses = self.model.execute(requests)
        assert len(responses) == len(requests) and len(set(map(id, responses))) == len(requests)
        outputs = [output["name"] for output in self.config["output"]]
        for request, response in zip(requests, responses, strict=True):
            assert isinstance(response, InferenceResponse)
            if not response.has_error():
                rows = len(request.inputs()[0].as_numpy())
                assert [tensor.name() for tensor in response.output_tensors()] == outputs
                for tensor in response.output_tensors():
                    assert tensor.as_numpy().dtype == np.float32 and tensor.as_numpy().ndim == 2
                    assert len(tensor.as_numpy()) == rows
        return responses

    def finalize(self) -> None:
        self.model.finalize()


def asked(*rows: bytes | str, name: str = "REQUEST", cancelled: bool = False) -> InferenceRequest:
    """A request of some rows, as clients send it: TYPE_STRING [rows, 1]."""
    sent = [row.encode() if isinstance(row, str) else row for row in rows]
    return InferenceRequest([Tensor(name, np.array(sent, np.object_).reshape(-1, 1))], cancelled)


def read_config(text: str) -> dict[str, Any]:
    """config.pbtxt (protobuf's text format) as the JSON that a model is given of it: fields that may repeat are lists, maps objects."""
    tokens = iter(_TOKEN.findall(re.sub(r"(?m)#.*$", "", text)))
    config = _message(tokens, None)
    for field in ("input", "output", "instance_group"):
        if isinstance(config[field], dict):
            config[field] = [config[field]]
    config["parameters"] = {each["key"]: each["value"] for each in config.get("parameters", [])}
    return config


def _message(tokens: Iterator[str], end: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while (name := next(tokens, None)) != end:
        assert name is not None and name.isidentifier(), f"{name} is no field's name"
        token = next(tokens)
        if token == ":":
            token = next(tokens)
        value = _value(tokens, token)
        if name in found:
            found[name] = [*(found[name] if isinstance(found[name], list) else [found[name]]), value]
        else:
            found[name] = value
    return found


def _value(tokens: Iterator[str], token: str) -> Any:
    if token == "{":
        return _message(tokens, "}")
    if token == "[":
        values = []
        while (token := next(tokens)) != "]":
            if token != ",":
                values.append(_value(tokens, token))
        return values
    if token.startswith('"'):
        return json.loads(token)
    return int(token) if re.fullmatch(r"-?\d+", token) else token
