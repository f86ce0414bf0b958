"""What a built day holds: the manifest the builder writes last and readers trust alone.

`samples/dt=<day>/` holds one build, `build=<id>/*.parquet`, and `manifest.json`, which names its files; while a day is being published
again, and after a kill just then, a second build that the manifest doesn't name. The build that was replaced last lies in
`replaced/dt=<day>/` for readers that began with it. A folder without a manifest is not a day.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genrank.schemas.checked_json import checked, with_checksum
from genrank.schemas.derive.sample_schema import SCHEMA_KEY
from genrank.schemas.errors import UserError
from genrank.schemas.files import file_sha256, reading
from genrank.schemas.present.serialization import from_json
from genrank.schemas.pydantic_errors import readable
from genrank.schemas.review.diff import require_samples
from genrank.schemas.schema import Schema

MANIFEST = "manifest.json"
REPLACED = "replaced"
"""Folder, beside that of the samples, of builds that newer ones replaced."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class InputFile(_Record):
    """A file that was read."""

    path: str
    bytes: int
    mtime_ns: int


class Input(_Record):
    """One partition of a source, as it was when it was read."""

    source: str
    dt: str
    files: tuple[InputFile, ...]
    hash: str


class DataFile(_Record):
    """A Parquet file of samples; `path` is relative to the day's folder."""

    path: str
    rows: int
    bytes: int
    sha256: str


class Counts(_Record):
    """in = out + duplicates + quarantined, source by source."""

    rows_in: dict[str, int] = Field(alias="in")
    out: dict[str, int]
    duplicates: dict[str, int]
    quarantined: dict[str, dict[str, int]]
    exposures_down_sampled: int = 0


class SampleManifest(_Record):
    """One published day of samples."""

    schema_name: str = Field(alias="schema")
    fingerprint: str
    samples_fingerprint: str = ""
    build_id: str
    dt: str
    engine: str
    as_of: str
    """Labels are as they were known at this moment (ISO 8601, UTC)."""
    files: tuple[DataFile, ...]
    samples: int
    candidates: int
    inputs: tuple[Input, ...]
    counts: Counts
    partials: dict[str, dict[str, str]] = {}
    """Source -> day -> key of the daily partial the samples were made from."""
    created: str

    @classmethod
    def read(cls, day: Path) -> SampleManifest:
        """The manifest of a day's folder.

        Raises:
            UserError: there is none, or it can't be read.
        """
        path = Path(day) / MANIFEST
        try:
            manifest = cls.model_validate(checked(path.read_bytes()))
        except FileNotFoundError:
            raise UserError(f"{day} holds no published samples (no {MANIFEST}); build the day first") from None
        except ValueError as error:
            why = "; ".join(readable(error)[:2]) if isinstance(error, ValidationError) else error
            raise UserError(f"{path} is not a manifest this version reads ({why}); build the day again") from error
        if f"dt={manifest.dt}" != Path(day).name:
            raise UserError(f"{path} is the manifest of {manifest.dt}; build the day again")
        return manifest

    def text(self) -> str:
        """The manifest as its file holds it."""
        return with_checksum(self.model_dump_json(by_alias=True))

    def check(self, day: Path, schema: Schema) -> None:
        """Whether the samples in `day` serve the schema: every column it stores is among theirs and means the same.

        Raises:
            UserError: they don't; with what changed.
        """
        if self.fingerprint != schema.fingerprint and self.files:
            require_samples(built_schema(day / self.files[0].path), schema, f"samples of {self.dt}")


def built_schema(file: Path) -> Schema:
    """The schema a sample file was built with, from its footer.

    Raises:
        UserError: the file can't be read, or holds no schema that this version understands.
    """
    with reading(file):
        metadata = pq.read_schema(file).metadata or {}
    if SCHEMA_KEY not in metadata:
        raise UserError(f"{file} holds no schema, so it is no sample file of genrank; build the day again")
    return from_json(metadata[SCHEMA_KEY], where=f"{file}: the schema in its footer")


def opened(path: Path | str) -> Path:
    """Where a sample file lies that a manifest named: in its day, or, if the day was built again since, among what was replaced."""
    path = Path(path)
    if path.is_file() or len(path.parents) < 4:
        return path
    replaced = path.parents[3] / REPLACED / path.parents[1].name / path.parent.name / path.name
    return replaced if replaced.is_file() else path


def sample_days(samples_root: Path | str) -> list[str]:
    """Published days (YYYY-MM-DD) under a folder of samples, ascending."""
    return sorted(path.parent.name.removeprefix("dt=") for path in Path(samples_root).glob(f"dt=*/{MANIFEST}"))


def sample_files(samples_root: Path | str, dt: str, schema: Schema | None = None) -> list[Path]:
    """Files of a published day, in order; with `schema`, only if they serve it.

    Raises:
        UserError: the day isn't published, a file is missing, or the samples don't serve the schema.
    """
    return [file for file, _ in listed_files(samples_root, dt, schema)]


def listed_files(samples_root: Path | str, dt: str, schema: Schema | None = None) -> list[tuple[Path, DataFile]]:
    """As `sample_files`, each with what the manifest says of it."""
    day = Path(samples_root) / f"dt={dt}"
    manifest = SampleManifest.read(day)
    if schema is not None:
        manifest.check(day, schema)
    files = [(opened(day / file.path), file) for file in manifest.files]
    for file, _ in files:
        if not file.is_file():
            raise UserError(f"{file} is listed in the manifest of {dt} and missing; build the day again")
    return files


def damaged_samples(samples_root: Path | str, dt: str) -> list[str]:
    """Of a published day: which of its files are not as the manifest says, by size and digest.

    Raises:
        UserError: the day isn't published.
    """
    day = Path(samples_root) / f"dt={dt}"
    wrong = ((day / file.path, damage(day / file.path, file)) for file in SampleManifest.read(day).files)
    return [f"{path} {why}" for path, why in wrong if why]


def damage(path: Path, file: DataFile) -> str | None:
    """What is wrong with a file of samples; None where it is as it was written."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != file.bytes:
        return f"has {path.stat().st_size:,} bytes and was written with {file.bytes:,}"
    if file.sha256 and file_sha256(path) != file.sha256:
        return "is damaged: its digest is not the manifest's"
    return None


def build_ids(samples_root: Path | str, dates: Iterable[str]) -> dict[str, str]:
    """Day -> the build that published it.

    Raises:
        UserError: a day isn't published.
    """
    return {dt: SampleManifest.read(Path(samples_root) / f"dt={dt}").build_id for dt in dates}
