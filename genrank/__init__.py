"""Generative ranking, from exposure log to score.

    from genrank import Categorical, Schema, TrainConfig, load_model, train

The packages (`genrank.schemas`, `genrank.model`, ...) are folders at the top of the repository, linked here so that they have one import
name. What this module offers is imported when it is first used: `import genrank` loads neither pydantic nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from genrank.model.config import EvaluateConfig, TrainConfig
    from genrank.model.evaluate import evaluate, load_model
    from genrank.model.trainer import train
    from genrank.pipelines.build import build
    from genrank.pipelines.config import BuildConfig
    from genrank.schemas import (
        Arithmetic,
        AutoDis,
        Candidates,
        Categorical,
        ChangePoints,
        CrossFeature,
        Dense,
        DriftLimits,
        Dynamic,
        Enumerated,
        EventLog,
        Events,
        EventSequence,
        Feature,
        FixedBuckets,
        Hashed,
        HashedCross,
        Identity,
        Label,
        Limits,
        Log1p,
        MultiValued,
        Normal,
        Numeric,
        Operation,
        QuantileBuckets,
        RequestSize,
        Schema,
        SchemaError,
        Snapshot,
        SparseOptimizer,
        Sql,
        Table,
        TimeGap,
        TimePart,
        TokenGroup,
        Training,
        Transform,
        Uniform,
        UserError,
        UserGroup,
        Vector,
        Vocabulary,
        WithinRequest,
        Zeros,
        from_json,
        from_yaml,
        load_schema,
        register_feature_kind,
        register_operation,
        register_transform,
        register_vocabulary,
        to_json,
        to_yaml,
    )

__all__ = [
    "Arithmetic",
    "AutoDis",
    "BuildConfig",
    "Candidates",
    "Categorical",
    "ChangePoints",
    "CrossFeature",
    "Dense",
    "DriftLimits",
    "Dynamic",
    "Enumerated",
    "EvaluateConfig",
    "EventLog",
    "EventSequence",
    "Events",
    "Feature",
    "FixedBuckets",
    "Hashed",
    "HashedCross",
    "Identity",
    "Label",
    "Limits",
    "Log1p",
    "MultiValued",
    "Normal",
    "Numeric",
    "Operation",
    "QuantileBuckets",
    "RequestSize",
    "Schema",
    "SchemaError",
    "Snapshot",
    "SparseOptimizer",
    "Sql",
    "Table",
    "TimeGap",
    "TimePart",
    "TokenGroup",
    "TrainConfig",
    "Training",
    "Transform",
    "Uniform",
    "UserError",
    "UserGroup",
    "Vector",
    "Vocabulary",
    "WithinRequest",
    "Zeros",
    "__version__",
    "build",
    "evaluate",
    "from_json",
    "from_yaml",
    "load_model",
    "load_schema",
    "register_feature_kind",
    "register_operation",
    "register_transform",
    "register_vocabulary",
    "to_json",
    "to_yaml",
    "train",
]

_HOMES = {
    "BuildConfig": "genrank.pipelines.config",
    "EvaluateConfig": "genrank.model.config",
    "TrainConfig": "genrank.model.config",
    "build": "genrank.pipelines.build",
    "evaluate": "genrank.model.evaluate",
    "load_model": "genrank.model.evaluate",
    "train": "genrank.model.trainer",
}
"""Modules of the names that aren't the schema package's."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(_HOMES.get(name, "genrank.schemas")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
