"""Damage of any kind to what genrank reads ends in one line or changes nothing: no traceback, and no other values without a word.

Each test takes a file that genrank wrote (or was given), damages it at random, and reads it as the commands do. `FUZZ_TIMES=50` in
the environment does it so many times as often.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genrank.model.checkpoint import find_checkpoint
from genrank.model.config import TrainConfig
from genrank.model.documents import Best, Summary, read_document, write_document
from genrank.model.evaluate import load_model
from genrank.model.run_dir import read_log, read_schema
from genrank.model.trainer import train
from genrank.pipelines.build import build
from genrank.pipelines.columns import needed
from genrank.pipelines.compaction import sizes
from genrank.pipelines.compaction.reader import read_files
from genrank.pipelines.compaction.records import RECORD, Compacted
from genrank.pipelines.config import BuildConfig
from genrank.pipelines.days import day_number
from genrank.pipelines.documents import Census, Footers
from genrank.pipelines.gate import data_docs
from genrank.pipelines.normalize import Normalizer, ReadUnit
from genrank.pipelines.partials import PartialRef, PartialStore, layout_of, load, partial_schema
from genrank.pipelines.sources import days_present, read_partition
from genrank.schemas import EventLog, Schema, UserError
from genrank.schemas.configuration import from_values
from genrank.schemas.manifest import SampleManifest, listed_files
from genrank.tokenization.batch import Batch
from genrank.tokenization.reader import SampleReader
from tests.pipelines.plain_page import plain_page
from tests.pipelines.worlds import full_schema, write_world

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))


@dataclasses.dataclass(repr=False)
class World:
    """A build of a few days, and a run trained on it."""

    root: Path
    schema: Schema
    days: list[str]
    known: dict[object, Any] = dataclasses.field(default_factory=dict)

    def whole(self, key: object, read: Callable[[], Any]) -> Any:
        """What is read of undamaged files, once."""
        if key not in self.known:
            self.known[key] = read()
        return self.known[key]

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def run(self) -> Path:
        return self.root / "run"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("fuzz")
    days = write_world(root / "data", seed=71, users=4, days=5, per_day=25)
    schema = full_schema()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_docs, "write_page", plain_page)
        for name, value in (("LARGEST", 4), ("SHORTEST", 1), ("PERIOD", 2)):
            patch.setattr(sizes, name, value)
        for dt in days:
            build(BuildConfig(schema, root / "data", root / "out", dt, dt, engine="local", buckets=2))
        train(
            TrainConfig(
                schema=schema,
                samples=root / "out",
                dates=tuple(days[:2]),
                out=root / "run",
                model="din",
                token_budget=150,
                max_steps=2,
                device="cpu",
                log_every=1,
            )
        )
        step = int(find_checkpoint(root / "run").name.removeprefix("step-"))
        write_document(root / "run" / "checkpoints" / "best.json", Best(step=step, value=0.5), guarded=True)
        yield World(root, schema, days)


# ---------------------------------------------------------------------- damage

BYTES = ("flip", "flip", "flip", "truncate", "delete", "double", "swap", "zero", "insert")
JSON_VALUES: list[Any] = [None, -1, 0, 2**70, 1.5, True, "", "x", "../x", [], {}, [None], {"x": 1}]


def damaged_bytes(content: bytes, data: st.DataObject) -> bytes:
    """Some bytes of the content flipped, lost, doubled or exchanged."""
    out = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3), "damages")):
        how = data.draw(st.sampled_from(BYTES), "how")
        at = data.draw(st.integers(0, max(len(out) - 1, 0)), "at")
        size = data.draw(st.integers(1, 16), "size")
        if how == "truncate":
            del out[at:]
        elif how == "delete":
            del out[at : at + size]
        elif how == "double":
            out[at:at] = out[at : at + size]
        elif how == "insert":
            out[at:at] = data.draw(st.binary(min_size=1, max_size=8), "bytes")
        elif how == "zero":
            out[at : at + size] = bytes(len(out[at : at + size]))
        elif how == "swap" and out:
            other = data.draw(st.integers(0, len(out) - 1), "other")
            out[at], out[other] = out[other], out[at]
        elif out:
            out[at] ^= 1 << data.draw(st.integers(0, 7), "bit")
    return bytes(out)


def damaged_json(content: bytes, data: st.DataObject) -> bytes:
    """One value of a JSON text lost, doubled, renamed or another."""
    document = json.loads(content)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            places.append((value, key))
            if isinstance(inner, dict | list):
                walk(inner)

    if not isinstance(document, dict | list) or not document:
        return data.draw(st.sampled_from([b"null", b"[]", b"{}", b"7"]), "document")
    walk(document)
    holder, key = data.draw(st.sampled_from(places), "place")
    how = data.draw(st.sampled_from(["delete", "replace", "double", "rename"]), "how")
    if how == "delete":
        del holder[key]
    elif how == "double" and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif how == "rename" and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    else:
        holder[key] = data.draw(st.sampled_from(JSON_VALUES), "value")
    return json.dumps(document).encode()


def damaged(path: Path, data: st.DataObject) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".json" and data.draw(st.booleans(), "as JSON"):
        return damaged_json(content, data)
    return damaged_bytes(content, data)


def hold(path: Path, read: Callable[[], Any], data: st.DataObject, whole: Any, *, same: bool = True) -> None:
    """With the file damaged, `read` gives what it gave (with `same`), or None, or ends in one line."""
    content = path.read_bytes()
    path.write_bytes(damaged(path, data))
    try:
        found = read()
    except UserError as error:
        assert str(error).strip()
        return
    finally:
        path.write_bytes(content)
    if same and found is not None:
        assert found == whole, f"{path.name} reads as something else"


def fuzz(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test on so many random damages; on `FUZZ_TIMES` as many by hand."""
    bound = settings(
        max_examples=examples * TIMES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    return lambda test: bound(given(data=st.data())(test))


# ---------------------------------------------------------------------- samples


def batches(world: World, day: str) -> list[Any]:
    reader = SampleReader(world.out / "samples", world.schema, [day], shuffle=False, token_budget=10**6)
    return [plain(batch) for batch in reader]


def plain(value: Any) -> Any:
    """Tensors of a batch, and of whatever is in it, as lists of bits."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())
    if isinstance(value, Batch) or dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}  # type: ignore[arg-type]
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


@fuzz(25)
def test_samples(world: World, data: st.DataObject) -> None:
    day = world.days[1]
    files = [path for path, _ in listed_files(world.out / "samples", day)]
    whole = world.whole("samples", lambda: batches(world, day))
    hold(data.draw(st.sampled_from(files), "file"), lambda: batches(world, day), data, whole)


@fuzz(100)
def test_manifests(world: World, data: st.DataObject) -> None:
    day = world.out / "samples" / f"dt={world.days[1]}"

    def read() -> object:
        manifest = SampleManifest.read(day)
        return manifest.model_dump(), [str(path) for path, _ in listed_files(day.parent, manifest.dt, world.schema)]

    hold(day / "manifest.json", read, data, world.whole("manifest", read))


# ---------------------------------------------------------------------- partials and what is compacted


@fuzz(80)
def test_partials(world: World, data: st.DataObject) -> None:
    store = PartialStore(world.out)
    records = sorted((world.out / "partials").glob("*/dt=*/*/partial.json"))
    folder = data.draw(st.sampled_from(records), "partial").parent
    source = world.schema.source(folder.parts[-3])
    day = day_number(folder.parent.name.removeprefix("dt="))
    kept = needed(world.schema)[source.name]
    columns, layout = partial_schema(world.schema, source, kept), layout_of(world.schema, source, kept)

    def read() -> object:
        partial = store.find(source.name, day, folder.name)
        if partial is None:
            return None  # It is made again.
        return partial, load([store.ref(partial, day)], None, layout.stored, columns).to_pylist().__repr__()

    hold(data.draw(st.sampled_from(sorted(folder.iterdir())), "file"), read, data, world.whole(folder, read))


@fuzz(50)
def test_blocks(world: World, data: st.DataObject) -> None:
    records = sorted((world.out / "blocks").glob(f"*/dt=*/*/{RECORD}"))
    assert records
    folder = data.draw(st.sampled_from(records), "block").parent

    def read() -> object:
        block = Compacted.read(folder)
        if block is None:
            return None
        ref = PartialRef(0, str(folder), block.files, block.buckets or 0, block.sha256)
        return block, repr([t.to_pylist() for t in read_files(ref, block.files)])

    hold(data.draw(st.sampled_from(sorted(folder.iterdir())), "file"), read, data, world.whole(folder, read))


@pytest.mark.parametrize(("name", "kind"), [("census", Census), ("footers", Footers)])
@fuzz(40)
def test_notes(world: World, name: str, kind: Any, data: st.DataObject) -> None:
    path = world.out / "partials" / f"{name}.json"
    hold(path, lambda: kind.read(path), data, world.whole(name, lambda: kind.read(path)))


# ---------------------------------------------------------------------- logs


@fuzz(60)
def test_logs(world: World, data: st.DataObject) -> None:
    """Nobody knows what a log's file held before: it is read, or refused in one line."""
    source = data.draw(st.sampled_from(world.schema.sources), "source")
    dt = data.draw(st.sampled_from(world.days), "day")
    day = day_number(dt)
    folder = days_present(source, world.root / "data", world.out / "landed").get(day)
    if folder is None:
        return
    wanted = frozenset(range(day - 5, day + 1)) if isinstance(source, EventLog) else frozenset([day])
    normalizer = Normalizer(world.schema, 2, {source.name: wanted})

    def read() -> object:
        partition = read_partition(source, day, folder, {})
        rows = 0
        for file in partition.files:
            unit = ReadUnit(source.name, day, file.path, tuple(range(len(file.row_groups))), file.rows)
            rows += sum(piece.rows.num_rows for piece in normalizer.read([unit]))
        return rows

    path = data.draw(st.sampled_from(sorted(folder.glob("*.parquet"))), "file")
    hold(path, read, data, None, same=False)


# ---------------------------------------------------------------------- runs


@fuzz(12)
def test_checkpoints(world: World, data: st.DataObject) -> None:
    checkpoint = find_checkpoint(world.run)

    def read() -> object:
        return {name: plain(value) for name, value in load_model(checkpoint).model.state_dict().items()}

    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    hold(data.draw(st.sampled_from(files), "file"), read, data, world.whole("checkpoint", read))


@pytest.mark.parametrize("name", ["config.json", "schema.json", "summary.json", "log.jsonl", "checkpoints/best.json"])
@fuzz(30)
def test_documents_of_a_run(world: World, name: str, data: st.DataObject) -> None:
    """What people may edit is read as it is, or refused in one line."""
    path = world.run / name
    readers: dict[str, Callable[[], object]] = {
        "config.json": lambda: from_values(TrainConfig, {}, path),
        "schema.json": lambda: read_schema(world.run),
        "summary.json": lambda: read_document(path, Summary),
        "log.jsonl": lambda: read_log(world.run),
        "checkpoints/best.json": lambda: find_checkpoint(world.run),
    }
    read = readers[name]
    hold(path, read, data, world.whole(name, read), same=name.startswith("checkpoints/"))
