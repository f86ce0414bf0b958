"""What the quality gate costs of a build in process: processor time of each of its steps beside the whole.

    python -m benchmarks.gate --rows 1_000_000

The day of `benchmarks.build`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.build import LAST, schema, write_logs


def main() -> None:
    """Print one line of JSON: seconds and processor seconds by step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_logs(Path(folder) / "data", options.rows, hot=0)
        print(json.dumps(measure(Path(folder), options.users) | {"rows": options.rows, "users": options.users}))


def measure(root: Path, users: int) -> dict[str, Any]:
    """Build the day once."""
    from genrank.pipelines.build import BuildConfig, build
    from genrank.pipelines.days import dt_of
    from genrank.pipelines.gate.expectations import Suite
    from genrank.pipelines.gate.judge import Gate

    took: dict[str, list[float]] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begun, cpu = time.monotonic(), time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                took[name] = [round(time.monotonic() - begun, 2), round(time.process_time() - cpu, 2)]

        return run

    Gate.judge = timed("judge", Gate.judge)  # type: ignore[method-assign]
    Gate._staged = timed("read back and recompute", Gate._staged)  # type: ignore[method-assign]
    Gate._recompute = timed("recompute", Gate._recompute)  # type: ignore[method-assign]
    Gate._drift = timed("drift", Gate._drift)  # type: ignore[method-assign]
    Suite.judge = timed("suite", Suite.judge)  # type: ignore[method-assign]
    config = BuildConfig(schema(), root / "data", root / "out", dt_of(LAST), dt_of(LAST), recompute_users=users)
    timed("build", build)(config)
    return {name: {"seconds": wall, "cpu_s": cpu} for name, (wall, cpu) in took.items()}


if __name__ == "__main__":
    main()
