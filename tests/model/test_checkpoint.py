"""Checkpoints that are damaged, of another shape or hostile: the one before takes their place, or one line says why not; no code runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch

import genrank.command
from genrank.model.checkpoint import find_checkpoint, load_dense, read_manifest, steps_of
from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.evaluate import evaluate, load_model
from genrank.model.trainer import train
from genrank.schemas import UserError
from genrank.schemas.checked_json import checked, with_checksum
from genrank.schemas.lock import locked

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
    manifest.pop("checksum", None)
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
    manifest.pop("checksum", None)
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
    manifest.pop("checksum", None)
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


def test_a_model_file_inside_the_run_is_not_run(run: Path, tmp_path: Path) -> None:
    (run / "planted.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).touch()\n")
    folder = run / "checkpoints" / "step-4"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("checksum", None)
    manifest["model"]["name"] = f"{run / 'planted.py'}:MODEL"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for path in (run, folder):
        with pytest.raises(UserError, match="code that came with a run is not run") as error:
            load_model(path)
        assert one_line(error) and not (tmp_path / "mark").exists()


# ---------------------------------------------------------------------- samples under a run


@pytest.fixture
def own_samples(samples: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(samples, tmp_path / "own"))


def rebuild(samples: Path, day: str, build_id: str = "later") -> None:
    path = samples / "samples" / f"dt={day}" / "manifest.json"
    path.write_text(with_checksum(json.dumps({**checked(path.read_text()), "build_id": build_id})))


def test_a_run_records_the_builds_it_read_and_refuses_to_go_on_with_others(
    trained: TrainConfig, own_samples: Path, tmp_path: Path, caplog
) -> None:
    config = dataclasses.replace(trained, samples=own_samples, out=tmp_path / "run", eval_dates=DAYS[1:])
    train(config)
    builds = read_manifest(find_checkpoint(config.out)).builds
    assert builds.keys() == set(DAYS) and all(builds.values())
    assert json.loads((config.out / "summary.json").read_text())["builds"] == builds
    rebuild(own_samples, DAYS[1])
    longer = dataclasses.replace(config, max_steps=5)
    train(longer)
    assert f"{DAYS[1]} was built again since" in caplog.text
    caplog.clear()
    result = evaluate(EvaluateConfig(run=config.out, samples=own_samples, dates=DAYS[1:], bootstrap=0, device="cpu"))
    assert (
        result.builds == {DAYS[1]: "later"} and "was built again" not in caplog.text
    )  # as the last checkpoint read it
    rebuild(own_samples, DAYS[1], "latest")
    evaluate(EvaluateConfig(run=config.out, samples=own_samples, dates=DAYS[1:], bootstrap=0, device="cpu"))
    assert f"{DAYS[1]} was built again since {config.out} read it (build later, now latest)" in caplog.text
    rebuild(own_samples, DAYS[0])
    with pytest.raises(UserError, match=rf"{DAYS[0]} was built again since .* now later.* --from-checkpoint") as error:
        train(dataclasses.replace(config, max_steps=6))
    assert one_line(error)
    train(dataclasses.replace(config, max_steps=2, out=tmp_path / "next", from_checkpoint=config.out))


def test_a_second_training_into_one_folder_is_refused(trained: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(trained, out=tmp_path / "run")
    with (
        locked(config.out, "training"),
        pytest.raises(
            UserError, match=rf"--out .*: another training is writing here \(process {os.getpid()} on "
        ) as error,
    ):
        train(config)
    assert one_line(error) and not (config.out / "config.json").exists()
    assert train(config).steps == 4
    with pytest.raises(UserError, match="no such field"):
        train(dataclasses.replace(config, out=tmp_path / "refused", settings={"nothing": "1"}))
    assert not (tmp_path / "refused").exists()


# ---------------------------------------------------------------------- flipped bits


def test_a_flipped_bit_in_samples_is_named_before_the_file_is_used(
    trained: TrainConfig, own_samples, tmp_path: Path
) -> None:
    """Any bit: those that Parquet's reader would not notice too."""
    file = next((own_samples / "samples" / f"dt={DAYS[0]}").rglob("*.parquet"))
    whole = file.read_bytes()
    config = dataclasses.replace(trained, samples=own_samples, out=tmp_path / "run")
    evaluation = EvaluateConfig(run=trained.out, samples=own_samples, dates=DAYS[:1], bootstrap=0, device="cpu")
    for at in range(8, len(whole) - 8, len(whole) // 12):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        for work in (lambda: train(config), lambda: evaluate(evaluation)):
            with pytest.raises(UserError, match=file.name) as error:
                work()
            assert one_line(error)
        assert not config.out.exists()
    file.write_bytes(whole)
    assert train(config).steps == 4


def verified(capsys, monkeypatch, *arguments: object) -> tuple[int, list[str]]:
    monkeypatch.setattr(sys, "argv", ["genrank", "verify", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        genrank.command.main()
    shown = capsys.readouterr()
    return int(ended.value.code or 0), [*shown.out.splitlines(), *shown.err.splitlines()]


def test_verify_lists_damaged_files(run: Path, own_samples: Path, capsys, monkeypatch) -> None:
    both = ("--samples", own_samples, "--run", run)
    assert verified(capsys, monkeypatch, *both) == (
        0,
        ["3 days of samples and 3 checkpoints: every file is as it was written"],
    )
    files = [next((own_samples / "samples" / f"dt={day}").rglob("*.parquet")) for day in DAYS]
    content = bytearray(files[0].read_bytes())
    content[len(content) // 3] ^= 1
    files[0].write_bytes(content)
    files[1].unlink()
    damage(run, 3)
    damage(run, 4, "tables/.metadata")
    (run / "checkpoints" / "step-2" / "manifest.json").write_text("null")
    status, lines = verified(capsys, monkeypatch, *both)
    assert status == 1 and len(lines) == 5
    for line, file, why in zip(
        lines,
        [
            *files,
            run / "checkpoints" / "step-2",
            run / "checkpoints" / "step-3" / "dense.pt",
            run / "checkpoints" / "step-4",
        ],
        [
            "is damaged: its digest",
            "is missing",
            "is not a checkpoint",
            "is missing or damaged",
            "is missing or damaged",
        ],
        strict=True,
    ):
        assert line.startswith(str(file)) and why in line
    assert verified(capsys, monkeypatch, "--samples", own_samples, "--dates", "2026-01-03")[0] == 0
    assert verified(capsys, monkeypatch, "--samples", own_samples, "--dates", DAYS[0])[0] == 1
    assert verified(capsys, monkeypatch) == (1, ["error: verify: give --samples, --run or both"])
    assert verified(capsys, monkeypatch, "--run", own_samples)[0] == 1
    assert "give --samples too" in verified(capsys, monkeypatch, "--run", run, "--dates", DAYS[0])[1][0]
