"""Whether a day's inputs have landed: what a scheduler asks before it starts the day's build."""

from __future__ import annotations

import posixpath

from pyarrow import fs

from genrank.pipelines.sources import uri_of
from genrank.schemas.errors import UserError
from genrank.schemas.schema import Schema


def missing_inputs(schema: Schema, data: str, dt: str, marker: str | None = None) -> list[str]:
    """What the day still lacks: one line for each source whose day hasn't landed; empty when all have.

    A source's day has landed when its path is a file, or a folder that holds a Parquet file and no writer at work
    (`_temporary`), and, with `marker` (`"_SUCCESS"` for Hadoop's committers), the marker too. Sources read through a catalog table
    aren't looked at: their table formats commit a day at once.

    Args:
        data: the data root that the sources' paths are relative to; a folder, or a URI (`s3a://bucket/logs`; read through Arrow, with
            the credentials of the environment).
        dt: the day, `YYYY-MM-DD`.

    Raises:
        UserError: the data root can't be read.
    """
    _, root = _open(data)
    lacks = []
    for source in schema.sources:
        if source.path is None:
            continue
        uri = uri_of(source, data)
        files, day = (
            _at(uri.format(dt=dt), f"source {source.name!r}")
            if uri
            else (fs.LocalFileSystem(), posixpath.join(root, source.path.format(dt=dt)))
        )
        if files.get_file_info(day).type == fs.FileType.File:
            continue
        entries = files.get_file_info(fs.FileSelector(day, allow_not_found=True, recursive=True))
        names = {posixpath.basename(entry.path) for entry in entries}
        if not names:
            lacks.append(f"{source.name}: {day} is not there yet")
        elif "_temporary" in names:
            lacks.append(f"{source.name}: {day} is being written (it holds _temporary)")
        elif not any(name.endswith(".parquet") for name in names):
            lacks.append(f"{source.name}: {day} holds no Parquet file yet")
        elif marker and marker not in names:
            lacks.append(f"{source.name}: {day} has no {marker} yet")
    return lacks


def _open(data: str) -> tuple[fs.FileSystem, str]:
    """The data root's file system and path."""
    files, root = _at(data, "--data")
    try:
        found = files.get_file_info(root)
    except OSError as error:
        raise UserError(f"--data {data}: {error}") from error
    if found.type != fs.FileType.Directory:
        raise UserError(f"--data {data}: there is no such folder")
    return files, root


def _at(where: str, whose: str) -> tuple[fs.FileSystem, str]:
    """File system and path of a folder or URI. Hadoop's `s3a` is Arrow's `s3`."""
    try:
        return (
            fs.FileSystem.from_uri(where.replace("s3a://", "s3://", 1))
            if "://" in where
            else (fs.LocalFileSystem(), where)
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{whose} {where}: {error}") from error
