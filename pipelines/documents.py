"""Small JSON documents beside the partials, one model each; one that is missing or damaged is made again.

| file | model | holds |
|---|---|---|
| `partials/layout.json` | `Layout` | the number of buckets that an earlier release began an output folder with |
| `partials/census.json` | `Census` | which days each partition holds rows of |
| `partials/footers.json` | `Footers` | what the footers of input files say |
| `partials/<source>/dt=<day>/<key>/partial.json` | `partials.Partial` | a daily partial |
| `blocks/uses.json` | `compaction.records.Uses` | what past days are compacted for |
| `blocks/<use>/dt=<day>/<key>/block.json` | `compaction.records.Compacted` | a tile or snapshot |
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from pydantic import RootModel

from genrank.schemas.checked_json import checked, with_checksum
from genrank.schemas.files import write_atomically

Content = TypeVar("Content")


class Document(RootModel[Content]):
    """A JSON file with one value."""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None where it is missing or damaged."""
        try:
            content = checked(path.read_bytes())
            return cls.model_validate(content["content"] if _is_wrapped(content) else content)
        except (FileNotFoundError, ValueError):
            return None

    def write(self, path: Path) -> None:
        """Replace the file, whole or not at all."""
        write_atomically(path, with_checksum(f'{{"content":{self.model_dump_json()}}}', indent=None))


def _is_wrapped(content: object) -> bool:
    """Whether a document is of this release: those of earlier ones are their content alone."""
    return isinstance(content, dict) and content.keys() == {"content"}


class Layout(Document[int]):
    """The number of buckets; only earlier releases wrote it."""


class Census(Document[dict[str, dict[int, int]]]):
    """Hash of a partition and of how its days are distinguished -> day -> rows."""


class Footer(NamedTuple):
    """What the footer of an input file says."""

    bytes: int
    mtime_ns: int
    declared: str
    """Hash of the declaration that its columns were checked against."""
    rows: int
    row_groups: tuple[int, ...]
    first: int | None
    """Bounds of event time in epoch ms, where the footer has them."""
    last: int | None
    absent: tuple[str, ...] = ()
    """Declared columns that nothing gives."""


class Footers(Document[dict[str, Footer]]):
    """Path -> its footer."""
