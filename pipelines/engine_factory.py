"""Which engine runs a build."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from genrank.pipelines.engine import AnyEngine
from genrank.schemas import UserError
from genrank.schemas.console import logger


def default_engine() -> tuple[str, str]:
    """(`spark`, "") where Spark can run; else (`local`, why)."""
    if find_spec("pyspark") is None:
        return "local", "pyspark is not installed"
    from genrank.pipelines.spark_session import check_java

    try:
        check_java()
    except UserError:
        return "local", "no Java 17 found"
    return "spark", ""


def open_engine(name: str, folder: Path) -> AnyEngine:
    """`spark`, `local` or `auto` (see `default_engine`); in `folder` the local one keeps what is on its way between two steps.

    Raises:
        UserError: no such engine, or Spark without Java.
    """
    if name == "auto":
        name, reason = default_engine()
        if reason:
            logger.info("engine: %s (%s)", name, reason)
    if name == "local":
        from genrank.pipelines.local_engine import LocalEngine

        return LocalEngine(folder=folder)
    if name == "spark":
        from genrank.pipelines.spark_engine import SparkEngine

        return SparkEngine()
    raise UserError(f"--engine {name!r} is unknown; choose spark or local")
