"""No candidate's score depends on another candidate or on what came after its exposure; nor on padding, the batch, its order, or on whether
scores come in one part or two. For every encoder, by perturbation and by autograd, in user-day samples and in requests' samples."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.model.encoders import Candidates, split

from .sequence_cases import batch_of, cut, draw_sample
from .test_sequence_encoders import CASES, make, tokens_of

SEEDS = given(seed=st.integers(0, 2**31))
FEW = settings(max_examples=4, deadline=None)


@pytest.mark.parametrize("name", CASES)
@FEW
@SEEDS
def test_a_request_alone_scores_as_it_does_within_its_day(name: str, seed: int) -> None:
    """The candidate alone, and nothing in its sample that came after its exposure."""
    config, _ = CASES[name]
    encoder = make(config, seed)
    day = draw_sample(seed, config.dim, tokens_of(config))
    scores = encoder(batch_of([day]))
    for c in range(len(day.sees)):
        torch.testing.assert_close(encoder(batch_of([cut(day, c)]))[0], scores[c], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
@FEW
@SEEDS
def test_a_score_has_no_gradient_beyond_what_the_candidate_sees(name: str, seed: int) -> None:
    """And has one in every history row that its sequence's layers read, its user rows and its own tokens."""
    config, _ = CASES[name]
    encoder = make(config, seed)
    day, other = draw_sample(seed, config.dim, tokens_of(config)), draw_sample(seed + 1, config.dim, tokens_of(config))
    batch = batch_of([other, day])
    assert batch.candidates is not None
    batch.x.requires_grad_()
    batch.candidates.x.requires_grad_()
    scores = encoder(batch)
    first, ahead = len(other.group), len(other.sees)
    for c in range(len(day.sees)):
        rows, candidates = torch.autograd.grad(
            scores[ahead + c].sum(), [batch.x, batch.candidates.x], retain_graph=True
        )
        assert not rows[:first].any() and not rows[first + day.sees[c] :].any()
        assert candidates[ahead + c].abs().sum() > 0
        candidates[ahead + c] = 0
        assert not candidates.any()
        assert rows[first].abs().sum() > 0


@pytest.mark.parametrize("name", CASES)
@FEW
@SEEDS
def test_what_came_later_changes_nothing(name: str, seed: int) -> None:
    """Every unseen row and every other candidate replaced by noise, other timestamps among them."""
    config, _ = CASES[name]
    encoder = make(config, seed)
    day = draw_sample(seed, config.dim, tokens_of(config))
    before = encoder(batch_of([day]))
    for c, upto in enumerate(day.sees):
        changed = dataclasses.replace(
            day, x=day.x.clone(), candidates=torch.randn_like(day.candidates), stamps=list(day.stamps)
        )
        changed.candidates[c] = day.candidates[c]
        changed.x[upto:] = torch.randn_like(changed.x[upto:])
        changed.stamps[upto:] = [t + 10**7 for t in changed.stamps[upto:]]
        torch.testing.assert_close(encoder(batch_of([changed]))[c], before[c], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
@FEW
@SEEDS
def test_the_batch_and_its_order_change_nothing(name: str, seed: int) -> None:
    config, _ = CASES[name]
    encoder = make(config, seed)
    samples = [draw_sample(seed + i, config.dim, tokens_of(config), longest=n) for i, n in enumerate((14, 0, 70))]
    alone = [encoder(batch_of([s])) for s in samples]
    for order in ((0, 1, 2), (2, 0, 1)):
        together = encoder(batch_of([samples[i] for i in order]))
        torch.testing.assert_close(together, torch.cat([alone[i] for i in order]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
@FEW
@SEEDS
def test_forward_equals_user_state_and_score(name: str, seed: int) -> None:
    """Candidates in two portions and in any order, against one state."""
    config, _ = CASES[name]
    encoder = make(config, seed)
    batch = batch_of([draw_sample(seed + i, config.dim, tokens_of(config)) for i in range(3)])
    expected = encoder(batch)
    sequence, candidates = split(batch)
    state = encoder.user_state(sequence)
    got = torch.empty_like(expected)
    for part in torch.randperm(len(candidates.owner)).tensor_split(2):
        chosen = {f.name: getattr(candidates, f.name)[part] for f in dataclasses.fields(Candidates)}
        got[part] = encoder.score(state, Candidates(**chosen))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_recomputed_activations_give_the_same_gradients(name: str) -> None:
    config, _ = CASES[name]
    encoder = make(config).train()
    batch = batch_of([draw_sample(i, config.dim, tokens_of(config)) for i in range(3)])
    grads = []
    for flag in (True, False):
        encoder.recompute = flag
        encoder.zero_grad()
        encoder(batch).square().sum().backward()
        grads.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
