"""Stochastic length (HSTU, section 2.2): which events of a long history a training step reads."""

from __future__ import annotations

import pytest
import torch

from genrank.model.encoders import Hstu, HstuConfig
from genrank.model.encoders.stochastic_length import stochastic_length
from genrank.tokenization.jagged_tokens import Tokens


def history(lengths: list[int], dim: int = 2) -> Tokens:
    """Samples of one user token, a causal history and two candidates."""
    offsets, groups, end = [0], [], []
    for n in lengths:
        groups += [0] + [1] * n + [3] * 2
        end += [1] + [i + 1 for i in range(n)] + [n + 1] * 2
        offsets.append(len(groups))
    group_ids = torch.tensor(groups, dtype=torch.int32)
    return Tokens(
        x=torch.arange(len(groups) * dim, dtype=torch.float32).view(-1, dim),
        offsets=torch.tensor(offsets, dtype=torch.int32),
        group_ids=group_ids,
        begin=torch.zeros(len(groups), dtype=torch.int32),
        end=torch.tensor(end, dtype=torch.int32),
        timestamps=torch.arange(len(groups)) * 1000,
        candidate_rows=(group_ids == 3).nonzero().squeeze(1),
        max_length=max(lengths) + 3,
        lengths=torch.tensor(lengths) + 3,
        history_lengths=torch.tensor(lengths),
    )


@pytest.mark.parametrize("keep", ["random", "recent", "weighted"])
def test_stochastic_length_follows_its_sampling_rule(keep: str) -> None:
    longest, alpha = 64, 1.5
    target = 22  # 64 ** 0.75 = 22.6
    tokens = history([5, target, 40, 64] * 400)
    short = stochastic_length(tokens, alpha, longest, keep=keep, generator=torch.Generator().manual_seed(0))
    kept = (short.offsets.diff() - 3).view(-1, 4)
    assert torch.equal(short.lengths, short.offsets.diff()) and short.max_length == short.lengths.max()
    assert torch.equal(short.history_lengths, short.lengths - 3)
    assert (kept[:, 0] == 5).all() and (kept[:, 1] == target).all()
    for column, n in ((2, 40), (3, 64)):
        assert set(kept[:, column].tolist()) == {target, n}
        assert (kept[:, column] == n).double().mean().item() == pytest.approx(longest**alpha / n**2, abs=0.06)
    # What is left keeps its order, its group and its visible past.
    rows = (short.x[:, 0] / 2).long()
    assert (rows.diff() > 0).all()
    assert torch.equal(short.group_ids, tokens.group_ids[rows])
    assert torch.equal(short.x[short.candidate_rows], tokens.x[tokens.candidate_rows])
    for b in (2, 3, 7):
        start, stop = short.offsets[b].item(), short.offsets[b + 1].item()
        for q in range(start, stop):
            old = rows[q] - tokens.offsets[b]
            visible = set((tokens.offsets[b] + torch.arange(int(tokens.end[rows[q]]))).tolist())
            expected = [i for i in range(start, stop) if rows[i].item() in visible]
            assert list(range(start + int(short.begin[q]), start + int(short.end[q]))) == expected, old


def test_weighted_and_recent_favour_the_newest() -> None:
    tokens = history([4] * 3000)
    share = {}
    for keep in ("random", "recent", "weighted"):
        short = stochastic_length(tokens, 1.01, 4, keep=keep, generator=torch.Generator().manual_seed(1))
        place = (short.x[:, 0] / 2).long() % 7
        shortened = torch.repeat_interleave(short.offsets.diff() < 7, short.offsets.diff())
        share[keep] = torch.bincount(place[shortened & (short.group_ids == 1)], minlength=5)[1:].double()
        share[keep] /= share[keep].sum()
    assert share["recent"].tolist() == [0, 0, 0.5, 0.5]
    torch.testing.assert_close(share["random"], torch.full((4,), 0.25, dtype=torch.float64), atol=0.02, rtol=0)
    # Two drawn without replacement with weights 1 - age / sum(ages) = 3/6, 4/6, 5/6, 6/6.
    w = [3 / 18, 4 / 18, 5 / 18, 6 / 18]
    expected = [(w[i] + sum(w[j] * w[i] / (1 - w[j]) for j in range(4) if j != i)) / 2 for i in range(4)]
    torch.testing.assert_close(share["weighted"].tolist(), expected, atol=0.02, rtol=0)


def test_interleaved_events_stay_whole() -> None:
    tokens = history([64] * 50)
    short = stochastic_length(tokens, 1.5, 64, event_tokens=2, generator=torch.Generator().manual_seed(2))
    places = (short.x[:, 0] / 2).long() % 67
    events = places[short.group_ids == 1] - 1
    pairs = events.view(-1, 2)
    assert (pairs[:, 0] % 2 == 0).all() and (pairs[:, 1] == pairs[:, 0] + 1).all()


def test_it_is_off_in_evaluation() -> None:
    encoder = Hstu(HstuConfig(dim=2, layers=1, heads=1, qk_dim=2, v_dim=2, stochastic_length=1.5, max_history=64))
    tokens = history([64])
    assert encoder.eval().shorten(tokens) is tokens
    torch.manual_seed(0)
    assert len(encoder.train().shorten(tokens).x) < len(tokens.x)
