"""The GPU check's training step, where there is no GPU: it runs to its end, is correct, and needs no library that image lacks."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

import genrank.kernels.attention.op
from benchmarks.gpu import report, step
from benchmarks.gpu.session import Session
from genrank.kernels.launch import recording

from .cases import specialisation

ROOT = Path(__file__).resolve().parents[2]


def test_it_runs_and_equals_its_dense_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    session = Session("cpu", time.monotonic() + 300, tmp_path / "rows", rehearse=True)
    step.step(session)
    rows = {(row["section"], row["name"]): row for row in session.rows()}
    assert not any("error" in row or "left_out" in row for row in rows.values()), rows
    losses = rows["correctness", "a step's losses"]
    assert losses["correct"] and losses["largest_difference"] < 1e-5 and losses["gradients_difference"] < 1e-4
    assert rows["correctness", "a step waits for nothing"]["correct"]
    ours, dense, flex = (rows[kind, "mtgr K=8"]["first_loss"] for kind in ("step", "step dense", "step flex"))
    assert dense == pytest.approx(ours, rel=1e-5), "the peer computes something else"
    assert flex != ours, "it has a softmax"
    assert rows["step", "mtgr K=8 stream"]["first_loss"] == ours, "there is no autocast in a rehearsal"


def test_losses_that_differ_or_do_not_fall_are_wrong() -> None:
    falls, same = torch.tensor([0.7, 0.6, 0.5], dtype=torch.float64), [[torch.ones(3)], [torch.ones(3)]]
    assert step.compared([falls, falls * 1.0001], same)["correct"]
    assert not step.compared([falls, falls * torch.tensor([1, 1.01, 1])], same)["correct"]
    assert not step.compared([falls.flip(0), falls.flip(0)], same)["correct"]
    assert not step.compared([falls * torch.nan, falls], same)["correct"]
    assert not step.compared([falls, falls], [[torch.ones(3)], [torch.tensor([1, 1, 1.01])]])["correct"]


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose scores are a twentieth too small."""
    monkeypatch.setenv("GENRANK_KERNELS", "reference")
    case, true = step.cases(True)[0], genrank.kernels.attention.op.reference_attention
    wanted = step.Step(case, "cpu", half=False).gradients()
    monkeypatch.setattr(genrank.kernels.attention.op, "reference_attention", lambda q, *rest: true(0.95 * q, *rest))
    wrong = step.Step(case, "cpu", half=False).gradients()
    falls = torch.tensor([0.7, 0.6])
    assert step.compared([falls, falls], [wanted, wanted])["correct"]
    assert not step.compared([falls, falls], [wrong, wanted])["correct"]


def test_what_is_timed_was_compiled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that warming missed would compile while the clock of the rented machine runs. 12 of the 64 samples, all else as
    timed; no product is computed."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return x[..., :1].to(torch.bfloat16).expand(*x.shape[:-1], len(weight))

    def stacked(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return x[..., :1].to(torch.bfloat16).expand(*x.shape[:-1], weight.shape[-1])

    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    monkeypatch.setattr(torch, "baddbmm", stacked)
    warmed = {specialisation(launch) for launch, tuned in step.launches("cpu") if tuned}
    wanted = {"pack_kernel", "losses_kernel", *(name for names in list(step.PARTS.values())[:2] for name in names)}
    for case in step.with_streams(step.cases(False)):
        small = dataclasses.replace(case, config=dataclasses.replace(case.config, layers=2), samples=12)
        with recording() as launches:
            step.Step(small, "cpu", half=True).loss().backward()
        assert {launch.kernel.__name__ for launch in launches} == wanted
        assert not [launch.kernel.__name__ for launch in launches if specialisation(launch) not in warmed]


def test_kernels_belong_to_their_part() -> None:
    for name, part in {
        "norm_forward_kernel": "norm and gate",
        "forward_kernel": "attention",
        "backward_kv_kernel": "attention",
        "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT": "matrix products",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64": "matrix products",
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<...FusedAdamMathFunctor...>": "optimizer and clipping",
        "void at::native::vectorized_elementwise_kernel<4, silu_kernel>": "pointwise",
    }.items():
        assert step.part_of(name) == part, name


def test_it_needs_torch_and_triton_only() -> None:
    """What the GPU image lacks, and whatever of that the schemas and the command need."""
    missing = (
        "pydantic",
        "pyarrow",
        "rich",
        "tqdm",
        "typer",
        "yaml",
        "pandas",
        "polars",
        "sqlglot",
        "torchrec",
        "fbgemm_gpu",
    )
    code = (
        "import sys\n"
        f"for name in {missing!r}: sys.modules[name] = None\n"
        "import benchmarks.gpu.__main__\n"
        "assert 'schemas' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_the_page_shows_it() -> None:
    parts = dict.fromkeys(report.PARTS, 0.1) | {"attention": 0.5}
    measured = {"step_ms": 20.0, "tokens_per_s": 4_480_000, "candidates_per_s": 960_000, "mfu": 0.41, "peak_gb": 9.5}
    rows = [
        {"section": "step", "name": "mtgr-small K=300", **measured, "parts": parts},
        {"section": "step", "name": "mtgr-large K=300", "error": "OutOfMemoryError: no"},
        {"section": "step dense", "name": "mtgr-small K=300", "step_ms": 50.0},
        {"section": "step flex", "name": "mtgr-small K=300", "left_out": "the time was spent"},
    ]
    text = report.page({"gpu": "a GPU", "torch": "2", "triton": "3", "date": "today", "rows": rows})
    assert "| mtgr-small K=300 | 20.0 | 4480000 | 960000 | 0.41 | 9.5 | 2.50x | the time was spent |" in text
    assert "| mtgr-large K=300 | OutOfMemoryError: no |" in text
    assert "| mtgr-small K=300 | 50% | 10% |" in text
