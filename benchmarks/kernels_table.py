"""The table of `benchmarks.kernels_compile`: its rows, where they are kept, and how they are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "kernels_compile.jsonl"
PAGE = Path(__file__).parent / "kernels_compile.md"
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that one block may use (CUDA C++ programming guide, compute capabilities 8.0, 9.0, 10.0)."""


@dataclass
class Row:
    digest: str
    kernel: str
    case: str
    dtype: str
    arch: int
    config: str
    registers: int
    stack_bytes: int
    """Spilled registers: memory that each thread would keep in its stack."""
    shared_bytes: int
    tensor_core: str
    seconds: float
    triton: str = "3.9.0"
    """Which compiled it; rows without it are older than the field."""

    @property
    def fails(self) -> bool:
        return self.stack_bytes > 0 or self.shared_bytes > SHARED_LIMIT[self.arch]

    def line(self) -> str:
        return (
            f"{'FAILS ' if self.fails else ''}{self.kernel:20} {self.case:26} {self.dtype} sm_{self.arch:<3} {self.config:48} "
            f"registers {self.registers:3} spilled {self.stack_bytes:4} shared {self.shared_bytes:6}  {self.tensor_core}"
        )


def known_rows() -> dict[str, Row]:
    """What earlier runs compiled, by digest. A last line that was cut off in writing is dropped."""
    rows = {}
    for line in RESULT.read_text().splitlines() if RESULT.exists() else ():
        try:
            row = Row(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue
        rows[row.digest] = row
    return rows


Group = tuple[str, str, str, int]
"""Kernel, case, dtype and generation: a line of the page."""


def group_of(row: Row) -> Group:
    """The line that a row is of."""
    return row.kernel, row.case, row.dtype, row.arch


def keep(rows: Sequence[Row]) -> None:
    """Write the rows in place of what was kept."""
    RESULT.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))


def page(rows: Sequence[Row], stale: Sequence[Row], left: int, triton_version: str) -> str:
    """The table, one line for each kernel, case, dtype and generation; a range where its configurations differ.

    Args:
        rows: of the kernels and the Triton that there are.
        stale: of others, where a line has none of today's.
        left: how many have not been compiled.
    """
    groups: dict[Group, list[Row]] = {}
    for row in (*rows, *stale):
        groups.setdefault(group_of(row), []).append(row)
    old = {group_of(row) for row in stale}
    failing = [row for row in rows if row.fails]
    lines = [
        "# Every kernel, compiled",
        "",
        "Written by `python -m benchmarks.kernels_compile`; each configuration is a line of",
        "`results/kernels_compile.jsonl`. Registers are per thread (255 at most), shared memory in KiB per block (at most "
        "163 on sm_80, 227 on sm_90 and sm_100).",
        "",
        f"Triton {triton_version}, of the kernels as they are: {len(rows)} kernels in {len(groups) - len(old)} rows, {len(failing)} of "
        f"them spill registers or ask for more shared memory than there is; {left} have not been compiled yet.",
        *(
            [
                f"Until they are, {len(old)} rows show what an older Triton made of an older source of the kernel: the column says which. "
                "They say what to expect, and prove nothing."
            ]
            if old
            else []
        ),
        "",
        "| kernel | case | dtype | GPU | Triton | configurations | registers | shared KiB | spilled bytes | tensor cores |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]

    def span(values: list[float]) -> str:
        low, high = min(values), max(values)
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"

    for (kernel, case, dtype, arch), members in groups.items():
        units = sorted({op.split()[0] for row in members for op in row.tensor_core.split(", ")})
        shared = span([round(row.shared_bytes / 1024) for row in members])
        version = (
            ", ".join(sorted({row.triton for row in members})) if (kernel, case, dtype, arch) in old else triton_version
        )
        cells = [
            kernel,
            case,
            dtype,
            f"sm_{arch}",
            version + " (stale)" * ((kernel, case, dtype, arch) in old),
            str(len(members)),
        ]
        cells += [
            span([row.registers for row in members]),
            shared,
            span([row.stack_bytes for row in members]),
            ", ".join(units),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
