"""Checkpoints that are damaged, of another shape or hostile: the one before takes their place, or one line says why not; no code runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from genrank.model.checkpoint import find_checkpoint, load_dense, read_manifest, steps_of
from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.evaluate import evaluate, load_model
from genrank.model.trainer import train
from genrank.schemas import UserError

DAYS = ("2026-01-01", "2026-01-02")


@pytest.fixture(scope="module")
def trained(schema, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run with checkpoints of steps 2, 3 and 4."""
    config = TrainConfig(
        schema=schema,
        samples=samples,
        dates=DAYS[:1],
        out=tmp_path_factory.mktemp("trained") / "run",
        model="din",
        token_budget=150,
        max_steps=4,
        checkpoint_every=1,
        keep_checkpoints=3,
        log_every=1,
        device="cpu",
    )
    train(config)
    assert steps_of(config.out) == [2, 3, 4]
    return config


@pytest.fixture
def run(trained: TrainConfig, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.out, tmp_path / "run"))


def damage(run: Path, step: int, file: str = "dense.pt") -> None:
    path = run / "checkpoints" / f"step-{step}" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def plant(folder: Path, file: str, content: bytes) -> None:
    """Puts a file into a checkpoint as its sender would: sizes and digests agree."""
    (folder / file).write_bytes(content)
    tables = json.loads((folder / "tables" / "tables.json").read_text())
    tables["files"] = {name: (folder / "tables" / name).stat().st_size for name in tables["files"]}
    (folder / "tables" / "tables.json").write_text(json.dumps(tables))
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, digest in manifest["files"].items():
        bytes_ = (folder / name).read_bytes()
        digest.update(bytes=len(bytes_), sha256=hashlib.sha256(bytes_).hexdigest())
    (folder / "manifest.json").write_text(json.dumps(manifest))


class Shell:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.mark}",))


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# ---------------------------------------------------------------------- damaged


@pytest.mark.parametrize("file", ["dense.pt", "tables/.metadata", "tables/tables.json", "tables/__0_0.distcp"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(run: Path, file: str, caplog) -> None:
    damage(run, 4, file)
    assert find_checkpoint(run).name == "step-3" and load_model(run).step == 3
    assert f"step-4/{file} is missing or damaged" in caplog.text and "step-3 takes its place" in caplog.text
    with pytest.raises(UserError, match=r"missing or damaged.*--checkpoint") as error:
        load_model(run, step=4)
    assert one_line(error)
    assert load_model(run, step=3).step == 3


def test_with_every_checkpoint_damaged_the_newest_is_named(run: Path) -> None:
    for step in (2, 3, 4):
        damage(run, step)
    with pytest.raises(UserError, match=r"step-4/dense\.pt is missing or damaged") as error:
        find_checkpoint(run)
    assert one_line(error)


def test_a_resume_goes_on_from_the_newest_whole_checkpoint(trained: TrainConfig, run: Path, tmp_path, caplog) -> None:
    """And ends as one that nothing happened to; the damaged one doesn't push whole ones out."""
    again = dataclasses.replace(trained, out=run, max_steps=6, keep_checkpoints=1)
    whole = dataclasses.replace(again, out=Path(shutil.copytree(run, tmp_path / "whole")))
    train(whole)
    damage(run, 4)
    train(again)
    assert "step-3 takes its place" in caplog.text
    assert steps_of(run) == [6]
    expected, found = load_model(whole.out).model.state_dict(), load_model(run).model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    lines = [json.loads(line).get("step") for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4, 5, 6]


# ---------------------------------------------------------------------- of another shape


def test_folders_of_other_names_are_no_checkpoints(run: Path) -> None:
    for name in ("step-abc", "step-", "step-9.bak", "step-007", "step-\u0663"):
        shutil.copytree(run / "checkpoints" / "step-2", run / "checkpoints" / name)
    assert steps_of(run) == [2, 3, 4] and find_checkpoint(run).name == "step-4"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "3",
        '"format"',
        "{}",
        '{"format": 1}',
        '{"format": []}',
        "{",
        "[" * 100_000,
        '{"a":' * 100_000,
        "\x00",
    ],
)
def test_a_manifest_of_another_shape_is_refused_in_one_line(run: Path, text: str) -> None:
    folder = run / "checkpoints" / "step-4"
    for path in (folder / "manifest.json", folder / "tables" / "tables.json"):
        kept = path.read_text()
        path.write_text(text)
        with pytest.raises(UserError) as error:
            load_model(folder)
        assert one_line(error)
        path.write_text(kept)
    plant(folder, "tables/tables.json", (folder / "tables" / "tables.json").read_bytes())
    (folder / "tables" / "tables.json").write_text(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"].pop("tables/tables.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError) as error:
        load_model(folder)
    assert one_line(error)


@pytest.mark.parametrize("text", ["null", "[]", "{}", "[" * 100_000, '{"dates": 3}', '{"dates": [1]}'])
def test_a_run_whose_config_is_something_else_is_refused_in_one_line(
    trained: TrainConfig, run: Path, text: str
) -> None:
    (run / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json") as error:
        evaluate(EvaluateConfig(run=run, samples=trained.samples, dates=DAYS[1:], bootstrap=0, device="cpu"))
    assert one_line(error)


def test_a_manifest_that_names_files_elsewhere_is_refused(run: Path, tmp_path: Path) -> None:
    folder = run / "checkpoints" / "step-4"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../config.json"] = manifest["files"].pop("dense.pt")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="outside of the checkpoint"):
        read_manifest(folder)


# ---------------------------------------------------------------------- hostile


@pytest.mark.parametrize("file", ["dense.pt", "tables/.metadata", "tables/__0_0.distcp"])
@pytest.mark.parametrize("how", ["evaluate", "from_checkpoint", "resume", "pickle"])
def test_no_code_of_a_checkpoint_runs(trained: TrainConfig, run: Path, tmp_path: Path, file: str, how: str) -> None:
    mark, folder = tmp_path / "mark", run / "checkpoints" / "step-4"
    stored = tmp_path / "stored"
    dense = {**load_dense(folder), "position": {"step": Shell(mark)}}
    if file.endswith(".metadata") or how == "pickle":
        stored.write_bytes(pickle.dumps(Shell(mark)))
    else:
        torch.save(dense, stored)
    plant(folder, file, stored.read_bytes())
    with pytest.raises(UserError, match=r"refused|can't be read") as error:
        if how == "from_checkpoint":
            train(dataclasses.replace(trained, out=tmp_path / "next", from_checkpoint=run))
        elif how == "resume":
            train(dataclasses.replace(trained, out=run, max_steps=6))
        else:
            evaluate(EvaluateConfig(run=run, samples=trained.samples, dates=DAYS[1:], bootstrap=0, device="cpu"))
    assert one_line(error) and not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        3,
        [],
        {},
        {"model": {"a": 1}},
        {"model": {}, "optimizer": {"a": {"b": 2}}},
        {"model": {}, "optimizer": {}, "position": []},
    ],
)
def test_a_dense_file_of_another_shape_is_refused_in_one_line(run: Path, tmp_path: Path, content: object) -> None:
    folder = run / "checkpoints" / "step-4"
    torch.save(content, tmp_path / "stored")
    plant(folder, "dense.pt", (tmp_path / "stored").read_bytes())
    with pytest.raises(UserError, match=r"dense\.pt is not what `genrank train` writes") as error:
        load_model(folder)
    assert one_line(error)
