"""Fixtures all packages' tests share."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable

import pytest
from hypothesis import settings

# Where a property test says nothing of its own; `HYPOTHESIS_EXAMPLES=1000 pytest ...` looks harder. No deadlines: machines are shared.
settings.register_profile("tests", max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "25")), deadline=None)
settings.load_profile("tests")

# A Spark worker must run the interpreter that runs the tests, not whichever python3 comes first on PATH.
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)


TRACED = ("tests/schemas/", "tests/tokenization/", "tests/serving/", "tests/test_c", "tests/test_release")
DEEP = ("nesting", "text", "stored_tensors", "lengths", "diff", "compiled", "server_process")
"""Tests whose lines `--cov` counts. The others would take a third longer, for lines that these mostly reach: builds, training loops,
kernels in Triton's interpreter, Spark (whose workers are other processes). DEEP ones go through the same lines very often."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    """Give all Spark tests to one worker (`--dist loadgroup`): one session serves them, and memory holds one JVM. Likewise the tests of a
    file that share a fixture of its module, which two workers would make twice.

    Without Java they skip, saying so: the local engine serves there. Coverage is measured in `TRACED` tests.
    """
    for item in items:
        file = item.path.relative_to(config.rootpath).as_posix()
        deep = item.path.stem.removeprefix("test_") in DEEP
        if item.get_closest_marker("spark") or deep or not file.startswith(TRACED):
            item.add_marker(pytest.mark.no_cover)
        if not item.get_closest_marker("spark") and _shares_a_fixture(item):
            item.add_marker(pytest.mark.xdist_group(file))
    spark = [item for item in items if item.get_closest_marker("spark")]
    why = _no_java() if spark else ""
    for item in spark:
        item.add_marker(pytest.mark.xdist_group("spark"))
        if why:
            item.add_marker(pytest.mark.skip(reason=why))


def pytest_collection_finish() -> None:
    """Triton's interpreter replaces its language's functions again whenever a kernel calls another function, which takes a third of its
    time; here once a launch."""
    if os.environ.get("TRITON_INTERPRET") != "1" or "triton.runtime.interpreter" not in sys.modules:
        return
    from triton import language
    from triton.runtime import interpreter

    @functools.cache
    def languages(function: Callable[..., object]) -> frozenset[str]:
        return frozenset(
            m.__name__ for m in (language, language.core) if any(v is m for v in function.__globals__.values())
        )

    replace, launch, replaced = interpreter._patch_lang, interpreter.GridExecutor.__call__, set[str]()

    def replace_once(function: Callable[..., object]) -> object:
        if languages(function) <= replaced:
            return None
        replaced.update(languages(function))
        return replace(function)

    def launch_once(self: interpreter.GridExecutor, *arguments: object, **named: object) -> None:
        try:
            launch(self, *arguments, **named)
        finally:
            replaced.clear()

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = replace_once, launch_once


def _shares_a_fixture(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    own = item.nodeid.partition("::")[0]
    defined = (found[-1] for found in item._fixtureinfo.name2fixturedefs.values())
    return any(fixture.scope == "module" and fixture.baseid == own for fixture in defined)


def _no_java() -> str:
    from genrank.pipelines.spark_session import check_java
    from genrank.schemas import UserError

    try:
        check_java()
    except UserError as error:
        return str(error)
    return ""
