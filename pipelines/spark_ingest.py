"""Days of catalog tables (Hive, Iceberg) and of what lies at URIs, copied by Spark to where a build reads files.

A day is copied again when its mark changes: of a table, a hash of its rows; of files, their names, lengths, times and etags. The
mark lies beside the copy, in `dt=<day>/_landed`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from genrank.schemas import EventLog, Snapshot, UserError
from genrank.schemas.digest import digest
from genrank.schemas.files import write_atomically
from genrank.schemas.source_files import NULL_PARTITION, Unread, kind_of, remedy

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

MARK = "_landed"


class LandedDay(NamedTuple):
    """A day as Spark finds it."""

    mark: str
    """ChangePoints when the day's rows do."""
    rows: Callable[[], DataFrame]


class SparkIngest:
    """Copies days of sources that only Spark reads."""

    def __init__(self, session: SparkSession) -> None:
        self.session = session

    def copy(self, source: EventLog | Snapshot, uri: str | None, first: str, last: str, folder: Path) -> None:
        """As `Engine.ingest`."""
        from pyspark.errors import PySparkException

        where = uri or f"table {source.catalog}"
        try:
            found = self._files(source, uri, first, last) if uri else self._table(source, first, last)
            for old in folder.glob("dt=*"):
                if first <= (dt := old.name.removeprefix("dt=")) <= last and dt not in found:
                    shutil.rmtree(old)
            for dt, day in found.items():
                mark = folder / f"dt={dt}" / MARK
                if not mark.is_file() or mark.read_text() != day.mark:
                    physical = [source.physical(column) for column in source.columns]
                    frame = day.rows()
                    _require_columns(source, where, frame, physical)
                    frame.select(*physical).write.mode("overwrite").parquet(f"file://{mark.parent.absolute()}")
                    write_atomically(mark, day.mark)
        except Exception as error:
            if isinstance(error, PySparkException) or type(error).__module__.startswith("py4j"):
                raise UserError(f"source {source.name!r}: {where} can't be read: {_first_line(error)}") from error
            raise

    def _table(self, source: EventLog | Snapshot, first: str, last: str) -> dict[str, LandedDay]:
        """Days of a catalog table; their content is the mark."""
        from pyspark.sql import functions as f

        assert source.catalog is not None
        table = self.session.table(source.catalog)
        physical = [source.physical(column) for column in source.columns]
        _require_columns(source, f"table {source.catalog}", table, [source.partition, *physical])
        dt = f.col(source.partition).cast("string")
        if not table.where(dt.isNull()).isEmpty():
            raise UserError(
                f"source {source.name!r}: table {source.catalog} has rows whose {source.partition} is null, which would not be read;"
                " give them a day, or read a view without them"
            )
        rows = table.where((dt >= first) & (dt <= last))
        mark = f.concat_ws(":", f.count(f.lit(1)), f.sum(f.xxhash64(*physical).cast("decimal(38,0)")))
        marks = rows.groupBy(dt.alias("dt")).agg(mark.alias("mark")).collect()
        return {day.dt: LandedDay(day.mark, partial(rows.where, dt == day.dt)) for day in marks}

    def _files(self, source: EventLog | Snapshot, uri: str, first: str, last: str) -> dict[str, LandedDay]:
        """Days that lie at a URI, through Hadoop's file systems; names, lengths, times and etags of the files are the mark."""
        from py4j.java_gateway import is_instance_of

        context = self.session.sparkContext
        jvm, gateway = context._jvm, context._gateway
        assert jvm is not None
        parts = uri.split("/")
        at = next(i for i, part in enumerate(parts) if "{dt}" in part)
        parent = jvm.org.apache.hadoop.fs.Path("/".join(parts[:at]))
        system = parent.getFileSystem(context._jsc.hadoopConfiguration())
        if not system.exists(parent):
            raise UserError(
                f"source {source.name!r}: there is no {parent.toString()}; check --data and the source's path {source.path!r}"
            )
        prefix = parts[at].partition("{dt}")[0]
        pattern = re.compile(re.escape(parts[at]).replace(r"\{dt\}", r"(\d{4}-\d\d-\d\d)"))
        found: dict[str, LandedDay] = {}
        for child in system.listStatus(parent):
            match = pattern.fullmatch(child.getPath().getName())
            why = None if match else _unread(child.getPath().getName(), prefix, source)
            if why and system.getContentSummary(child.getPath()).getLength():
                one = Unread(child.getPath().toString(), why)
                raise UserError(f"source {source.name!r}: {one} would not be read; {remedy(source)}")
            if not match or not first <= match[1] <= last:
                continue
            day = jvm.org.apache.hadoop.fs.Path("/".join([child.getPath().toString(), *parts[at + 1 :]]))
            if not system.exists(day):
                continue
            stamps = {}
            listed = system.listFiles(day, True)
            while listed.hasNext():
                file = listed.next()
                path = file.getPath().toString()
                inside = path.removeprefix(day.toString()).strip("/") or child.getPath().getName()
                kind = kind_of(inside, source.ignore)
                if kind not in ("data", "ignored") and file.getLen():
                    one = Unread(path, kind)
                    raise UserError(f"source {source.name!r}: {one} would not be read; {remedy(source)}")
                if kind == "data":
                    etag = file.getEtag() if is_instance_of(gateway, file, "org.apache.hadoop.fs.EtagSource") else ""
                    stamps[path] = [file.getLen(), file.getModificationTime(), etag]
            if stamps:
                found[match[1]] = LandedDay(digest(stamps), partial(self.session.read.parquet, *sorted(stamps)))
        return dict(sorted(found.items()))


def _unread(name: str, prefix: str, source: EventLog | Snapshot) -> str | None:
    """Why what lies beside days is not read although it seems to be of the source; None where it is another's, or ignored."""
    if kind_of(name, source.ignore) == "ignored":
        return None
    if NULL_PARTITION in name:
        return "rows whose day is null"
    if prefix and name.startswith(prefix):
        return f"not of the form {prefix}YYYY-MM-DD"
    return None


def _require_columns(source: EventLog | Snapshot, where: str, frame: DataFrame, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in frame.columns:
            raise UserError(
                f"source {source.name!r}: {where} has no column {column!r}; it has {', '.join(frame.columns)}"
            )


def _first_line(error: Exception) -> str:
    """What went wrong, without the stack: of a Java exception, its own words."""
    java = getattr(error, "java_exception", None)
    return str(java.toString() if java is not None else error).splitlines()[0]
