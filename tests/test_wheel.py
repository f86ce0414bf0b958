"""The wheel as a user installs it: `genrank/` alone, whole, and in nobody's way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import genrank

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("schemas", "kernels", "pipelines", "tokenization", "model", "serving", "examples", "airflow_dags")
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"


def build(kind: str, source: Path, out: Path) -> Path:
    """The one file that the build backend makes of a source tree: `wheel` or `sdist`."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(out)], cwd=source, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, links kept, so that no build writes into this checkout."""
    copy = tmp_path_factory.mktemp("source") / "genrank"
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("genrank", *PACKAGES):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def contents(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}


def test_the_wheel_holds_genrank_alone_and_all_of_it(wheel: Path) -> None:
    names = contents(wheel)
    assert {name.split("/")[0] for name in names} == {"genrank", f"genrank-{genrank.__version__}.dist-info"}
    expected = {f"genrank/{path.name}" for path in (ROOT / "genrank").iterdir() if path.suffix in (".py", ".typed")}
    for package in (*PACKAGES, "genrank/command"):
        folder = ROOT / package
        files = (path for pattern in ("*.py", "*.html") for path in folder.rglob(pattern))
        expected |= {f"genrank/{folder.name}/{path.relative_to(folder).as_posix()}" for path in files}
    assert {"genrank/py.typed", "genrank/model/report.html"} <= expected
    assert not expected - names


def test_a_wheel_of_the_sdist_holds_the_same(source: Path, wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "sdist").mkdir()
    (tmp_path / "wheel").mkdir()
    sdist = build("sdist", source, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert contents(build("wheel", unpacked, tmp_path / "wheel")) == contents(wheel)


class Environment:
    """A virtual environment that sees the packages of this one, but not genrank."""

    def __init__(self, path: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(path)], check=True, timeout=120)
        self.python = path / "bin" / "python"
        site = path / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        # Read for its folders' names alone, so the editable install's own hook isn't run.
        (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.bin = path / "bin"

    def pip(self, *arguments: object) -> None:
        quiet = ["--disable-pip-version-check", "--quiet"]
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), *map(str, arguments), *quiet]
        done = subprocess.run(pip, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr

    def install(self, *wheels: Path) -> None:
        self.pip("install", "--no-deps", "--no-index", "--no-compile", "--ignore-installed", *wheels)

    def run(self, *command: object, cwd: Path) -> str:
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=240, env=clean)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


def other_kernels(folder: Path) -> Path:
    """A wheel of a distribution `kernels`, whose package has that name, as Hugging Face's has."""
    path, info = folder / "kernels-9.9-py3-none-any.whl", "kernels-9.9.dist-info"
    files = {
        "kernels/__init__.py": "OWNER = 'another project'\n",
        "kernels/attention.py": "OWNER = 'another project'\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: kernels\nVersion: 9.9\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return path


def test_it_lives_beside_a_package_called_kernels(wheel: Path, environment: Environment, tmp_path: Path) -> None:
    ours = "import genrank.kernels.dispatch as m; print(m.__file__)"
    theirs = "import kernels, kernels.attention as m; print(kernels.OWNER, m.OWNER)"
    empty = tmp_path / "empty"
    empty.mkdir()

    def result(code: str) -> str:
        return environment.run(environment.python, "-c", code, cwd=empty)

    environment.install(wheel, other_kernels(tmp_path))
    assert str(environment.bin.parent) in result(ours)
    assert result(theirs) == "another project another project"
    environment.pip("uninstall", "--yes", "genrank")
    assert result(theirs) == "another project another project"
    environment.install(wheel)
    environment.pip("uninstall", "--yes", "kernels")
    assert str(environment.bin.parent) in result(ours)


def test_the_users_own_modules_shadow_nothing(wheel: Path, environment: Environment, tmp_path: Path) -> None:
    environment.install(wheel)
    project = tmp_path / "project"
    (project / "model").mkdir(parents=True)
    for name in ("schemas.py", "kernels.py", "pipelines.py", "tokenization.py", "examples.py", "model/__init__.py"):
        (project / name).write_text("OWNER = 'user'\n")
    assert "The usual way through" in environment.run(environment.bin / "genrank", "--help", cwd=project)
    assert "The usual way through" in environment.run(environment.python, "-m", "genrank", "--help", cwd=project)
    code = (
        "import schemas, model, genrank; from genrank.model.config import TrainConfig;"
        "print(schemas.OWNER, model.OWNER, genrank.Schema.__module__.split('.')[0], genrank.__version__)"
    )
    assert environment.run(environment.python, "-c", code, cwd=project) == f"user user genrank {genrank.__version__}"
    schema = "from genrank import Candidates, Categorical, EventLog, Hashed, Label, Schema, Table\n" + (
        "log = EventLog(name='exposures', path='e/dt={dt}', columns={'user_id': 'int64', 'item_id': 'int64', 'ts': 'int64'})\n"
        "item = Categorical(name='item_id', table=Table(name='item', dim=8, vocabulary=Hashed(size=100)))\n"
        "schema = Schema(name='own', sources=(log, log.replace(name='clicks')), candidates=Candidates(features=(item,)),\n"
        "    labels=(Label(name='click', source='clicks', window='10m'),))\n"
    )
    (project / "schemas.py").write_text(schema)
    checked = environment.run(environment.bin / "genrank", "schema", "check", "--schema", "schemas.py", cwd=project)
    assert "the declaration of own holds" in checked


def test_what_spark_ships_runs_alone(wheel: Path, environment: Environment, tmp_path: Path) -> None:
    """The zip that an installed genrank makes for executors imports where genrank isn't installed."""
    environment.install(wheel)
    shipped = tmp_path / "shipped.zip"
    code = (
        f"from pathlib import Path; from genrank.pipelines.spark_engine import package; package(Path({str(shipped)!r}))"
    )
    environment.run(environment.python, "-c", code, cwd=tmp_path)
    environment.pip("uninstall", "--yes", "genrank")
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in contents(shipped)]
    assert "genrank.pipelines.normalize" in names
    code = (
        f"import sys, importlib; sys.path.insert(0, {str(shipped)!r})\n"
        f"for name in {sorted(names)!r}: importlib.import_module(name)\n"
        "import genrank; print(genrank.__file__, 'torch' in sys.modules)"
    )
    assert environment.run(environment.python, "-c", code, cwd=tmp_path) == f"{shipped / 'genrank/__init__.py'} False"
