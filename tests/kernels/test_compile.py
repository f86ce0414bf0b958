"""Every kernel compiles for every GPU generation without spilling a register: what a CI without a GPU can know of speed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {
    *("forward_kernel", "backward_q_kernel", "backward_kv_kernel", "norm_forward_kernel", "norm_backward_kernel"),
    *("summary_kernel", "units_kernel", "span_summary_kernel"),
    *("move_rows_kernel", "rowwise_kernel", "merge_kernel"),
    *("rows_kernel", "vectors_kernel", "vectors_backward_kernel", "arrange_kernel", "assemble_kernel", "pack_kernel"),
    *("losses_kernel", "shared_forward_kernel", "shared_backward_kernel"),
    *("begin_kernel", "clear_kernel", "enter_kernel", "count_kernel", "plan_kernel", "select_kernel", "release_kernel"),
    *("free_rows_kernel", "give_kernel", "look_up_kernel", "reset_kernel"),
    *("autodis_kernel", "autodis_backward_kernel", "autodis_parameters_kernel"),
    *("span_forward_kernel", "span_backward_q_kernel", "span_backward_kv_kernel"),
}
HOPPER = {
    *("gluon_forward_kernel", "narrow_query_kernel", "wide_query_kernel", "narrow_key_kernel", "wide_key_kernel"),
    *("query_walks_kernel", "key_walks_kernel", "places_kernel"),
    *("gluon_span_forward_kernel", "gluon_span_query_kernel", "gluon_span_key_kernel"),
    *("span_query_walks_kernel", "span_key_walks_kernel"),
}


@pytest.mark.slow
def test_kernels_compile_without_spills() -> None:
    """In a process of its own: this one has the interpreter in the compiler's place. Of each kernel the configuration that
    `--deterministic` takes, and on sm_90 of dK and dV all that may be chosen, and all Gluon kernels."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.kernels_compile", "--quick", "--workers", "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for arch in (80, 90, 100):
        assert {line.split()[0] for line in lines if f"sm_{arch} " in line} == KERNELS | (
            HOPPER if arch == 90 else set()
        )
