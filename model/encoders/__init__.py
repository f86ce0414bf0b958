"""Encoders on one interface (`interface.py`): jagged tokens, groups and visibility in; a vector a candidate out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from genrank.model.encoders import grab, hetero, hstu, longer, mtgr, onetrans, rankmixer, ultra_hstu
from genrank.model.encoders.block import BlockConfig
from genrank.model.encoders.grab import Grab, GrabConfig
from genrank.model.encoders.hetero import Hetero, HeteroConfig
from genrank.model.encoders.hstu import Hstu, HstuConfig
from genrank.model.encoders.interface import (
    Candidates,
    Counts,
    Encoder,
    EncoderConfig,
    SequenceEncoder,
    chosen_rows,
    split,
    split_known,
)
from genrank.model.encoders.longer import Longer, LongerConfig
from genrank.model.encoders.mtgr import Mtgr, MtgrConfig
from genrank.model.encoders.onetrans import OneTrans, OneTransConfig
from genrank.model.encoders.rankmixer import RankMixer, RankMixerConfig
from genrank.model.encoders.ultra_hstu import UltraHstu, UltraHstuConfig


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder: its configuration's class, what makes it, and configurations by name."""

    config: type[EncoderConfig]
    build: Callable[[Any], Encoder[Any]]
    """From a `config`."""
    presets: Mapping[str, EncoderConfig]
    """By the name that `--model` takes."""


ENCODERS = [
    EncoderSpec(MtgrConfig, Mtgr, mtgr.PRESETS),
    EncoderSpec(HstuConfig, Hstu, hstu.PRESETS),
    EncoderSpec(HeteroConfig, Hetero, hetero.PRESETS),
    EncoderSpec(RankMixerConfig, RankMixer, rankmixer.PRESETS),
    EncoderSpec(UltraHstuConfig, UltraHstu, ultra_hstu.PRESETS),
    EncoderSpec(LongerConfig, Longer, longer.PRESETS),
    EncoderSpec(OneTransConfig, OneTrans, onetrans.PRESETS),
    EncoderSpec(GrabConfig, Grab, grab.PRESETS),
]
"""One line an encoder."""

PRESETS: dict[str, BlockConfig] = {**mtgr.PRESETS, **hstu.PRESETS}
"""Configurations of HSTU and MTGR."""


def build_encoder(config: EncoderConfig) -> Encoder[Any]:
    """The encoder of a configuration: that of its class, or of the nearest class it derives from.

    Raises:
        TypeError: no encoder has such a configuration.
    """
    builders = {spec.config: spec.build for spec in ENCODERS}
    for kind in type(config).__mro__:
        if kind in builders:
            return builders[kind](config)
    raise TypeError(
        f"{type(config).__name__} belongs to no encoder; add an EncoderSpec of it to model.encoders.ENCODERS"
    )


__all__ = [
    "ENCODERS",
    "PRESETS",
    "BlockConfig",
    "Candidates",
    "Counts",
    "Encoder",
    "EncoderConfig",
    "EncoderSpec",
    "Hetero",
    "HeteroConfig",
    "Hstu",
    "HstuConfig",
    "Mtgr",
    "MtgrConfig",
    "RankMixer",
    "RankMixerConfig",
    "SequenceEncoder",
    "build_encoder",
    "chosen_rows",
    "split",
    "split_known",
]
