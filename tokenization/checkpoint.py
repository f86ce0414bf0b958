"""Embedding tables on disk, by logical table.

Merging or sharding otherwise, adding or dropping a feature, or growing a table loses no row.

    folder/
      .metadata, *.distcp   torch.distributed.checkpoint: chunks of rows under `<logical table>/<what>/<first row>`; read by
                            `tokenization.stored_tensors`, which runs no code of theirs
      tables.json           what each table is, and the size of every file; written last
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import save

from genrank.schemas.errors import UserError
from genrank.schemas.review.diff import carried_rows
from genrank.schemas.table import LogicalTable
from genrank.schemas.vocabularies import Vocabulary
from genrank.tokenization.dynamic import Entries
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.stored_tensors import StoredTensor, read_index
from genrank.tokenization.table_backend import Shard
from genrank.tokenization.transforms import buckets_of

FORMAT = 1
MANIFEST = "tables.json"
CHUNK_ROWS = 1 << 20
"""Rows of a table stored under one key: what a restore holds in memory at once."""
EARLIER = "take an earlier checkpoint"


class TableState(BaseModel):
    """What is stored of one logical table beside its rows: what must agree for them to mean the same, and where training stands."""

    model_config = ConfigDict(frozen=True)

    rows: int
    dim: int
    vocabulary: Vocabulary
    optimizer: str
    """Its kind."""
    boundaries: list[float] | None
    """Of the number that reads the table in buckets."""
    step: int
    """Training steps that a dynamic vocabulary has seen."""
    updates: int
    """Steps of the table's optimizer, where it counts them."""


class TablesManifest(BaseModel):
    """`tables.json`."""

    model_config = ConfigDict(frozen=True)

    format: int
    seed: int
    """Of the initial rows."""
    tables: dict[str, TableState]
    """By logical table."""
    files: dict[str, int]
    """Bytes of every other file of the folder."""


@dataclass(frozen=True)
class Restored:
    """What a restore did, table by table."""

    restored: list[str]
    grown: list[str]
    """Restored, with more rows now than were stored."""
    fresh: list[str]
    """Not in the checkpoint, or reset on request: at their initial weights."""
    dropped: list[str]
    """In the checkpoint and no longer in the schema."""


def save_tables(embeddings: Embeddings, folder: Path) -> None:
    """Writes every table, its optimizer's state and its dynamic vocabulary; of a dynamic table the rows that ids have had.

    Every rank calls it with the same folder. The folder is complete once `tables.json` is in it.
    """
    folder = Path(folder)
    rank, world = _ranks()
    state: dict[str, Tensor] = {}
    for name in sorted(embeddings.plan.logical):
        vocabulary = embeddings.vocabularies.get(name)
        used = vocabulary.next_row if vocabulary else embeddings.plan.logical[name][0].rows
        for first, shard in _own_rows(embeddings, name):
            for what, rows in _contents(shard).items():
                for at in range(0, min(len(rows), used - first), CHUNK_ROWS):
                    state[f"{name}/{what}/{first + at}"] = rows[at : min(at + CHUNK_ROWS, used - first)]
        if rank == 0 and name in embeddings.vocabularies:
            _, entries = embeddings.vocabularies[name].state()
            state |= {f"{name}/entries/{field.name}": getattr(entries, field.name) for field in fields(Entries)}
    (folder / MANIFEST).unlink(missing_ok=True)
    with _quiet():
        save(state, checkpoint_id=folder, no_dist=world == 1)
    if rank == 0:
        tables = {name: _description(embeddings, name) for name in embeddings.plan.logical}
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
        staged = folder / f"{MANIFEST}.part"
        manifest = TablesManifest(format=FORMAT, seed=embeddings.tables.seed, tables=tables, files=files)
        staged.write_text(json.dumps(manifest.model_dump(mode="json")))
        staged.replace(folder / MANIFEST)
    if world > 1:
        dist.barrier()


def load_tables(embeddings: Embeddings, folder: Path, *, reset: Sequence[str] = ()) -> Restored:
    """Fills the tables from a checkpoint made on any number of ranks, after any merge, by either backend.

    Args:
        embeddings: whose tables are filled, on every rank.
        folder: what `save_tables` wrote.
        reset: logical tables that start anew instead.

    Raises:
        UserError: the folder is torn or no checkpoint; a table's dim, vocabulary, boundaries or optimizer changed; or `reset`
            names no table. Nothing is changed then.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    stored = manifest.tables
    now = embeddings.plan.logical
    unknown = sorted(set(reset) - set(now))
    if unknown:
        raise UserError(f"--reset-table {unknown[0]}: the schema has no such table; it has {', '.join(sorted(now))}")
    kept = [name for name in now if name in stored and name not in reset]
    refusals = [f"table {n}: {why}" for n in kept if (why := _refusal(stored[n], _description(embeddings, n)))]
    if refusals:
        flags = " ".join(f"--reset-table {text.split(':')[0].removeprefix('table ')}" for text in refusals)
        raise UserError(f"{folder} doesn't fit the schema: {'; '.join(refusals)}. Restore the rest with {flags}")
    index = read_index(folder)
    # Rows that get their first owner after the restore start as they would have without it.
    embeddings.tables.seed = manifest.seed
    for name in kept:
        _load_rows(embeddings, name, folder, index, stored[name].rows)
        if name in embeddings.vocabularies:
            entries = Entries(*(_read(folder, index, f"{name}/entries/{field.name}") for field in fields(Entries)))
            embeddings.vocabularies[name].load(stored[name].step, entries)
    for table in embeddings.plan.tables:
        updates = [stored[member.name].updates for member in table.members if member.name in kept]
        embeddings.tables.set_updates(table.name, max(updates, default=0))
    return Restored(
        restored=kept,
        grown=[name for name in kept if stored[name].rows < now[name][0].rows],
        fresh=[name for name in now if name not in kept],
        dropped=[name for name in stored if name not in now],
    )


# ---------------------------------------------------------------------- rows


def _own_rows(embeddings: Embeddings, name: str) -> Iterator[tuple[int, Shard]]:
    """(first logical row, views) of a logical table's rows that this rank holds."""
    table, merged = embeddings.plan.logical[name]
    start = embeddings.plan.start_of(name)
    for shard in embeddings.tables.shards(merged.name):
        begin, end = max(shard.first, start), min(shard.first + len(shard.weight), start + table.rows)
        if begin < end:
            own = slice(begin - shard.first, end - shard.first)
            yield begin - start, Shard(begin, shard.weight[own], {k: v[own] for k, v in shard.state.items()})


