"""docs/faults.md is true: each of its rows that has a recipe here is made, and the line that comes out is the one that the page quotes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.command.interruption import Interrupted
from genrank.model.checkpoint import find_checkpoint
from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.documents import Summary, read_document
from genrank.model.evaluate import evaluate, load_model
from genrank.model.run_dir import read_log, read_schema
from genrank.model.trainer import train
from genrank.pipelines import assemble, spark_session
from genrank.pipelines.build import build
from genrank.pipelines.clean import clean
from genrank.pipelines.config import BuildConfig
from genrank.pipelines.engine_factory import open_engine
from genrank.pipelines.gate import expectations
from genrank.pipelines.landing import missing_inputs
from genrank.pipelines.sample_statistics import statistics
from genrank.schemas import (
    Candidates,
    Categorical,
    CrossFeature,
    EventLog,
    Hashed,
    Label,
    Numeric,
    Schema,
    Table,
    UserError,
    load_schema,
)
from genrank.schemas.checked_json import checked, with_checksum
from genrank.schemas.configuration import from_values, parse_dates
from genrank.schemas.lock import locked
from genrank.schemas.manifest import sample_files
from genrank.tokenization.inspect_sample import load_sample
from genrank.tokenization.reader import SampleReader
from tests.pipelines.plain_verdict import plain_verdict

PAGE = Path(__file__).resolve().parents[1] / "docs" / "faults.md"
DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")
NOON = 1_767_268_800_000
DAY = 86_400_000
COLUMNS = {"user_id": "int64", "item_id": "int64", "ts": "int64"}


def a_schema(clicks: dict[str, Any] | None = None, amount: bool = False, **changes: Any) -> Schema:
    """Exposures and clicks, one count, one label."""
    columns = COLUMNS | ({"amount": "float64"} if amount else {})
    item = Categorical(name="item_id", table=Table(name="item", dim=8, vocabulary=Hashed(size=100)))
    features: list[Any] = [CrossFeature(name="n", op="count", source="clicks", keys=("item_id",), window="7d")]
    if amount:
        features.append(
            CrossFeature(name="paid", op="sum", source="clicks", keys=("user_id",), window="7d", value="amount")
        )
    declared: dict[str, Any] = {"name": "clicks", "path": "clicks/dt={dt}", "columns": columns} | (clicks or {})
    settings: dict[str, Any] = {
        "name": "m",
        "sources": (
            EventLog(name="exposures", path="exposures/dt={dt}", columns=COLUMNS),
            EventLog.model_validate(declared),
        ),
        "candidates": Candidates(features=(item, *features)),
        "labels": (Label(name="click", source="clicks", window="10m"),),
    }
    return Schema(**settings | changes)


@dataclass
class Place:
    """Three days of logs under `root`; samples of two of them in `root/out` and a run in `root/run`, where they were asked for."""

    root: Path
    patch: pytest.MonkeyPatch

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def checkpoint(self) -> Path:
        return find_checkpoint(self.run, report=False)

    @property
    def clicks(self) -> Path:
        """The file of clicks of the second day."""
        return self.root / "logs" / "clicks" / f"dt={DAYS[1]}" / "part-0.parquet"

    def build(self, schema: Schema | None = None, **flags: Any) -> None:
        given = {"out": self.out, "first": DAYS[0], "last": DAYS[1], "engine": "local"} | flags
        build(BuildConfig(schema=schema or a_schema(), data=self.root / "logs", **given))

    def train(self, **flags: Any) -> None:
        given: dict[str, Any] = {"samples": self.out, "dates": DAYS[:1], "out": self.run, "model": "din"}
        given |= {"token_budget": 64, "max_steps": 2, "checkpoint_every": 1, "device": "cpu", "log_every": 1}
        train(TrainConfig(schema=a_schema(), **given | flags))

    def evaluate(self, **flags: Any) -> None:
        given: dict[str, Any] = {"run": self.run, "samples": self.out, "dates": DAYS[1:2], "device": "cpu"}
        evaluate(EvaluateConfig(**given | flags))

    def read(self, schema: Schema | None = None) -> None:
        list(SampleReader(self.out / "samples", schema or a_schema(), [DAYS[0]], shuffle=False, token_budget=10**6))

    def rewrite(self, change: Callable[[pa.Table], pa.Table]) -> None:
        pq.write_table(change(pq.ParquetFile(self.clicks).read()), self.clicks)


def put(root: Path) -> None:
    for i, dt in enumerate(DAYS):
        for source, rows in (("exposures", 6), ("clicks", 3)):
            folder = root / "logs" / source / f"dt={dt}"
            folder.mkdir(parents=True)
            ts = [NOON + i * DAY + n * 1000 for n in range(rows)]
            columns = {"user_id": [n % 3 for n in range(rows)], "item_id": list(range(rows)), "ts": ts}
            pq.write_table(pa.table(columns), folder / "part-0.parquet")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Logs, samples and a run; each recipe harms a copy."""
    root = tmp_path_factory.mktemp("faults")
    put(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expectations, "load", lambda: None)
        patch.setattr(expectations, "validate", plain_verdict)
        place = Place(root, patch)
        place.build()
        place.train()
        yield root


