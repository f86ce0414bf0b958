"""The one rule of what a data file is, and what else lies under a source's path: `build`, `inputs` and `schema check` all ask here.

A file below a day is data if its name ends in `.parquet`, `.parq` or `.pq` (in any case) and neither it nor a folder on the way to it is hidden
(begins with `.` or `_`, as temporary and unfinished files do). Folders inside a day, linked ones too, are read. Markers and
checksums of writers (`_SUCCESS`, `_metadata`, `*.crc`, ...), empty files, and what the source's `ignore` matches are passed over. All
the rest is unread: it is named, and a build doesn't start.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple
from urllib.parse import unquote

from genrank.schemas.errors import UserError
from genrank.schemas.source import EventLog, Snapshot

SUFFIXES = (".parquet", ".parq", ".pq")
MARKERS = (
    "_SUCCESS",
    "_metadata",
    "_common_metadata",
    "_started_*",
    "_committed_*",
    "_landed",
    "*.crc",
    ".DS_Store",
    ".gitkeep",
    ".keep",
)
"""Names that writers and file systems leave beside data; they never hold rows."""
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""What Hive and Spark call the folder of rows whose partition column is null."""
DAY = r"\d{4}-\d\d-\d\d"


class Unread(NamedTuple):
    """A file or folder that holds bytes and isn't read."""

    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.path} ({self.why})"


class DayFiles(NamedTuple):
    """What lies in a day of a source."""

    data: tuple[Path, ...]
    """Files that are read, in order."""
    unread: tuple[Unread, ...]


def remedy(source: EventLog | Snapshot) -> str:
    """What to do about unread files."""
    return f"let its writer end, move or rename it, or list a pattern of it in ignore=(...) of source {source.name!r}"


def kind_of(inside: str, ignore: Iterable[str] = ()) -> Literal["data", "ignored"] | str:
    """`data`, `ignored`, or why a file isn't read.

    Args:
        inside: the file's path below the folder of its day, with `/`.
        ignore: patterns of the source: each matches the path, or the name of the file or of a folder on the way.
    """
    parts = PurePosixPath(inside).parts
    for pattern in (*MARKERS, *ignore):
        if fnmatchcase(inside, pattern) or any(fnmatchcase(part, pattern) for part in parts):
            return "ignored"
    if hidden := next((part for part in parts if part.startswith((".", "_"))), None):
        return f"{hidden} is hidden, as unfinished files are"
    if not parts[-1].lower().endswith(SUFFIXES):
        return f"its name ends in none of {', '.join(SUFFIXES)}"
    return "data"


def day_files(source: EventLog | Snapshot, day: Path) -> DayFiles:
    """The files of a day, whether it is a folder or one file."""
    if day.is_file():
        return DayFiles((day,), ())
    data, unread = [], []
    for path in _walk(day):
        kind = kind_of(path.relative_to(day).as_posix(), source.ignore)
        if kind == "ignored":
            continue
        if not path.exists():
            unread.append(Unread(str(path), "a link to nothing"))
        elif kind == "data":
            data.append(path)
        elif path.stat().st_size > 0:
            unread.append(Unread(str(path), kind))
    return DayFiles(tuple(sorted(data)), tuple(sorted(unread)))


def beside_days(source: EventLog | Snapshot, root: Path, others: Iterable[EventLog | Snapshot] = ()) -> list[Unread]:
    """What lies where a source's days lie and is none of them: null partitions, days written another way, loose files.

    Args:
        others: sources whose days lie in the same folder.
    """
    parent, name, rest = _template(source, root)
    if not parent.is_dir():
        return []
    prefix, _, suffix = name.partition("{dt}")
    elsewhere = [
        _template(other, root) for other in others if other.path and "://" not in other.path and other != source
    ]
    theirs = [re.compile(_day_pattern(name)) for folder, name, _ in elsewhere if folder == parent]
    ways = {folder.relative_to(parent).parts[0] for folder, *_ in elsewhere if parent in folder.parents}
    unread = []
    for child in sorted(parent.iterdir()):
        if re.fullmatch(_day_pattern(name), child.name) or child.name in ways:
            continue
        # At the data root, other things may lie that have nothing to do with the source.
        if any(pattern.fullmatch(child.name) for pattern in theirs) or (
            parent == root and not (prefix and child.name.startswith(prefix))
        ):
            continue
        if holds := _first_bytes(source, child, child.joinpath(*rest) if child.is_dir() else child):
            null = NULL_PARTITION in child.name
            why = "rows whose day is null" if null else f"not of the form {prefix}YYYY-MM-DD{suffix}"
            unread.append(Unread(holds, why))
    return unread


def path_values(path: Path | str) -> dict[str, str | None]:
    """Hive partition columns that a path names: `.../etype=click/part.parquet` is {"etype": "click"}; null where it says so."""
    pairs = [part.split("=", 1) for part in Path(path).parent.parts if "=" in part]
    return {unquote(name): None if value == NULL_PARTITION else unquote(value) for name, value in pairs}


def days_present(source: EventLog | Snapshot, root: Path) -> dict[str, Path]:
    """Day (YYYY-MM-DD) -> folder or file, of every day that lies under the data root, ascending.

    Raises:
        UserError: the folder that should hold the days doesn't exist.
    """
    parent, name, rest = _template(source, root)
    if not parent.is_dir():
        raise UserError(
            f"source {source.name!r}: there is no folder {parent}; check --data and the source's path {source.path!r}"
        )
    found = {}
    for child in parent.iterdir():
        if (match := re.fullmatch(_day_pattern(name), child.name)) and (path := child.joinpath(*rest)).exists():
            found[match[1]] = path
    return dict(sorted(found.items()))


def _template(source: EventLog | Snapshot, root: Path) -> tuple[Path, str, tuple[str, ...]]:
    """(folder of the days, name of a day in it, what follows below a day)."""
    parts = Path(source.path or "").parts
    at = next(i for i, part in enumerate(parts) if "{dt}" in part)
    return root.joinpath(*parts[:at]), parts[at], parts[at + 1 :]


def _day_pattern(name: str) -> str:
    return re.escape(name).replace(r"\{dt\}", f"({DAY})", 1).replace(r"\{dt\}", DAY)


def _first_bytes(source: EventLog | Snapshot, child: Path, path: Path) -> str | None:
    """The first file with bytes, which the source doesn't ignore, of what isn't a day."""
    if path.is_symlink() and not path.exists():
        return str(path)
    for file in [path] if path.is_file() else _walk(path):
        inside = file.relative_to(child.parent).as_posix()
        if kind_of(inside, source.ignore) != "ignored" and (not file.exists() or file.stat().st_size > 0):
            return str(file)
    return None


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, through linked folders too; a folder that links to one above it is not entered again.

    Raises:
        UserError: a folder can't be read.
    """

    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename} can't be read ({error.strerror}); give this user the permission to read it")

    seen = {os.path.realpath(folder)}
    for at, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        for name in list(folders):
            real = os.path.realpath(os.path.join(at, name))
            if real in seen:
                folders.remove(name)
            seen.add(real)
        yield from (Path(at, name) for name in names)
