"""No candidate's score depends on another candidate or on what came after its exposure; nor on padding, the batch, its order, or on whether
scores come in one part or two. For every encoder, by perturbation and by autograd, in user-day samples and in requests' samples."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.model.encoders import EncoderConfig, HstuConfig, MtgrConfig, split
from genrank.tokenization.jagged_tokens import Tokens

from .sequence_cases import Sample, batch_of, cut, draw_sample, rows_of
from .test_sequence_encoders import CASES as SEQUENCE_CASES
from .test_sequence_encoders import make, tokens_of

BLOCK = {"dim": 4, "layers": 2, "heads": 2, "qk_dim": 3, "v_dim": 2, "time_buckets": 30, "position_reach": 4}
CASES: dict[str, EncoderConfig] = {
    **{name: config for name, (config, _) in SEQUENCE_CASES.items()},
    "mtgr": MtgrConfig(**BLOCK, divisor="visible", visibility="causal"),
    "hstu": HstuConfig(**BLOCK, divisor=50, visibility="causal"),
}


def tokens(config: EncoderConfig, samples: list[Sample]) -> Tokens:
    """The batch as the encoder wants it, candidates among the rows or beside them."""
    return batch_of(samples) if tokens_of(config) > 1 else rows_of(samples)


SEEDS = given(seed=st.integers(0, 2**31))
FEW = settings(max_examples=2, deadline=None)


@pytest.mark.parametrize("name", CASES)
@FEW
@SEEDS
def test_a_request_alone_scores_as_it_does_within_its_day(name: str, seed: int) -> None:
    """The candidate alone, and nothing in its sample that came after its exposure."""
    config = CASES[name]
    encoder = make(config, seed)
    day = draw_sample(seed, config.dim, tokens_of(config))
    scores = encoder(tokens(config, [day]))
    for c in range(len(day.sees)):
        torch.testing.assert_close(encoder(tokens(config, [cut(day, c)]))[0], scores[c], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
@FEW
@SEEDS
def test_a_score_has_no_gradient_beyond_what_the_candidate_sees(name: str, seed: int) -> None:
    """And has one in every history row that its sequence's layers read, its user rows and its own tokens."""
    config = CASES[name]
    encoder = make(config, seed)
    day, other = draw_sample(seed, config.dim, tokens_of(config)), draw_sample(seed + 1, config.dim, tokens_of(config))
    leaves = [each.requires_grad_() for each in (other.x, other.candidates, day.x, day.candidates)]
    scores = encoder(tokens(config, [other, day]))
    for c, upto in enumerate(day.sees):
        score = scores[len(other.sees) + c].sum()
        rows, candidates, own_rows, own = torch.autograd.grad(
            score, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        assert not rows.any() and not candidates.any() and not own_rows[upto:].any()
        assert own[c].any() and own_rows[0].any()
        assert not own[:c].any() and not own[c + 1 :].any()


@pytest.mark.parametrize("name", CASES)
@FEW
@SEEDS
def test_what_came_later_changes_nothing(name: str, seed: int) -> None:
    """Every unseen row and every other candidate replaced by noise, other timestamps among them."""
    config = CASES[name]
    encoder = make(config, seed)
    day = draw_sample(seed, config.dim, tokens_of(config))
    before = encoder(tokens(config, [day]))
    for c, upto in enumerate(day.sees):
        changed = dataclasses.replace(
            day, x=day.x.clone(), candidates=torch.randn_like(day.candidates), stamps=list(day.stamps)
        )
        changed.candidates[c] = day.candidates[c]
        changed.x[upto:] = torch.randn_like(changed.x[upto:])
        changed.stamps[upto:] = [t + 10**7 for t in changed.stamps[upto:]]
        torch.testing.assert_close(encoder(tokens(config, [changed]))[c], before[c], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
@FEW
@SEEDS
def test_the_batch_and_its_order_change_nothing(name: str, seed: int) -> None:
    config = CASES[name]
    encoder = make(config, seed)
    samples = [draw_sample(seed + i, config.dim, tokens_of(config), longest=n) for i, n in enumerate((14, 0, 70))]
    alone = [encoder(tokens(config, [s])) for s in samples]
    for order in ((0, 1, 2), (2, 0, 1)):
        together = encoder(tokens(config, [samples[i] for i in order]))
        torch.testing.assert_close(together, torch.cat([alone[i] for i in order]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
@FEW
@SEEDS
def test_forward_equals_user_state_and_score(name: str, seed: int) -> None:
    """Candidates in two portions and in any order, against one state."""
    config = CASES[name]
    encoder = make(config, seed)
    batch = tokens(config, [draw_sample(seed + i, config.dim, tokens_of(config)) for i in range(3)])
    expected = encoder(batch)
    sequence, candidates = split(batch)
    state = encoder.user_state(sequence)
    got = torch.empty_like(expected)
    for part in torch.randperm(len(candidates.owner)).tensor_split(2):
        got[part] = encoder.score(state, candidates.take(part))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_recomputed_activations_give_the_same_gradients(name: str) -> None:
    config = CASES[name]
    encoder = make(config).train()
    batch = tokens(config, [draw_sample(i, config.dim, tokens_of(config)) for i in range(3)])
    grads = []
    for flag in (True, False):
        encoder.recompute = flag
        encoder.zero_grad()
        encoder(batch).square().sum().backward()
        grads.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