RECIPES: dict[str, Callable[[Place], object]] = {}


def fault(name: str) -> Callable[[Callable[[Place], object]], Callable[[Place], object]]:
    def add(recipe: Callable[[Place], object]) -> Callable[[Place], object]:
        RECIPES[name] = recipe
        return recipe

    return add


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


@fault("another number of buckets")
def _(p: Place) -> None:
    p.build(buckets=7)


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


# ---------------------------------------------------------------------- samples


def change(path: Path, edit: Callable[[dict[str, Any]], object], *, guarded: bool = True) -> None:
    """Edits a JSON record, as its own writer would where `guarded`, else by hand."""
    content = checked(path.read_bytes()) if guarded else json.loads(path.read_bytes())
    edit(content)
    path.write_text(with_checksum(json.dumps(content)) if guarded else json.dumps(content))


def manifest_of(p: Place) -> Path:
    return p.out / "samples" / f"dt={DAYS[0]}" / "manifest.json"


@fault("a day that is not published")
def _(p: Place) -> None:
    sample_files(p.out / "samples", "2026-01-09")


@fault("a manifest of another form")
def _(p: Place) -> None:
    manifest_of(p).write_text("[]")
    p.read()


@fault("a manifest that was changed")
def _(p: Place) -> None:
    change(manifest_of(p), lambda content: content.update(samples=7), guarded=False)
    p.read()


@fault("a manifest of another day")
def _(p: Place) -> None:
    shutil.copy(p.out / "samples" / f"dt={DAYS[1]}" / "manifest.json", manifest_of(p))
    p.read()


@fault("a file of samples is missing")
def _(p: Place) -> None:
    sample_files(p.out / "samples", DAYS[0])[0].unlink()
    p.read()


@fault("a flipped bit in samples")
def _(p: Place) -> None:
    file = sample_files(p.out / "samples", DAYS[0])[0]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    p.read()


@fault("samples of another schema")
def _(p: Place) -> None:
    p.read(a_schema({"delay": "5m"}))


@fault("a sample that there is none of")
def _(p: Place) -> None:
    load_sample(p.out / "samples", f"77:{DAYS[0]}:0", a_schema())


@fault("dates that end before they begin")
def _(p: Place) -> None:
    parse_dates(f"{DAYS[1]}:{DAYS[0]}")


@fault("a day that is none")
def _(p: Place) -> None:
    parse_dates("2026-02-30", "--day", one=True)


# ---------------------------------------------------------------------- runs


@fault("every checkpoint damaged")
def _(p: Place) -> None:
    for file in (p.run / "checkpoints").glob("step-*/dense.pt"):
        file.write_bytes(b"")
    p.evaluate()


@fault("a checkpoint's manifest of another form")
def _(p: Place) -> None:
    folder = p.checkpoint
    (folder / "manifest.json").write_text("null")
    load_model(folder)


@fault("a checkpoint's manifest that was changed")
def _(p: Place) -> None:
    folder = p.checkpoint
    change(folder / "manifest.json", lambda content: content.update(step=9), guarded=False)
    load_model(folder)


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, ("true",))


