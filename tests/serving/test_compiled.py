"""Compiled programs score as the exported ones do, where they fit the machine; elsewhere the exported ones are run."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from genrank.schemas.checked_json import checked, with_checksum
from genrank.schemas.errors import UserError
from genrank.serving import compiled, programs
from genrank.serving.compiled import MachineKind, compile_programs, load_compiled
from genrank.serving.example_rows import example_rows
from genrank.serving.exported import EXPORT, ExportedScorer, ExportManifest
from genrank.serving.scorer import CheckpointScorer

CPU = torch.device("cpu")
HERE = MachineKind.here(CPU)


def copy_with(exported: Path, folder: Path, kind: MachineKind) -> Path:
    """An export whose programs were compiled for a kind of machine, by its word."""
    shutil.copytree(exported, folder)
    shutil.copytree(exported / "encoder", folder / "compiled")
    manifest = ExportManifest.model_validate_json(json.dumps(checked((folder / EXPORT).read_bytes())))
    text = manifest.model_copy(update={"compiled": kind}).model_dump_json(by_alias=True)
    (folder / EXPORT).write_text(with_checksum(text))
    return folder


def test_a_machine_must_have_what_was_recorded_and_may_have_more() -> None:
    assert HERE.instructions and HERE.unlike(HERE) == ""
    fewer = HERE.model_copy(update={"instructions": HERE.instructions[1:]})
    assert fewer.unlike(HERE) == ""
    assert HERE.unlike(fewer) == f"they need {HERE.instructions[0]}, which this machine lacks"
    other = {"pytorch": "2.0.0", "machine": "m68k", "device": "cuda"}
    names = {"pytorch": "PyTorch", "machine": "processor", "device": "device"}
    for field, value in other.items():
        assert HERE.model_copy(update={field: value}).unlike(HERE) == (
            f"they are for {names[field]} {value}, this is {getattr(HERE, field)}"
        )
    newer = HERE.model_copy(update={"instructions": (*HERE.instructions, "sm_90")})
    assert newer.unlike(HERE) == "they need sm_90, which this machine lacks"


def test_on_another_machine_the_exported_programs_are_run(exported: Path, tmp_path: Path, schema, caplog) -> None:
    older = HERE.model_copy(update={"pytorch": "2.0.0"})
    folder = copy_with(exported, tmp_path / "older", older)
    with caplog.at_level(logging.WARNING, logger="genrank"):
        scorer = ExportedScorer.load(folder)
    assert not scorer.compiled
    (line,) = [record.getMessage() for record in caplog.records if record.name == "genrank"]
    assert line == (
        f"{folder}: its compiled programs don't fit this machine (they are for PyTorch 2.0.0, this is {torch.__version__}); the exported"
        " ones are run"
    )
    assert len(scorer.score(example_rows(schema)))


def test_compiled_programs_that_score_otherwise_or_do_not_load_are_refused(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_with(exported, tmp_path / "here", HERE)
    with pytest.raises(
        UserError, match=r"compiled/known\.pt2 can't be loaded \(.+\); export the run here again, or without --comp"
    ):
        ExportedScorer.load(folder)  # an exported program is no compiled one

    def wrong(path: Path, device: torch.device) -> compiled.Program:
        right = torch.export.load(path).module()
        return lambda *given: tuple(x + 0.5 if x.is_floating_point() else x for x in right(*given))

    monkeypatch.setattr(programs, "load_compiled", wrong)
    with pytest.raises(
        UserError, match=r"'s compiled programs score its example otherwise .* here again, or without --compiled$"
    ):
        ExportedScorer.load(folder)


def test_without_a_compiler_the_flag_is_refused(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    def fails(error: Exception) -> None:
        def compile_and_package(*given: object, **settings: object) -> None:
            raise error

        monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_and_package)

    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(exported / "encoder" / "known.pt2", only)
    fails(InvalidCxxCompiler())
    with pytest.raises(
        UserError, match=r"--compiled needs a C\+\+ compiler .*; install one, or export without --compiled"
    ):
        compile_programs(only, tmp_path / "out")
    fails(CppCompileError(["g++"], "disk full"))
    with pytest.raises(UserError, match=r"--compiled: the C\+\+ compiler fails on known\.pt2 \(.*\); export without"):
        compile_programs(only, tmp_path / "again")


@pytest.mark.slow
def test_a_compiled_program_takes_any_number_of_samples_events_and_candidates(
    small_run: Path, exported: Path, tmp_path: Path, schema
) -> None:
    """The one that calls genrank's own op: a C++ compiler takes half a minute for each."""
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(exported / "encoder" / "score.pt2", only)
    no_headers = {
        "aot_inductor.precompile_headers": False,
        "cpp_cache_precompile_headers": False,
    }  # of use from the second on
    with torch._inductor.config.patch(no_headers):
        compile_programs(only, tmp_path / "compiled")
    checkpoint, scorer = CheckpointScorer.load(small_run), ExportedScorer.load(exported)
    calls = []
    program = load_compiled(tmp_path / "compiled" / "score.pt2", CPU)

    def counted(*given: torch.Tensor) -> object:
        calls.append(len(given[0]))
        return program(*given)

    scorer.model.encoder._programs["score"] = counted
    scorer.engine.micro_batch = 10_000  # in two parts, which the programs are
    for rows, events, ranked in ((1, 1, 1), (3, 7, 5), (2, 100, 1), (1, 3, 200), (6, 40, 17)):
        given = example_rows(schema, rows, events=events, ranked=ranked)
        np.testing.assert_allclose(scorer.score(given), checkpoint.score(given), rtol=2e-5, atol=2e-6)
    assert len(calls) == 5
