"""The walls between rooms: arrows run one way only, and no import drags in what its users lack."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "schemas": set(),
    "kernels": set(),
    "pipelines": {"schemas"},
    "tokenization": {"schemas", "kernels"},
    "model": {"tokenization", "kernels", "schemas"},
    "airflow_dags": {"schemas", "pipelines"},
    "examples": {"schemas"},
}
ROOMS = {*MAY_IMPORT, "benchmarks", "command"}
NEVER = {
    "schemas": {"torch", "pyspark", "torchrec"},
    "pipelines": {"torch", "torchrec", "fbgemm_gpu"},
    "model": {"pyspark"},
    "tokenization": {"pyspark"},
    "kernels": {"pyspark", "torchrec", "fbgemm_gpu"},
    "airflow_dags": {"torch", "torchrec", "pyspark"},
}


def imported(path: Path) -> set[str]:
    """Packages a file imports anywhere, inside functions included: ours by their name below `genrank`, others' by their top-level name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            names |= {_package(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "genrank":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(_package(node.module))
    return names


def _package(module: str) -> str:
    return module.removeprefix("genrank.").split(".")[0]


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows_run_one_way(room: str) -> None:
    assert files(room), f"{room}/ has no Python file"
    for path in files(room):
        foreign = imported(path) & ROOMS - MAY_IMPORT[room] - {room}
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}; {room}/ may import {MAY_IMPORT[room]}"


@pytest.mark.parametrize("room", NEVER)
def test_no_room_imports_what_its_users_lack(room: str) -> None:
    for path in files(room):
        banned = imported(path) & NEVER[room]
        assert not banned, f"{path.relative_to(ROOT)} imports {sorted(banned)}"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("room", ["kernels", "model"])
def test_imports_without_torchrec_and_fbgemm(room: str) -> None:
    """A bare CUDA image has torch and triton only: every module of `kernels/` and `model/` must import there."""
    names = (".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files(room))
    modules = [f"genrank.{name}".removesuffix(".__init__") for name in names]
    code = (
        "import sys, importlib\n"
        "for name in ('torchrec', 'fbgemm_gpu', 'tensordict'): sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "an import printed something"


def test_command_imports_lazily() -> None:
    """`genrank --help` must not pay for Spark, torch or pandas."""
    done = run_python(
        "import sys, genrank.command; print(sorted({'torch', 'pyspark', 'pandas', 'polars'} & set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
