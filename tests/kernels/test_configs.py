"""Which configurations of attention may be chosen: the tables are whole, and what they leave out is never taken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.kernels_compile import SPANS, attention_cases, span_launches
from genrank.kernels.attention import configs
from genrank.kernels.spans import configs as span_configs

KERNELS, ARCHS, DTYPES = ("forward", "dq", "dkv"), (80, 90, 100), ("bfloat16", "float16", "float32")
FEATURES = {"bias", "dropout", "plain", "delta", "square", "tma", "narrow", "dk", "dv"}


@pytest.fixture(autouse=True)
def read_again() -> Any:
    configs.table.cache_clear()
    yield
    configs.table.cache_clear()


@st.composite
def launches(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A kernel and its launch's arguments, as far as they decide."""
    kernel, widths = draw(st.sampled_from(KERNELS)), st.sampled_from([16, 32, 64, 128, 256])
    arguments: dict[str, Any] = {name: draw(st.booleans()) for name in ("HAS_POSITION", "HAS_TIME", "DROPOUT", "SELF")}
    arguments |= {"WIDTH": draw(widths), "VALUE_WIDTH": draw(widths), "DESCRIBED": False}
    arguments["k_data"] = SimpleNamespace(dtype=getattr(torch, draw(st.sampled_from(DTYPES))))
    if kernel == "dq":
        arguments["dq_data"] = None
    if kernel == "dkv":
        wide = max(arguments["WIDTH"], arguments["VALUE_WIDTH"]) > 128
        wanted = draw(st.sampled_from([(True, False), (False, True)] if wide else [(True, True)]))
        arguments |= {"dk_data": None, "WANT_K": wanted[0], "WANT_V": wanted[1]}
    return kernel, arguments


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(launches(), st.sampled_from([80, 86, 89, 90, 100, 103, 120]))
def test_what_spills_is_never_chosen(launch: tuple[str, dict[str, Any]], arch: int) -> None:
    kernel, arguments = launch
    situation = configs.Situation.of(arguments, arch)
    assert situation.kernel == kernel and situation.arch in ARCHS
    left_out = [line for line in configs.table("spills") if line.about(situation)]
    for chosen in configs.CONFIGS[kernel]:
        if not configs.fits(chosen, arguments, arch):
            continue
        assert configs.held_values(chosen, situation) <= configs.register_limit(situation, chosen.num_warps)
        held, stage = configs.shared_bytes(chosen, situation)
        assert held + chosen.num_stages * stage <= configs.SHARED[situation.arch]
        rows = chosen.kwargs["BLOCK_M"]
        for line in left_out:
            config = line.cells["config"]
            assert config != configs.name_of(chosen) and not (config == configs.LARGE and rows >= 32)


@pytest.mark.parametrize("name", ["limits", "spills", "last_resorts"])
def test_tables_name_what_there_is(name: str) -> None:
    known = {configs.name_of(c) for listed in configs.CONFIGS.values() for c in listed} | {configs.LARGE}
    for line in configs.table(name):
        cells = line.cells
        assert {*cells["kernel"].split()} <= {*KERNELS, "*"} and {*cells["dtype"].split()} <= {*DTYPES, "*"}
        assert {*cells["arch"].split()} <= {*map(str, ARCHS), "*"} and {*cells["features"].split()} <= FEATURES
        low, high = configs.span(cells["width"])
        assert low <= high
        assert cells.get("config", configs.LARGE) in known
        if name == "spills":
            assert cells["measured_with"] and int(cells["spilled_bytes"]) >= 0


def test_what_runs_where_nothing_fits_does_not_spill_either() -> None:
    """Of every compiled case: without one that fits, the last of the list runs."""
    for case in attention_cases():
        for launch in case.record():
            if case.name.endswith(" tma") and not launch.constants["DESCRIBED"]:
                continue
            if " gluon" in case.name:  # kernels with one configuration each, judged where they are compiled
                continue
            named = {**dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)), **launch.constants}
            for arch in case.archs:
                spilling = configs.named("spills", configs.Situation.of(named, arch))
                runs = {configs.name_of(chosen) for chosen in launch.configs(arch)}
                assert runs and not runs & spilling, f"{launch.kernel.__name__} {case.name} {case.dtype} sm_{arch}"


def test_a_line_counts_for_the_triton_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    situation = configs.Situation("dkv", 90, "bfloat16", 128, frozenset({"dk", "dv", "plain", "square"}))
    for version, left_out in (("3.7.1", True), ("3.9.0", False)):
        monkeypatch.setattr(triton, "__version__", version)
        configs.table.cache_clear()
        assert ("64x128x8" in configs.named("spills", situation)) is left_out


def test_span_attention_never_takes_what_its_table_leaves_out() -> None:
    """Of every compiled case; and each line names a configuration that there is, in a case that is compiled."""
    compiled = {f"spans {dim} {kind} {name}" for dim, kind, name in SPANS}
    lists = {"forward": span_configs.FORWARD, "dq": span_configs.BACKWARD_Q, "dkv": span_configs.BACKWARD_KV}
    for line in span_configs.spills():
        case, which = line.cells["case"].rsplit(maxsplit=1)
        assert case in compiled and line.cells["config"] in map(configs.name_of, lists[which])
        assert int(line.cells["spilled_bytes"]) >= 0 and line.cells["measured_with"]
    left_out = 0
    for dim, kind, name in SPANS:
        for launch in span_launches(
            {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name], dim, kind
        ):
            named = {**dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)), **launch.constants}
            for arch in ARCHS:
                spilling = {x.cells["config"] for x in span_configs.spills() if span_configs.about(x, named, arch)}
                runs = [configs.name_of(chosen) for chosen in launch.configs(arch)]
                assert runs and not spilling & {*runs}
                assert "16x16x4" not in runs or runs == ["16x16x4"], "the last resort, beside something that fits"
                left_out += len(spilling)
    assert left_out >= len(span_configs.spills())
