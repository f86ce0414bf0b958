"""Batch -> one logit a candidate and label: tokens, an encoder, heads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genrank.kernels.attention import local_positions
from genrank.kernels.compiled import compiled
from genrank.kernels.shared_rows import add_shared_relu
from genrank.model.auxiliary import Auxiliary
from genrank.model.baselines.tower import Tower
from genrank.model.encoders import Counts, Encoder, EncoderConfig, SequenceEncoder, build_encoder
from genrank.model.event_loss import EventHeads
from genrank.model.heads import HeadConfig, Heads, JointHeads
from genrank.model.interface import ADDED_LOSS, AUXILIARY, Model, Phase
from genrank.model.validation import ConfigError
from genrank.schemas.errors import UserError
from genrank.schemas.schema import CANDIDATES, USER
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.projections import Projection
from genrank.tokenization.quantiles import fit_moments
from genrank.tokenization.tokens import Tokenizer
from genrank.tokenization.wants import TokenShape


class Work:
    """What was trained on since the last `flops`; pairs stay on the device until asked for."""

    def __init__(self) -> None:
        self.tokens = self.candidates = self.samples = 0
        self.pairs: Tensor | None = None

    def add(self, tokens: Tokens) -> None:
        """Count one batch."""
        beside = tokens.candidates
        end, begin = (
            (tokens.end[tokens.candidate_rows], tokens.begin[tokens.candidate_rows])
            if beside is None
            else (beside.end, beside.begin)
        )
        pairs = torch.stack([visible_pairs(tokens), (end - begin).clamp(min=0).sum()])
        self.tokens += len(tokens.x)
        self.candidates += len(end)
        self.samples += len(tokens.lengths)
        self.pairs = pairs if self.pairs is None else self.pairs + pairs

    def flops(self, config: EncoderConfig) -> int:
        """Floating point operations of forward and backward (twice the forward) for what was counted; begins anew."""
        pairs, seen = [0, 0] if self.pairs is None else self.pairs.tolist()
        total = 3 * (config.flops(Counts(self.tokens, pairs, self.candidates, seen, self.samples)) or 0)
        self.tokens = self.candidates = self.samples = 0
        self.pairs = None
        return total


class EncoderModel(Model):
    """A model whose dense part is an encoder: what `--compile`, `--recompute` and FSDP do, they do to it.

    Args:
        encoder: makes it from `config`.
    """

    encoder: SequenceEncoder

    def __init__(
        self, embeddings: Embeddings, config: EncoderConfig, encoder: Callable[[Any], SequenceEncoder] = build_encoder
    ) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(embeddings, config.dim, config.wants())
        self.encoder = encoder(_fitted(config, self.tokenizer.shape))
        _scale_matrices(self.encoder, config.initial_scale)

    @property
    def embeddings(self) -> Embeddings:
        """The features' embedding tables."""
        return self.tokenizer.embeddings

    def prepare(self, samples: Path, dates: Sequence[str]) -> None:
        """With features at one scale: the training days' moments of every number. A checkpoint's own replace them when it is loaded."""
        if self.tokenizer.norms is not None:
            self.tokenizer.norms.set_moments(fit_moments(samples, self.embeddings.plan.schema, dates))

    def shardable_layers(self) -> Sequence[nn.Module]:
        """The encoder's."""
        return self.encoder.shardable_layers()

    def compile_dense(self, backend: str = "inductor") -> None:
        """torch.compile what makes tokens of features' vectors, and the encoder.

        Args:
            backend: `kernels.compiled`.

        Raises:
            UserError: there is no C++ compiler.
        """
        if backend == "inductor":
            require_compiler()
        self.tokenizer.compile_dense(backend)
        self._compile_encoder(backend)

    def _compile_encoder(self, backend: str) -> None:
        self.encoder.forward = compiled(self.encoder.forward, backend)

    def recompute_activations(self) -> None:
        """Activation checkpointing, a layer at a time."""
        self.encoder.recompute = True


