"""One process at a time in an output folder: a build of samples, a training."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from genrank.schemas.console import logger
from genrank.schemas.errors import UserError

LOCK = ".lock"


@contextmanager
def locked(out: Path, what: str = "build", *, wait: bool = False) -> Iterator[None]:
    """The only process at work in an output folder, which is made; with `wait`, when its turn has come.

    It is the kernel's lock on the open file, not the file, that counts, so nothing can be left behind: the kernel (or, on a shared
    file system, its server, once the host's lease ends) releases it when the process ends, however it ends. Processes that this
    one started don't inherit it, and what the file says is for people.

    Args:
        what: it is: a build or a training.

    Raises:
        UserError: another one holds it, the folder can't be made, or its file system has no locks.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: can't make the folder ({error.strerror}); choose another") from None
    with open(out / LOCK, "a+") as lock:
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = f"--out {out}: another {what} is writing here (process {lock.read() or '?'})"
                if not wait:
                    raise UserError(f"{holder}; wait for it to end") from None
                logger.info("%s; waiting for it to end", holder)
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"--out {out}: its file system can't lock a file ({error.strerror}), so one {what} could not be kept from another;"
                " choose a folder on another, or mount it with locks"
            ) from error
        if not _is(lock, out / LOCK):
            raise UserError(f"--out {out}: another {what} was just refused here; give the command again")
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {socket.gethostname()}")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def _is(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one of this name: whoever held it may have removed the folder since."""
    return path.is_file() and os.path.samestat(os.fstat(file.fileno()), path.stat())
