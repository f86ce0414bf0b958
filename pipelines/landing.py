"""Whether a day's inputs have landed: what a scheduler asks before it starts the day's build."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import NamedTuple

from pyarrow import fs

from genrank.pipelines.sources import uri_of
from genrank.schemas import EventLog, Schema, Snapshot, UserError, source_files


def missing_inputs(schema: Schema, data: str, dt: str, marker: str | None = None) -> list[str]:
    """What the day still lacks: one line for each source whose day hasn't landed; empty when all have.

    A source's day has landed when its path is a file, or a folder that holds a data file (`schemas.source_files`), no writer at work
    (`_temporary`) and nothing that a build would refuse as unread, and, with `marker` (`"_SUCCESS"` for Hadoop's committers), the marker too. Sources read through a catalog table
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
        if not uri:
            day = posixpath.join(root, source.path.format(dt=dt))
            beside = source_files.beside_days(source, Path(root), schema.sources)
            lacks += [f"{source.name}: {one} is not read; {source_files.remedy(source)}" for one in beside[:1]]
            if not Path(day).is_file():
                lacks += _lacks(source, day, _local_day(source, Path(day)), marker)
        else:
            files, day = _at(uri.format(dt=dt), f"source {source.name!r}")
            if files.get_file_info(day).type != fs.FileType.File:
                lacks += _lacks(source, day, _remote_day(source, files, day), marker)
    return lacks


class _Day(NamedTuple):
    """What lies in a day's folder."""

    names: set[str]
    data: int
    """Files that are read."""
    unread: list[source_files.Unread]


def _lacks(source: EventLog | Snapshot, day: str, found: _Day, marker: str | None) -> list[str]:
    """One line if the day hasn't landed."""
    if not found.names:
        return [f"{source.name}: {day} is not there yet"]
    if "_temporary" in found.names and source_files.kind_of("_temporary", source.ignore) != "ignored":
        return [f"{source.name}: {day} is being written (it holds _temporary)"]
    if not found.data:
        other = f" (only {found.unread[0]})" if found.unread else ""
        return [f"{source.name}: {day} holds no Parquet file yet{other}"]
    if found.unread:
        return [f"{source.name}: {found.unread[0]} is not read; {source_files.remedy(source)}"]
    if marker and marker not in found.names:
        return [f"{source.name}: {day} has no {marker} yet"]
    return []


def _local_day(source: EventLog | Snapshot, day: Path) -> _Day:
    if not day.exists():
        return _Day(set(), 0, [])
    data, unread = source_files.day_files(source, day)
    return _Day({path.name for path in day.rglob("*")}, len(data), list(unread))


def _remote_day(source: EventLog | Snapshot, files: fs.FileSystem, day: str) -> _Day:
    entries = files.get_file_info(fs.FileSelector(day, allow_not_found=True, recursive=True))
    held = [(e, source_files.kind_of(posixpath.relpath(e.path, day), source.ignore)) for e in entries if e.is_file]
    unread = [source_files.Unread(e.path, kind) for e, kind in held if kind not in ("data", "ignored") and e.size]
    data = sum(kind == "data" for _, kind in held)
    return _Day({posixpath.basename(entry.path) for entry in entries}, data, unread)


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
