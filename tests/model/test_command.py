"""`genrank train` and `genrank evaluate` as processes: killed by SIGKILL and given again, and bad input's one line and exit status."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from genrank.model.checkpoint import load_dense, steps_of
from genrank.model.config import TrainConfig
from genrank.model.evaluate import load_model
from genrank.model.run_dir import read_schema
from genrank.schemas import load_schema
from genrank.schemas.configuration import fields_of, flag_of

ROOT = Path(__file__).resolve().parents[2]
DAY = "2026-01-01"


@pytest.fixture(scope="module")
def schema_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("declared") / "declared.py"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests' / 'tokenization')!r})\n"
        "from random_samples import demo_schema\nschema = demo_schema()\n"
    )
    return file


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "genrank", *map(str, arguments)]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(arguments: list[str]) -> tuple[int, str]:
    process = start(arguments)
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors


def everything(run: Path) -> dict[str, torch.Tensor]:
    """Every number of a run's last checkpoint: parameters, tables, both optimizers."""
    step = steps_of(run)[-1]
    loaded = load_model(run, step=step)
    dense = load_dense(run / "checkpoints" / f"step-{step}")
    found = dict(loaded.model.state_dict())
    for name, state in dense["optimizer"].items():
        found |= {f"{name}/{key}": value for key, value in state.items()}
    for name, table in loaded.model.embeddings.tables.tables.items():
        found |= {f"{name}/weight": table.weight, f"{name}/second": table.second}
    return found


def test_a_process_killed_at_a_random_step_and_started_again_equals_one_never_killed(
    schema_file: Path, samples: Path, tmp_path: Path
) -> None:
    def run(out: Path) -> list[str]:
        return command(
            "train", "--schema", schema_file, "--samples", samples, "--dates", DAY, "--out", out, "--token-budget", 150,
            "--epochs", 2, "--checkpoint-every", 3, "--deterministic", "--device", "cpu", "--seed", 5,
        )  # fmt: skip

    assert finish(run(tmp_path / "whole"))[0] == 0
    last = steps_of(tmp_path / "whole")[-1]
    kill_at = random.randrange(2, last - 3)
    process = start(run(tmp_path / "killed"))
    log = tmp_path / "killed" / "log.jsonl"
    checkpoints = tmp_path / "killed" / "checkpoints"
    while process.poll() is None and not any(step >= kill_at for step in steps_of(checkpoints.parent)):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the process ended before it could be killed"
    assert steps_of(checkpoints.parent)[-1] < last and log.is_file()
    status, errors = finish(run(tmp_path / "killed"))
    assert status == 0, errors
    resumed, expected = everything(tmp_path / "killed"), everything(tmp_path / "whole")
    assert resumed.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), f"{name} differs after SIGKILL near step {kill_at}"


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_training_in_one_line_and_leaves_nothing_unfinished(
    schema_file: Path, samples: Path, tmp_path: Path, number: signal.Signals, status: int, word: str
) -> None:
    run = tmp_path / "run"
    process = start(
        command(
            "train", "--schema", schema_file, "--samples", samples, "--dates", DAY, "--out", run, "--token-budget", 150,
            "--epochs", 30, "--checkpoint-every", 1, "--device", "cpu", "--model", "din",
        )
    )  # fmt: skip
    while process.poll() is None and not steps_of(run):
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    assert (
        errors.strip().splitlines()[-1].startswith(f"error: {word}; ")
        and "Traceback" not in errors
        and "Aborted" not in errors
    )
    assert all(name.name.startswith("step-") for name in (run / "checkpoints").iterdir())
    assert load_model(run).name == "din"


# ---------------------------------------------------------------------- bad input


