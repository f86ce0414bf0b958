"""Merged tables against a table per feature, lookups deduplicated in no, one or two stages, and the dynamic vocabulary against an
exact LFU.

    python -m benchmarks.tables merged [--features 60] [--tokens 256 4096] [--repeats 7] [--device cpu]
    python -m benchmarks.tables dedup [--ranks 2] [--lookups 65536] [--repeats 7]
    python -m benchmarks.tables churn [--ids 10000000] [--capacity 1000000] [--batch 65536]

Writes benchmarks/results/tables_<what>.json; benchmarks/tokenization.md says what they mean.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import genrank.schemas as s
from genrank.schemas.console import with_progress
from genrank.schemas.table import LogicalTable
from genrank.tokenization.batch import Batch, Group
from genrank.tokenization.dynamic import DynamicVocabulary
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan

RESULTS = Path(__file__).parent / "results"
DIMS = (8, 16, 32)
MACHINE: dict[str, Any] = {"cores": os.cpu_count(), "machine": platform.machine()}


# ---------------------------------------------------------------------- merged or not


def wide_schema(features: int) -> s.Schema:
    """Candidates with so many hashed ids, of three dims in turn."""
    names = [f"f{i:02d}" for i in range(features)]
    log = s.EventLog(
        name="exposures",
        path="exposures/dt={dt}",
        columns={"user_id": "int64", "item_id": "int64", "ts": "int64", "clicked": "bool"}
        | dict.fromkeys(names, "int64"),
        post_exposure=("clicked",),
    )
    ids = [
        s.Categorical(name=name, vocabulary=s.Hashed(size=10_000), dim=DIMS[i % len(DIMS)])
        for i, name in enumerate(names)
    ]
    return s.Schema(
        name="wide",
        sources=(log,),
        candidates=s.Candidates(features=tuple(ids)),
        labels=(s.Label(name="click", column="clicked"),),
    )


def batch_of(schema: s.Schema, tokens: int, device: str) -> Batch:
    """Candidates with Zipf-distributed ids, 16 a sample."""
    rng = np.random.default_rng(0)
    samples = tokens // 16
    zeros = torch.zeros(tokens, dtype=torch.int64)
    ids: dict[str, Any] = {
        f.name: torch.from_numpy(rng.zipf(1.2, tokens) % 1_000_000) for f in schema.candidates.features
    }
    start, none = torch.zeros(samples, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    return Batch(
        groups={
            "user": Group(torch.arange(samples + 1), start),
            "candidates": Group(torch.arange(samples + 1) * 16, zeros, ids),
        },
        sample_id=[""] * samples, user=start, window_start=start, request=zeros, item=zeros,
        labels={"click": torch.zeros(tokens)}, weights={"click": torch.ones(tokens)}, oracles={},
        candidate_sees=zeros.int(), realtime_sees=none.int(), realtime_available=none,
    ).to(device)  # fmt: skip


class PerFeature(nn.Module):
    """The peer: an `nn.Embedding` with sparse gradients per feature, and one SparseAdam over them."""

    def __init__(self, schema: s.Schema) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            nn.Embedding(10_002, DIMS[i % len(DIMS)], sparse=True) for i in range(len(schema.candidates.features))
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        leaves = batch.candidates.features.values()
        vectors = [table(leaf % 10_000 + 2) for table, leaf in zip(self.tables, leaves, strict=True)]  # type: ignore[operator]
        return {"candidates": torch.cat(vectors, 1)}


def merged(features: int, tokens: int, repeats: int, device: str) -> dict[str, Any]:
    """Milliseconds of a step: lookup, backward and the rows' update."""
    schema = wide_schema(features)
    batch = batch_of(schema, tokens, device)
    runs: dict[str, Callable[[], None]] = {}
    backends = ["torch", "torchrec"] if importlib.util.find_spec("torchrec") else ["torch"]
    for backend in backends:
        for merge in (True, False):
            embeddings = Embeddings(make_plan(schema, merge=merge), backend=backend, device=device)  # type: ignore[arg-type]
            runs[f"{backend}, {'merged' if merge else 'per feature'}"] = lambda e=embeddings: step(e, batch)  # type: ignore[misc]
    peer = PerFeature(schema).to(device)
    optimizer = torch.optim.SparseAdam(list(peer.parameters()))

    def peer_step() -> None:
        optimizer.zero_grad()
        step(peer, batch)
        optimizer.step()

    runs["nn.Embedding per feature, SparseAdam"] = peer_step
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            times[name].append(1e3 * (time.perf_counter() - began))
    first = times["torch, merged"]
    return {
        "step_ms": {name: statistics.median(t) for name, t in times.items()},
        "times_the_merged_torch_step": {
            name: statistics.median(a / b for a, b in zip(t, first, strict=True)) for name, t in times.items()
        },
    }


