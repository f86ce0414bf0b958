"""AdamW over dense parameters: matrices decay, vectors don't, and each parameter is in one group."""

from __future__ import annotations

import torch
from torch import nn

from genrank.model.optimizer import adamw


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    optimizer = adamw(model, lr=0.1, weight_decay=0.5)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay) == len(list(model.parameters()))
    assert all(decay[id(p)] == (0.5 if p.dim() > 1 else 0.0) for p in model.parameters())


def test_a_step_without_a_gradient_shrinks_matrices_alone() -> None:
    """Decoupled weight decay (Loshchilov & Hutter, ICLR 2019, algorithm 2): p <- p - lr * decay * p where the moments are 0."""
    model = nn.Linear(3, 4)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    adamw(model, lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(model.weight.detach(), before[0] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(model.bias.detach(), before[1])


def test_a_model_of_vectors_alone_has_one_group() -> None:
    assert len(adamw(nn.LayerNorm(4), lr=0.1, weight_decay=0.5).param_groups) == 1
