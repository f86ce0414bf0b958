"""The declarative feature schema: one declaration that the whole house reads. Pure Python, pydantic and pyarrow."""

from schemas.errors import SchemaError, UserError
from schemas.feature import (
    AutoDis,
    Categorical,
    Crossed,
    CrossFeature,
    Dense,
    Feature,
    FixedBuckets,
    Log,
    MultiValued,
    Numeric,
    QuantileBuckets,
    Sql,
    TimeGap,
    TimePart,
)
from schemas.group import Candidates, Changes, Events, Sequence, UserGroup
from schemas.label import Label, Training
from schemas.load import load_schema
from schemas.schema import Schema
from schemas.source import EventLog, Snapshot
from schemas.table import Normal, SparseOptimizer, Table, Uniform, Zeros
from schemas.text import from_json, from_yaml, to_json, to_yaml
from schemas.vocabulary import Dynamic, Enumerated, Hashed, Identity

__all__ = [
    "AutoDis",
    "Candidates",
    "Categorical",
    "Changes",
    "CrossFeature",
    "Crossed",
    "Dense",
    "Dynamic",
    "Enumerated",
    "EventLog",
    "Events",
    "Feature",
    "FixedBuckets",
    "Hashed",
    "Identity",
    "Label",
    "Log",
    "MultiValued",
    "Normal",
    "Numeric",
    "QuantileBuckets",
    "Schema",
    "SchemaError",
    "Sequence",
    "Snapshot",
    "SparseOptimizer",
    "Sql",
    "Table",
    "TimeGap",
    "TimePart",
    "Training",
    "Uniform",
    "UserError",
    "UserGroup",
    "Zeros",
    "from_json",
    "from_yaml",
    "load_schema",
    "to_json",
    "to_yaml",
]
