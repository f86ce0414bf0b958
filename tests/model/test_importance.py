"""Shuffling moves the values of what it names and nothing else; a model that reads one feature loses by that one alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tokenization"))
from random_samples import demo_schema, write_random_samples

from genrank.model.config import EvaluateConfig
from genrank.model.importance import permutation_importance, shuffled, shuffled_parts
from genrank.model.ranks import join_ranks
from genrank.tokenization.batch import Batch, Ragged
from genrank.tokenization.reader import SampleReader

SCHEMA = demo_schema()
DAY = "2026-01-01"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_samples(tmp_path_factory.mktemp("samples"), SCHEMA, [DAY], users=30)


@pytest.fixture(scope="module")
def batch(root: Path) -> Batch:
    return next(iter(SampleReader(root, SCHEMA, [DAY], view="user_day", token_budget=10**9, prefetch=0)))


def rows(leaf: Tensor | Ragged) -> list[str]:
    if isinstance(leaf, Ragged):
        return [str(leaf.values[a:b].tolist()) for a, b in zip(leaf.offsets[:-1], leaf.offsets[1:], strict=True)]
    return [str(value) for value in leaf.tolist()]


def test_one_feature_moves_and_the_rest_stays(batch: Batch) -> None:
    for group, feature in shuffled_parts(SCHEMA, [batch]):
        if feature is None:
            continue
        moved = shuffled(batch, group, feature, SCHEMA, seed=1)
        before, after = batch.groups[group].features, moved.groups[group].features
        assert sorted(rows(before[feature])) == sorted(rows(after[feature]))
        if len(set(rows(before[feature]))) > 1:
            assert rows(before[feature]) != rows(after[feature]), (group, feature)
        assert all(after[name] is before[name] for name in before if name != feature)
        assert all(moved.groups[name] is batch.groups[name] for name in batch.groups if name != group)


def test_a_group_moves_as_a_whole(batch: Batch) -> None:
    def together(given: Batch, name: str) -> list[tuple[str, ...]]:
        return list(zip(*map(rows, given.groups[name].features.values()), strict=True))

    for name in ("user", "candidates"):
        moved = shuffled(batch, name, None, SCHEMA, seed=1)
        assert sorted(together(moved, name)) == sorted(together(batch, name)) != together(moved, name)
        assert torch.equal(moved.groups[name].offsets, batch.groups[name].offsets)
    moved = shuffled(batch, "history", None, SCHEMA, seed=1)
    assert sorted(together(moved, "history")) == sorted(together(batch, "history"))
    assert sorted(moved.groups["history"].lengths.tolist()) == sorted(batch.groups["history"].lengths.tolist())
    assert not torch.equal(moved.groups["history"].lengths, batch.groups["history"].lengths)
    none = shuffled(batch, "realtime", None, SCHEMA, seed=1)
    assert not len(none.groups["realtime"].ts) and not none.candidate_sees.any() and not len(none.realtime_available)


class ByPrice(nn.Module):
    """Scores by one feature alone."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        price = batch.candidates.features["price"]
        assert isinstance(price, Tensor)
        score = price.nan_to_num(0.0)
        return {"click": score / 100, "watch": score}


def test_only_what_the_model_reads_costs(root: Path) -> None:
    samples = SampleReader(root, SCHEMA, [DAY], view="user_day", token_budget=10**9, prefetch=0)
    labelled = next(iter(samples))
    # A label that the price decides, as far as the reader hands it out.
    config = EvaluateConfig(run=root, samples=root, dates=(DAY,), bootstrap=20, importance=True)
    with pytest.MonkeyPatch.context() as patch:
        taken = SampleReader.__iter__

        def planted(self: SampleReader):  # type: ignore[no-untyped-def]
            for each in taken(self):
                price = each.candidates.features["price"]
                each.labels["click"] = (price.nan_to_num(0.0) > 40).float()
                yield each

        patch.setattr(SampleReader, "__iter__", planted)
        found = permutation_importance(ByPrice(), SCHEMA, config, root, join_ranks("cpu"))  # type: ignore[arg-type]
    assert set(found) == {"click"} and len(labelled.item)
    drops = {(one.group, one.feature): one.drop for one in found["click"]}
    assert set(drops) == set(shuffled_parts(SCHEMA, [labelled]))
    first = {(one.group, one.feature) for one in found["click"][:2]}
    assert first == {("candidates", "price"), ("candidates", None)}
    assert drops["candidates", "price"].low > 0.3  # type: ignore[operator]
    assert all(each.value == each.low == each.high == 0 for part, each in drops.items() if part not in first)
