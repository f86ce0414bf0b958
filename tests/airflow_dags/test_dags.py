"""The shell of every task, rendered as Airflow renders it and run against a recorded `genrank`.

Airflow isn't in this environment: its classes are stood in for by the few attributes the DAG files use. The DAGs run in Airflow
itself in `make airflow-test`.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest

DAGS = Path(__file__).resolve().parents[2] / "airflow_dags"
DAY = "2026-01-05"


class Operator:
    """Keeps what it was made with."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.downstream: list[str] = []
        Dag.open.tasks[arguments["task_id"]] = self

    @classmethod
    def partial(cls, **arguments: Any) -> Operator:
        return cls(**arguments)

    def expand(self, **mapped: Any) -> Operator:
        self.arguments["mapped"] = mapped
        return self

    def __rshift__(self, other: Operator) -> Operator:
        self.downstream.append(other.arguments["task_id"])
        return other


class Dag:
    open: Dag

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.tasks: dict[str, Operator] = {}
        Dag.open = self

    def __enter__(self) -> Dag:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def command(self, task_id: str, **context: Any) -> str:
        """A task's shell, rendered."""
        macros = self.arguments["user_defined_macros"]
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
        return environment.from_string(self.tasks[task_id].arguments["bash_command"]).render(**macros, **context)


class Installation:
    """A root folder with a space in its name, a `genrank` that writes down its arguments, and the DAGs' variables."""

    def __init__(self, root: Path) -> None:
        self.root = root / "the root"
        self.runs = self.root / "runs"
        self.runs.mkdir(parents=True)
        self.calls = root / "calls"
        command = root / "genrank"
        command.write_text(
            f"#!{sys.executable}\n"
            "import json, os, pathlib, sys\n"
            f"pathlib.Path({str(self.calls)!r}).open('a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
            "status = int(os.environ.get('GENRANK_EXITS', 0))\n"
            "if sys.argv[1] == 'train':\n"
            "    run = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
            "    run.mkdir(parents=True, exist_ok=True)\n"
            "    status or (run / 'summary.json').touch()\n"
            "sys.exit(status)\n"
        )
        command.chmod(0o755)
        self.variables = {"genrank_command": str(command), "genrank_root": str(self.root)}

    def finished(self, *days: str) -> None:
        for day in days:
            (self.runs / f"dt={day}").mkdir()
            (self.runs / f"dt={day}" / "summary.json").touch()

    def run(self, shell: str, **environment: str) -> tuple[int, list[str]]:
        """Exit status, and the arguments `genrank` was called with (empty: not called)."""
        self.calls.unlink(missing_ok=True)
        environment = {"PATH": "/usr/bin:/bin", **environment}
        done = subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, text=True)
        if not self.calls.exists():
            return done.returncode, []
        (call,) = self.calls.read_text().splitlines()
        return done.returncode, json.loads(call)


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


Load = Callable[[str], Dag]