def step(model: Callable[[Batch], dict[str, Tensor]], batch: Batch) -> None:
    model(batch)["candidates"].square().mean().backward()


# ---------------------------------------------------------------------- deduplicated or not


def dedup(ranks: int, lookups: int, repeats: int) -> dict[str, Any]:
    """What two processes or more send each other, look up and take for a step, by the stages of deduplication."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_dedup_rank, (ranks, lookups, repeats, folder), ranks)  # type: ignore[no-untyped-call]
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]
    stages: dict[str, Any] = {}
    for name in found[0]:
        each = [rank[name] for rank in found]
        stages[name] = {
            "sent_mib": sum(one["sent"] for one in each) / 2**20,
            "rows_looked_up": sum(one["rows"] for one in each),
            "step_ms": max(one["step_ms"] for one in each),
            "largest_difference": max(one["difference"] for one in each),
        }
    return MACHINE | {"ranks": ranks, "lookups_a_rank_and_table": lookups, "repeats": repeats, "stages": stages}


def _dedup_rank(rank: int, ranks: int, lookups: int, repeats: int, folder: str) -> None:
    from genrank.tokenization.torchrec_tables import TorchrecTables

    store = dist.FileStore(f"{folder}/store", ranks)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    plan = make_plan(wide_schema(60))
    rng = np.random.default_rng(rank)
    ids = {t.name: torch.from_numpy(rng.zipf(1.2, lookups) % t.rows) for t in plan.tables}
    result: dict[str, Any] = {}
    learned: dict[int, list[Tensor]] = {}
    for stages, name in enumerate(("none", "before the all-to-all", "before and after")):
        tables = TorchrecTables(plan, torch.device("cpu"), 0.05, 0, "row_wise", dedup=stages)  # type: ignore[arg-type]

        def step(tables: TorchrecTables = tables) -> None:
            sum((v.square().mean() for v in tables.lookup(ids).values()), torch.zeros(())).backward()

        with counted(tables) as count:
            step()
        times = []
        for _ in range(repeats):
            dist.barrier()
            began = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - began))
        learned[stages] = [x for t in plan.tables for s in tables.shards(t.name) for x in (s.weight, s.state["second"])]
        apart = [float((a - b).abs().max()) for a, b in zip(learned[0], learned[stages], strict=True)]
        result[name] = count | {"step_ms": statistics.median(times), "difference": max(apart)}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


@contextmanager
def counted(tables: Any) -> Iterator[dict[str, int]]:
    """Bytes that this rank sends to others by all-to-all, and rows that its kernels look up."""
    count = {"sent": 0, "rows": 0}
    real = dist.all_to_all_single

    def all_to_all(
        output: Tensor, input: Tensor, output_split_sizes: Any = None, input_split_sizes: Any = None, **rest: Any
    ) -> Any:
        sizes = input_split_sizes or [len(input) // dist.get_world_size()] * dist.get_world_size()
        away = sum(sizes) - sizes[dist.get_rank()]
        count["sent"] += away * input[:1].numel() * input.element_size()
        return real(output, input, output_split_sizes, input_split_sizes, **rest)

    def see(module: nn.Module, given: Any) -> None:
        count["rows"] += len(given[0].values())

    hooks = [kernel.register_forward_pre_hook(see) for kernel in tables._kernels()]
    dist.all_to_all_single = all_to_all
    try:
        yield count
    finally:
        dist.all_to_all_single = real
        for hook in hooks:
            hook.remove()


# ---------------------------------------------------------------------- dynamic rows


def churning_ids(ids: int, batch: int, alpha: float = 1.05, drift: float = 0.2) -> Iterator[np.ndarray]:
    """Zipf ids whose popularity drifts: with every million, `drift` of a million ids that were never seen before replace the
    most recent ones in rank, as new items do."""
    rng = np.random.default_rng(0)
    for at in range(0, ids, batch):
        ranks = np.minimum(rng.zipf(alpha, min(batch, ids - at)), 1 << 40)
        shift = int(at * drift)
        yield np.where(ranks % 3 == 0, ranks + shift, ranks).astype(np.int64)


class ExactLFU:
    """The peer: least frequently used, then least recently, one id at a time (Matani et al., arXiv:2110.11602)."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count: dict[int, int] = {}
        self.by_count: dict[int, OrderedDict[int, None]] = {}
        self.least = 0

    def hit(self, key: int) -> bool:
        """Whether the id is there; it is afterwards."""
        count = self.count.get(key)
        if count is None:
            if len(self.count) >= self.capacity:
                oldest, _ = self.by_count[self.least].popitem(last=False)
                del self.count[oldest]
            self.count[key] = self.least = 1
            self.by_count.setdefault(1, OrderedDict())[key] = None
            return False
        del self.by_count[count][key]
        if not self.by_count[count]:
            del self.by_count[count]
            if self.least == count:
                self.least = count + 1
        self.count[key] = count + 1
        self.by_count.setdefault(count + 1, OrderedDict())[key] = None
        if self.least not in self.by_count:
            self.least = min(self.by_count)
        return True


