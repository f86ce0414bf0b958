"""Encoders on one interface: jagged tokens, groups and visibility in; jagged vectors out."""

from __future__ import annotations

from model.encoders import hstu, mtgr
from model.encoders.block import Encoder, EncoderConfig
from model.encoders.hstu import Hstu, HstuConfig
from model.encoders.mtgr import Mtgr, MtgrConfig

PRESETS: dict[str, EncoderConfig] = {**mtgr.PRESETS, **hstu.PRESETS}
"""Configurations by the name `--model` takes."""


def build_encoder(config: EncoderConfig) -> Encoder:
    """The encoder of a configuration."""
    if isinstance(config, HstuConfig):
        return Hstu(config)
    if isinstance(config, MtgrConfig):
        return Mtgr(config)
    raise TypeError(f"no encoder for {type(config).__name__}")


__all__ = ["PRESETS", "Encoder", "EncoderConfig", "Hstu", "HstuConfig", "Mtgr", "MtgrConfig", "build_encoder"]
