"""The GPU benchmark runs to its end where there is no GPU: a command that is needed on a rented machine must not
fail there.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import busy, mlperf, peers, repeat, report, speed, warmup
from benchmarks.gpu.report import PAGE, page, targets_met, wrong
from benchmarks.gpu.session import Session
from benchmarks.gpu.shapes import shapes
from genrank.kernels.attention import gpu as attention_gpu
from genrank.kernels.attention import interval_attention
from genrank.kernels.launch import recording
from genrank.kernels.norm import norm_gate

from .cases import make_batch, specialisation

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_rehearsal() -> None:
    """Every section runs to its end in a process started as on a GPU, and comes back with its rows."""
    before = PAGE.read_text()
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--budget", "280", "--only", "mtgr K=8"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 checks; all right" in done.stdout, done.stdout
    assert all(f'"section": "{name}"' in done.stdout for name in ("order", "first step", "flex", "gluon"))
    assert '"error":' not in done.stdout, done.stdout
    assert PAGE.read_text() == before, "a rehearsal writes nothing"


def test_what_keeps_the_card_busy_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    session = Session("cpu", time.monotonic() + 600, tmp_path / "rows", rehearse=True)
    busy.busy(session)
    rows = {(row["section"], row["name"]): row for row in session.rows()}
    assert len(rows) == 13 and not any("error" in row and row["section"] != "sparse" for row in rows.values()), rows
    assert all(row["correct"] and row["largest_row"] > 2 for (section, _), row in rows.items() if section == "sparse")
    read = [rows["reading", f"256 tokens, readers {n}"]["batches"] for n in (0, 1)]
    assert read[0] == read[1] > 1
    steps = [row for (section, _), row in rows.items() if section == "training step"]
    assert [row.get("correct") for row in steps] == [None, True, True]
    shown = "\n".join(report.busy_lines({"rows": session.rows()}))
    assert "difference" in shown and shown.count("256 tokens, readers 1") == 2 and not wrong({"rows": session.rows()})


def test_the_fields_shapes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In miniature; what is read, and what sees what, as at full size."""
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    monkeypatch.setattr(mlperf, "META", tmp_path / "none")
    monkeypatch.setattr(mlperf, "LISTENS", 2)
    session = Session("cpu", time.monotonic() + 600, tmp_path / "rows", rehearse=True)
    mlperf.mlperf(session)
    rows = {(row["section"], row["name"]): row for row in session.rows()}
    assert not any("error" in row for row in rows.values()), rows
    stacks = [row for (section, _), row in rows.items() if section == "shapes"]
    assert len(stacks) == 2 and not wrong({"rows": session.rows()})
    assert rows["shapes meta", "DLRMv3 inference"]["left_out"] == "peers/generative-recommenders is not there"
    anchors = rows["shapes anchors", "L=12"]
    assert (anchors["listen_anchors"], anchors["day_anchors"], anchors["ratio"]) == (2, 4, 2.0)
    assert anchors["day_tokens"] == anchors["listen_tokens"] + 2 * 2 * 2
    day = mlperf.user_days(1, 12)
    history = day.tokens - 4
    assert day.end.tolist() == [*range(1, history + 3), history, history + 1], (
        "a listen isn't seen by its own candidate"
    )
    full = mlperf.inference_case(False)
    assert len(full.make().offsets) == 33 and [len(case.make().offsets) for case in mlperf.training_cases(False)] == [
        65,
        33,
    ]
    config = full.config(False)
    assert (config.layers, config.dim, config.heads, config.qk_dim, config.v_dim) == (5, 512, 4, 128, 128)
    shown = "\n".join(report.busy_lines({"rows": session.rows()}))
    assert "| recommendation_v4 L=12 |" in shown and "is not there" in shown


def test_configurations_of_the_peer_that_crash_are_left_out() -> None:
    crashes = {"BLOCK_M": 32, "BLOCK_N": 128, "UNROLL": 4, "SEQUENCE_PARALLEL": False}
    assert (
        not peers.kept(crashes)
        and peers.kept({**crashes, "UNROLL": 1})
        and not peers.kept({"BLOCK_M": 16, "BLOCK_N": 64})
    )


