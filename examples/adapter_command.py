"""The command line that the examples' adapters share: `--data` of the published files, `--out` of the sources, a line an error."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from genrank.schemas.errors import UserError


def adapter_parser(example: str, description: str, data: str) -> argparse.ArgumentParser:
    """The flags of `python -m examples.<example>.adapter`.

    Args:
        data: what the folder of `--data` holds.
    """
    parser = argparse.ArgumentParser(prog=f"python -m examples.{example}.adapter", description=description)
    parser.add_argument("--data", type=Path, required=True, help=data)
    parser.add_argument("--out", type=Path, required=True, help="new folder for the converted sources")
    return parser


def run_adapter(
    parser: argparse.ArgumentParser,
    arguments: list[str] | None,
    convert: Callable[[argparse.Namespace], Iterable[str]],
) -> int:
    """Convert, and print what was written; the exit status.

    Args:
        arguments: of the command; None: the process's own.
        convert: returns the lines to print.
    """
    options = parser.parse_args(arguments)
    try:
        lines = list(convert(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0
