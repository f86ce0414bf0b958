"""From logits to probabilities to one number to minimise.

Conditional tasks follow ESMM (Ma et al., SIGIR 2018, arXiv:1804.07931): p(purchase) = p(click) * p(purchase | click), trained
over every exposure, so that the conditional head never sees a biased subset. In logs throughout: products of small
probabilities lose no digit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from genrank.kernels import losses
from genrank.model.sampled_scores import sampled_scores

if TYPE_CHECKING:
    from genrank.schemas.label import Label


@dataclass(frozen=True)
class LogProbability:
    """log p and log(1 - p), each [C] float32."""

    yes: Tensor
    no: Tensor

    @property
    def probability(self) -> Tensor:
        """p, [C] float32."""
        return self.yes.exp()

    @staticmethod
    def of(logit: Tensor) -> LogProbability:
        """sigmoid of a logit."""
        return LogProbability(F.logsigmoid(logit), F.logsigmoid(-logit))

    def given(self, condition: LogProbability) -> LogProbability:
        """The joint probability of `condition` and of this, which is conditional on it: 1 - ab = (1 - a) + a(1 - b)."""
        return LogProbability(condition.yes + self.yes, torch.logaddexp(condition.no, condition.yes + self.no))


def in_order(labels: Sequence[Label]) -> list[Label]:
    """Labels so that each comes after the one it is `given`.

    Raises:
        UserError: a condition that is no label, is not binary, or is circular.
    """
    by_name = {label.name: label for label in labels}
    ordered: list[Label] = []
    for label in labels:
        chain: list[Label] = []
        step: Label | None = label
        while step is not None and step not in ordered:
            if step in chain:
                raise _wrong(f"label {label.name}: its conditions go in a circle; drop one `given`")
            chain.append(step)
            if step.given is None:
                break
            if step.given not in by_name or by_name[step.given].kind != "binary":
                raise _wrong(f"label {step.name}: given={step.given!r} must name a binary label of the schema")
            step = by_name[step.given]
        ordered += reversed(chain)
    return ordered


def _wrong(message: str) -> Exception:
    from genrank.schemas.errors import UserError  # Not above: `schemas` needs pydantic and pyarrow, a loss doesn't.

    return UserError(message)


def probabilities(
    logits: Mapping[str, Tensor], labels: Sequence[Label], keep_rate: float = 1.0
) -> dict[str, LogProbability]:
    """Per binary task, the probability over all exposures.

    Args:
        logits: per task [C]; of a conditional task, the logit of p(task | given).
        labels: the schema's.
        keep_rate: share of negatives that were kept without reweighting them: a model trained on them predicts odds that are
            1 / keep_rate too high, and log(keep_rate) is added to the logit (He et al., ADKDD 2014, section 6.3). Exposures
            with any positive label are all kept, so conditional tasks need no correction. 1 while training.
    """
    result: dict[str, LogProbability] = {}
    for label in in_order(labels):
        if label.kind != "binary":
            continue
        own = LogProbability.of(logits[label.name].float() + (math.log(keep_rate) if label.given is None else 0.0))
        result[label.name] = own if label.given is None else own.given(result[label.given])
    return result


def predictions(logits: Mapping[str, Tensor], labels: Sequence[Label], keep_rate: float = 1.0) -> dict[str, Tensor]:
    """What a user asks for, per task [C] float32: the probability of a binary label; of another the expected value, transformed as it is learned, and
    of a conditional one where its condition is positive."""
    result = {name: p.probability for name, p in probabilities(logits, labels, keep_rate).items()}
    return result | {label.name: logits[label.name].float() for label in labels if label.kind == "value"}


def loss_sums(
    logits: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    labels: Sequence[Label],
    auxiliary: Sequence[Mapping[str, Tensor]] = (),
) -> dict[str, Tensor]:
    """Per task, the sum over candidates of weight * loss: cross entropy (binary) or half the squared error (value).

    `positive_weight` multiplies the loss of positives. Divide by `weight_sums` of all ranks (not of this one) for the mean.

    Args:
        logits, targets, weights: per task [C] (raw logits, labels, the samples' weights: 0 where a label is not mature).
        auxiliary: further logits of the same tasks, whose losses add their gradients and nothing to the values.
    """
    ordered = in_order(labels)
    binary = [label for label in ordered if label.kind == "binary"]
    names = [label.name for label in (*binary, *(label for label in ordered if label.kind == "value"))]
    rows = [
        losses.TaskRow(names.index(label.given) if label.given else None, label.positive_weight) for label in binary
    ]
    sets = [[each[name] for name in names] for each in (logits, *auxiliary)]
    y, w = ([values[name] for name in names] for values in (targets, weights))
    own = dict(zip(names, losses.loss_sums(sets, y, w, rows).unbind(), strict=True))
    return {label.name: own[label.name] for label in labels}


def weight_sums(weights: Mapping[str, Tensor], labels: Sequence[Label]) -> Tensor:
    """Sum of weights per task, float64 [tasks] in the labels' order: what ranks add up to normalise by the global count."""
    return torch.stack([weights[label.name] for label in labels]).sum(1, dtype=torch.float64)


class Weighted(Protocol):
    """One of the losses that are added up: a label, or a task's objective."""

    @property
    def name(self) -> str:
        """Of the loss."""

    @property
    def weight(self) -> float:
        """In the sum."""


def total_loss(sums: Mapping[str, Tensor], normalisers: Tensor, labels: Sequence[Weighted]) -> Tensor:
    """sum over tasks of label.weight * (loss sum / normaliser); a task without a single mature label adds nothing."""
    scale = F.threshold(normalisers, 0.0, math.inf).reciprocal()
    parts = torch.stack([sums[each.name] if each.weight == 1 else each.weight * sums[each.name] for each in labels])
    return parts.dot(scale.to(parts.dtype))


# ---------------------------------------------------------------------- retrieval


def sampled_softmax(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    positive_ids: Tensor,
    negative_ids: Tensor,
    negative_log_q: Tensor | None = None,
    chosen: Tensor | None = None,
    temperature: float = 0.05,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum over queries of -log softmax(positive | positive and negatives); cosine similarity / temperature.

    With `negative_log_q` each negative's logit is lowered by the log of its expected count in the sample, so that in-batch
    negatives, which are popular items, are not pushed down for being popular (Yi et al., RecSys 2019). A negative that is
    the query's own positive is masked.

    Args:
        queries, positives: [Q, d]; negatives: [N, d].
        positive_ids: [Q] int64; negative_ids: [N] int64.
        negative_log_q: [N] log of how often each negative is expected among a query's.
        chosen: [Q, R] int64: which negatives each query is compared with; None: all of them.
        weights: [Q].
    """
    queries, positives, negatives = (F.normalize(v.float(), dim=-1) for v in (queries, positives, negatives))
    own = (queries * positives).sum(-1, keepdim=True) / temperature
    if chosen is None:
        other, ids, log_q = queries @ negatives.T, negative_ids[None, :], negative_log_q
    else:
        other, flat = sampled_scores(queries, negatives, chosen), chosen.flatten()
        ids = negative_ids.index_select(0, flat).view_as(chosen)
        log_q = None if negative_log_q is None else negative_log_q.index_select(0, flat).view_as(chosen)
    other = other / temperature
    if log_q is not None:
        other = other - log_q.float()
    other = other.masked_fill(positive_ids[:, None] == ids, float("-inf"))
    each = torch.logsumexp(torch.cat([own, other], 1), 1) - own.squeeze(1)
    return (each if weights is None else each * weights).sum()
