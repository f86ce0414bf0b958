"""Which engine runs a build: opened when the build first needs it, so that one with nothing to do starts none."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from genrank.pipelines.engine import AnyEngine
from genrank.schemas import UserError
from genrank.schemas.console import logger

LOCAL_EXPOSURES = 20_000_000
"""Exposures up to which `auto` builds in process: as far as the local engine was measured to cost less than Spark (benchmarks/build.md)."""


class BuildEngine:
    """The engine of one build.

    Args:
        name: `spark`, `local` or `auto`: Spark where a source can only be read by it, under `spark-submit`, and for more than `LOCAL_EXPOSURES`
            where it can run.
        folder: where the local engine keeps what is on its way between two steps.
        given: an engine that somebody else opened, and stops.
    """

    def __init__(self, name: str, folder: Path, given: AnyEngine | None = None) -> None:
        self._name, self._folder = name, folder
        self._engine, self._owned = given, given is None

    def to_ingest(self, source: str) -> AnyEngine:
        """The engine that reads a source which lies in no folder.

        Raises:
            UserError: no such engine, or Spark without Java.
        """
        return self._open("spark", f"only Spark reads source {source!r}")

    def to_build(self, exposures: int) -> AnyEngine:
        """The engine that builds days of so many exposures; raises as `to_ingest`."""
        return self._open(*choose(exposures))

    def _open(self, chosen: str, reason: str) -> AnyEngine:
        if self._engine is None:
            if self._name == "auto":
                logger.info("engine: %s (%s)", chosen, reason)
            self._engine = open_engine(chosen if self._name == "auto" else self._name, self._folder)
        return self._engine

    def __enter__(self) -> BuildEngine:
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._engine is not None and self._owned:
            self._engine.stop()


def choose(exposures: int) -> tuple[str, str]:
    """(`spark` or `local`, why) for days of so many exposures."""
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        return "spark", "submitted to Spark"
    size = f"{exposures:,} exposures"
    if exposures <= LOCAL_EXPOSURES:
        return "local", f"{size}; spark beyond {LOCAL_EXPOSURES:,}, or by --engine spark"
    if lacks := _spark_lacks():
        return "local", f"{size}, and {lacks}"
    return "spark", f"{size}; local up to {LOCAL_EXPOSURES:,}, or by --engine local"


def _spark_lacks() -> str:
    """Why Spark can't run here; empty where it can."""
    if find_spec("pyspark") is None:
        return "pyspark is not installed"
    from genrank.pipelines.spark_session import check_java

    try:
        check_java()
    except UserError:
        return "no Java 17 found"
    return ""


def open_engine(name: str, folder: Path) -> AnyEngine:
    """`spark` or `local`; in `folder` the local one keeps what is on its way between two steps.

    Raises:
        UserError: no such engine, or Spark without Java.
    """
    if name == "local":
        from genrank.pipelines.local_engine import LocalEngine

        return LocalEngine(folder=folder)
    if name == "spark":
        from genrank.pipelines.spark_engine import SparkEngine

        return SparkEngine()
    raise UserError(f"--engine {name!r} is unknown; choose auto, spark or local")
