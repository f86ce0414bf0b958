"""Arms of the ablation benchmark are models and schemas that can be trained, and its full mask is one."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.ablations import ARMS, FULL_MASK, without_crosses, without_statistics
from benchmarks.full_mask import full
from genrank.model.encoders.mtgr import PAPER, PRESETS
from genrank.model.registry import choose_model
from genrank.schemas import CrossFeature, load_schema
from genrank.tokenization.visibility import Layout


def test_every_arm_is_a_model_that_differs_in_what_it_says() -> None:
    preset = choose_model("mtgr-tiny").fields()
    for name, arm in ARMS.items():
        changed = {k for k, v in choose_model(arm.model, arm.settings).fields().items() if preset[k] != v}
        own = {name for name, text in arm.settings.items() if preset[name] != text and preset[name] != f'"{text}"'}
        assert changed == own and (changed or not arm.settings), name


def test_each_departure_from_the_paper_is_left_out_once() -> None:
    alone = [next(iter(arm.settings)) for arm in ARMS.values() if len(arm.settings) == 1]
    assert PAPER.keys() - set(alone) == {"tower"}  # which takes two others with it
    assert PRESETS["mtgr-tiny"].divisor == "visible"


def test_statistics_are_left_out_by_their_keys() -> None:
    for path in ("examples/marketplace/schema.py", "examples/kuairand/schema.py"):
        schema = load_schema(path)
        crosses = [each for each in schema.candidates.features if isinstance(each, CrossFeature)]
        left = [each for each in without_crosses(schema).candidates.features if isinstance(each, CrossFeature)]
        assert 0 < len(left) < len(crosses)
        assert all(set(each.keys) == {"user_id"} or "user_id" not in each.keys for each in left)
        assert not any(isinstance(each, CrossFeature) for each in without_statistics(schema).candidates.features)


def test_a_full_mask_shows_every_token_its_whole_sample() -> None:
    lengths = [3, 1, 5]
    position = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))
    nothing = torch.zeros_like(position)
    begin, end = full(Layout(position, nothing.int(), nothing, nothing, nothing))
    assert begin.tolist() == [0] * 9 and end.tolist() == [3] * 3 + [1] + [5] * 5
    assert ARMS[FULL_MASK].model.endswith("full_mask.py:FULL_MASK")
