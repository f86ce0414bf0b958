"""Encoders on one interface: jagged tokens, groups and visibility in; jagged vectors out."""

from __future__ import annotations

from functools import partial

from genrank.model.encoders import hstu, mtgr
from genrank.model.encoders.block import Encoder, EncoderConfig
from genrank.model.encoders.hstu import Hstu, HstuConfig
from genrank.model.encoders.mtgr import Mtgr, MtgrConfig
from genrank.tokenization import visibility

PRESETS: dict[str, EncoderConfig] = {**mtgr.PRESETS, **hstu.PRESETS}
"""Configurations by the name `--model` takes."""


def build_encoder(config: EncoderConfig) -> Encoder:
    """The encoder of a configuration."""
    if isinstance(config, HstuConfig):
        return Hstu(config)
    if isinstance(config, MtgrConfig):
        return Mtgr(config)
    raise TypeError(f"no encoder for {type(config).__name__}")


def visibility_rule(config: EncoderConfig) -> visibility.Rule:
    """The mask of a configuration.

    Raises:
        UserError: a window where there is none.
    """
    window, tail = (config.window, config.full_tail) if isinstance(config, HstuConfig) else (0, 0)
    if config.visibility == "dynamic":
        if window:
            from genrank.schemas.errors import (
                UserError,  # Not above: `schemas` needs pydantic and pyarrow, an encoder doesn't.
            )

            raise UserError(f"--set window={window}: the dynamic mask has no window; take visibility=targets or causal")
        return visibility.mtgr
    return partial(visibility.hstu, contextual=config.visibility == "targets", window=window, full_tail=tail)


__all__ = [
    "PRESETS",
    "Encoder",
    "EncoderConfig",
    "Hstu",
    "HstuConfig",
    "Mtgr",
    "MtgrConfig",
    "build_encoder",
    "visibility_rule",
]
