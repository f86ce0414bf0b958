"""Fixtures of the tokenization tests."""

from __future__ import annotations

import sys
from pathlib import Path

# pytest's importlib mode puts no test folder on the path; the generator of random samples lives beside the tests.
sys.path.insert(0, str(Path(__file__).parent))
