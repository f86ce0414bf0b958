"""How the command ends: results on stdout, or one line on stderr and an exit status."""

from __future__ import annotations

import sys
from typing import NoReturn

from genrank.schemas.console import stdout


def say(text: str) -> None:
    """A line of rich markup on stdout."""
    stdout().print(text)


def fail(message: str, status: int = 1) -> NoReturn:
    """`error: message` on stderr, and exit."""
    sys.stdout.flush()
    sys.stderr.write(f"error: {message}\n")
    sys.exit(status)