class Ranker(EncoderModel):
    """Tokens -> encoder -> heads, and where the configuration asks for one a tower over the candidate's own features beside the
    encoder. Batch -> {label: logit [C]}.

    Args:
        tasks: names of the labels.
        encoder: makes it from `config`; by default the one of `model.encoders` that has such a configuration.
    """

    encoder: Encoder[Any]

    def __init__(
        self,
        embeddings: Embeddings,
        tasks: Sequence[str],
        config: EncoderConfig,
        head: HeadConfig,
        encoder: Callable[[Any], Encoder[Any]] = build_encoder,
    ) -> None:
        super().__init__(embeddings, config, encoder)
        self.tower = FeatureTower(embeddings, config.tower, getattr(config, "dropout", 0.0)) if config.tower else None
        width = self.encoder.config.out_dim + (config.tower[-1] if config.tower else 0)
        self.heads = Heads(width, tasks, head)
        self.encoder_heads = Heads(self.encoder.config.out_dim, tasks, head) if config.encoder_loss else None
        self.joint = JointHeads([self.heads, self.encoder_heads]) if self.encoder_heads is not None else None
        own = self.encoder.config
        self.shallow_heads = nn.ModuleList(Heads(own.out_dim, tasks, head) for _ in range(own.shallow_outputs))
        weight, schema = config.event_weight, embeddings.plan.schema
        self.event_heads = EventHeads(self.encoder.config.out_dim, schema) if weight else None
        self.work = Work()
        hidden = config.auxiliary_hidden
        self.auxiliary = Auxiliary(embeddings, tasks, hidden, head) if hidden else None
        self.phase: Phase = "both"

    def set_phase(self, phase: Phase) -> None:
        """What learns; `sparse` where the encoder's configuration has an auxiliary network."""
        if phase != "sparse" or self.auxiliary is None:
            super().set_phase(phase)
        self.phase = phase

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{label: logit [C]}; in training also `AUXILIARY` + label, where the encoder has a loss of its own, and `ADDED_LOSS`, where events
        have one. In training by `--phase sparse`, those of the auxiliary network."""
        if self.auxiliary is not None and self.training and self.phase == "sparse":
            rows_learn: dict[str, Tensor] = self.auxiliary(batch)
            return rows_learn
        features = self.tokenizer.features(batch)
        tokens = self.encoder.shorten(self.tokenizer.tokens(batch, features))
        if self.training and self.counts_flops:
            self.work.add(tokens)
        return self._ranked(tokens, batch, features)

    def _compile_encoder(self, backend: str) -> None:
        """With heads and tower: one region."""
        self._ranked = compiled(self._ranked, backend)  # type: ignore[method-assign]

    def _ranked(self, tokens: Tokens, batch: Batch, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `forward` gives, of the batch's tokens and features."""
        vectors, of_events = self._encode(tokens)
        shallow: Sequence[Tensor] = ()
        if self.training and len(self.shallow_heads):
            vectors, *shallow = torch.split(vectors, self.encoder.config.out_dim, 1)
        logits = self.logits(vectors, batch, features)
        for depth, vector in enumerate(shallow):
            for name, logit in self.shallow_heads[depth](vector).items():
                logits[f"{AUXILIARY}{depth}/{name}"] = _learned_by(self.encoder.config.shallow_loss, logit)
        if of_events is not None:
            logits[ADDED_LOSS] = self.encoder.config.event_weight * of_events
        return logits

    def logits(self, vectors: Tensor, batch: Batch, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{label: logit [C]} of candidates whose vectors ([C, out_dim]) the encoder has made; in training also `AUXILIARY` + label, where the
        encoder has a loss of its own.

        Args:
            features: of the candidates and the users, `Tokenizer.features`.
        """
        whole = vectors if self.tower is None else torch.cat([vectors, self.tower(batch, features)], 1)
        if self.joint is None or not self.training:
            found: dict[str, Tensor] = self.heads(whole)
            return found
        found, second = self.joint([whole, vectors])
        weight = self.encoder.config.encoder_loss
        return found | {AUXILIARY + name: _learned_by(weight, logit) for name, logit in second.items()}

    def _encode(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """[C, out_dim], and in training the events' loss, where they have one."""
        if self.event_heads is None or not self.training:
            return self.encoder(tokens), None
        assert tokens.event_types is not None  # `wants` asks for them
        every: Tensor = self.encoder(tokens, torch.arange(len(tokens.x), device=tokens.x.device))
        return every[tokens.candidate_rows], self.event_heads(every, tokens.event_types)

    @property
    def counts_flops(self) -> bool:
        """Whether the encoder's operations can be counted."""
        return self.encoder.config.flops(Counts(0, 0)) is not None

    def take_flops(self) -> int:
        """Floating point operations of the encoder, forward and backward, since the last call."""
        return self.work.flops(self.encoder.config) if self.counts_flops else 0


class FeatureTower(nn.Module):
    """An MLP over all features of a candidate and its user.

    Its first layer has a weight per feature, as tokens' projections have, so that checkpoints survive added and dropped features; of a user it is
    computed once for all candidates.

    Args:
        hidden: widths of the layers, at least one; each is followed by ReLU and dropout.
    """

    def __init__(self, embeddings: Embeddings, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.candidate = Projection(embeddings.layout[CANDIDATES], hidden[0])
        self.user = Projection(embeddings.layout[USER], hidden[0])
        self.dropout = dropout
        self.rest = Tower(hidden[0], hidden[1:], dropout)

    def forward(self, batch: Batch, features: Mapping[str, Tensor]) -> Tensor:
        """[C, hidden[-1]].

        Args:
            features: of the candidates and the users, `Tokenizer.features`.
        """
        own, shared = self.candidate(features[CANDIDATES]), self.user(features[USER])
        first = add_shared_relu(own, shared, batch.candidates.offsets)
        last: Tensor = self.rest(nn.functional.dropout(first, self.dropout, self.training))
        return last


def _learned_by(weight: float, logit: Tensor) -> Tensor:
    """Its value, and `weight` times its gradient."""
    return logit if weight == 1 else weight * logit + (1 - weight) * logit.detach()


def _scale_matrices(encoder: nn.Module, scale: float) -> None:
    with torch.no_grad():
        for parameter in encoder.parameters():
            if scale != 1 and parameter.ndim > 1:
                parameter.mul_(scale)


def _fitted(config: EncoderConfig, shape: TokenShape) -> EncoderConfig:
    try:
        return config.fit(shape)
    except ConfigError as error:
        raise UserError(f"--set {error.field}={getattr(config, error.field)}: {error.remedy}") from None


def visible_pairs(tokens: Tokens) -> Tensor:
    """int64 scalar: (query, key) pairs that the mask lets through, each query's own key included."""
    position = local_positions(tokens.offsets, len(tokens.x))
    outside = (position < tokens.begin) | (position >= tokens.end)
    return (tokens.end - tokens.begin).clamp(min=0).sum() + outside.sum()


def require_compiler() -> None:
    """torch.compile writes C++, on a GPU for what launches its kernels.

    Raises:
        UserError: there is no compiler.
    """
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if not any(map(shutil.which, wanted)):
        raise UserError(
            f"--compile: no C++ compiler found ({', '.join(wanted)}); install one, set CXX, or leave --compile out"
        )
