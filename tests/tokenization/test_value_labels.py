"""Value labels given a binary one, and their logarithms, as batches hold them."""

from __future__ import annotations

import math

import torch

from genrank.model.losses import loss_sums, predictions
from genrank.schemas import Label
from genrank.tokenization.value_labels import learned

LABELS = (
    Label(name="click", column="clicked"),
    Label(name="read", kind="value", column="read_s", given="click", value_transform="log1p"),
    Label(name="paid", kind="value", column="paid"),
)


def test_a_conditional_value_has_weight_where_its_condition_is_positive() -> None:
    stored = {
        "click": torch.tensor([1.0, 0.0, 1.0, 1.0]),
        "click_weight": torch.tensor([1.0, 1.0, 1.0, 0.0]),
        "read": torch.tensor([9.0, 0.0, -3.0, 5.0]),
        "read_weight": torch.tensor([1.0, 1.0, 1.0, 0.0]),
        "paid": torch.tensor([4.0, 0.0, 1.0, 0.0]),
        "paid_weight": torch.ones(4),
    }
    found = learned(stored, LABELS)
    assert found["read_weight"].tolist() == [1.0, 0.0, 1.0, 0.0]
    torch.testing.assert_close(found["read"], torch.tensor([math.log(10), 0.0, -math.log(4), math.log(6)]))
    assert all(torch.equal(found[name], stored[name]) for name in stored if not name.startswith("read"))
    logits = {"click": torch.zeros(4), "read": torch.full((4,), math.log(10)), "paid": torch.zeros(4)}
    weights = {name: found[f"{name}_weight"] for name in logits}
    losses = loss_sums(logits, found, weights, LABELS)
    torch.testing.assert_close(losses["read"], torch.tensor(0.5 * (math.log(10) + math.log(4)) ** 2))
    torch.testing.assert_close(losses["paid"], torch.tensor(0.5 * 17))
    torch.testing.assert_close(predictions(logits, LABELS)["read"], logits["read"])
