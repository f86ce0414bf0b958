"""Environment variables: every one that the code reads is listed, every one listed is read and documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genrank import environment

ROOT = Path(__file__).resolve().parents[1]
NAME = re.compile(r"(?<![A-Z_])GENRANK_[A-Z_]+")


def test_the_code_names_what_is_listed() -> None:
    folders = (
        "genrank/command",
        "schemas",
        "kernels",
        "pipelines",
        "tokenization",
        "model",
        "serving",
        "examples",
        "airflow_dags",
    )
    found = {
        name for folder in folders for path in (ROOT / folder).rglob("*.py") for name in NAME.findall(path.read_text())
    }
    assert found <= {variable.name for variable in environment.VARIABLES}


def test_only_the_dags_read_them_past_the_list() -> None:
    """DAG files import nothing of genrank."""
    read = re.compile(r"(environ\.get\(|environ\[|getenv\()\s*[\"']GENRANK_")
    for folder in (
        "genrank/command",
        "schemas",
        "kernels",
        "pipelines",
        "tokenization",
        "model",
        "serving",
        "examples",
    ):
        for path in (ROOT / folder).rglob("*.py"):
            assert not read.search(path.read_text()), f"{path.relative_to(ROOT)}: read it by genrank.environment"


def test_every_variable_is_used_and_documented() -> None:
    code = "".join(path.read_text() for folder in ("kernels", "model") for path in (ROOT / folder).rglob("*.py"))
    page = (ROOT / "docs" / "configuration.md").read_text()
    for attribute, variable in vars(environment).items():
        if isinstance(variable, environment.Variable):
            assert variable in environment.VARIABLES
            assert f"`{variable.name}`" in page
            if variable is not environment.RETRIES:
                assert f"environment.{attribute}." in code, f"nothing reads {variable.name}"
    assert environment.RETRIES.name in (ROOT / "airflow_dags" / "genrank_tasks.py").read_text()


def test_values_are_those_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENRANK_TMA", raising=False)
    assert environment.TMA.get() == "" and not environment.TMA.is_set_to("1")
    monkeypatch.setenv("GENRANK_TMA", "1")
    assert environment.TMA.is_set_to("1")
