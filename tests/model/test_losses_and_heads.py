"""Losses and heads against probabilities multiplied out in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from genrank.model.heads import HeadConfig, Heads, JointHeads
from genrank.model.losses import in_order, loss_sums, predictions, sampled_softmax, total_loss, weight_sums
from genrank.schemas import Label, UserError

CLICK = Label(name="click", column="c")
CART = Label(name="cart", column="a", given="click")
BUY = Label(name="buy", column="b", given="cart", weight=2.0, positive_weight=3.0)
SPENT = Label(name="spent", column="s", kind="value", weight=0.5)


def draw(n: int = 50):
    g = torch.Generator().manual_seed(0)
    logits = {t: torch.randn(n, generator=g, dtype=torch.float64) for t in ("click", "cart", "buy", "spent")}
    y = {t: (torch.rand(n, generator=g) < 0.4).double() for t in ("click", "cart", "buy")}
    y["spent"] = torch.randn(n, generator=g, dtype=torch.float64)
    w = {t: (torch.rand(n, generator=g) < 0.7).double() * 2 for t in logits}
    return logits, y, w


def test_loss_equals_probabilities_multiplied_out() -> None:
    logits, y, w = draw()
    labels = [BUY, SPENT, CLICK, CART]  # any order of declaration
    y["buy"][w["buy"] == 0] = float("nan")  # what is not mature is not read
    sums = loss_sums(logits, y, w, labels)
    p = logits["click"].sigmoid()
    pq = p * logits["cart"].sigmoid()
    pqr = pq * logits["buy"].sigmoid()
    for task, probability, positive in (("click", p, 1.0), ("cart", pq, 1.0), ("buy", pqr, 3.0)):
        each = -(positive * y[task] * probability.log() + (1 - y[task]) * (1 - probability).log())
        assert sums[task].item() == pytest.approx((w[task] * each)[w[task] > 0].sum().item(), rel=1e-5)
    assert sums["spent"].item() == pytest.approx(
        (w["spent"] * (logits["spent"] - y["spent"]) ** 2 / 2).sum().item(), rel=1e-5
    )
    counts = weight_sums(w, labels)
    expected = sum(label.weight * sums[label.name] / w[label.name].sum() for label in labels)
    assert total_loss(sums, counts, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradients_of_all_sets_are_those_of_probabilities_multiplied_out_in_float64() -> None:
    """Two sets of logits over one set of labels: the second's loss is learned from and not counted."""
    labels = [SPENT, BUY, CLICK, CART, Label(name="seen", column="v", given="click", positive_weight=0.5)]
    logits, y, w = draw()
    g = torch.Generator().manual_seed(3)
    logits["seen"], y["seen"], w["seen"] = (torch.rand(50, generator=g, dtype=torch.float64).round() for _ in range(3))
    for task in y:
        y[task][w[task] == 0] = float("nan")
    sets = [{task: (3 * k * x).requires_grad_() for task, x in logits.items()} for k in (1.0, -0.7)]
    parts = {label.name: i + 1.0 for i, label in enumerate(labels)}
    sums = loss_sums(sets[0], y, w, labels, sets[1:])
    sum(parts[task] * each for task, each in sums.items()).backward()
    got = [{task: x.grad.clone() for task, x in each.items()} for each in sets]
    values = []
    for each in sets:
        p = {task: x.detach().clone().requires_grad_() for task, x in each.items()}
        chance = {"click": p["click"].sigmoid()}
        chance |= {task: chance["click"] * p[task].sigmoid() for task in ("cart", "seen")}
        chance["buy"] = chance["cart"] * p["buy"].sigmoid()
        of_task = {"spent": (p["spent"] - y["spent"].nan_to_num()) ** 2 / 2}
        for label in labels:
            if label.kind == "binary":
                q, target = chance[label.name], y[label.name].nan_to_num()
                of_task[label.name] = -(label.positive_weight * target * q.log() + (1 - target) * torch.log1p(-q))
        total = {task: (w[task] * x).sum() for task, x in of_task.items()}
        values.append(total)
        sum(parts[task] * x for task, x in total.items()).backward()
        for task, x in p.items():
            torch.testing.assert_close(got[len(values) - 1][task], x.grad, rtol=2e-5, atol=2e-5)
    assert list(sums) == [label.name for label in labels]
    for task, x in sums.items():
        assert x.item() == pytest.approx(values[0][task].item(), rel=1e-5)


def test_a_task_without_mature_labels_adds_nothing_and_no_nan() -> None:
    logits, y, w = draw()
    logits["click"].requires_grad_()
    w["click"].zero_()
    loss = total_loss(loss_sums(logits, y, w, [CLICK]), weight_sums(w, [CLICK]), [CLICK])
    loss.backward()
    assert loss.item() == 0 and logits["click"].grad.abs().sum() == 0


def test_extreme_logits_stay_finite() -> None:
    logits = {
        "click": torch.tensor([-200.0, 200.0]).requires_grad_(),
        "cart": torch.tensor([-200.0, 200.0]).requires_grad_(),
    }
    y = {t: torch.tensor([1.0, 0.0]) for t in logits}
    w = {t: torch.ones(2) for t in logits}
    sum(loss_sums(logits, y, w, [CLICK, CART]).values()).backward()
    assert all(torch.isfinite(v.grad).all() for v in logits.values())


