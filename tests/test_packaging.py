"""What `make` installs is what the packages import: extras, locks and the commands that use them agree."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]

# Which extras a package's users have installed, beside the base.
EXTRAS_OF = {
    "schemas": set(),
    "kernels": {"train"},
    "pipelines": {"pipelines"},
    "tokenization": {"train"},
    "model": {"train", "lightgbm"},
    "serving": {"train", "serve"},
    "examples": {"pipelines"},
    "genrank": {"pipelines", "train"},
    "benchmarks": {"pipelines", "train", "serve", "dev"},
    "tests": {"pipelines", "train", "serve", "dev"},
}
# Our own modules: the packages, and the files that tests and DAGs import from beside themselves.
OURS = {"airflow_dags", *EXTRAS_OF}
OURS |= {path.stem for package in ("tests", "airflow_dags") for path in (ROOT / package).rglob("*.py")}
# Declared under another name: the two builds of fbgemm install one module; pydantic pins its core.
DECLARED_AS = {"fbgemm-gpu-cpu": "fbgemm-gpu", "pydantic-core": "pydantic"}
# Declared for what they do, not for an import of ours.
NEVER_IMPORTED = {
    "fbgemm-gpu": "torchrec's operators",
    "lightgbm": "tests of `--model lightgbm`, which imports it",
    "tensorboard": "torch.utils.tensorboard",
    "mypy": "make lint",
    "ruff": "make lint",
    "pytest-cov": "make test COVERAGE=yes",
    "pytest-timeout": "a pytest plugin",
    "pytest-xdist": "a pytest plugin",
}


def lock(name: str) -> dict[str, str]:
    """The pins of a lock; every line that isn't a comment must be `name==version`."""
    pins = {}
    for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pin = re.fullmatch(r"([a-z0-9-]+)==([A-Za-z0-9.+!]+)", line)
        assert pin, f"requirements/{name}.txt: not a plain pin: {line!r}; run `make lock`"
        pins[pin[1]] = pin[2]
    return pins


