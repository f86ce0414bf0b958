"""Choosing configurations, with a clock that the test sets: no GPU, no time."""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.runtime.errors import OutOfResources

from benchmarks.kernels_compile import attention_cases, other_cases
from genrank.kernels import tuning
from genrank.kernels.attention import gpu as attention_gpu
from genrank.kernels.launch import Tuned


@triton.jit
def add_kernel(x, total, count, bucket, BLOCK_M: tl.constexpr):
    at = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tl.atomic_add(total + at, tl.load(x + at, mask=at < count, other=0.0), mask=at < count)


CONFIGS = [triton.Config({"BLOCK_M": block}, num_warps=4, num_stages=1) for block in (64, 16, 32)]


class Clock:
    """Runs each trial twice, as a real one would many times, and answers `times` by turns."""

    def __init__(self, *times: float | Exception) -> None:
        self.times, self.asked = list(times), 0

    def __call__(self, launch: Callable[[], None]) -> float:
        launch()
        launch()
        self.asked += 1
        answer = self.times[(self.asked - 1) % len(self.times)]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Caller:
    """A kernel as one process has it: nothing chosen yet. Adds ones to zeros."""

    def __init__(self) -> None:
        self.tuned = Tuned(add_kernel, CONFIGS, ["bucket"], sums=["total"], length="bucket")

    def __call__(self, bucket: int = 128) -> int | None:
        """BLOCK_M of the configuration that ran."""
        x, total = torch.ones(100), torch.zeros(100)
        self.tuned(lambda chosen: (triton.cdiv(100, chosen["BLOCK_M"]),), [x, total, 100, bucket], {})
        assert bool((total == 1).all()), "trials leave nothing behind"
        assert self.tuned.latest is not None
        return int(self.tuned.latest.kwargs["BLOCK_M"])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "folder" / "tuning.json"
    monkeypatch.setenv("GENRANK_TUNING_CACHE", str(path))
    monkeypatch.delenv("GENRANK_AUTOTUNE", raising=False)
    for cached in (tuning._opened, tuning.report_first_use):
        cached.cache_clear()
    yield path
    torch.use_deterministic_algorithms(False)
    for cached in (tuning._opened, tuning.report_first_use):
        cached.cache_clear()


def restart() -> None:
    """What a new process forgets."""
    tuning._opened.cache_clear()
    tuning.report_first_use.cache_clear()


def clock(monkeypatch: pytest.MonkeyPatch, *times: float | Exception) -> Clock:
    made = Clock(*times)
    monkeypatch.setattr(tuning, "timer", made)
    return made


def test_the_fastest_is_taken_once_a_key_and_found_by_later_processes(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time, call = clock(monkeypatch, 3.0, 1.0, 2.0), Caller()
    assert call() == 16 and call() == 16 and time.asked == 3
    time.times = [1.0, 2.0, 3.0]
    assert call(bucket=4096) == 64 and time.asked == 6, "another length, another choice"
    restart()
    later, call = clock(monkeypatch, 1.0), Caller()
    assert call() == 16 and call(bucket=4096) == 64 and later.asked == 0
    kept = json.loads(cache.read_text())["choices"]
    assert kept == {
        tuning.machine(torch.device("cpu")): {
            "add_kernel": {
                "bucket=128 float32 float32": {"config": {"BLOCK_M": 16, "num_warps": 4, "num_stages": 1}, "ms": 1.0},
                "bucket=4096 float32 float32": {"config": {"BLOCK_M": 64, "num_warps": 4, "num_stages": 1}, "ms": 1.0},
            }
        }
    }
    assert sorted(p.name for p in cache.parent.iterdir()) == ["tuning.json", "tuning.json.lock"], "written in one go"


def test_another_machines_choices_are_not_ours(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 3.0, 1.0, 2.0)
    Caller()()
    restart()
    monkeypatch.setattr(tuning, "machine", lambda device: "another GPU, torch 2, triton 3")
    time = clock(monkeypatch, 1.0, 2.0, 3.0)
    assert Caller()() == 64 and time.asked == 3
    assert len(json.loads(cache.read_text())["choices"]) == 2, "and both are kept"


def test_what_does_not_fit_the_device_loses_and_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, OutOfResources(300_000, 232_448, "shared memory"), 2.0, 3.0)
    assert Caller()() == 16
    restart()
    cache.unlink()
    clock(monkeypatch, OutOfResources(300_000, 232_448, "shared memory"))
    Caller()()
    assert not cache.exists()