def test_bad_input_ends_in_one_line_and_exit_status_1(
    schema_file: Path, samples: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Each through the command's own `main`: one line on stderr that names what is wrong, status 1, no run folder left."""
    from random_samples import demo_schema, publish, random_table

    import genrank.command

    schema = demo_schema()
    clicks_only = schema.replace(labels=schema.labels[:1])

    def declare(name: str, expression: str) -> Path:
        file = tmp_path / f"{name}.py"
        file.write_text(schema_file.read_text() + f"from genrank.schemas import Label\nschema = {expression}\n")
        return file

    def refused(command: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["genrank", command, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            genrank.command.main()
        error = capsys.readouterr().err
        assert ended.value.code == 1, error
        lines = [line for line in error.strip().splitlines() if not line.startswith("INFO: ")]
        assert lines[0].startswith("error: ") and "Traceback" not in error, error
        assert not (tmp_path / "refused").exists(), "a refused run leaves its folder behind"
        return error

    def train(schema: Path = schema_file, samples: Path = samples, dates: str = DAY, **flags: object) -> str:
        given = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]
        out = tmp_path / "refused"
        return refused(
            "train", "--schema", schema, "--samples", samples, "--dates", dates, "--out", out, "--device", "cpu", *given
        )

    other = declare("other", "schema.replace(labels=(*schema.labels, Label(name='like', column='clicked')))")
    assert "label like: added" in train(schema=other)

    none = random_table(schema, DAY, 4)
    publish(tmp_path / "empty" / "samples", schema, DAY, none.schema.empty_table())
    assert "are empty; nothing to train on" in train(samples=tmp_path / "empty")
    assert "no published samples" in train(dates="2031-01-01")

    rows = none.to_pylist()
    for row in rows:
        for group in ("candidates", "labels"):
            row[group] = {name: [] for name in row[group]}
        row["mask"]["candidate_sees"] = []
    publish(tmp_path / "bare" / "samples", schema, DAY, type(none).from_pylist(rows, none.schema))
    assert "hold no candidate" in train(samples=tmp_path / "bare")

    clicks = declare("clicks", "schema.replace(labels=schema.labels[:1])")
    rows = random_table(clicks_only, DAY, 6).to_pylist()
    for row in rows:
        row["labels"]["click"] = [1] * len(row["labels"]["click"])
    table = random_table(clicks_only, DAY, 6)
    publish(tmp_path / "ones" / "samples", clicks_only, DAY, type(table).from_pylist(rows, table.schema))
    assert "all of one class (every click is 1)" in train(schema=clicks, samples=tmp_path / "ones")
    for row in rows:
        row["labels"]["click_weight"] = [0.0] * len(row["labels"]["click"])
    publish(tmp_path / "unripe" / "samples", clicks_only, DAY, type(table).from_pylist(rows, table.schema))
    assert "no label of these days is mature" in train(schema=clicks, samples=tmp_path / "unripe")

    shutil.copytree(samples, tmp_path / "broken")
    file = next((tmp_path / "broken" / "samples" / f"dt={DAY}").rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-500])
    assert file.name in train(samples=tmp_path / "broken")
    file.write_bytes(file.read_bytes()[:200] + b"\0" * 800)
    assert file.name in train(samples=tmp_path / "broken")

    monkeypatch.setattr(sys, "argv", ["genrank", *command(
        "train", "--schema", schema_file, "--samples", samples, "--dates", DAY, "--out", tmp_path / "din", "--model", "din",
        "--max-steps", 1, "--device", "cpu",
    )[3:]])  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        genrank.command.main()
    assert ended.value.code == 0
    assert "of model din, not of mtgr-tiny" in train(from_checkpoint=tmp_path / "din")
    assert "no such model; did you mean" in train(model="mtgr-tin")
    assert "no such field" in train(set="layer=3")
    assert "from 0 to below 1" in train(set="dropout=7")
    assert "must be at least 1" in train(set="layers=-1")
    for flag in ("lr", "seed", "max-steps", "checkpoint-minutes", "warmup-steps"):
        assert f"--{flag} -1" in train(**{flag: -1})
    assert "--lr nan" in train(lr="nan")
    assert "--final-lr 7.0: must be at most 1 (where the decay ends, as a share of --lr" in train(final_lr=7)
    assert "--eval-every needs --eval-dates" in train(eval_every=3)
    assert "--reset-table needs --from-checkpoint" in train(reset_table="item")
    assert "hold no candidate" in refused(
        "evaluate", "--run", tmp_path / "din", "--samples", tmp_path / "bare", "--dates", DAY
    )
    assert file.name in refused("evaluate", "--run", tmp_path / "din", "--samples", tmp_path / "broken", "--dates", DAY)
    assert "no complete checkpoint" in refused("evaluate", "--run", tmp_path, "--samples", samples, "--dates", DAY)
    assert "is a directory" in refused(
        "evaluate", "--run", tmp_path / "din", "--samples", samples, "--dates", DAY, "--out", tmp_path, "--bootstrap", 0
    )
    for name in ("config.json", "schema.json"):
        shutil.copytree(tmp_path / "din", tmp_path / name)
        (tmp_path / name / name).write_text("{")
        monkeypatch.setattr(sys, "argv", ["genrank", *command(
            "train", "--schema", schema_file, "--samples", samples, "--dates", DAY, "--out", tmp_path / name, "--model", "din",
            "--max-steps", 2, "--device", "cpu",
        )[3:]])  # fmt: skip
        capsys.readouterr()
        with pytest.raises(SystemExit):
            genrank.command.main()
        assert f"{name}" in (error := capsys.readouterr().err) and "not JSON" in error
    dense = next((tmp_path / "din" / "checkpoints").rglob("dense.pt"))
    dense.write_bytes(dense.read_bytes()[:-9])
    assert "missing or damaged" in refused("evaluate", "--run", tmp_path / "din", "--samples", samples, "--dates", DAY)


@pytest.fixture
def configured(monkeypatch) -> Callable[..., TrainConfig]:
    """The configuration that `genrank train` with these arguments trains by."""
    import genrank.command
    import genrank.model.trainer

    seen: list[TrainConfig] = []
    nothing = genrank.model.trainer.TrainResult(Path("run"), 0, {}, was_complete=True)
    monkeypatch.setattr(genrank.model.trainer, "train", lambda config: [seen.append(config), nothing][1])

    def run(*arguments: object) -> TrainConfig:
        monkeypatch.setattr(sys, "argv", ["genrank", "train", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            genrank.command.main()
        assert ended.value.code == 0
        return seen[-1]

    return run


def test_flags_left_out_are_the_fields_defaults(configured, schema_file: Path, samples: Path) -> None:
    config = configured("--schema", schema_file, "--samples", samples, "--dates", DAY, "--out", "run")
    expected = TrainConfig(schema=load_schema(str(schema_file)), samples=samples, dates=(DAY,), out=Path("run"))
    assert config == expected


def test_every_flag_sets_its_field(configured, schema_file: Path) -> None:
    """Every field of a run but the schema, given another value than its default on the command line."""
    other = {
        "samples": "elsewhere", "dates": ("2026-01-01", "2026-01-02"), "out": "r", "model": "din", "settings": {"a": "1", "b": "[2]"},
        "view": "request", "sparse_state": "host", "decay": "linear", "final_lr": 0.5, "eval_dates": ("2026-02-01",),
        "device": "cpu", "precision": "bf16", "backend": "torch", "dense_parallel": "fsdp", "from_checkpoint": "old",
        "reset_tables": ("item", "user"), "lookups_ahead": False, "readers": 3, "phase": "dense",
    }  # fmt: skip
    fields = fields_of(TrainConfig)
    for name, field in fields.items():
        if name not in other and name != "schema":
            other[name] = True if field.default is False else field.default + 3
    arguments: list[object] = ["--schema", schema_file]
    for name, value in other.items():
        flag = flag_of(name, fields[name])
        if name in ("dates", "eval_dates"):
            arguments += [flag, f"{value[0]}:{value[-1]}"]
        elif isinstance(value, bool):
            arguments.append(flag if value else flag.replace("--", "--no-"))
        elif isinstance(value, dict):
            arguments += [part for key, each in value.items() for part in (flag, f"{key}={each}")]
        else:
            arguments += [part for each in (value if isinstance(value, tuple) else (value,)) for part in (flag, each)]
    config = configured(*arguments)
    for name, value in other.items():
        got = getattr(config, name)
        assert (str(got) if isinstance(got, Path) else got) == value, name
        assert value != fields[name].default, f"{name}: the test gives the default"


def test_a_runs_own_config_repeats_it_and_flags_override_it(configured) -> None:
    """config.json of release 0.1; the schema is the run's own."""
    run = ROOT / "tests" / "fixtures" / "release_0_1" / "runs" / "mtgr"
    config = configured("--config", run / "config.json")
    assert config.as_json() == json.loads((run / "config.json").read_text()) | {"phase": "both", "readers": None}
    assert config.schema == read_schema(run)
    changed = configured(
        "--config", run / "config.json", "--out", "again", "--lr", 0.5, "--set", "layers=3", "--seed", 0
    )
    settings = {**config.settings, "layers": "3"}
    assert changed == dataclasses.replace(config, out=Path("again"), lr=0.5, settings=settings)


def test_a_yaml_file_is_read_as_one_would_write_it(configured, schema_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(
        f"schema: {schema_file}\nsamples: data\ndates: 2026-01-01:2026-01-03\neval_dates: 2026-01-04\nout: run\n"
        "lr: 1e-3\nsettings: {layers: 4, head.hidden: [16, 8], gated: true}\nreset_tables: [item]\nfrom_checkpoint: old\n"
    )
    config = configured("--config", file)
    assert config.dates == ("2026-01-01", "2026-01-02", "2026-01-03") and config.eval_dates == ("2026-01-04",)
    assert config.lr == 1e-3 and config.reset_tables == ("item",) and config.from_checkpoint == Path("old")
    assert config.settings == {"layers": "4", "head.hidden": "[16, 8]", "gated": "true"}


def test_the_documented_file_is_a_configuration(configured, tmp_path: Path, monkeypatch) -> None:
    """docs/configuration.md's train.yaml."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    text = page.split("```yaml\n")[1].split("```")[0]
    file = tmp_path / "train.yaml"
    file.write_text(text)
    monkeypatch.chdir(ROOT)
    config = configured("--config", file)
    assert config.schema.name == "marketplace" and config.lr == 1e-3 and config.token_budget == 2048
    assert len(config.dates) == 6 and config.settings == {"layers": "4", "head.hidden": "[64, 32]"}