def requirements(*extras: str) -> dict[str, Requirement]:
    """Declared requirements by canonical name: the base and the given extras."""
    listed = [*PYPROJECT["project"]["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return {canonicalize_name(one.name): one for one in map(Requirement, listed)}


def imported(path: Path) -> set[str]:
    """Modules of others that a file imports: anywhere, but for a benchmark's peers, fetched and imported where they are measured."""
    tree = ast.parse(path.read_text(), filename=str(path))
    names: set[str] = set()
    for node in tree.body if "benchmarks" in path.parts else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - OURS


def python_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout: no list of tracked files")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize(
    ("name", "extras", "absent"),
    [
        ("cpu", ("pipelines", "train", "serve", "dev", "cpu"), {"fbgemm-gpu"}),
        ("cuda", ("pipelines", "train", "serve", "dev"), set()),
    ],
)
def test_locks_hold_what_is_declared(name: str, extras: tuple[str, ...], absent: set[str]) -> None:
    pins = lock(name)
    for distribution, requirement in requirements(*extras).items():
        if distribution in absent:
            assert distribution not in pins
            continue
        assert distribution in pins, f"requirements/{name}.txt lacks {distribution}: run `make lock`"
        assert requirement.specifier.contains(Version(pins[distribution])), f"{requirement} but {pins[distribution]}"


def test_airflow_lock_holds_what_is_declared() -> None:
    pins = lock("airflow")
    for requirement in map(Requirement, PYPROJECT["dependency-groups"]["airflow"]):
        assert requirement.specifier.contains(Version(pins[canonicalize_name(requirement.name)]))


def test_the_two_locks_differ_by_what_a_gpu_needs_alone() -> None:
    cpu, cuda = lock("cpu"), lock("cuda")
    assert {name: pin for name, pin in cpu.items() if cuda.get(name) != pin} == {"fbgemm-gpu-cpu": cuda["fbgemm-gpu"]}
    surplus = {name for name in cuda.keys() - cpu.keys() if not name.startswith(("nvidia-", "cuda-"))}
    assert surplus == {"fbgemm-gpu"}


@pytest.mark.parametrize("package", EXTRAS_OF)
def test_imports_are_declared(package: str) -> None:
    """A package that imports what its extra doesn't declare breaks on the machine that installs only that extra."""
    declared = {DECLARED_AS.get(name, name) for name in requirements(*EXTRAS_OF[package])}
    homes = packages_distributions()
    for path in python_files(package):
        for module in imported(path):
            if package in {"tests", "benchmarks"} and module in {"airflow"}:
                continue  # in the Airflow lock: its test skips where it isn't installed
            names = {canonicalize_name(home) for home in homes.get(module, [module])}
            names = {DECLARED_AS.get(name, name) for name in names}
            assert names & declared, (
                f"{path.relative_to(ROOT)} imports {module} of {sorted(names)}, which pyproject.toml doesn't declare "
                f"for {package} ({sorted(EXTRAS_OF[package]) or 'base'})"
            )


@pytest.mark.parametrize("extra", [None, "pipelines", "train", "serve", "lightgbm", "dev"])
def test_what_is_declared_is_used(extra: str | None) -> None:
    """Nobody installs what nothing imports."""
    declared = EXTRAS[extra] if extra else PYPROJECT["project"]["dependencies"]
    packages = [package for package, extras in EXTRAS_OF.items() if extra is None or extra in extras]
    homes = packages_distributions()
    modules = {module for package in packages for path in python_files(package) for module in imported(path)}
    used = {canonicalize_name(home) for module in modules for home in homes.get(module, [module])} | set(NEVER_IMPORTED)
    idle = {canonicalize_name(Requirement(line).name) for line in declared} - used
    assert not idle, f"pyproject.toml declares {sorted(idle)} for {extra or 'everyone'}; nothing there imports it"


def test_dags_import_airflow_alone() -> None:
    for path in python_files("airflow_dags"):
        assert imported(path) <= {"airflow", "pendulum"}, path


def test_no_registry_host_and_no_path_of_one_machine() -> None:
    """Locks and scripts work behind a mirror and on any machine."""
    host = re.compile(r"(?i)\bpy" + r"pi\.(org|python)|pythonhosted\.|download\.py" + r"torch\.|--(extra-)?index-url")
    place = re.compile(r"(?<![\w.~}])/(work|opt|root)/\w")
    for path in tracked_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            found = host.search(line) or place.search(line)
            assert not found, f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"


def test_templates_are_packaged() -> None:
    """An installed genrank (not an editable one) holds package data alone beside Python."""
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["*"]
    for path in tracked_files():
        package = path.relative_to(ROOT).parts[0]
        if package in {"schemas", "kernels", "pipelines", "tokenization", "model", "serving"} and path.suffix not in {
            ".py",
            ".md",
        }:
            assert any(path.match(pattern) for pattern in patterns), f"{path}: add it to package-data in pyproject.toml"


@pytest.mark.parametrize("script", [".ci/run", "requirements/lock.sh", "tests/airflow_dags/run_day.sh"])
def test_scripts_are_executable(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK), f"chmod +x {script}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the Makefile reads, so that no test touches this checkout's environments."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(checkout: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "GNUMAKE"))}
    env["PYTHON"] = sys.executable
    return subprocess.run(["make", *args], cwd=checkout, capture_output=True, text=True, env=env, timeout=60)


def stamp(checkout: Path) -> Path:
    touched = re.search(r"touch (\.venv/installed-\w+)", make(checkout, "-n", "install").stdout)
    assert touched
    return checkout / touched[1]


def test_nothing_is_installed_twice_and_a_changed_lock_is(checkout: Path) -> None:
    fresh = make(checkout, "-n", "test").stdout
    assert fresh.index("install --constraint requirements/cuda.txt torch") < fresh.index("--no-deps --requirement")
    done = stamp(checkout)
    done.parent.mkdir()
    done.touch()
    again = make(checkout, "-n", "test").stdout
    assert "pip install" not in again
    assert "pytest" in again
    with (checkout / "requirements" / "cpu.txt").open("a") as changed:
        changed.write("one-more==1.0\n")
    assert "pip install" in make(checkout, "-n", "test").stdout


@pytest.mark.parametrize("target", ["test", "demo"])
def test_a_missing_python_is_one_line_with_its_remedy(checkout: Path, target: str) -> None:
    done = make(checkout, target, "PYTHON=python-not-there")
    assert done.returncode
    assert [line for line in done.stdout.splitlines() if line.startswith("error:")] == done.stdout.splitlines()
    assert "apt-get install python3.11" in done.stdout
    assert not (checkout / ".venv").exists()


def test_a_missing_java_is_a_note_that_names_the_local_engine(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(checkout / "no-java"))
    done = make(checkout, "prerequisites")
    assert done.returncode == 0, done.stderr
    assert "local engine serves" in done.stdout
    assert "apt-get install openjdk-17" in done.stdout


@pytest.mark.spark
def test_spark_tests_share_a_worker(request: pytest.FixtureRequest) -> None:
    """xdist reads its groups from node ids; releases of pytest and xdist that disagree on those drop them silently."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("run by `pytest -n`")
    assert request.node.nodeid.endswith("@spark")
