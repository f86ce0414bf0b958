"""Files of samples."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genrank.pipelines.arrays import single_array
from genrank.pipelines.encodings import DELTAS, PLAIN, leaves, without_dictionary
from genrank.pipelines.sample_columns import TIMES, USER_ID
from genrank.schemas import Schema, files
from genrank.schemas.derive.sample_lengths import lengths_metadata
from genrank.schemas.derive.sample_schema import BUILD_KEY

ROW_GROUP = 4096
"""Rows of a row group at most, unless one user's day has more."""


def write_samples(table: pa.Table, path: Path, schema: Schema, build_id: str) -> None:
    """One Parquet file of samples: numbers plain, times far apart as deltas, hashes and texts as dictionaries, zstd: what Spark's reader knows, too; lengths
    in the footer.

    The rows of one user lie in one row group, so that a reader has whole requests, however a long day was divided.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    encodings, dictionaries = _encodings(table)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), BUILD_KEY: build_id.encode()})
    with pq.ParquetWriter(
        path,
        table.schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=dictionaries,
        column_encoding=encodings,
        # Of values in lists nobody could skip a row group.
        write_statistics=[field.name for field in table.schema if not pa.types.is_nested(field.type)],
        write_page_checksum=True,
    ) as writer:
        bounds = _row_groups(table)
        for begin, end in itertools.pairwise(bounds):
            writer.write_table(table.slice(begin, end - begin), row_group_size=end - begin)
        writer.add_key_value_metadata(lengths_metadata(table, schema, bounds))
    files.sync(path)


def _row_groups(table: pa.Table) -> list[int]:
    """Where row groups begin, and the end of the last: behind at most `ROW_GROUP` rows, but never inside a user's."""
    user = table[USER_ID]
    changes = pc.not_equal(user.slice(1), user.slice(0, len(user) - 1)).to_numpy()
    starts = np.r_[0, np.flatnonzero(changes) + 1, len(table)]
    bounds = [0]
    while bounds[-1] < len(table):
        fits = int(np.searchsorted(starts, bounds[-1] + ROW_GROUP, "right")) - 1
        at = starts[fits] if starts[fits] > bounds[-1] else starts[fits + 1]
        bounds.append(int(at))
    return bounds


def _encodings(table: pa.Table) -> tuple[dict[str, str], list[str]]:
    """(path of a column -> its encoding, paths of those with a dictionary)."""
    encodings: dict[str, str] = {}
    dictionaries: list[str] = []
    for field in table.schema:
        for path, values in leaves(field.name, single_array(table.column(field.name))):
            if without_dictionary(values):
                encodings[path] = PLAIN
            elif path.removesuffix(".list.element").rpartition(".")[2] in TIMES:
                encodings[path] = DELTAS
            else:
                dictionaries.append(path)
    return encodings, dictionaries