def test_torch_triton_and_numpy_are_all_it_imports() -> None:
    """The image of a rented machine has little more: each section's imports, with everything else missing."""
    code = """if True:
        import importlib.metadata, sys
        torchs = {"torch", "triton", "numpy", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock"}
        torchs |= {"typing-extensions", "setuptools", "packaging", "genrank"}
        packages = importlib.metadata.packages_distributions()
        here = {name for name, owners in packages.items() if not {o.lower().replace("_", "-") for o in owners} & torchs}
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in here - {"benchmarks", "kernels", "model", "tokenization", "schemas"}:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.meta_path.insert(0, Missing())
        assert {"tqdm", "pydantic", "pyarrow", "pandas", "matplotlib"} <= here
        import benchmarks.gpu.__main__
        from benchmarks.gpu import busy, correctness, mlperf, peers, repeat, report, speed, step, warmup
        from genrank.kernels.attention import gpu as attention_gpu
        from genrank.kernels.jagged import gpu as jagged_gpu
        from genrank.kernels.norm import gpu as norm_gpu
        from genrank.kernels.rowwise import gpu as rowwise_gpu
        from genrank.kernels.vocabulary import gpu as vocabulary_gpu
        print("imported")
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.stdout == "imported\n", done.stderr


def test_a_copy_without_links_runs(tmp_path: Path) -> None:
    """A copy of the checkout may lose the symbolic links in genrank/: the packages are found where they are."""
    for name in ("benchmarks", "kernels", "model", "tokenization", "schemas"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "results", "*.md"))
    (tmp_path / "genrank").mkdir()
    for path in (ROOT / "genrank").glob("*.py"):
        shutil.copy(path, tmp_path / "genrank")
    code = "import benchmarks.gpu.__main__, genrank.kernels; print(genrank.kernels.__file__)"
    command, environment = [sys.executable, "-c", code], {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.stdout == f"{tmp_path}/kernels/__init__.py\n", done.stderr


def test_a_row_that_fails_is_reported_and_the_next_one_runs(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("out of\nmemory")

    session = Session("cpu", time.monotonic() + 60, tmp_path / "rows")
    session.attempt("correctness", "a", fail)
    session.attempt("correctness", "b", lambda: {"correct": True})
    session.attempt("correctness", "b", fail)
    session.deadline = 0.0
    session.attempt("correctness", "c", fail)
    a, b, c = session.rows()
    assert a["error"] == "RuntimeError: out of"
    assert b["correct"] and "error" not in b, "a row that is known is not measured again"
    assert c["left_out"]
    assert wrong({"rows": session.rows()}) == ["a"]


def test_a_row_that_ends_its_process_is_left_behind(tmp_path: Path) -> None:
    """Started again, the section goes on after it."""
    code = (
        "import os, sys, time, pathlib; from benchmarks.gpu.session import Session\n"
        "session = Session('cpu', time.monotonic() + 60, pathlib.Path(sys.argv[1]))\n"
        "session.attempt('s', 'crash', lambda: os._exit(7)); session.attempt('s', 'next', lambda: {'correct': True})\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "rows")]
    assert [subprocess.run(command, cwd=ROOT).returncode for _ in range(2)] == [7, 0]
    crash, after = Session("cpu", 0.0, tmp_path / "rows").rows()
    assert crash["error"] == "did not finish" and after["correct"]


def test_what_is_timed_was_compiled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that warming missed would compile while the clock of the rented machine runs."""
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    # A step's launches are recorded by taking it, whose dense half takes minutes on a CPU.
    monkeypatch.setattr(warmup.step, "launches", lambda device: iter(()))
    warmed = {specialisation(launch) for launch, tuned in warmup.launches("cpu") if tuned}
    session, bf16 = Session("cpu", 0.0, Path("unused")), torch.bfloat16
    with recording() as launches:
        for shape in {(s.heads, s.dim): s for s in shapes(False)}.values():
            small = dataclasses.replace(shape, make=lambda: make_batch([40, 64], "mtgr"))
            for tma in ("", "1"):
                monkeypatch.setenv("GENRANK_TMA", tma)
                setting = speed.Setting(session, small)
                q, k, v = (x.to(bf16) for x in setting.qkv)
                where = (setting.batch.offsets, setting.batch.begin, setting.batch.end)
                out = interval_attention(q, k, v, *where, max_length=shape.longest)
                torch.autograd.grad(out, setting.qkv, setting.upstream.to(bf16))
        x = torch.zeros(5280, 512, dtype=bf16, requires_grad=True)
        table, groups = torch.zeros(4, 512, requires_grad=True), torch.zeros(5280, dtype=torch.int32)
        for order in ("norm_gate", "gate_norm"):
            out = norm_gate(x, x.detach(), table, table, order=order, group_ids=groups)
            torch.autograd.grad(out, [x, table], out.detach())
    missed = [launch.kernel.__name__ for launch in launches if specialisation(launch) not in warmed]
    assert not missed and len(launches) > 20


