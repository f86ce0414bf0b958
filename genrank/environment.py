"""The environment variables that genrank reads, all of them. Whoever reads one does so through this module."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """One environment variable."""

    name: str
    values: str
    """What it may be set to."""
    meaning: str

    def get(self) -> str:
        """Its value now; empty where it is unset."""
        return os.environ.get(self.name, "")

    def is_set_to(self, value: str) -> bool:
        """Whether it has this value now."""
        return self.get() == value


KERNELS = Variable(
    "GENRANK_KERNELS",
    "triton, reference",
    "Which implementation the kernels use: Triton (on a CPU it needs TRITON_INTERPRET=1), or the slow PyTorch references, to find out "
    "whether a kernel is to blame. Unset: Triton on CUDA, PyTorch elsewhere.",
)
KERNELS_CHECK = Variable(
    "GENRANK_KERNELS_CHECK",
    "1",
    "Check the values of attention's intervals on the GPU too, which waits for the device.",
)
TMA = Variable("GENRANK_TMA", "1", "Load attention's unmasked tiles by TMA on Hopper and later.")
GLUON = Variable(
    "GENRANK_GLUON",
    "1, tune",
    "Compute attention on Hopper by the kernels for sm_90: 1, wherever they can; tune, where they were timed to be faster. "
    "Unset: never, until a device has shown that they pay.",
)
AUTOTUNE = Variable(
    "GENRANK_AUTOTUNE", "0", "Take the first configuration of each kernel that fits, instead of timing them."
)
TUNING_CACHE = Variable(
    "GENRANK_TUNING_CACHE",
    "a file",
    "Where the fastest configurations of kernels are kept between processes. Unset: genrank/tuning.json in the user's cache folder.",
)
RETRIES = Variable(
    "GENRANK_RETRIES", "a number", "Retries of the Airflow DAGs' tasks (2); read when Airflow parses the DAGs."
)

VARIABLES = (KERNELS, KERNELS_CHECK, TMA, GLUON, AUTOTUNE, TUNING_CACHE, RETRIES)


def in_one_line() -> str:
    """The names and values, for a help page."""
    listed = ", ".join(f"{one.name} ({one.values})" for one in VARIABLES)
    return f"Environment variables: {listed}; docs/configuration.md says what each does."
