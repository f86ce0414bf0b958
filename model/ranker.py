"""Batch -> one logit a candidate and task. The generative rankers here, the baselines beside them, one constructor for all."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from typing import TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from genrank.kernels.attention import local_positions
from genrank.model.baselines.dcn import Dcn, DcnConfig
from genrank.model.baselines.din import Din, DinConfig
from genrank.model.baselines.dlrm import Dlrm, DlrmConfig
from genrank.model.baselines.sasrec import Sasrec, SasrecConfig
from genrank.model.encoders import PRESETS, EncoderConfig, Hstu, build_encoder, visibility_rule
from genrank.model.heads import HeadConfig, Heads
from genrank.model.retriever import PRESETS as RETRIEVERS
from genrank.model.retriever import Retriever, RetrieverConfig
from genrank.schemas.errors import UserError
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.tokens import Tokenizer, Tokens

ModelConfig = EncoderConfig | DlrmConfig | DinConfig | DcnConfig | SasrecConfig

Config = TypeVar("Config", EncoderConfig, DlrmConfig, DinConfig, DcnConfig, SasrecConfig, HeadConfig)

MODELS: dict[str, ModelConfig] = {
    **PRESETS,
    "dlrm": DlrmConfig(),
    "din": DinConfig(),
    "dcn": DcnConfig(),
    "sasrec": SasrecConfig(),
    **RETRIEVERS,
}
"""What `--model` takes."""


class Work:
    """Tokens and visible pairs of training batches since the last `flops`; the count stays on the device until asked for."""

    def __init__(self) -> None:
        self.tokens = 0
        self.pairs: Tensor | None = None

    def add(self, tokens: Tokens) -> None:
        """Count one batch."""
        pairs = visible_pairs(tokens)
        self.tokens += len(tokens.x)
        self.pairs = pairs if self.pairs is None else self.pairs + pairs

    def flops(self, config: EncoderConfig) -> int:
        """Floating point operations of forward and backward (twice the forward) for what was counted; begins anew."""
        total = 3 * config.flops(self.tokens, 0 if self.pairs is None else int(self.pairs))
        self.tokens, self.pairs = 0, None
        return total


class Ranker(nn.Module):
    """Tokens -> encoder -> heads at the candidates' rows. Batch -> {task: logit [C]}."""

    def __init__(self, embeddings: Embeddings, tasks: Sequence[str], config: EncoderConfig, head: HeadConfig) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(embeddings, config.dim, visibility=visibility_rule(config))
        self.encoder = build_encoder(config)
        self.heads = Heads(config.dim, tasks, head)
        self.work = Work()

    @property
    def embeddings(self) -> Embeddings:
        return self.tokenizer.embeddings

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        tokens = self.tokenizer(batch)
        if isinstance(self.encoder, Hstu):
            tokens = self.encoder.shorten(tokens)
        if self.training:
            self.work.add(tokens)
        return self.heads(self.encoder(tokens)[tokens.candidate_rows])


def visible_pairs(tokens: Tokens) -> Tensor:
    """int64 scalar: (query, key) pairs that the mask lets through, each query's own key included."""
    position = local_positions(tokens.offsets, len(tokens.x))
    outside = (position < tokens.begin) | (position >= tokens.end)
    return (tokens.end - tokens.begin).clamp(min=0).sum() + outside.sum()


def build_model(
    config: ModelConfig, head: HeadConfig, embeddings: Embeddings, tasks: Sequence[str]
) -> Ranker | Retriever | Dlrm | Din | Dcn | Sasrec:
    """The model of a configuration. Every one has `embeddings`; rankers map a Batch to {task: logit [C]}, a retriever to its loss.

    Raises:
        UserError: retrieval with a schema that has no such thing, or with settings of a ranker's head.
    """
    if isinstance(config, RetrieverConfig):
        if head != HeadConfig():
            raise UserError("--set head...: a retrieval model has no task heads; leave it out")
        return Retriever(embeddings, config)
    if isinstance(config, EncoderConfig):
        return Ranker(embeddings, tasks, config, head)
    if isinstance(config, DlrmConfig):
        return Dlrm(embeddings, tasks, config, head)
    if isinstance(config, DinConfig):
        return Din(embeddings, tasks, config, head)
    if isinstance(config, DcnConfig):
        return Dcn(embeddings, tasks, config, head)
    return Sasrec(embeddings, tasks, config, head)


def model_config(name: str, settings: Mapping[str, str] | None = None) -> tuple[ModelConfig, HeadConfig]:
    """A preset, with fields changed: `{"divisor": "length", "layers": "4", "head.kind": "mmoe"}`.

    Raises:
        UserError: no such model, no such field, or a value of the wrong type or out of range.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, 1, 0.3)
        raise UserError(
            f"--model {name}: no such model; {f'did you mean {near[0]}? ' if near else ''}There are {', '.join(MODELS)}"
        )
    own = {k: v for k, v in (settings or {}).items() if not k.startswith("head.")}
    head = {k.removeprefix("head."): v for k, v in (settings or {}).items() if k.startswith("head.")}
    return _replace(MODELS[name], own, ""), _replace(HeadConfig(), head, "head.")


def _replace(config: Config, settings: Mapping[str, str], prefix: str) -> Config:
    hints = get_type_hints(type(config))
    changes: dict[str, object] = {}
    for key, text in settings.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1, 0.3)
            raise UserError(f"--set {prefix}{key}: no such field{f'; did you mean {prefix}{near[0]}?' if near else ''}")
        try:
            changes[key] = TypeAdapter(hints[key]).validate_python(_value(text))
        except ValidationError as error:
            raise UserError(f"--set {prefix}{key}={text}: {error.errors()[0]['msg'].lower()}") from None
        value = changes[key]
        if key.endswith("dropout") and isinstance(value, float) and not 0 <= value < 1:
            raise UserError(f"--set {prefix}{key}={text}: give the share that is dropped, from 0 to below 1")
        if isinstance(value, int | float) and value < 0:
            raise UserError(f"--set {prefix}{key}={text}: must not be negative")
    return dataclasses.replace(config, **changes)


def _value(text: str) -> object:
    """`3`, `0.5`, `true`, `null` and `[64, 32]` by JSON; a bare word is itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
