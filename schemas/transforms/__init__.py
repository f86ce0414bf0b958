"""How a number becomes an input of its token, one transform a module.

| kind | input |
|---|---|
| `Dense` | (x - shift) * scale |
| `Log1p` | sign(x) * log(1 + abs(x)) |
| `FixedBuckets` | the row of x's bucket, boundaries declared |
| `QuantileBuckets` | the row of x's bucket, boundaries fitted |
| `AutoDis` | rows mixed by a softmax, all learned |
"""

from genrank.schemas.transforms.autodis import AutoDis
from genrank.schemas.transforms.base import Transform
from genrank.schemas.transforms.dense import Dense
from genrank.schemas.transforms.fixed_buckets import FixedBuckets
from genrank.schemas.transforms.log1p import Log1p
from genrank.schemas.transforms.quantile_buckets import QuantileBuckets

__all__ = ["AutoDis", "Dense", "FixedBuckets", "Log1p", "QuantileBuckets", "Transform"]

for _member in (Dense, Log1p, FixedBuckets, QuantileBuckets, AutoDis):
    Transform.register(_member)
