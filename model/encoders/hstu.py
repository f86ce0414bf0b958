"""HSTU (Meta, arXiv:2402.17152): relative position and time bias, LayerNorm before the gate, stochastic length.

Causal or candidates-as-targets, with actions interleaved or as side information: these come with the tokens
(`tokenization.visibility`, the schema's `interleave`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

from genrank.kernels.norm import Order
from genrank.model.encoders.block import BlockConfig, NormKind, OutputNormKind
from genrank.model.encoders.stack import Stack
from genrank.model.encoders.stochastic_length import stochastic_length
from genrank.model.validation import Count
from genrank.tokenization import visibility
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.wants import TokenShape, Wants


@dataclass(frozen=True)
class HstuConfig(BlockConfig):
    """HSTU's choices, and stochastic length."""

    visibility: Literal["dynamic", "targets", "causal"] = "targets"
    window: Count = 0
    """A token sees at most so many before it; 0: all."""
    full_tail: Count = 0
    """With `window`: the last so many history tokens, and realtime tokens and candidates, see past it."""
    input_norm: NormKind = "layer"
    output_norm: OutputNormKind = "layer"
    gate: Order = "norm_gate"
    position_reach: Count = 512
    time_buckets: Count = 64
    stochastic_length: float | None = None
    """alpha of section 2.2, in (1, 2]: the cost of attention falls from N^2 to N^alpha. None: every token, always."""
    max_history: Count = 0
    """N of the rule: history tokens a sample has at most. Needed with `stochastic_length`."""
    keep: Literal["random", "recent", "weighted"] = "weighted"
    """Which history stays: drawn evenly, the newest, or drawn with weights that favour the recent (appendix, "feature-weighted")."""
    event_tokens: Count = 0
    """History tokens an event makes (more than 1 where actions are interleaved), kept or dropped together by `stochastic_length`; 0: as the
    schema's history makes them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window and self.visibility == "dynamic":
            raise self.refuse("window", "the dynamic mask has no window; take visibility=targets or causal")
        if self.stochastic_length is not None:
            if not 1 < self.stochastic_length <= 2:
                raise self.refuse("stochastic_length", "give a number above 1 and at most 2, or null for every token")
            if not self.max_history:
                raise self.refuse(
                    "max_history", "stochastic_length needs it: the most history tokens that a sample has"
                )

    def fit(self, shape: TokenShape) -> Self:
        """With the schema's tokens an event."""
        fitted = super().fit(shape)
        if self.event_tokens or self.stochastic_length is None:
            return fitted
        if not shape.event_tokens:
            raise self.refuse(
                "stochastic_length",
                "the schema's histories make different numbers of tokens of an event; interleave them alike, or give null",
            )
        return dataclasses.replace(fitted, event_tokens=shape.event_tokens)

    def append_obstacles(self) -> list[str]:
        """As a block's; and a tail that is counted from the history's end."""
        found = super().append_obstacles()
        if self.window and self.full_tail:
            found.append("full_tail counts from the newest event (train with --set full_tail=0)")
        return found

    def wants(self) -> Wants:
        """The mask that `visibility` names, within the window."""
        if self.visibility == "dynamic":
            return super().wants()
        contextual = self.visibility == "targets"
        rule = partial(visibility.hstu, contextual=contextual, window=self.window, full_tail=self.full_tail)
        return dataclasses.replace(super().wants(), rule=rule)


class Hstu(Stack):
    """The HSTU stack."""

    config: HstuConfig

    def __init__(self, config: HstuConfig) -> None:
        super().__init__(config)

    def shorten(self, tokens: Tokens) -> Tokens:
        """The tokens this step trains on: shortened in training where the config says so."""
        config = self.config
        if not self.training or config.stochastic_length is None:
            return tokens
        return stochastic_length(
            tokens,
            config.stochastic_length,
            config.max_history,
            keep=config.keep,
            event_tokens=config.event_tokens or 1,
        )


PRESETS = {
    "hstu-small": HstuConfig(dim=256, layers=4, heads=4, qk_dim=64, v_dim=64, divisor="visible"),
    "hstu-large": HstuConfig(dim=512, layers=8, heads=8, qk_dim=64, v_dim=64, divisor="visible"),
    # The paper's ranking model: 3 layers of 512; its retrieval model is `hstu-retrieval-paper`. Heads aren't printed.
    "hstu-paper": HstuConfig(dim=512, layers=3, heads=4, qk_dim=128, v_dim=128, divisor="visible"),
    "hstu-tiny": HstuConfig(
        dim=64, layers=2, heads=2, qk_dim=32, v_dim=32, divisor="visible", position_reach=64, dropout=0.1
    ),
}
