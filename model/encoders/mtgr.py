"""MTGR (Meituan, arXiv:2505.18654): user, history, realtime and candidate tokens under the dynamic mask, group LayerNorm.

Section 3.3: X~ = GLN(X); U, V, Q, K = silu(MLP(X~)); O = silu(Q K^T) / (N_U + N_S + N_R + N_I) masked, times V;
X' = X + MLP(GLN(O * U)). The mask comes with the tokens (`tokenization.visibility`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from genrank.model.encoders.block import BlockConfig
from genrank.model.encoders.stack import Stack


@dataclass(frozen=True)
class MtgrConfig(BlockConfig):
    """MTGR's choices are `BlockConfig`'s defaults."""


class Mtgr(Stack):
    """The MTGR stack."""

    def __init__(self, config: MtgrConfig) -> None:
        super().__init__(config)


PAPER = {
    "feature_norm": "false",
    "equal_start": "false",
    "activation": "uvqk",
    "gate": "gate_norm",
    "candidate_numbers": "true",
    "encoder_loss": "0",
    "tower": "[]",
    "divisor": "length",
}
"""`--set`s that make any preset the paper's model again: benchmarks/history.md and benchmarks/train.md have what the departures bring."""

_preset = partial(
    MtgrConfig,
    feature_norm=True,
    equal_start=True,
    activation="u",
    gate="norm_gate",
    tower=(128, 64),
    candidate_numbers=False,
    encoder_loss=1.0,
    divisor="visible",
)

PRESETS = {
    # Table 3 of the paper: layers x width x heads. Its divisor is "length", under which a score depends on which rivals are scored beside it.
    "mtgr-small": _preset(dim=512, layers=3, heads=2),
    "mtgr-medium": _preset(dim=768, layers=5, heads=3),
    "mtgr-large": _preset(dim=768, layers=15, heads=3),
    # For two CPU cores: trains on a day of the synthetic world in a minute or two.
    "mtgr-tiny": _preset(
        dim=64,
        layers=2,
        heads=2,
        qk_dim=32,
        v_dim=32,
        dropout=0.1,
    ),
}
