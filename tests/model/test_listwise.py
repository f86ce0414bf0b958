"""Candidates that see the rivals of their request: a score depends on those that were exposed no later than its candidate, as it should, and on
no other request's, on nothing later, and not on where they lie in the batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genrank.model.encoders import EncoderConfig, HstuConfig, MtgrConfig, split
from genrank.model.encoders.listwise import Rivals
from genrank.model.validation import ConfigError
from genrank.tokenization.jagged_tokens import Tokens

from .sequence_cases import make
from .test_encoders import draw_tokens, reference, rivals

BLOCK = {"dim": 4, "layers": 2, "heads": 2, "qk_dim": 3, "v_dim": 2, "listwise": True}
CASES: dict[str, EncoderConfig] = {
    "mtgr": MtgrConfig(**BLOCK, divisor="visible"),
    "biases, a number as divisor": MtgrConfig(
        **BLOCK, divisor=7, position_reach=3, time_buckets=30, visibility="causal"
    ),
    "hstu": HstuConfig(**BLOCK, divisor="visible", position_reach=4),
}
SEEDS = given(seed=st.integers(0, 2**31))
FEW = settings(max_examples=4, deadline=None)


def draw(seed: int, dim: int = 4) -> Tokens:
    """Up to five candidates a sample in two requests, which lie in turns; of several times, some of which tie and then see as much; a later one
    sees no less."""
    tokens = draw_tokens(seed, dim, most=6)
    g = torch.Generator().manual_seed(seed)
    rows = tokens.candidate_rows
    times = 1_700_020_000_000 + torch.randint(0, 3, (len(rows),), generator=g) * 1000
    times = torch.cat([part.sort().values for part in times.split(counts(tokens).tolist())])
    ends = torch.cat([part.sort().values for part in tokens.end[rows].split(counts(tokens).tolist())])
    owners = torch.searchsorted(tokens.offsets.long(), rows, right=True)
    for c in range(1, len(rows)):
        if owners[c] == owners[c - 1] and times[c] == times[c - 1]:
            ends[c] = ends[c - 1]
    return dataclasses.replace(
        tokens,
        timestamps=tokens.timestamps.index_copy(0, rows, times),
        end=tokens.end.index_copy(0, rows, ends),
        requests=torch.randint(0, 2, (len(rows),), generator=g) - 7,
    )


def counts(tokens: Tokens) -> Tensor:
    owner = torch.searchsorted(tokens.offsets.long(), tokens.candidate_rows, right=True) - 1
    return torch.bincount(owner, minlength=len(tokens.lengths))


@pytest.mark.parametrize("name", CASES)
@FEW
@SEEDS
def test_it_is_the_equations_with_rivals_among_what_is_seen(name: str, seed: int) -> None:
    encoder, tokens = make(CASES[name], seed), draw(seed)
    wanted = reference(encoder, tokens)[tokens.candidate_rows]
    torch.testing.assert_close(encoder(tokens), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
@FEW
@SEEDS
def test_in_two_parts_it_is_the_same_in_any_order(name: str, seed: int) -> None:
    encoder, tokens = make(CASES[name], seed), draw(seed)
    sequence, candidates = split(tokens)
    shuffled = torch.randperm(len(candidates.owner))
    parts = encoder.score(encoder.user_state(sequence), candidates.take(shuffled))
    torch.testing.assert_close(parts, encoder(tokens)[shuffled], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
@FEW
@SEEDS
def test_alone_in_its_request_a_candidate_scores_as_without(name: str, seed: int) -> None:
    encoder, tokens = make(CASES[name], seed), draw(seed)
    alone = dataclasses.replace(tokens, requests=torch.arange(len(tokens.candidate_rows)))
    plain = make(dataclasses.replace(CASES[name], listwise=False), seed)
    torch.testing.assert_close(encoder(alone), plain(tokens), rtol=1e-6, atol=1e-8)


@FEW
@SEEDS
def test_a_score_reads_rivals_that_came_no_later_and_nothing_else_of_other_candidates(seed: int) -> None:
    """By autograd, through two layers."""
    encoder, tokens = make(CASES["mtgr"], seed), draw(seed)
    leaf = tokens.x.requires_grad_()
    scores = encoder(tokens)
    for start, stop in zip(tokens.offsets[:-1].tolist(), tokens.offsets[1:].tolist(), strict=True):
        seen = rivals(tokens, start, stop)
        for c, row in enumerate(tokens.candidate_rows.tolist()):
            if not start <= row < stop:
                continue
            (found,) = torch.autograd.grad(scores[c].sum(), leaf, retain_graph=True)
            allowed = torch.zeros(len(leaf), dtype=torch.bool)
            allowed[start:stop] = seen[row - start]
            allowed[start : start + int(tokens.end[row])] = True
            read = found.abs().sum(1) > 0
            assert not (read & ~allowed).any()
            assert read[start:stop][seen[row - start]].all()


@FEW
@SEEDS
def test_the_order_of_candidates_and_samples_changes_nothing(seed: int) -> None:
    """And gradients are those of one pass where activations are computed again."""
    encoder, tokens = make(CASES["hstu"], seed).train(), draw(seed)
    grads = []
    for flag in (True, False):
        encoder.recompute = flag
        encoder.zero_grad()
        encoder(tokens).square().sum().backward()
        grads.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
    encoder.eval()
    rows, n = tokens.candidate_rows, counts(tokens).tolist()
    turned = torch.cat([part.flip(0) for part in torch.arange(len(rows)).split(n)])
    source = torch.arange(len(tokens.x)).index_copy(0, rows, rows[turned])
    again = dataclasses.replace(
        tokens,
        x=tokens.x[source],
        end=tokens.end[source],
        timestamps=tokens.timestamps[source],
        requests=tokens.requests[turned],
    )
    torch.testing.assert_close(encoder(again), encoder(tokens)[turned], rtol=1e-6, atol=1e-8)


def test_rivals_of_no_candidate_and_of_one() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert [len(part) for part in Rivals.of(none, none, none)] == [0, 0, 0]
    one = torch.zeros(1, dtype=torch.int64)
    assert [part.tolist() for part in Rivals.of(one, one, one)] == [[0], [0], [0]]


def test_what_it_can_not_be_read_with_is_refused() -> None:
    with pytest.raises(ConfigError, match="divisor=length would count the candidates of other requests"):
        MtgrConfig(**BLOCK)
    with pytest.raises(ConfigError, match="no dropout; set attention_dropout=0"):
        MtgrConfig(**BLOCK, divisor="visible", attention_dropout=0.1)
    with pytest.raises(ValueError, match=r"Wants\(requests=True\)"):
        make(CASES["mtgr"])(draw_tokens(0, 4))
