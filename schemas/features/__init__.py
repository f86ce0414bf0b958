"""What a token is made of. A feature is a value (where it comes from) and an encoding (how it becomes a vector); one kind a module.

A column is written `"item_id"` (a column of the row itself: the exposure, the event) or `"items.category"` (a column of a
snapshot, joined by its key as of the start of the row's own day: of an exposure's day, of a history event's day).

Stored or derived: the sample keeps raw values, so vocabularies, buckets, pooling and dims change without a rebuild. Time
parts, time gaps, crossed ids, and numbers computed from a candidate's others or those of its request, are derived from what is stored
and take no space.
"""

from genrank.schemas.features.arithmetic import Arithmetic
from genrank.schemas.features.base import ColumnFeature, Feature, Scope
from genrank.schemas.features.categorical import Categorical
from genrank.schemas.features.cross_feature import CrossFeature
from genrank.schemas.features.embedded import EmbeddedFeature, TableLookup
from genrank.schemas.features.hashed_cross import HashedCross
from genrank.schemas.features.multi_valued import MultiValued
from genrank.schemas.features.numeric import Numeric
from genrank.schemas.features.read_time import ReadTimeNumber
from genrank.schemas.features.sql import Sql
from genrank.schemas.features.time_gap import TimeGap
from genrank.schemas.features.time_part import TimePart
from genrank.schemas.features.vector import Vector
from genrank.schemas.features.within_request import RequestSize, WithinRequest

for _member in (
    Categorical,
    MultiValued,
    Numeric,
    Vector,
    TimePart,
    TimeGap,
    HashedCross,
    CrossFeature,
    Sql,
    Arithmetic,
    RequestSize,
    WithinRequest,
):
    Feature.register(_member)

__all__ = [
    "Arithmetic",
    "Categorical",
    "ColumnFeature",
    "CrossFeature",
    "EmbeddedFeature",
    "Feature",
    "HashedCross",
    "MultiValued",
    "Numeric",
    "ReadTimeNumber",
    "RequestSize",
    "Scope",
    "Sql",
    "TableLookup",
    "TimeGap",
    "TimePart",
    "Vector",
    "WithinRequest",
]
