"""What one run knows: where it runs, until when, and its rows, each written as soon as it is known."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RESTART = 75
"""Exit status of a section whose CUDA context an error has broken: started again, it goes on with the next row."""


@dataclass
class Session:
    device: str
    deadline: float
    """Of `time.monotonic()`, which all processes of a machine share."""
    rows_file: Path
    rehearse: bool = False
    only: str = ""

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def rows(self) -> list[dict[str, Any]]:
        """The last that is known of each row, in the order in which they were begun."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        if self.rows_file.exists():
            for line in self.rows_file.read_text().splitlines():
                row = json.loads(line)
                found[row["section"], row["name"]] = row
        return list(found.values())

    def write(self, row: dict[str, Any]) -> None:
        with self.rows_file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def attempt(self, section: str, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """One row. A failure is a row too, and past the deadline what is left out is named."""
        if self.only and self.only not in f"{section} {name}":
            return
        if any((row["section"], row["name"]) == (section, name) for row in self.rows()):
            return
        key = {"section": section, "name": name}
        if self.left() <= 0:
            self.write({**key, "left_out": "the time was spent"})
            return
        self.write({**key, "error": "did not finish"})
        start = time.monotonic()
        try:
            row = measure()
        except Exception as error:
            traceback.print_exc()
            row = {"error": described(error)}
        row["seconds_spent"] = round(time.monotonic() - start, 1)
        self.write({**key, **row})
        print(json.dumps({**key, **row}), flush=True)
        if "error" in row and self.device == "cuda":
            self.leave_if_broken()

    def leave_if_broken(self) -> None:
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except Exception:
            # Not sys.exit: what runs at a normal exit would touch the broken context.
            os._exit(RESTART)

    def time_ms(self, run: Callable[[], object]) -> float:
        """Median milliseconds of `run`, after warming up (and, the first time, tuning)."""
        run()
        if self.rehearse:
            return 1.0
        import triton.testing

        return float(triton.testing.do_bench(run, warmup=20, rep=80, return_mode="median"))


def described(error: BaseException) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return f"{type(error).__name__}: {first}"[:300]


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """An environment variable for the time of a block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
