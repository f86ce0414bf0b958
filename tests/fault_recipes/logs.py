"""Faults of logs, schemas and builds."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genrank.pipelines import assemble, spark_session
from genrank.pipelines.clean import clean
from genrank.pipelines.engine_factory import open_engine
from genrank.pipelines.landing import missing_inputs
from genrank.pipelines.sample_statistics import statistics
from genrank.schemas import (
    Numeric,
    UserError,
    load_schema,
)
from genrank.schemas.lock import locked
from tests.fault_recipes.place import COLUMNS, DAYS, Place, a_schema, fault

# ---------------------------------------------------------------------- logs


@fault("a day of exposures is missing")
def _(p: Place) -> None:
    shutil.rmtree(p.root / "logs" / "exposures" / f"dt={DAYS[1]}")
    p.build(force=True)


@fault("a day that no log has")
def _(p: Place) -> None:
    p.build(first="2025-12-31", last="2025-12-31")


@fault("a source without a folder")
def _(p: Place) -> None:
    shutil.rmtree(p.root / "logs" / "clicks")
    p.build()


@fault("a day's folder without files")
def _(p: Place) -> None:
    p.clicks.unlink()
    p.build()


@fault("an unfinished file")
def _(p: Place) -> None:
    p.clicks.rename(p.clicks.with_name("part-0.parquet.tmp"))
    p.build()


@fault("a hidden file")
def _(p: Place) -> None:
    shutil.copy(p.clicks, p.clicks.with_name(".part-1.parquet"))
    p.build()


@fault("a file of another suffix")
def _(p: Place) -> None:
    shutil.copy(p.clicks, p.clicks.with_name("part-1.csv"))
    p.build()


@fault("a partition of null days")
def _(p: Place) -> None:
    shutil.copytree(p.clicks.parent, p.clicks.parents[1] / "dt=__HIVE_DEFAULT_PARTITION__")
    p.build()


@fault("a day written in another form")
def _(p: Place) -> None:
    shutil.copytree(p.clicks.parent, p.clicks.parents[1] / "dt=20260103")
    p.build()


@fault("a link to nothing")
def _(p: Place) -> None:
    p.clicks.with_name("part-1.parquet").symlink_to(p.root / "gone.parquet")
    p.build()


@fault("a file that this user may not read")
def _(p: Place) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    p.patch.setattr(pq, "read_metadata", refuse)
    (p.out / "partials" / "footers.json").unlink()
    p.build()


@fault("a file that is not Parquet")
def _(p: Place) -> None:
    p.clicks.write_bytes(b"user_id,item_id,ts\n1,2,3\n")
    p.build()


@fault("a file cut short")
def _(p: Place) -> None:
    p.clicks.write_bytes(p.clicks.read_bytes()[:200])
    p.build()


@fault("a column is missing")
def _(p: Place) -> None:
    p.rewrite(lambda table: table.drop_columns(["item_id"]))
    p.build()


@fault("a column of another type")
def _(p: Place) -> None:
    p.rewrite(lambda table: table.set_column(1, "item_id", table["item_id"].cast(pa.string())))
    p.build()


@fault("two columns of one name")
def _(p: Place) -> None:
    p.rewrite(lambda table: table.append_column("item_id", table["item_id"]))
    p.build()


@fault("a value in the path of another type")
def _(p: Place) -> None:
    for dt in DAYS:
        day = p.clicks.parents[1] / f"dt={dt}"
        (day / "hour=noon").mkdir()
        (day / "part-0.parquet").rename(day / "hour=noon" / "part-0.parquet")
    p.build(a_schema({"columns": COLUMNS | {"hour": "int32"}}))


@fault("a sum beyond float32")
def _(p: Place) -> None:
    for dt in DAYS:
        file = p.clicks.parents[1] / f"dt={dt}" / "part-0.parquet"
        table = pq.ParquetFile(file).read().set_column(0, "user_id", pa.array([1, 1, 1]))
        pq.write_table(table.append_column("amount", pa.array([3e38, 3e38, 3e38])), file)
    p.build(a_schema(amount=True), out=p.root / "other")


@fault("a day of a label's log is missing")
def _(p: Place) -> None:
    shutil.rmtree(p.clicks.parent)
    p.build()


@fault("a catalog without Spark")
def _(p: Place) -> None:
    p.build(a_schema({"path": None, "catalog": "db.clicks"}), out=p.root / "other")


@fault("inputs that have not landed")
def _(p: Place) -> None:
    raise UserError("; ".join(missing_inputs(a_schema(), str(p.root / "logs"), "2026-01-04")))


@fault("inputs without their marker")
def _(p: Place) -> None:
    raise UserError("; ".join(missing_inputs(a_schema(), str(p.root / "logs"), DAYS[0], "_SUCCESS")))


# ---------------------------------------------------------------------- schemas


@fault("a zone that is none")
def _(p: Place) -> None:
    a_schema(utc_offset="Europe/Berlni")


@fault("a column that no source has")
def _(p: Place) -> None:
    schema = a_schema()
    schema.replace(candidates=schema.candidates.replace(features=(Numeric(name="prise"),)))


@fault("no schema of that name")
def _(p: Place) -> None:
    load_schema(str(p.root / "gone.py"))


@fault("a schema file that fails")
def _(p: Place) -> None:
    (p.root / "schema.py").write_text("import nothing_of_this_name\n")
    load_schema(str(p.root / "schema.py"))


@fault("a file without a schema")
def _(p: Place) -> None:
    (p.root / "schema.py").write_text("a = 1\n")
    load_schema(str(p.root / "schema.py"))


# ---------------------------------------------------------------------- builds


@fault("an as-of before the day's end")
def _(p: Place) -> None:
    p.build(as_of="2026-01-02T12:00:00Z")


@fault("days in the wrong order")
def _(p: Place) -> None:
    p.build(first=DAYS[1], last=DAYS[0])


@fault("a damaged layout")
def _(p: Place) -> None:
    (p.out / "partials" / "layout.json").write_text("{")
    p.build(force=True)


@fault("a damaged partial")
def _(p: Place) -> None:
    shutil.rmtree(p.out)
    p.build()  # Partials of these files, not of those that were copied.
    file = next((p.out / "partials" / "clicks" / f"dt={DAYS[0]}").glob("*/*.parquet"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    p.build(force=True)


@fault("a partial without its rows")
def _(p: Place) -> None:
    shutil.rmtree(p.out)
    p.build()  # Partials of these files, not of those that were copied.
    next((p.out / "partials" / "clicks" / f"dt={DAYS[0]}").glob("*/*.parquet")).unlink()
    p.build(force=True)


@fault("another build at work")
def _(p: Place) -> None:
    with locked(p.out):
        p.build(wait=False)


@fault("an output that is a file")
def _(p: Place) -> None:
    (p.root / "file").write_text("")
    p.build(out=p.root / "file")


@fault("a file system without locks")
def _(p: Place) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    p.patch.setattr(fcntl, "flock", none)
    p.build()


@fault("a full disk")
def _(p: Place) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    p.patch.setattr(assemble, "write_samples", full)
    p.build(force=True)


@fault("a disk that fills after the first day")
def _(p: Place) -> None:
    write = assemble.write_samples

    def full(table: pa.Table, path: Path, *rest: Any) -> None:
        if DAYS[1] in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(table, path, *rest)

    p.patch.setattr(assemble, "write_samples", full)
    p.build(force=True, days_per_job=1)


@fault("out of memory")
def _(p: Place) -> None:
    def short(*_: object, **__: object) -> None:
        raise MemoryError

    p.patch.setattr(assemble, "write_samples", short)
    p.build(force=True)


@fault("Spark without Java")
def _(p: Place) -> None:
    p.patch.delenv("JAVA_HOME", raising=False)
    p.patch.setattr(spark_session.shutil, "which", lambda _: None)
    open_engine("spark", p.out)


@fault("nothing to clean")
def _(p: Place) -> None:
    clean(p.root / "gone")


@fault("no statistics")
def _(p: Place) -> None:
    statistics(p.root / "gone")
