"""The packages' layers: imports point one way only, without circles, no import needs what its users lack, and files stay short."""

from __future__ import annotations

import ast
import graphlib
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
    "serving": {"model", "tokenization", "kernels", "schemas"},
    "airflow_dags": {"schemas", "pipelines"},
    "examples": {"schemas"},
}
PACKAGES = {*MAY_IMPORT, "benchmarks", "command"}
NEVER = {
    "schemas": {"torch", "pyspark", "torchrec"},
    "pipelines": {"torch", "torchrec", "fbgemm_gpu"},
    "model": {"pyspark"},
    "serving": {"pyspark", "polars", "torchrec", "fbgemm_gpu"},
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


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    assert files(package), f"{package}/ has no Python file"
    for path in files(package):
        foreign = imported(path) & PACKAGES - MAY_IMPORT[package] - {package}
        assert not foreign, (
            f"{path.relative_to(ROOT)} imports {sorted(foreign)}; {package}/ may import {MAY_IMPORT[package]}"
        )


@pytest.mark.parametrize("package", NEVER)
def test_no_package_imports_what_its_users_lack(package: str) -> None:
    for path in files(package):
        banned = imported(path) & NEVER[package]
        assert not banned, f"{path.relative_to(ROOT)} imports {sorted(banned)}"


def modules() -> dict[str, Path]:
    """Every module of the project by its import name."""
    folders = [*MAY_IMPORT, "genrank", "benchmarks"]
    # Links of genrank/ are not followed: what they link is listed by its folder.
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*.py") if path.resolve() == path)
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    prefixed = {
        name if name.split(".")[0] in {"genrank", "benchmarks"} else f"genrank.{name}": named[name] for name in named
    }
    return {name.removesuffix(".__init__"): path for name, path in prefixed.items()}


def imported_modules(path: Path, known: dict[str, Path]) -> set[str]:
    """Our modules that a file imports anywhere in it, inside functions and under TYPE_CHECKING included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import submodule` needs the submodule; any other name needs the module that defines it.
            names |= {name if name in known else node.module for name in inner}
    return names & known.keys() - {name for name in known if known[name] == path}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A path of modules from one back to itself; empty if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})) == {"b", "c"}


def test_no_module_imports_itself_through_others() -> None:
    known = modules()
    graph = {name: imported_modules(path, known) for name, path in known.items()}
    assert sum(map(len, graph.values())) > len(known), "imports of ours are found"
    graph["genrank"] = set()  # it imports what it offers when that is first used; its modules may read its version
    found = circle(graph)
    assert not found, " imports ".join(reversed(found))


LONGEST = 500
"""Lines of a file that is still read at one go."""


@pytest.mark.parametrize("package", [*MAY_IMPORT, "genrank", "benchmarks", "tests"])
def test_no_file_is_too_long(package: str) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in files(package)}
    long = {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > LONGEST}
    assert not long, f"over {LONGEST} lines, split them by what they do: {long}"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("package", ["kernels", "model", "serving"])
def test_imports_without_torchrec_and_fbgemm(package: str) -> None:
    """A bare CUDA image has torch and triton only: every module of `kernels/` and `model/` must import there."""
    # The server needs the extra `serve`, which a machine that only scores files lacks.
    names = (".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files(package) if "server" not in p.parts)
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
