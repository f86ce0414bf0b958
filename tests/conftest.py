"""Fixtures every room shares."""

from __future__ import annotations

import os
import sys

import pytest

# A Spark worker must run the interpreter that runs the tests, not whichever python3 comes first on PATH.
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give all Spark tests to one worker (`--dist loadgroup`): one session serves them, and memory holds one JVM."""
    for item in items:
        if item.get_closest_marker("spark"):
            item.add_marker(pytest.mark.xdist_group("spark"))
