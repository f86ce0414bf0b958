"""What a compacted folder says of itself, and which uses the schema built last has."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from genrank.pipelines.documents import Document
from genrank.schemas.checked_json import checked

FOLDER = "blocks"
RECORD = "block.json"
USES = "uses.json"


class Compacted(BaseModel):
    """A tile, or a history: a file for each bucket of users, as those of `partials`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    use: str
    first: str
    last: str
    """Days it stands for, both included."""
    covers: dict[str, str]
    """Day -> key of the partial it was made from; days without one aren't named."""
    files: dict[int, str]
    """Bucket -> file name."""
    sha256: dict[int, str] = {}
    """Bucket -> digest of its file; none in those of earlier releases."""
    buckets: int | None = None
    """It was written with so many; None in those of earlier releases, which have as many as their output folder was begun with."""
    rows: int

    @classmethod
    def read(cls, folder: Path) -> Compacted | None:
        """The record of a committed folder; None where it is missing or damaged."""
        try:
            return cls.model_validate(checked((folder / RECORD).read_bytes()))
        except (OSError, ValueError):
            return None


class KnownUse(BaseModel):
    """A use of the schema built last."""

    source: str
    snapshots: bool
    """Whether it is the entry of a history (of which the newest two are kept), or else tiles."""


class Uses(Document[dict[str, KnownUse]]):
    """Name -> use; what is compacted for others is left over."""