def churn(ids: int, capacity: int, batch: int) -> dict[str, Any]:
    """Hit rates, throughput and memory on one stream."""
    table = LogicalTable("ids", ("candidates.ids",), 8, s.Dynamic(capacity=capacity, evict="frequency"))
    ours = DynamicVocabulary(table)
    hits, busy, before, evicted = 0, 0.0, _rss(), 0
    batches = -(-ids // batch)
    for now, drawn in enumerate(with_progress(churning_ids(ids, batch), "dynamic table", batches, unit="batch")):
        distinct, counts = (torch.from_numpy(a) for a in np.unique(drawn, return_counts=True))
        had = ours.rows_of(distinct) > 1
        occupied = len(ours)
        began = time.perf_counter()
        _, given = ours.observe(torch.from_numpy(drawn), now)
        busy += time.perf_counter() - began
        evicted += len(given) - (len(ours) - occupied)
        has = ours.rows_of(distinct) > 1
        hits += int(counts[had].sum()) + int((counts[has & ~had] - 1).sum())
    memory = _rss() - before
    lfu, exact, began = ExactLFU(capacity), 0, time.perf_counter()
    for drawn in with_progress(churning_ids(ids, batch), "exact LFU", batches, unit="batch"):
        exact += sum(map(lfu.hit, drawn.tolist()))
    exact_seconds = time.perf_counter() - began
    return {
        "ids": ids, "capacity": capacity, "batch": batch, "rows_evicted": evicted,
        "hit_rate": hits / ids, "hit_rate_exact_lfu": exact / ids, "of_exact": hits / exact,
        "ids_per_s": ids / busy, "ids_per_s_exact_lfu_in_python": ids / exact_seconds,
        "entries": len(ours.entries.ids), "slots": len(ours.map.keys), "extra_memory_mib": memory / 2**20,
    } | MACHINE  # fmt: skip


def _rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["merged", "dedup", "churn"])
    parser.add_argument("--features", type=int, default=60)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 4_096])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--lookups", type=int, default=65_536)
    parser.add_argument("--ids", type=int, default=10_000_000)
    parser.add_argument("--capacity", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=65_536)
    given = parser.parse_args()
    if given.what == "merged":
        sizes = {n: merged(given.features, n, given.repeats, given.device) for n in given.tokens}
        result = MACHINE | {
            "features": given.features, "repeats": given.repeats, "device": given.device, "torch": torch.__version__,
            "tables": {"merged": len(DIMS), "per feature": given.features}, "by_tokens": sizes,
        }  # fmt: skip
    elif given.what == "dedup":
        result = dedup(given.ranks, given.lookups, given.repeats)
    else:
        result = churn(given.ids, given.capacity, given.batch)
    (RESULTS / f"tables_{given.what}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
