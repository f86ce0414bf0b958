"""The declarative feature schema: one declaration that the whole house reads. Pure Python, pydantic and pyarrow."""

from genrank.schemas.errors import SchemaError, UserError
from genrank.schemas.feature import (
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
from genrank.schemas.group import Candidates, Changes, Events, Sequence, UserGroup
from genrank.schemas.label import Label, Training
from genrank.schemas.load import load_schema
from genrank.schemas.schema import Schema
from genrank.schemas.source import EventLog, Snapshot
from genrank.schemas.table import Normal, SparseOptimizer, Table, Uniform, Zeros
from genrank.schemas.text import from_json, from_yaml, to_json, to_yaml
from genrank.schemas.vocabulary import Dynamic, Enumerated, Hashed, Identity

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
