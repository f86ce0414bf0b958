"""A day of samples is read with any schema it serves, and refused with the difference otherwise."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from schemas_shop import SHOP

from genrank.schemas import Numeric, Schema, UserError
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.manifest import Counts, DataFile, SampleManifest, built_schema, sample_files


@pytest.fixture
def day(tmp_path: Path) -> Path:
    """A published day without a row, of the shop."""
    folder = tmp_path / "dt=2026-01-01"
    folder.mkdir()
    schema = arrow_schema(SHOP)
    pq.write_table(schema.empty_table(), folder / "part-00000.parquet")
    manifest = SampleManifest(
        schema="shop",
        fingerprint=SHOP.fingerprint,
        build_id="b",
        dt="2026-01-01",
        engine="local",
        as_of="2026-01-05T00:00:00Z",
        files=(DataFile(path="part-00000.parquet", rows=0, bytes=0, sha256=""),),
        samples=0,
        candidates=0,
        inputs=(),
        counts=Counts(rows_in={}, out={}, duplicates={}, quarantined={}),
        created="2026-01-05T00:00:00Z",
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json(by_alias=True))
    return folder


def candidates(schema: Schema, *features: object) -> Schema:
    return schema.replace(candidates=schema.candidates.replace(features=features))


def test_samples_serve_their_schema_and_one_with_fewer_features(day: Path) -> None:
    for schema in (SHOP, candidates(SHOP, *SHOP.candidates.features[:3])):
        assert sample_files(day.parent, "2026-01-01", schema) == [day / "part-00000.parquet"]
    same = built_schema(day / "part-00000.parquet") == SHOP
    assert same


def test_samples_that_lack_a_feature_are_refused_with_the_difference(day: Path) -> None:
    more = candidates(SHOP, *SHOP.candidates.features, Numeric(name="list_price", column="items.price"))
    with pytest.raises(UserError) as raised:
        sample_files(day.parent, "2026-01-01", more)
    assert str(raised.value).startswith(
        "samples of 2026-01-01 were built with a schema of other meaning (candidates.list_price: added); build them again"
    )


def test_a_file_that_holds_no_schema_is_named(day: Path) -> None:
    file = day / "part-00000.parquet"
    pq.write_table(pa.table({"x": [1]}), file)
    with pytest.raises(UserError, match=r"part-00000\.parquet holds no schema"):
        built_schema(file)
    file.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"part-00000\.parquet can't be read as Parquet \("):
        built_schema(file)
