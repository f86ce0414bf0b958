"""The declarative feature schema: one declaration that every package reads. Pure Python, pydantic and pyarrow."""

import warnings

from genrank.schemas.drift import DriftLimits, Limits
from genrank.schemas.errors import SchemaError, UserError
from genrank.schemas.features import (
    Arithmetic,
    Categorical,
    CrossFeature,
    Feature,
    HashedCross,
    MultiValued,
    Numeric,
    RequestSize,
    Sql,
    TimeGap,
    TimePart,
    Vector,
    WithinRequest,
)
from genrank.schemas.group import Candidates, ChangePoints, Events, EventSequence, TokenGroup, UserGroup
from genrank.schemas.label import Label, Training
from genrank.schemas.load import load_schema
from genrank.schemas.operations import Operation, register_operation
from genrank.schemas.present.serialization import from_json, from_yaml, to_json, to_yaml
from genrank.schemas.schema import Schema
from genrank.schemas.source import EventLog, Snapshot
from genrank.schemas.table import Normal, SparseOptimizer, Table, Uniform, Zeros
from genrank.schemas.transforms import AutoDis, Dense, FixedBuckets, Log1p, QuantileBuckets, Transform
from genrank.schemas.vocabularies import Dynamic, Enumerated, Hashed, Identity, Vocabulary

register_feature_kind = Feature.register
register_transform = Transform.register
register_vocabulary = Vocabulary.register
"""Make a kind from outside the package known; see `schemas.kind`."""

_RENAMED = {"Changes": "ChangePoints", "Crossed": "HashedCross", "Log": "Log1p", "Sequence": "EventSequence"}
"""Names of release 0.1, importable for one release more, `import *` included."""


__all__ = [
    "Arithmetic",
    "AutoDis",
    "Candidates",
    "Categorical",
    "ChangePoints",
    "CrossFeature",
    "Dense",
    "DriftLimits",
    "Dynamic",
    "Enumerated",
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
    "Training",
    "Transform",
    "Uniform",
    "UserError",
    "UserGroup",
    "Vector",
    "Vocabulary",
    "WithinRequest",
    "Zeros",
    "from_json",
    "from_yaml",
    "load_schema",
    "register_feature_kind",
    "register_operation",
    "register_transform",
    "register_vocabulary",
    "to_json",
    "to_yaml",
    *_RENAMED,
]


def __getattr__(name: str) -> object:
    if name in _RENAMED:
        warnings.warn(
            f"genrank.schemas.{name} is called {_RENAMED[name]} now; the next release drops the old name",
            DeprecationWarning,
            stacklevel=2,
        )
        return globals()[_RENAMED[name]]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
