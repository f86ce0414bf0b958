"""Requests of Triton's Python backend -> responses, each request by itself: one that is wrong gets its error, the others their scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic.dataclasses import dataclass

from genrank.schemas.configuration import AT_LEAST_0, AT_LEAST_1, NOT_NEGATIVE, Configuration, Flag, from_values
from genrank.schemas.console import logger
from genrank.schemas.errors import UserError
from genrank.schemas.schema import CANDIDATES
from genrank.serving.exported import ExportedScorer
from genrank.serving.request_arrow import read_arrow
from genrank.serving.request_contract import MAX_CANDIDATES, RequestContract, RequestError, in_body
from genrank.serving.request_json import parse_json, rows_of
from genrank.serving.row_scores import ScoringError, score_senders, sizes
from genrank.serving.scorer import Scores
from genrank.serving.stored_keys import Storage
from genrank.serving.triton_server.interface import Request, Response, Utils
from genrank.serving.triton_server.repository import REQUEST
from genrank.serving.user_cache import UserCache
from genrank.tokenization.views import cut_by_budget

_ARROW = b"\xff\xff\xff\xff"
"""What an Arrow IPC stream begins with, and no text."""


@dataclass(frozen=True)
class BackendConfig(Configuration):
    """`parameters` of config.pbtxt, as the flags of `genrank serve`."""

    batch_tokens: Annotated[int, AT_LEAST_1, Flag(name="batch_tokens")] = 16_384
    """Tokens that are scored together at most; a larger request is scored by itself."""
    max_candidates: Annotated[int, AT_LEAST_1, Flag(name="max_candidates")] = MAX_CANDIDATES
    """Of one request's row."""
    micro_batch: Annotated[int, AT_LEAST_0, Flag(name="micro_batch")] = 0
    """Candidates that pass through the model at once, against their users' keys and values; 0: all in one pass."""
    user_cache_mb: Annotated[float, NOT_NEGATIVE, Flag(name="user_cache_mb")] = 0
    """Memory of the device for users' keys and values between requests; 0: none are kept."""
    cache_storage: Annotated[Storage, Flag(name="cache_storage")] = "float32"
    """How they are kept."""


class Backend:
    """One instance of a model.

    Args:
        export: the folder of the export.
        args: of Triton's `initialize`: `model_config` (JSON), `model_instance_kind`, `model_instance_device_id`.
        utils: `triton_python_backend_utils`.

    Raises:
        UserError: the export can't be served here, or config.pbtxt doesn't fit it.
    """

    def __init__(self, export: Path, args: Mapping[str, str], utils: Utils) -> None:
        self.utils = utils
        declared = json.loads(args["model_config"])
        self.config = _settings(declared)
        cache = None
        if self.config.user_cache_mb:
            cache = UserCache(int(self.config.user_cache_mb * 1_000_000), storage=self.config.cache_storage)
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        self.scorer = ExportedScorer.load(export, device, micro_batch=self.config.micro_batch, cache=cache)
        self.contract = RequestContract(self.scorer.schema, self.config.max_candidates)
        outputs = {output["name"] for output in declared["output"]}
        if outputs != set(self.scorer.tasks):
            raise UserError(
                f"config.pbtxt has the outputs {', '.join(sorted(outputs))}, the export predicts {', '.join(self.scorer.tasks)}; give it these,"
                " or delete it and export again"
            )

    def execute(self, requests: Sequence[Request]) -> list[Response]:
        """A response for each, in order."""
        responses: dict[int, Response] = {}
        read: dict[int, pa.RecordBatch] = {}
        for at, request in enumerate(requests):
            if request.is_cancelled():
                responses[at] = self._error("the request was cancelled", self.utils.TritonError.CANCELLED)
                continue
            try:
                read[at] = self._rows(request)
            except RequestError as wrong:
                responses[at] = self._error(str(wrong), self.utils.TritonError.INVALID_ARG)
            except Exception:
                logger.exception("reading a request failed")
                responses[at] = self._error(
                    "the request can't be read; the log says why", self.utils.TritonError.INTERNAL
                )
        tokens = np.array([sizes(self.scorer.schema, rows)[0] for rows in read.values()], np.int64)
        cuts = cut_by_budget(tokens, self.config.batch_tokens)
        places = list(read)
        for first, last in pairwise(cuts):
            together = places[first:last]
            found = score_senders(self.scorer, [read[at] for at in together])
            responses |= {at: self._response(read[at], answer) for at, answer in zip(together, found, strict=True)}
        return [responses[at] for at in range(len(requests))]

    def _rows(self, request: Request) -> pa.RecordBatch:
        """A request's rows, as a scorer takes them."""
        tensor = self.utils.get_input_tensor_by_name(request, REQUEST)
        if tensor is None:
            raise RequestError(f"the request has no input {REQUEST}")
        sent = [each if isinstance(each, bytes) else str(each).encode() for each in tensor.as_numpy().ravel()]
        if not sent:
            raise RequestError(f"{REQUEST} is empty; send a row in each element")
        if not any(each.startswith(_ARROW) for each in sent):
            return rows_of(self.contract, [parse_json(each) for each in sent])
        batches = [self._arrow(each, at) for at, each in enumerate(sent)]
        return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]

    def _arrow(self, sent: bytes, at: int) -> pa.RecordBatch:
        rows = read_arrow(self.contract, sent, lambda _: in_body(at))
        if len(rows) != 1:
            raise RequestError(
                f"{in_body(at)} is a stream of {len(rows)} rows; send one row in each element of {REQUEST}"
            )
        return rows

    def _response(self, rows: pa.RecordBatch, answer: Scores | UserError | ScoringError) -> Response:
        """An output of [rows, candidates] for each task; of rows with fewer candidates than another, the rest is NaN."""
        if isinstance(answer, UserError):
            return self._error(str(answer), self.utils.TritonError.INVALID_ARG)
        if isinstance(answer, ScoringError):
            return self._error(str(answer), self.utils.TritonError.INTERNAL)
        counts = rows.column(CANDIDATES).field("ts").value_lengths().to_numpy()
        there = np.arange(counts.max()) < counts[:, None]
        outputs = []
        for task, scores in zip(self.scorer.tasks, answer.T, strict=True):
            whole = np.full(there.shape, np.nan, np.float32)
            whole[there] = scores
            outputs.append(self.utils.Tensor(task, whole))
        return self.utils.InferenceResponse(output_tensors=outputs)

    def _error(self, message: str, code: int) -> Response:
        return self.utils.InferenceResponse(error=self.utils.TritonError(message, code))


def _settings(declared: Mapping[str, dict[str, dict[str, str]]]) -> BackendConfig:
    """Of config.pbtxt's `parameters`; those in capitals are Triton's own."""
    given = {
        name: value["string_value"] for name, value in declared.get("parameters", {}).items() if not name.isupper()
    }
    try:
        return from_values(BackendConfig, given)
    except UserError as error:
        raise UserError(f"parameters of config.pbtxt: {error}") from None
