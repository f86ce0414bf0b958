"""Files of samples."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from genrank.pipelines.sample_columns import TIMES
from genrank.schemas import Schema, files
from genrank.schemas.derive.sample_lengths import lengths_metadata
from genrank.schemas.derive.sample_schema import BUILD_KEY

ROW_GROUP = 4096


def write_samples(table: pa.Table, path: Path, schema: Schema, build_id: str) -> None:
    """One Parquet file of samples: times as deltas, numbers as split bytes, ids as dictionaries, zstd; lengths in the footer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encodings, dictionaries = _encodings(table.schema)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), BUILD_KEY: build_id.encode()})
    with pq.ParquetWriter(
        path,
        table.schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=dictionaries,
        column_encoding=encodings,
        write_statistics=True,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP)
        writer.add_key_value_metadata(lengths_metadata(table, schema, ROW_GROUP))
    files.sync(path)


def _encodings(schema: pa.Schema) -> tuple[dict[str, str], list[str]]:
    encodings: dict[str, str] = {}
    dictionaries: list[str] = []

    def visit(path: str, type_: pa.DataType, name: str) -> None:
        if pa.types.is_struct(type_):
            for child in type_:
                visit(f"{path}.{child.name}", child.type, child.name)
        elif pa.types.is_list(type_):
            visit(f"{path}.list.element", type_.value_type, name)
        elif pa.types.is_float32(type_):
            encodings[path] = "BYTE_STREAM_SPLIT"
        elif name in TIMES:
            encodings[path] = "DELTA_BINARY_PACKED"
        else:
            dictionaries.append(path)

    for field in schema:
        visit(field.name, field.type, field.name)
    return encodings, dictionaries
