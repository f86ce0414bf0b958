"""Evaluations of cross features' operations, one a module, by the names that `schemas/operations` declares.

An operation from outside is two classes and two registrations:

    @register_operation
    class Span(Operation): name = "span"; ...          # arguments, result, words: genrank.schemas.operations
    @register_evaluation
    class SpanEvaluation(Evaluation): name = "span"; ...   # computation
"""

from __future__ import annotations

from genrank.pipelines.cross_feature_ops.base import Evaluation, Question
from genrank.pipelines.cross_feature_ops.count import CountEvaluation
from genrank.pipelines.cross_feature_ops.decayed_count import DecayedCountEvaluation
from genrank.pipelines.cross_feature_ops.decayed_sum import DecayedSumEvaluation
from genrank.pipelines.cross_feature_ops.distinct import DistinctEvaluation
from genrank.pipelines.cross_feature_ops.last import LastEvaluation
from genrank.pipelines.cross_feature_ops.max import MaxEvaluation
from genrank.pipelines.cross_feature_ops.mean import MeanEvaluation
from genrank.pipelines.cross_feature_ops.min import MinEvaluation
from genrank.pipelines.cross_feature_ops.rate import RateEvaluation
from genrank.pipelines.cross_feature_ops.recency import RecencyEvaluation
from genrank.pipelines.cross_feature_ops.std import StdEvaluation
from genrank.pipelines.cross_feature_ops.sum import SumEvaluation
from genrank.schemas import CrossFeature, UserError

_EVALUATIONS: dict[str, Evaluation] = {}


def register_evaluation(evaluation: type[Evaluation]) -> type[Evaluation]:
    """Make an operation's computation known by the operation's name; a decorator.

    Raises:
        ValueError: another class has the name.
    """
    known = _EVALUATIONS.get(evaluation.name)
    if known and (type(known).__module__, type(known).__qualname__) != (evaluation.__module__, evaluation.__qualname__):
        raise ValueError(
            f"{evaluation.name!r} is evaluated by {type(known).__name__}; give {evaluation.__name__} another name"
        )
    _EVALUATIONS[evaluation.name] = evaluation()
    return evaluation


def evaluation_of(feature: CrossFeature) -> Evaluation:
    """How a cross feature is computed.

    Raises:
        UserError: nobody registered the computation of its operation.
    """
    if feature.op not in _EVALUATIONS:
        raise UserError(
            f"{feature.name}: op {feature.op!r} is declared and not computed; register_evaluation has no class of that name"
        )
    return _EVALUATIONS[feature.op]


for _evaluation in (
    CountEvaluation,
    RateEvaluation,
    SumEvaluation,
    MeanEvaluation,
    MaxEvaluation,
    MinEvaluation,
    StdEvaluation,
    DecayedCountEvaluation,
    DecayedSumEvaluation,
    LastEvaluation,
    RecencyEvaluation,
    DistinctEvaluation,
):
    register_evaluation(_evaluation)

__all__ = ["Evaluation", "Question", "evaluation_of", "register_evaluation"]