def _contents(shard: Shard) -> dict[str, Tensor]:
    return {"weight": shard.weight, **shard.state}


def _load_rows(embeddings: Embeddings, name: str, folder: Path, index: dict[str, StoredTensor], rows: int) -> None:
    """Copies what is stored of a logical table into the rows that this rank holds, chunk by chunk."""
    prefix = f"{name}/weight/"
    chunks = {
        key: int(row) for key in index if key.startswith(prefix) and (row := key.removeprefix(prefix)).isdecimal()
    }
    for first, shard in _own_rows(embeddings, name):
        for key, begin in chunks.items():
            end = min(begin + math.prod(index[key].shape[:1]), rows)
            low, high = max(begin, first), min(end, first + len(shard.weight))
            if low >= high:
                continue
            for what, target in _contents(shard).items():
                part = _read(folder, index, key.replace("/weight/", f"/{what}/"))
                if part.shape[1:] != target.shape[1:] or part.shape[:1] != index[key].shape[:1]:
                    raise UserError(
                        f"{folder}: the rows of {what} of table {name} are not as {MANIFEST} says; {EARLIER}"
                    )
                target[low - first : high - first] = part[low - begin : high - begin].to(target.device)


def _read(folder: Path, index: dict[str, StoredTensor], key: str) -> Tensor:
    if key not in index:
        raise UserError(f"{folder} lacks {key}, which {MANIFEST} says it has; {EARLIER}")
    return index[key].read(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that a single process was meant, which it was."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _ranks() -> tuple[int, int]:
    running = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if running else (0, 1)


# ---------------------------------------------------------------------- what fits what


def _description(embeddings: Embeddings, name: str) -> TableState:
    table, merged = embeddings.plan.logical[name]
    vocabulary = embeddings.vocabularies.get(name)
    return TableState(
        rows=table.rows,
        dim=table.dim,
        vocabulary=table.vocabulary,
        optimizer=table.optimizer.kind,
        boundaries=_boundaries(embeddings, table),
        step=vocabulary.step if vocabulary else 0,
        updates=embeddings.tables.updates(merged.name),
    )


def _boundaries(embeddings: Embeddings, table: LogicalTable) -> list[float] | None:
    """Of the number that reads the table in buckets."""
    for key in table.features:
        group, _, name = key.partition(".")
        feature = next((f for f in dict(embeddings.plan.schema.groups())[group] if f.name == name), None)
        transform = feature.number_transform if feature else None
        if transform and (buckets := buckets_of(transform)):
            return buckets.edges(transform, embeddings.boundaries.get(key))
    return None


def _refusal(stored: TableState, now: TableState) -> str | None:
    """Why the stored rows can't be this table's; None if they can."""
    before, after = (LogicalTable("", (), each.dim, each.vocabulary) for each in (stored, now))
    if before.dim != after.dim:
        return f"dim was {before.dim} and is {after.dim}"
    if stored.optimizer != now.optimizer:
        return f"optimizer was {stored.optimizer} and is {now.optimizer}"
    if not _same_boundaries(stored.boundaries, now.boundaries):
        return "the boundaries of its buckets changed"
    if carried_rows(before, after) is None:
        if before.vocabulary.kind != after.vocabulary.kind:
            return f"vocabulary was {before.vocabulary.kind} and is {after.vocabulary.kind}"
        if before.vocabulary.size != after.vocabulary.size:
            return f"its {before.vocabulary.kind} vocabulary had size {before.vocabulary.size} and has {after.vocabulary.size}"
        return f"the values of its {before.vocabulary.kind} vocabulary changed"
    return None


def _same_boundaries(before: list[float] | None, after: list[float] | None) -> bool:
    if before is None or after is None:
        return before is after
    return len(before) == len(after) and all(map(math.isclose, before, after))


def _read_manifest(folder: Path) -> TablesManifest:
    try:
        document = json.loads((folder / MANIFEST).read_bytes())
        stored = document["format"]
    except FileNotFoundError:
        raise UserError(f"{folder} holds no complete tables (no {MANIFEST}); take an earlier checkpoint") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{folder / MANIFEST} is torn or not ours; take an earlier checkpoint") from None
    if stored != FORMAT:
        raise UserError(
            f"{folder} is of format {stored}, and this version reads {FORMAT}; train again, or use its version"
        )
    try:
        manifest = TablesManifest.model_validate(document)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        raise UserError(
            f"{folder / MANIFEST} is not what format {FORMAT} says ({where}: {wrong['msg']}); {EARLIER}"
        ) from None
    for name, size in manifest.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            has = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
            raise UserError(f"{path} is torn: {has}, and was written with {size} bytes; take an earlier checkpoint")
    return manifest
