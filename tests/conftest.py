"""Fixtures every room shares."""

from __future__ import annotations

import os
import sys

# A Spark worker must run the interpreter that runs the tests, not whichever python3 comes first on PATH.
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