@fault("a checkpoint that would run a command")
def _(p: Place) -> None:
    import hashlib

    folder = p.checkpoint
    file = folder / "tables" / ".metadata"
    file.write_bytes(pickle.dumps(Hostile()))
    content = file.read_bytes()
    named = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def size(tables: dict[str, Any]) -> None:
        if ".metadata" in tables["files"]:
            tables["files"][".metadata"] = len(content)

    tables = folder / "tables" / "tables.json"
    change(tables, size, guarded=False)
    stored = {"bytes": tables.stat().st_size, "sha256": hashlib.sha256(tables.read_bytes()).hexdigest()}
    change(
        folder / "manifest.json",
        lambda manifest: manifest["files"].update({"tables/.metadata": named, "tables/tables.json": stored}),
    )
    load_model(folder)


@fault("a checkpoint of no such step")
def _(p: Place) -> None:
    find_checkpoint(p.run, 7)


@fault("a run without a checkpoint")
def _(p: Place) -> None:
    shutil.rmtree(p.run / "checkpoints")
    p.evaluate()


@fault("samples rebuilt under a run")
def _(p: Place) -> None:
    p.build(force=True)
    p.train(max_steps=4)


@fault("a run of other settings")
def _(p: Place) -> None:
    p.train(lr=0.5)


@fault("another training at work")
def _(p: Place) -> None:
    with locked(p.run, "training"):
        p.train()


@fault("a configuration that is null")
def _(p: Place) -> None:
    (p.run / "config.json").write_text("null")
    from_values(TrainConfig, {}, p.run / "config.json")


@fault("a configuration with an unknown key")
def _(p: Place) -> None:
    (p.root / "train.yaml").write_text("token_budgets: 3\n")
    from_values(TrainConfig, {}, p.root / "train.yaml")


@fault("a value out of range")
def _(p: Place) -> None:
    p.train(token_budget=0)


@fault("a broken line of a log")
def _(p: Place) -> None:
    (p.run / "log.jsonl").write_text('{"step": 1}\n')
    read_log(p.run)


@fault("a folder that is no run")
def _(p: Place) -> None:
    read_schema(p.out)


@fault("a run that has not ended")
def _(p: Place) -> None:
    (p.run / "summary.json").unlink()
    read_document(p.run / "summary.json", Summary)


# ---------------------------------------------------------------------- the command


@fault("Ctrl-C")
def _(p: Place) -> str:
    return str(Interrupted(signal.SIGINT))


@fault("SIGTERM")
def _(p: Place) -> str:
    return str(Interrupted(signal.SIGTERM))


# ---------------------------------------------------------------------- the page


@dataclass(frozen=True)
class Row:
    """A row of the page: a fault, what is printed (`...` for what varies), and the exit status."""

    fault: str
    message: str
    status: str

    def quotes(self, line: str) -> bool:
        parts = [re.escape(part) for part in self.message.split("...")]
        return re.fullmatch(".*".join(parts), line, re.DOTALL) is not None


def unquoted(cell: str) -> str:
    """What stands in one or two backquotes."""
    return cell[3:-3] if cell.startswith("`` ") else cell[1:-1]


def rows() -> list[Row]:
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[0] not in ("fault", "---") and not set(cells[0]) <= {"-", ":"}:
            found.append(Row(cells[0], unquoted(cells[1]), cells[2]))
    return found


def line_of(recipe: Callable[[Place], object], place: Place) -> str:
    try:
        return str(recipe(place))
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("name", RECIPES)
def test_a_fault_prints_what_the_page_says(name: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "w", symlinks=True)
    (row,) = [row for row in rows() if row.fault == name]
    with pytest.MonkeyPatch.context() as patch:
        line = line_of(RECIPES[name], Place(tmp_path / "w", patch))
    assert row.quotes(line), f"{name}: {line}"


def test_the_page_has_some_sixty_faults_most_of_them_made_here() -> None:
    names = [row.fault for row in rows()]
    assert len(names) == len(set(names)) >= 60
    assert len(set(names) & RECIPES.keys()) >= 40
    assert {row.status for row in rows()} <= {"0", "1", "75", "130", "143"}
