"""Files: reading what may be damaged, and writing that survives a power cut."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from genrank.schemas.errors import UserError


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
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
            raise UserError(
                f"{at}{path} can't be read (permission denied); give this user the permission to read it"
            ) from error
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{at}{path} can't be read as Parquet ({why}); {remedy}") from error


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """The old text or the new one, whatever happens in between, a power cut included; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        move(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
