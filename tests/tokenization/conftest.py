"""Fixtures of the tokenization tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A loaded machine is slow, not wrong.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Kernels run in Triton's interpreter, which is decided when they are imported.
os.environ["TRITON_INTERPRET"] = "1"

# pytest's importlib mode puts no test folder on the path; the generator of random samples lives beside the tests.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def no_process_group() -> Iterator[None]:
    """The torchrec backend makes a process group where there is none; a test leaves none behind."""
    yield
    dist = sys.modules.get("torch.distributed")
    if dist and dist.is_initialized():
        dist.destroy_process_group()
