"""A checkpoint's model is the one that was trained, whatever later releases' defaults are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from genrank.model.config import TrainConfig
from genrank.model.documents import ModelIdentity
from genrank.model.encoders import ENCODERS, BlockConfig
from genrank.model.encoders.mtgr import MtgrConfig
from genrank.model.evaluate import load_model
from genrank.model.registry import MODELS, choose_model, recorded_model
from genrank.model.trainer import train


def test_every_field_is_recorded_and_read_back() -> None:
    for name in MODELS:
        chosen = choose_model(name)
        identity = ModelIdentity(name=name, settings={}, fields=chosen.fields())
        again = recorded_model(ModelIdentity.model_validate_json(identity.model_dump_json()))
        assert (again.config, again.head) == (chosen.config, chosen.head), name


def test_presets_score_a_candidate_whatever_its_rivals_but_older_checkpoints_keep_their_divisor() -> None:
    blocks = {
        name: config for spec in ENCODERS for name, config in spec.presets.items() if isinstance(config, BlockConfig)
    }
    assert blocks and all(config.divisor != "length" for config in blocks.values())
    for name in ("mtgr-small", "mtgr-large", "hstu-large", "hstu-retrieval-small"):
        assert choose_model(name).config.divisor == "visible"
        assert recorded_model(ModelIdentity(name=name, settings={})).config.divisor == "length"
        settings = {"divisor": "visible"}
        assert recorded_model(ModelIdentity(name=name, settings=settings)).config.divisor == "visible"


def test_an_older_checkpoint_is_the_paper_s_model() -> None:
    config = recorded_model(ModelIdentity(name="mtgr-small", settings={"layers": "2"})).config
    assert isinstance(config, MtgrConfig) and config.layers == 2
    assert (config.gate, config.activation, config.feature_norm, config.equal_start) == (
        "gate_norm",
        "uvqk",
        False,
        False,
    )
    own = recorded_model(ModelIdentity(name="mtgr-tiny", settings={"gate": "norm_gate"})).config
    assert isinstance(own, MtgrConfig) and (own.gate, own.tower, own.divisor) == ("norm_gate", (), "visible")


@pytest.mark.parametrize("resumed", [True, False], ids=["resumed", "from a checkpoint"])
def test_a_changed_default_changes_no_trained_model(
    resumed: bool, schema, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(
        schema=schema, samples=samples, dates=("2026-01-01",), out=tmp_path / "run", model="mtgr-tiny",
        settings={"dropout": "0.0", "head.hidden": "[4]"}, token_budget=300, max_steps=1, device="cpu", checkpoint_every=1,
    )  # fmt: skip
    train(config)
    spec = MODELS["mtgr-tiny"]
    changed = dataclasses.replace(spec.config, divisor=7, layers=1, feature_norm=True)
    monkeypatch.setitem(MODELS, "mtgr-tiny", dataclasses.replace(spec, config=changed))
    assert choose_model("mtgr-tiny").config.divisor == 7
    loaded = load_model(config.out).model
    assert (loaded.encoder.config.divisor, len(loaded.encoder.blocks)) == ("visible", 2)
    out = config.out if resumed else tmp_path / "next"
    train(dataclasses.replace(config, max_steps=2, out=out, from_checkpoint=None if resumed else config.out))
    manifest = json.loads((out / "checkpoints" / "step-2" / "manifest.json").read_text())
    assert (manifest["model"]["fields"]["divisor"], manifest["model"]["fields"]["layers"]) == ('"visible"', "2")
