"""The random samples of the tokenization tests serve these, too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tokenization", "pipelines", "model")]
