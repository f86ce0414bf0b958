"""Files: where a source's days lie, and writing that survives a power cut."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from genrank.schemas.errors import UserError
from genrank.schemas.source import EventLog, Snapshot


def days_present(source: EventLog | Snapshot, root: Path) -> dict[str, Path]:
    """Day (YYYY-MM-DD) -> folder or file, of every day that lies under the data root, ascending.

    Raises:
        UserError: the folder that should hold the days doesn't exist.
    """
    parts = Path(source.path or "").parts
    at = next(i for i, part in enumerate(parts) if "{dt}" in part)
    parent = root.joinpath(*parts[:at])
    if not parent.is_dir():
        raise UserError(
            f"source {source.name!r}: there is no folder {parent}; check --data and the source's path {source.path!r}"
        )
    pattern = re.compile(re.escape(parts[at]).replace(r"\{dt\}", r"(\d{4}-\d\d-\d\d)"))
    found = {}
    for child in parent.iterdir():
        if (match := pattern.fullmatch(child.name)) and (path := child.joinpath(*parts[at + 1 :])).exists():
            found[match[1]] = path
    return dict(sorted(found.items()))


def files_of(day: Path) -> list[Path]:
    """Parquet files of a day, whether it is a folder or one file; hidden ones and those of writers at work left out."""
    if day.is_file():
        return [day]
    return sorted(
        path
        for path in day.rglob("*.parquet")
        if not any(part.startswith(("_", ".")) for part in path.relative_to(day).parts)
    )


@contextmanager
def reading(path: Path | str, remedy: str = "build the day again with --force", *, at: str = "") -> Iterator[None]:
    """A file that Parquet can't read is bad input, not a bug.

    Args:
        at: what the message begins with, such as the source.

    Raises:
        UserError: it is missing, or damaged.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{at}{path} can't be read as Parquet ({why}); {remedy}") from error


def write_atomically(path: Path, text: str) -> None:
    """The old text or the new one, whatever happens in between, a power cut included; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    move(temporary, path)


def move(staged: Path, final: Path) -> None:
    """Rename, once what is staged is on the disk: a file, or a folder whose files already are.

    A file system may keep a rename and lose what was written before it; readers would find an empty file under its final name.
    """
    sync(staged)
    os.replace(staged, final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Have a file's content, or a folder's entries, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