def test_two_processes_whose_bits_differ_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session("cpu", time.monotonic() + 60, Path("unused"), rehearse=True)
    for digests, equal in (("aa", True), ("ab", False)):
        found = iter(digests)
        monkeypatch.setattr(repeat, "run", lambda *_, **__: {"digest": next(found), "seconds": 1.0})  # noqa: B023
        assert repeat.check_processes(session)["correct"] is equal

    def tunes(session: Session, folder: Path, deterministic: bool) -> dict[str, Any]:
        (folder / "tuning.json").write_text("{}")
        return {"digest": "a", "seconds": 1.0}

    monkeypatch.setattr(repeat, "run", tunes)
    assert not repeat.check_processes(session)["correct"], "a configuration was chosen by timing"


def test_the_order_that_is_compared_with_has_the_heaviest_units_first() -> None:
    batch = make_batch([300, 300, 20], "causal")
    own = attention_gpu.make_plan(batch.mask, batch.tokens)
    with speed.heaviest_units_first():
        made = attention_gpu.make_plan(batch.mask, batch.tokens)
    assert torch.equal(own.pairs, made.pairs)
    for before, after in ((own.q_units.tolist(), made.q_units.tolist()), (own.k_units.tolist(), made.k_units.tolist())):
        assert sorted(before) == sorted(after) and before != after
    placed = [(row, rows) for row, rows, _, _ in made.q_units.tolist()]
    assert placed == [(128, 300), (128, 300), (256, 300), (256, 300), (0, 300), (0, 300), (0, 20), *placed[7:]]
    assert {rows for _, rows in placed[7:]} == {-1}


def test_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PLOT", tmp_path / "plot.png")
    rates = {"forward_ms": 1.0, "backward_ms": 2.0, "forward_tflops": 3.0, "backward_tflops": 4.0}
    rows = [{"section": s, "name": "a", **rates} for s in ("attention", "flex")]
    report.plot({"rows": [*rows, {"section": "attention", "name": "b", "error": "no"}]})
    assert report.PLOT.stat().st_size > 1000


def test_page_shows_what_was_reached_and_what_was_not_measured() -> None:
    def rates(forward: float, backward: float) -> dict[str, float]:
        return {"forward_ms": 1.0, "backward_ms": 2.0, "forward_tflops": forward, "backward_tflops": backward}

    rows: list[dict[str, Any]] = [
        {"section": "ceilings", "name": "ceilings", "matmul_tflops": 100.0, "copy_gb_s": 10.0},
        {"section": "correctness", "name": "attention", "correct": False},
        {"section": "attention", "name": "causal N=4096", **rates(70, 40)},
        {"section": "meta", "name": "causal N=4096", **rates(47, 36), "forward_ms": 1.5, "backward_ms": 2.2},
        {"section": "attention", "name": "mtgr K=32 H2 D256", "error": "OutOfMemoryError: no"},
        {"section": "flex", "name": "causal N=4096", **rates(35, 20), "forward_ms": 3.0},
        {"section": "pointwise", "name": "norm", "forward_gb_s": 9.0, "backward_gb_s": 8.0},
        {"section": "order", "name": "zipf N=4096", **rates(1, 1), "before": {"forward_ms": 1.5, "backward_ms": 2.5}},
        {"section": "order", "name": "causal N=4096", "left_out": "the time was spent"},
        {"section": "first step", "name": "mtgr-small K=300", "cold_s": 30.1, "compiled_s": 12.0, "tuned_s": 3.2},
    ]
    results = {"gpu": "a GPU", "torch": "2", "triton": "3", "date": "today", "rows": rows}
    shown = {what: (text, met) for what, text, met in targets_met(results)}
    assert shown["forward >= 60 % of matmul, D 128, N >= 4096 causal"] == ("0.70 to 0.70", True)
    assert shown["backward >= 50 % of matmul, D 128, N >= 4096 causal"] == ("0.40 to 0.40", False)
    assert shown[">= 1.3x Meta's Triton, backward, at its shapes"][1] is False
    assert shown["time linear in K"] == ("not measured", None)
    assert shown["GLN and norm-gate backward >= 85 % of copy bandwidth"] == ("0.80 to 0.80", False)
    text = page(results)
    assert "wrong: attention" in text and "OutOfMemoryError" in text and "1.50x, 1.10x" in text and "3.00x" in text
    assert "| zipf N=4096 | 1.000 | 1.500 | 1.50x | 2.000 | 2.500 | 1.25x |" in text
    assert "| causal N=4096 | the time was spent |" in text and "| mtgr-small K=300 | 30.1 | 12.0 | 3.2  |" in text
    nothing = page({**results, "rows": []})
    assert "not measured" in nothing, "without ceilings nothing is shown to hold"