def test_downsampled_negatives_are_corrected_where_they_were_dropped() -> None:
    p, keep = 0.2, 0.1
    shown = p / (p + (1 - p) * keep)  # what a calibrated model says on the samples that were kept
    logits = {"click": torch.tensor([math.log(shown / (1 - shown))]), "cart": torch.tensor([0.0])}
    got = predictions(logits, [CLICK, CART], keep)
    assert got["click"].item() == pytest.approx(p, rel=1e-5)
    assert got["cart"].item() == pytest.approx(p / 2, rel=1e-5)


def test_conditions_that_do_not_hold_are_refused() -> None:
    assert [label.name for label in in_order([BUY, CART, CLICK])] == ["click", "cart", "buy"]
    with pytest.raises(UserError, match="circle"):
        in_order([Label(name="a", column="a", given="b"), Label(name="b", column="b", given="a")])
    with pytest.raises(UserError, match="must name a binary label"):
        in_order([Label(name="a", column="a", given="nobody")])


def test_sampled_softmax_equals_full_softmax_when_every_item_is_a_negative() -> None:
    g = torch.Generator().manual_seed(1)
    items = F.normalize(torch.randn(7, 4, generator=g), dim=-1)
    queries = torch.randn(5, 4, generator=g)
    target = torch.tensor([0, 3, 3, 6, 1])
    got = sampled_softmax(
        queries, items[target], items, positive_ids=target, negative_ids=torch.arange(7), temperature=0.1
    )
    expected = F.cross_entropy(F.normalize(queries, dim=-1) @ items.T / 0.1, target, reduction="sum")
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_log_q_makes_the_sampled_normaliser_unbiased() -> None:
    """exp(logit) / q, averaged over the sampling, is the sum over the catalogue."""
    g = torch.Generator().manual_seed(2)
    items = F.normalize(torch.randn(6, 3, generator=g), dim=-1)
    query, q = torch.randn(1, 3, generator=g), torch.tensor([0.4, 0.3, 0.1, 0.1, 0.05, 0.05])
    drawn = torch.multinomial(q, 200_000, replacement=True, generator=g)
    log_count = (q[drawn] * len(drawn)).log()
    got = sampled_softmax(
        query,
        items[:1],
        items[drawn],
        positive_ids=torch.tensor([0]),
        negative_ids=drawn,
        negative_log_q=log_count,
        temperature=0.5,
    )
    expected = F.cross_entropy(F.normalize(query, dim=-1) @ items.T / 0.5, torch.tensor([0]))
    assert got.item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize("hidden", [(), (4,), (5, 3)])
def test_towers_computed_together_are_each_task_s_own(hidden: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    heads, x = Heads(6, ["a", "b", "c"], HeadConfig(hidden=hidden)), torch.randn(8, 6, requires_grad=True)
    got, own = heads(x), {task: tower(x).squeeze(-1) for task, tower in heads.towers.items()}
    assert list(got) == list(own)
    inputs = [x, *heads.parameters()]
    found, wanted = (
        torch.autograd.grad(sum((k + 1) * each.square().sum() for k, each in enumerate(logits.values())), inputs)
        for logits in (got, own)
    )
    torch.testing.assert_close((got, found), (own, wanted))
    assert len(heads(x[:0])["a"]) == 0


@pytest.mark.parametrize("config", [HeadConfig(hidden=()), HeadConfig(hidden=(5, 3)), HeadConfig("mmoe", (4,), 3, 5)])
def test_heads_of_one_product_a_layer_are_each_their_own(config: HeadConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where kernels run; parameters stay each heads' own."""
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    torch.manual_seed(0)
    heads = [Heads(6, ["a", "b", "c"], config), Heads(4, ["a", "b", "c"], config)]
    joint, x = JointHeads(heads), torch.randn(8, 6, requires_grad=True)
    leaves = [x, *(each for own in heads for each in own.parameters())]
    found, wanted = [], []
    for results, logits in (
        (found, joint([x, x[:, :4]])),
        (wanted, [heads[0](x), heads[1](x[:, :4])]),
    ):
        total = sum((k + 1) * each.square().sum() for k, own in enumerate(logits) for each in own.values())
        results += [*(each for own in logits for each in own.values()), *torch.autograd.grad(total, leaves)]
        assert [list(own) for own in logits] == [["a", "b", "c"]] * 2
    torch.testing.assert_close(found, wanted)
    assert not joint.state_dict() and not list(joint.parameters())


def test_mmoe_is_its_gated_sum() -> None:
    torch.manual_seed(0)
    heads = Heads(6, ["a", "b"], HeadConfig(kind="mmoe", experts=3, expert_dim=5, hidden=(4,)))
    x = torch.randn(8, 6)
    got = heads(x)
    for task in ("a", "b"):
        gate = heads.gates[task](x).softmax(-1)
        mixed = sum(gate[:, i : i + 1] * heads.experts[i](x) for i in range(3))
        torch.testing.assert_close(got[task], heads.towers[task](mixed).squeeze(-1))
    assert set(Heads(6, ["a", "b"])(x)) == {"a", "b"}


def test_logits_are_float32_under_autocast() -> None:
    """In bfloat16 candidates would tie, which no ranking metric forgives."""
    heads, x = Heads(8, ("click",)), torch.randn(4000, 8)
    with torch.autocast("cpu", torch.bfloat16):
        logits = heads(x)["click"]
        from_half = heads(x.bfloat16())["click"]
    assert torch.equal(logits, heads(x)["click"])
    # What a model's last layer gives under autocast is bfloat16.
    assert from_half.dtype == torch.float32 and torch.equal(from_half, heads(x.bfloat16().float())["click"])
    assert logits.to(torch.bfloat16).unique().numel() < logits.unique().numel()
