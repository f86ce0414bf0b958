"""Whether a day's inputs have landed: what a scheduler asks before it starts the day's build."""

from __future__ import annotations

import posixpath

from pyarrow import fs

from schemas.errors import UserError
from schemas.schema import Schema


def missing_inputs(schema: Schema, data: str, dt: str, marker: str | None = None) -> list[str]:
    """What the day still lacks: one line for each source whose day hasn't landed; empty when all have.

    A source's day has landed when its path is a file, or a folder that holds a Parquet file and no writer at work
    (`_temporary`), and, with `marker` (`"_SUCCESS"` for Hadoop's committers), the marker too. Sources read through a catalog table
    aren't looked at: their table formats commit a day at once.

    Args:
        data: the data root that the sources' paths are relative to; a folder, or a URI Arrow knows (`s3://bucket/logs`).
        dt: the day, `YYYY-MM-DD`.

    Raises:
        UserError: the data root can't be read.
    """
    try:
        files, root = fs.FileSystem.from_uri(data) if "://" in data else (fs.LocalFileSystem(), data)
        found = files.get_file_info(root)
    except (OSError, ValueError) as error:
        raise UserError(f"--data {data}: {error}") from error
    if found.type != fs.FileType.Directory:
        raise UserError(f"--data {data}: there is no such folder")

    lacks = []
    for source in schema.sources:
        if source.path is None:
            continue
        day = posixpath.join(root, source.path.format(dt=dt))
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