@pytest.mark.parametrize("how", ["torch", "environment"])
def test_fixed_configurations_are_never_timed(how: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does what an earlier process measured decide; and blocks are no longer than the samples."""
    time = clock(monkeypatch, 3.0, 2.0, 1.0)
    call = Caller()
    assert call() == 32 and time.asked == 3
    if how == "torch":
        torch.use_deterministic_algorithms(True)
    else:
        monkeypatch.setenv("GENRANK_AUTOTUNE", "0")
    assert call() == 64 and call(bucket=32) == 16 and call(bucket=8) == 32 and time.asked == 3
    torch.use_deterministic_algorithms(False)
    monkeypatch.delenv("GENRANK_AUTOTUNE", raising=False)
    assert call() == 32, "afterwards it is tuned again"


def test_a_fixed_choice_of_every_kernel_is_one_of_those_that_fit() -> None:
    """For each generation; a long bucket has the largest blocks, a short one none longer than its samples where any are."""
    launches = [launch for case in (*attention_cases(), *other_cases()) for launch in case.record()]
    for launch in launches:
        named = {**dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)), **launch.constants}
        for arch in (80, 90, 100):
            fitting = launch.tuned.usable(named, arch)
            assert launch.tuned.fixed(named, arch) in fitting
            if launch.tuned.length:
                assert launch.tuned.fixed({**named, "bucket": 4096}, arch) is fitting[0]
                blocks = [max(c.kwargs["BLOCK_M"], c.kwargs["BLOCK_N"]) for c in fitting]
                chosen = launch.tuned.fixed({**named, "bucket": 64}, arch).kwargs
                assert max(chosen["BLOCK_M"], chosen["BLOCK_N"]) <= max(64, min(blocks))
    assert {launch.tuned for launch in launches} >= {attention_gpu.forward_tuned, attention_gpu.backward_kv_tuned}


def keep_some(path: Path, which: int) -> None:
    choices = tuning.Choices(path)
    for at in range(10):
        choices.keep(tuning.Where("gpu", "kernel", f"{which} {at}"), CONFIGS[at % 3], 1.0)


def test_processes_add_to_one_file(cache: Path) -> None:
    workers = [multiprocessing.get_context("fork").Process(target=keep_some, args=(cache, n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    known = tuning.Choices(cache)
    for which in range(4):
        for at in range(10):
            assert known.find(tuning.Where("gpu", "kernel", f"{which} {at}"), CONFIGS) is CONFIGS[at % 3]


def test_another_processs_choice_is_found_without_a_restart(cache: Path) -> None:
    early, where = tuning.Choices(cache), tuning.Where("gpu", "kernel", "key")
    assert early.find(where, CONFIGS) is None
    tuning.Choices(cache).keep(where, CONFIGS[1], 1.0)
    assert early.find(where, CONFIGS) is CONFIGS[1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"format": "genrank tuning 1", "choi', "is damaged"),
        ("\xff\x00", "is damaged"),
        ("[]", "has not the format"),
        ('{"format": "somebody else\'s", "choices": {}}', "has not the format"),
        ('{"format": "genrank tuning 1", "choices": {"gpu": 3}}', "has not the format"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_warning_and_left_alone(
    text: str, says: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir()
    cache.write_bytes(text.encode("latin-1"))
    time, call = clock(monkeypatch, 3.0, 1.0, 2.0), Caller()
    assert call() == 16 and call(bucket=4096) == 16 and time.asked == 6
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1 and str(cache) in warnings[0] and says in warnings[0] and "\n" not in warnings[0]
    assert cache.read_bytes() == text.encode("latin-1")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@settings(deadline=None)
@given(JSON, st.sampled_from([[], ["gpu"], ["gpu", "kernel"], ["gpu", "kernel", "key"]]))
def test_no_content_of_a_file_breaks_a_run(
    tmp_path_factory: pytest.TempPathFactory, inner: Any, under: list[str]
) -> None:
    path, found = tmp_path_factory.mktemp("tuning") / "tuning.json", inner
    for name in reversed(under):
        found = {name: found}
    path.write_text(json.dumps({"format": tuning.FORMAT, "choices": found}))
    where = tuning.Where("gpu", "kernel", "key")
    choices = tuning.Choices(path)
    assert choices.find(where, CONFIGS) is None
    choices.keep(where, CONFIGS[0], 1.0)
    assert choices.find(where, CONFIGS) is CONFIGS[0]


@pytest.mark.parametrize("obstacle", ["a file in the folder's place", "a folder in the lock's place"])
def test_a_file_that_cannot_be_written_is_one_warning(
    obstacle: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if obstacle.startswith("a file"):
        cache.parent.write_text("")
    else:
        cache.with_name("tuning.json.lock").mkdir(parents=True)
    clock(monkeypatch, 3.0, 1.0, 2.0)
    call = Caller()
    assert call() == 16 and call(bucket=4096) == 16
    assert [r.levelno for r in caplog.records if r.levelno >= logging.WARNING] == [logging.WARNING]


def test_a_process_reports_once_that_it_compiles_and_tunes(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "genrank.kernels")
    clock(monkeypatch, 3.0, 1.0, 2.0)
    Caller()()
    Caller()(bucket=512)
    (message,) = [r.getMessage() for r in caplog.records]
    assert message.startswith("kernels: compiling on first use, and tuning for ") and f"kept in {cache}" in message
    restart()
    caplog.clear()
    Caller()()
    assert "(2 choices known from" in caplog.records[0].getMessage()
    restart()
    caplog.clear()
    torch.use_deterministic_algorithms(True)
    Caller()()
    (message,) = [r.getMessage() for r in caplog.records]
    assert message == "kernels: compiling on first use, in fixed configurations"
