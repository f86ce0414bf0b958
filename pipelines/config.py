"""The configuration of `genrank build`. Its flags, their help and `--config` come from these fields (`genrank.schemas.configuration`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from genrank.pipelines.days import moment
from genrank.schemas import UserError
from genrank.schemas.configuration import AT_LEAST_0, AT_LEAST_1, Configuration, Day, Flag, SchemaField


@dataclass(frozen=True)
class BuildConfig(Configuration):
    """One build of published days."""

    schema: SchemaField
    """The feature schema."""
    data: Annotated[Path | str, Flag(metavar="DIR")]
    """Root folder of the sources, or a URI that Spark reads (`s3a://bucket/logs`)."""
    out: Annotated[Path, Flag(metavar="DIR")]
    """Root folder of what is built."""
    first: Annotated[Day, Flag(name="--from", metavar="DAY")]
    """First day, YYYY-MM-DD."""
    last: Annotated[Day, Flag(name="--to", metavar="DAY")]
    """Last day, included."""
    engine: Literal["auto", "spark", "local"] = "local"
    """local: in this process. auto: spark for more than 20 million exposures where Java 17 is found, under spark-submit, and for what it alone
    reads; else local."""
    as_of: Annotated[str | None, Flag(metavar="TIME")] = None
    """Labels as known at this moment (ISO 8601). Default: the end of the newest day any source has."""
    buckets: Annotated[int | None, AT_LEAST_1] = None
    """Buckets of users that a day is built and written by, at most: each has 50,000 exposures or more, if there are more than 4. Default: one for
    200,000 exposures, or a million events of histories; larger ones for days beyond 100 million."""
    force: bool = False
    """Build again even what is up to date."""
    wait: bool = True
    """Where another build is writing to the same output folder, wait for it to end instead of failing."""
    allow_missing: bool = False
    """Build although a day of a label's log is missing: labels that reach into it get weight 0."""
    allow_drift: bool = False
    """Publish days although they lie beyond the schema's stop limits of drift; they are reported."""
    recompute_users: Annotated[int, AT_LEAST_0] = 20
    """Users of each day whose samples the gate works out again from the raw logs; 0 for none."""
    days_per_job: Annotated[int, AT_LEAST_1] = 10
    """Days built together at most; the disk that a build needs between two steps grows with it."""

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.last < self.first:
            raise UserError(f"--from {self.first} lies after --to {self.last}; swap them")
        if self.as_of is not None:
            moment(self.as_of)
        return self
