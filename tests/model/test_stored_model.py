"""A checkpoint's model is the one it was trained as, whatever the defaults are now."""

from __future__ import annotations

import pytest

from genrank.model.encoders.mtgr import MtgrConfig
from genrank.model.registry import MODELS, choose_model, stored_model


@pytest.mark.parametrize("name", MODELS)
def test_fields_bring_the_model_back(name: str) -> None:
    chosen = choose_model(name)
    again = stored_model(name, {}, chosen.fields)
    assert (again.config, again.head) == (chosen.config, chosen.head)


def test_fields_win_over_defaults_and_settings() -> None:
    chosen = choose_model("mtgr-tiny", {"gate": "gate_norm", "head.hidden": "[8]", "divisor": "length"})
    again = stored_model("mtgr-tiny", {}, chosen.fields)
    assert (again.config, again.head) == (chosen.config, chosen.head)
    assert again.fields["head.hidden"] == [8]


def test_a_checkpoint_without_fields_has_the_defaults_of_its_time() -> None:
    config = stored_model("mtgr-small", {"layers": "2"}, None).config
    assert isinstance(config, MtgrConfig)
    assert (config.gate, config.activation, config.feature_norm, config.equal_start) == (
        "gate_norm",
        "uvqk",
        False,
        False,
    )
    assert config.layers == 2
    own = stored_model("mtgr-tiny", {"gate": "norm_gate"}, None).config
    assert isinstance(own, MtgrConfig) and own.gate == "norm_gate"
