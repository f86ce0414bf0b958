"""Two processes train as one does: the same tables, vocabularies and checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from random_samples import BOUNDARIES, write_random_samples
from test_embedding import with_items

import genrank.schemas as s
from genrank.kernels.vocabulary import gpu as vocabulary_gpu
from genrank.schemas.ids import MISSING_ID
from genrank.schemas.table import LogicalTable
from genrank.tokenization.batch import Batch, Group, Ragged
from genrank.tokenization.checkpoint import load_tables, save_tables
from genrank.tokenization.device_vocabulary import DeviceVocabulary
from genrank.tokenization.dynamic import AnyVocabulary, Asked, DynamicVocabulary, answers
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.replicas import Replicas

CASES = ("row_wise", "table_wise", "restored", "dedup none", "dedup before", "filler")
HERE = Path(__file__).parent
DAYS = ["2026-01-01", "2026-01-02"]
SCHEMA = with_items(s.Dynamic(capacity=60, admit_after=2))


def train(embeddings: Embeddings, batches: list[Batch]) -> None:
    """One step per batch; the loss is the mean over its samples, 0 for a filler batch."""
    for batch in batches:
        out = embeddings(batch)
        loss = sum((m.square().sum() + m.sum() for m in out.values()), torch.zeros(())).div(len(batch))
        loss.mul(0 if batch.filler else 1).backward()


def with_fillers(rank: int, batches: list[Batch]) -> list[Batch]:
    """Rank 1 runs out of batches two steps before rank 0 does."""
    return [dataclasses.replace(b, filler=rank == 1 and i >= len(batches) - 2) for i, b in enumerate(batches)]


def batches_of(root: Path, rank: int, world_size: int) -> list[Batch]:
    """Batches of one stored row group each: rank r's i-th is the world's i * world_size + r-th."""
    reader = SampleReader(
        root, SCHEMA, DAYS, shuffle=False, shuffle_buffer=1, token_budget=10**9, rank=rank, world_size=world_size
    )
    return list(reader)


def worker(root: Path, out: Path, rank: int) -> None:
    """What each of two processes does, case by case: starting twice would cost more than all of it."""
    from genrank.tokenization import torchrec_tables

    TorchrecTables: Any = torchrec_tables.TorchrecTables
    store = torch.distributed.FileStore(str(out / "store"), 2)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    batches = batches_of(root, rank, 2)
    for case in CASES:
        torch.manual_seed(0)
        sharding: Any = "table_wise" if case == "table_wise" else "row_wise"
        stages: Any = {"dedup none": 0, "dedup before": 1}.get(case, 2)
        torchrec_tables.TorchrecTables = functools.partial(TorchrecTables, dedup=stages)
        embeddings = Embeddings(make_plan(SCHEMA), boundaries=BOUNDARIES, sharding=sharding, lr=0.1)
        assert embeddings.backend == "torchrec"
        if case == "restored":
            load_tables(embeddings, out / "start")
        train(embeddings, with_fillers(rank, batches) if case == "filler" else batches)
        save_tables(embeddings, out / case)
        step, entries = embeddings.vocabularies["item"].state()
        torch.save({"step": step, **vars(entries)}, out / f"{case}-{rank}.vocabulary")
        rows = {t.name: sum(len(x.weight) for x in embeddings.tables.shards(t.name)) for t in embeddings.plan.tables}
        (out / f"{case}-{rank}.json").write_text(json.dumps(rows))
    torch.save(stream_through_both(rank, Replicas.here()), out / f"both-{rank}.vocabulary")
    torch.distributed.destroy_process_group()


def seen(rank: int) -> list[tuple[list[torch.Tensor], int]]:
    """What a rank has for two vocabularies, step by step, and when: also nothing, nothing anywhere, and as one that is ahead of the other."""
    lengths = [[(9, 4), (5, 0)], [(0, 7), (12, 3)], [(6, 0), (0, 0)]]
    drawn = torch.Generator().manual_seed(rank)
    ids = [[torch.randint(0, 12, (n[rank],), generator=drawn) for n in step] for step in lengths]
    ids[0][0][0] = MISSING_ID
    return [(step, 10 * at + 3 * (1 - rank)) for at, step in enumerate(ids)]


def stream_through_both(rank: int, replicas: Replicas | None) -> dict[str, list[Any]]:
    """By the vocabularies of a CPU and by those of a GPU, in the interpreter: rows and new owners of each step, and the last state. Without
    replicas: in one process, of what both ranks see; rows are this rank's.
    """
    with pytest.MonkeyPatch.context() as patch:  # Several programs.
        for tuned in (vocabulary_gpu.count_tuned, vocabulary_gpu.look_up_tuned, vocabulary_gpu.give_tuned):
            patch.setattr(tuned, "configs", [triton.Config({"BLOCK": 16})])
        return stream_through(rank, replicas)


def stream_through(rank: int, replicas: Replicas | None) -> dict[str, list[Any]]:
    """See `stream_through_both`."""
    tables = [
        LogicalTable(name, (f"candidates.{name}",), 4, s.Dynamic(capacity=5, admit_after=after, max_age="25ms"))
        for name, after in (("a", 1), ("b", 2))
    ]
    found: dict[str, list[Any]] = {}
    for kind in (DynamicVocabulary, DeviceVocabulary):
        vocabularies: list[AnyVocabulary] = [kind(table, "cpu") for table in tables]
        steps: list[Any] = []
        for own, other in zip(seen(rank), seen(1 - rank), strict=True):
            for vocabulary, ids, more in zip(vocabularies, own[0], other[0], strict=True) if replicas is None else ():
                now = max((ms for part, ms in ((ids, own[1]), (more, other[1])) if len(part)), default=0)
                ((rows, new),) = answers([Asked(vocabulary, torch.cat([ids, more]), 0)], torch.tensor(now))
                steps.append((rows[: len(ids)].tolist(), new[new >= 0].tolist()))
            if replicas is not None:
                asked = [
                    Asked(vocabulary, ids.clone(), 0) for vocabulary, ids in zip(vocabularies, own[0], strict=True)
                ]
                for rows, new in answers(asked, torch.tensor(own[1]), replicas):
                    steps.append((rows.tolist(), new[new >= 0].tolist()))
        for step, entries in (vocabulary.state() for vocabulary in vocabularies):
            steps.append((step, {name: values.tolist() for name, values in vars(entries).items()}))
        found[kind.__name__] = steps
    return found


@pytest.fixture(scope="module")
def two(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes wrote every case's tables to; `restored` went on from `start`, made by one process."""
    out = tmp_path_factory.mktemp("two")
    save_tables(train_alone(root), out / "start")
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = [sys.argv[1], sys.argv[2]]; import test_ranks\n"
        "test_ranks.worker(Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))"
    )
    arguments = [sys.executable, "-c", code, str(HERE), str(HERE.parents[1]), str(root), str(out)]
    workers = [subprocess.Popen([*arguments, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    for process in workers:
        _, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors[-3000:]
    return out


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("samples")
    return write_random_samples(root, SCHEMA, DAYS, users=24, files=1, row_group=8)


def restored(folder: Path) -> Embeddings:
    embeddings = Embeddings(make_plan(SCHEMA), backend="torch", boundaries=BOUNDARIES, seed=9)
    load_tables(embeddings, folder)
    return embeddings


def assert_equal(a: Embeddings, b: Embeddings) -> None:
    for table in a.plan.tables:
        x, y = a.tables.shards(table.name)[0], b.tables.shards(table.name)[0]
        torch.testing.assert_close(x.weight, y.weight, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(x.state["second"], y.state["second"], rtol=1e-5, atol=1e-6)
    (step_a, one), (step_b, two) = (e.vocabularies["item"].state() for e in (a, b))
    assert step_a == step_b
    for left, right in zip(vars(one).values(), vars(two).values(), strict=True):
        assert torch.equal(left, right)


def joined(root: Path) -> list[list[Batch]]:
    """What two ranks see together, step by step."""
    ranks = [batches_of(root, rank, 2) for rank in range(2)]
    return [list(pair) for pair in zip(*ranks, strict=True)]


def train_alone(root: Path, start: Path | None = None) -> Embeddings:
    """One process doing the work of two: each step the samples of both ranks."""
    embeddings = fresh()
    if start:
        load_tables(embeddings, start)
    train(embeddings, [merge(pair) for pair in joined(root)])
    return embeddings


def merge(batches: list[Batch]) -> Batch:
    """Two batches as one."""

    def leaf(parts: list[Any]) -> Any:
        if isinstance(parts[0], Ragged):
            return Ragged(torch.cat([p.values for p in parts]), offsets([p.offsets for p in parts]))
        return torch.cat(parts)

    def offsets(parts: list[torch.Tensor]) -> torch.Tensor:
        lengths = torch.cat([p.diff() for p in parts])
        return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])

    groups = {
        name: Group(
            offsets([b.groups[name].offsets for b in batches]),
            torch.cat([b.groups[name].ts for b in batches]),
            {f: leaf([b.groups[name].features[f] for b in batches]) for f in batches[0].groups[name].features},
        )
        for name in batches[0].groups
    }
    flat = ("user", "window_start", "request", "item", "candidate_sees", "realtime_sees", "realtime_available")
    tasks = {
        name: {t: torch.cat([getattr(b, name)[t] for b in batches]) for t in getattr(batches[0], name)}
        for name in ("labels", "weights", "oracles")
    }
    return Batch(
        groups=groups,
        sample_id=[i for b in batches for i in b.sample_id],
        **{name: torch.cat([getattr(b, name) for b in batches]) for name in flat},
        **tasks,
    )


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise"])
def test_two_processes_equal_one(root: Path, two: Path, sharding: str) -> None:
    held = [json.loads((two / f"{sharding}-{rank}.json").read_text()) for rank in range(2)]
    plan = make_plan(SCHEMA)
    assert all(held[0][table.name] + held[1][table.name] == table.rows for table in plan.tables)
    shared = [held[0][table.name] > 0 and held[1][table.name] > 0 for table in plan.tables]
    assert all(shared) if sharding == "row_wise" else not any(shared)
    assert_equal(restored(two / sharding), train_alone(root))


def test_a_checkpoint_of_one_process_goes_on_in_two_and_back(root: Path, two: Path) -> None:
    assert_equal(restored(two / "restored"), train_alone(root, two / "start"))


@pytest.mark.parametrize("stages", ["none", "before"])
def test_dedup_in_two_stages_learns_what_none_does(two: Path, stages: str) -> None:
    assert_equal(restored(two / "row_wise"), restored(two / f"dedup {stages}"))


@pytest.mark.parametrize("rank", [0, 1])
def test_what_ranks_saw_is_joined_on_the_device_as_on_the_host(two: Path, rank: int) -> None:
    """And as if one process had seen it."""
    found = torch.load(two / f"both-{rank}.vocabulary")
    assert found["DeviceVocabulary"] == found["DynamicVocabulary"]
    assert found["DynamicVocabulary"] == stream_through_both(rank, None)["DynamicVocabulary"]


@pytest.mark.parametrize("case", CASES)
def test_every_rank_keeps_the_same_vocabulary(two: Path, case: str) -> None:
    ranks = [torch.load(two / f"{case}-{rank}.vocabulary") for rank in range(2)]
    assert ranks[0]["step"] == ranks[1]["step"] > 0 and len(ranks[0]["ids"]) > 0
    for name in ("ids", "rows", "counts", "steps", "times"):
        assert torch.equal(ranks[0][name], ranks[1][name]), name


def test_a_filler_batch_counts_for_nothing(root: Path, two: Path) -> None:
    """The last two steps are learned from rank 0's samples only; their loss is averaged over both ranks."""
    embeddings = fresh()
    steps = joined(root)
    train(embeddings, [merge(pair) for pair in steps[:-2]])
    for batch, _ in steps[-2:]:
        out = embeddings(batch)
        sum((m.square().sum() + m.sum() for m in out.values()), torch.zeros(())).div(2 * len(batch)).backward()
    assert_equal(restored(two / "filler"), embeddings)


def fresh() -> Embeddings:
    """As each of the two processes starts."""
    torch.manual_seed(0)
    return Embeddings(make_plan(SCHEMA), backend="torch", boundaries=BOUNDARIES, lr=0.1)
