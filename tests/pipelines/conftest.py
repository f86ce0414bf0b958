"""One Spark session for all of the builder's tests, and a gate that doesn't pay Great Expectations' start for every refused day."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from genrank.pipelines import hot_keys
from genrank.pipelines.compaction import sizes
from genrank.pipelines.gate import data_docs
from genrank.pipelines.gate.judge import Gate
from tests.pipelines.plain_page import plain_page


@pytest.fixture(scope="session")
def spark_engine() -> Iterator[object]:
    """The Spark engine on a local session of two cores."""
    from genrank.pipelines.spark_engine import SparkEngine
    from genrank.pipelines.spark_session import start_session

    session = start_session("local[2]", **{"spark.driver.memory": "1g", "spark.sql.shuffle.partitions": "2"})
    yield SparkEngine(session)
    session.stop()


@pytest.fixture(scope="module")
def recomputing_gate() -> Iterator[None]:
    """The gate without Great Expectations' page of refused days; `test_gate.py` has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_docs, "write_page", plain_page)
        yield


@pytest.fixture(scope="module")
def plain_gate(recomputing_gate: None) -> Iterator[None]:
    """Nor does it recompute samples, which would be half of what a small build takes; `test_gate.py` and `test_oracle.py` have it do so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gate, "_recompute", lambda *_: None)
        yield


@pytest.fixture
def small_compaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles small enough that a few days make several sizes of them, and little memory to read the rest in."""
    for name, value in (("LARGEST", 4), ("SHORTEST", 2), ("PERIOD", 3), ("CHUNK", 30)):
        monkeypatch.setattr(sizes, name, value)
    monkeypatch.setattr(hot_keys, "HOT_ROWS", 4)