@pytest.fixture
def load(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """`load("daily")` is that file's DAG, with Airflow stood in for."""

    class Variable:
        @staticmethod
        def get(name: str, default: str) -> str:
            return installation.variables.get(name, default)

    def keep(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    def task(function: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
        return lambda: function

    def stand_in(name: str, **attributes: Any) -> None:
        module = types.ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)

    for package in ("airflow", "airflow.providers", "airflow.providers.standard"):
        stand_in(package)
    stand_in("airflow.providers.standard.operators")
    stand_in("airflow.providers.standard.operators.bash", BashOperator=Operator)
    stand_in("airflow.providers.standard.sensors")
    stand_in("airflow.providers.standard.sensors.bash", BashSensor=Operator)
    stand_in("airflow.sdk", DAG=Dag, Variable=Variable, CronDataIntervalTimetable=keep, Param=keep, task=task)
    stand_in("pendulum", datetime=keep)
    monkeypatch.syspath_prepend(str(DAGS))
    monkeypatch.delenv("GENRANK_RETRIES", raising=False)

    def load(name: str) -> Dag:
        sys.modules.pop("genrank_tasks", None)
        spec = importlib.util.spec_from_file_location(f"dag_{name}", DAGS / f"{name}.py")
        assert spec and spec.loader
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        return Dag.open

    yield load
    sys.modules.pop("genrank_tasks", None)


def test_the_day_goes_through_its_tasks_in_order(load: Load) -> None:
    dag = load("daily")
    task, order = "wait_for_inputs", ["wait_for_inputs"]
    while dag.tasks[task].downstream:
        (task,) = dag.tasks[task].downstream
        order.append(task)
    assert order == ["wait_for_inputs", "build", "evaluate", "train"] == list(dag.tasks)
    assert dag.arguments["max_active_runs"] == 1
    assert dag.arguments["catchup"] is False
    assert dag.tasks["wait_for_inputs"].arguments["mode"] == "reschedule"
    assert dag.tasks["train"].arguments["trigger_rule"] == "none_failed"
    assert dag.arguments["default_args"]["retries"] == 2


def test_build_quotes_paths_and_splits_flags(load: Load, installation: Installation) -> None:
    installation.variables["genrank_build_flags"] = "--engine local"
    status, call = installation.run(load("daily").command("build", ds=DAY))
    assert status == 0
    root = str(installation.root)
    expected = ["build", "--schema", f"{root}/schema.py:schema", "--data", f"{root}/data", "--out", f"{root}/out"]
    assert call == [*expected, "--from", DAY, "--to", DAY, "--engine", "local"]


def test_a_command_of_several_words_and_paths_of_their_own(load: Load, installation: Installation) -> None:
    installation.variables["genrank_command"] = f"env GENRANK_EXITS=3 {installation.variables['genrank_command']}"
    installation.variables["genrank_out"] = "/elsewhere/it's here"
    status, call = installation.run(load("daily").command("build", ds=DAY))
    assert status == 3
    assert call[call.index("--out") + 1] == "/elsewhere/it's here"


def test_waiting_goes_on_for_one_exit_status_alone(load: Load, installation: Installation) -> None:
    dag = load("daily")
    assert dag.tasks["wait_for_inputs"].arguments["retry_exit_code"] == 75
    status, call = installation.run(dag.command("wait_for_inputs", ds=DAY), GENRANK_EXITS="75")
    assert status == 75
    assert call[:1] == ["inputs"]
    assert call[-2:] == ["--day", DAY]


def test_the_first_day_is_not_evaluated_and_learns_from_itself(load: Load, installation: Installation) -> None:
    dag = load("daily")
    assert installation.run(dag.command("evaluate", ds=DAY)) == (99, [])
    status, call = installation.run(dag.command("train", ds=DAY))
    assert status == 0
    assert call[call.index("--dates") + 1] == f"{DAY}:{DAY}"
    assert "--from-checkpoint" not in call


def test_the_very_first_run_may_start_earlier(load: Load, installation: Installation) -> None:
    installation.variables["genrank_first_day"] = "2025-12-01"
    dag = load("daily")
    _, call = installation.run(dag.command("train", ds=DAY))
    assert call[call.index("--dates") + 1] == f"2025-12-01:{DAY}"
    _, call = installation.run(dag.command("train", ds="2026-01-06"))
    assert call[call.index("--dates") + 1] == "2026-01-06:2026-01-06"


def test_a_day_goes_on_from_the_newest_finished_run_before_it(load: Load, installation: Installation) -> None:
    """Runs of later days (a day cleared and run again) and runs that never finished don't count; missed days are made up for."""
    installation.finished("2025-12-31", "2026-01-02", DAY, "2026-01-09")
    (installation.runs / "dt=2026-01-04").mkdir()
    dag = load("daily")
    earlier = str(installation.runs / "dt=2026-01-02")
    status, call = installation.run(dag.command("evaluate", ds=DAY))
    assert status == 0
    expected = ["evaluate", "--run", earlier, "--samples", str(installation.root / "out"), "--dates", DAY]
    assert call == [*expected, "--out", str(installation.runs / "next-day" / f"dt={DAY}.json")]
    _, call = installation.run(dag.command("train", ds="2026-01-06"))
    assert call[call.index("--from-checkpoint") + 1] == str(installation.runs / f"dt={DAY}")
    _, call = installation.run(dag.command("train", ds="2026-01-04"))
    assert call[call.index("--from-checkpoint") + 1] == earlier
    assert call[call.index("--dates") + 1] == "2026-01-03:2026-01-04"


@pytest.mark.parametrize(
    "name", ["2026-01-04.bak", "2026-01-04 copy", "2026-01-4", "2026-01-040", "old", "2026-01-04\n2026-01-04"]
)
def test_a_folder_that_is_not_named_by_a_day_is_no_model(load: Load, installation: Installation, name: str) -> None:
    installation.finished(name)
    dag = load("daily")
    assert installation.run(dag.command("evaluate", ds=DAY)) == (99, [])
    installation.finished("2026-01-02")
    _, call = installation.run(dag.command("train", ds=DAY))
    assert call[call.index("--from-checkpoint") + 1] == str(installation.runs / "dt=2026-01-02")


@pytest.mark.parametrize(
    "hostile",
    [
        "$(touch mark)",
        "`touch mark`",
        "; touch mark #",
        "' ; touch mark #",
        "2026-01-01\ntouch mark",
        '" && touch mark "',
    ],
)
def test_no_parameter_of_a_backfill_is_run_by_the_shell(
    load: Load, installation: Installation, hostile: str, monkeypatch
) -> None:
    """Airflow refuses what is no date when it is given a format; the shell must not depend on it."""
    dag = load("backfill")
    monkeypatch.chdir(installation.root)
    for params in ({"from": hostile, "to": DAY}, {"from": DAY, "to": hostile}):
        _, call = installation.run(dag.command("train", params={**params, "train": True}))
        assert not (installation.root / "mark").exists()
        assert call[call.index("--dates") + 1] == f"{params['from']}:{params['to']}"
        with pytest.raises(ValueError, match="Invalid isoformat"):
            dag.tasks["build"].arguments["mapped"]["env"](params)


def test_a_failed_training_is_not_gone_on_from(load: Load, installation: Installation) -> None:
    dag = load("daily")
    status, _ = installation.run(dag.command("train", ds=DAY), GENRANK_EXITS="1")
    assert status == 1
    _, call = installation.run(dag.command("train", ds="2026-01-06"))
    assert "--from-checkpoint" not in call
    _, call = installation.run(dag.command("train", ds="2026-01-07"))
    assert call[call.index("--from-checkpoint") + 1] == str(installation.runs / "dt=2026-01-06")


def test_backfill_builds_each_day_and_trains_only_if_asked(load: Load, installation: Installation) -> None:
    dag = load("backfill")
    days = dag.tasks["build"].arguments["mapped"]["env"]
    params = {"from": "2026-02-27", "to": "2026-03-01", "train": False}
    environments = days(params)
    assert [one["day"] for one in environments] == ["2026-02-27", "2026-02-28", "2026-03-01"]
    for environment in environments:
        _, call = installation.run(dag.command("build"), **environment)
        assert call[-4:] == ["--from", environment["day"], "--to", environment["day"]]
    assert installation.run(dag.command("train", params=params)) == (99, [])
    installation.finished("2026-02-20", "2026-02-28")
    _, call = installation.run(dag.command("train", params=params | {"train": True}))
    assert call[call.index("--dates") + 1] == "2026-02-21:2026-03-01"
    assert call[call.index("--from-checkpoint") + 1] == str(installation.runs / "dt=2026-02-20")
    with pytest.raises(ValueError, match="after"):
        days({"from": "2026-03-01", "to": "2026-02-27"})
