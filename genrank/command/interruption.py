"""Ctrl-C and SIGTERM: what is at work cleans up after itself, then one line and the status that shells give: 130 or 143."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Interrupted(BaseException):
    """Raised in the main thread where the signal found it. Not a KeyboardInterrupt: click turns those into `Aborted!` and status 1."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.signal = number

    @property
    def status(self) -> int:
        """The exit status."""
        return 128 + self.signal

    def __str__(self) -> str:
        return f"{_WORDS[self.signal]}; what was unfinished is removed; run the same command again to go on"


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, a first SIGINT or SIGTERM raises `Interrupted`; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Interrupted(signal.Signals(number))

    before = {number: signal.signal(number, interrupt) for number in _WORDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
