"""A day is published whole or not at all: files first, the manifest last, by one rename."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from genrank.schemas import UserError
from genrank.schemas.console import logger
from genrank.schemas.files import move, write_atomically
from genrank.schemas.manifest import MANIFEST, REPLACED, SampleManifest


@contextmanager
def locked(out: Path, wait: bool = False) -> Iterator[None]:
    """The only build of this output folder; with `wait`, when its turn has come.

    It is the kernel's lock on the open file, not the file, that counts, so nothing can be left behind: the kernel (or, on a shared
    file system, its server, once the host's lease ends) releases it when the process ends, however it ends. Processes that this
    one started don't inherit it, and what the file says is for people.

    Raises:
        UserError: another build holds it, the folder can't be made, or its file system has no locks.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: can't make the folder ({error.strerror}); choose another") from None
    with open(out / ".lock", "a+") as lock:
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = f"--out {out}: another build is writing here (process {lock.read() or '?'})"
                if not wait:
                    raise UserError(f"{holder}; wait for it to end") from None
                logger.info("%s; waiting for it to end", holder)
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"--out {out}: its file system can't lock a file ({error.strerror}), so two builds could not be kept apart;"
                " choose a folder on another, or mount it with locks"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {socket.gethostname()}")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def publish(samples_root: Path, manifest: SampleManifest, staged: Path) -> None:
    """Move a build's folder (files named as the manifest has them) into its day, let the manifest point to it, and the build before out.

    Killed in between, the day holds two builds, of which the manifest names one; `settle` of the next build moves the other out.
    """
    day = samples_root / f"dt={manifest.dt}"
    final = day / f"build={manifest.build_id}"
    day.mkdir(parents=True, exist_ok=True)
    staged.mkdir(parents=True, exist_ok=True)
    move(staged, final)
    write_atomically(day / MANIFEST, manifest.model_dump_json(indent=1, by_alias=True))
    _move_out(day, final.name)


def settle(samples_root: Path) -> None:
    """Have each day's folder hold the build that its manifest names alone, and no half-written manifest: what a killed build left."""
    for day in samples_root.glob("dt=*"):
        for half in day.glob(f".{MANIFEST}.*"):
            half.unlink(missing_ok=True)
        if len(list(day.glob("build=*"))) > 1:
            with suppress(
                UserError
            ):  # Without a manifest that can be read, which of them counts isn't known: the day is built again.
                _move_out(day, f"build={SampleManifest.read(day).build_id}")


def _move_out(day: Path, current: str) -> None:
    """Replaced builds leave the folder that people read by a glob. The last one stays beside for those who read the manifest before."""
    beside = day.parent.parent / REPLACED / day.name
    replaced = [build for build in day.glob("build=*") if build.name != current]
    if replaced:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True, exist_ok=True)
    for build in replaced:
        os.rename(build, beside / build.name)
