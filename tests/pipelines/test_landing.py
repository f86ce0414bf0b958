"""A scheduler must start a day's build neither before its logs have landed nor, for want of a day that never comes, at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from genrank.examples.marketplace.schema import schema
from genrank.pipelines.landing import missing_inputs
from genrank.schemas.errors import UserError

DAY = "2026-01-05"


@pytest.fixture
def landed(tmp_path: Path) -> Path:
    """A data root in which every source's day has landed."""
    for source in schema.sources:
        assert source.path
        folder = tmp_path / source.path.format(dt=DAY)
        folder.mkdir(parents=True)
        (folder / "part-00000.parquet").touch()
    return tmp_path


def exposures(root: Path) -> Path:
    assert schema.exposures.path
    return root / schema.exposures.path.format(dt=DAY)


def test_a_day_that_has_landed_lacks_nothing(landed: Path) -> None:
    assert missing_inputs(schema, str(landed), DAY) == []


def test_a_uri_is_a_data_root_too(landed: Path) -> None:
    assert missing_inputs(schema, landed.as_uri(), DAY) == []
    assert len(missing_inputs(schema, landed.as_uri(), "2026-01-06")) == len(schema.sources)


def test_a_source_may_lie_at_a_uri_of_its_own(landed: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    at_uri = schema.replace(
        sources=tuple(
            s.replace(path=f"{elsewhere.as_uri()}/{s.path}") if s is schema.exposures else s for s in schema.sources
        )
    )
    (lack,) = missing_inputs(at_uri, str(landed), DAY)
    assert lack.startswith(f"{schema.exposures.name}: ")
    assert str(elsewhere) in lack


def test_a_source_that_is_late_is_named(landed: Path) -> None:
    (exposures(landed) / "part-00000.parquet").unlink()
    (lack,) = missing_inputs(schema, str(landed), DAY)
    assert lack.startswith(f"{schema.exposures.name}: ")
    assert DAY in lack


def test_a_writer_at_work_is_waited_for(landed: Path) -> None:
    (exposures(landed) / "_temporary").mkdir()
    (lack,) = missing_inputs(schema, str(landed), DAY)
    assert "being written" in lack


def test_a_marker_is_waited_for_where_one_is_asked_for(landed: Path) -> None:
    lacks = missing_inputs(schema, str(landed), DAY, marker="_SUCCESS")
    assert len(lacks) == len(schema.sources)
    assert all("_SUCCESS" in lack for lack in lacks)
    for source in schema.sources:
        assert source.path
        (landed / source.path.format(dt=DAY) / "_SUCCESS").touch()
    assert missing_inputs(schema, str(landed), DAY, marker="_SUCCESS") == []


def test_a_folder_of_other_files_holds_no_day(landed: Path) -> None:
    (exposures(landed) / "part-00000.parquet").rename(exposures(landed) / "notes.txt")
    (lack,) = missing_inputs(schema, str(landed), DAY)
    assert "no Parquet file" in lack


def test_a_wrong_data_root_is_an_error_and_not_a_wait(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        missing_inputs(schema, str(tmp_path / "nowhere"), DAY)
    with pytest.raises(UserError, match="--data"):
        missing_inputs(schema, "nosuch://bucket", DAY)


def test_a_day_may_be_one_file_or_folders_below(landed: Path) -> None:
    part = exposures(landed) / "part-00000.parquet"
    below = exposures(landed) / "hour=00"
    below.mkdir()
    part.rename(below / part.name)
    assert missing_inputs(schema, str(landed), DAY) == []
    as_file = schema.exposures.model_copy(update={"path": "exposures-{dt}.parquet"})
    others = (source for source in schema.sources if source != schema.exposures)
    one_file = schema.model_copy(update={"sources": (as_file, *others)})
    assert len(missing_inputs(one_file, str(landed), DAY)) == 1
    (landed / f"exposures-{DAY}.parquet").touch()
    assert missing_inputs(one_file, str(landed), DAY) == []
