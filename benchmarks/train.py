"""What training costs: a step of each MTGR size, and user-day samples against one row per exposure as candidates grow.

    python -m benchmarks.train [--users 120] [--repeats 3] [--sizes mtgr-small mtgr-medium mtgr-large] [--device cpu]

Writes benchmarks/results/train.json; benchmarks/train.md says what it means. On CPU the clock is the process's CPU time on one
thread, so that a busy machine doesn't change the figures; on a GPU it is wall time between synchronisations.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import dlrm_hstu
from genrank.examples.marketplace.world import generate
from genrank.model.config import TrainConfig
from genrank.model.encoders.block import parameter_count
from genrank.model.flops import matmul_rate
from genrank.model.ranker import Ranker
from genrank.model.ranks import Ranks, join_ranks
from genrank.model.trainer import Trainer, token_count
from genrank.pipelines.build import BuildConfig, build
from genrank.schemas import Schema, load_schema
from genrank.schemas.console import with_progress
from genrank.tokenization.batch import Batch, ranges

RESULT = Path(__file__).parent / "results" / "train.json"
SCHEMA = Path(__file__).parents[1] / "examples" / "marketplace" / "schema.py"
FIRST, LAST = "2026-01-04", "2026-01-06"
CANDIDATES = (1, 3, 10, 30, 100, 300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=120, help="users of the synthetic marketplace")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", nargs="*", default=["mtgr-tiny", "mtgr-small", "mtgr-medium", "mtgr-large"])
    parser.add_argument("--aggregation-model", default="mtgr-tiny")
    parser.add_argument("--token-budget", type=int, default=2048)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--peer", type=Path, help=f"a checkout of {dlrm_hstu.SOURCE}: a step beside its DlrmHSTU, and nothing else"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    if arguments.peer:
        found = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
        found["dlrm_hstu"] = {"torch": torch.__version__, **dlrm_hstu.compare(arguments.peer, arguments.repeats)}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps(found["dlrm_hstu"], indent=1))
        return
    ranks = join_ranks(arguments.device)
    schema = load_schema(str(SCHEMA))
    with tempfile.TemporaryDirectory() as folder:
        samples = make_samples(Path(folder), schema, arguments.users)
        dtype = torch.float32 if ranks.device.type == "cpu" else torch.bfloat16
        peak = matmul_rate(ranks.device, dtype, lambda run: timed(run, ranks))
        sizes = []
        for name in with_progress(arguments.sizes, "sizes"):
            trainer = make_trainer(name, schema, samples, ranks, arguments.token_budget)
            sizes.append(step_cost(trainer, name, ranks, arguments.repeats, peak))
        trainer = make_trainer(arguments.aggregation_model, schema, samples, ranks, 4 * arguments.token_budget)
        batch = head(next(iter(trainer.reader)), 2)
        aggregation = [
            aggregation_cost(trainer, batch, k, ranks, arguments.repeats)
            for k in with_progress(CANDIDATES, "candidates")
        ]
    device = platform.processor() or platform.machine() if ranks.device.type == "cpu" else torch.cuda.get_device_name()
    result = {
        "device": device,
        "clock": "CPU seconds, one thread" if ranks.device.type == "cpu" else "wall seconds",
        "torch": torch.__version__,
        "matmul_gflops_per_s": round(peak / 1e9, 1),
        "sizes": sizes,
        "aggregation": {"model": arguments.aggregation_model, "rows": aggregation},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


# ---------------------------------------------------------------------- what is measured


def step_cost(trainer: Trainer, name: str, ranks: Ranks, repeats: int, peak: float) -> dict[str, object]:
    """A training step: forward, backward, both optimizers."""
    assert isinstance(trainer.model, Ranker)
    batches = [batch for batch, _ in zip(cycle(trainer), range(repeats + 1), strict=False)]
    trainer.train_step.run(batches[:1], trainer.position)
    trainer.model.take_flops()
    seconds, tokens, samples, candidates = [], 0, 0, 0
    for batch in batches[1:]:
        seconds.append(timed(lambda batch=batch: trainer.train_step.run([batch], trainer.position), ranks))  # type: ignore[misc]
        tokens, samples, candidates = tokens + token_count(batch), samples + len(batch), candidates + len(batch.item)
    rate = trainer.model.take_flops() / sum(seconds)
    return {
        "model": name,
        "dense_parameters": parameter_count([trainer.model]),
        "seconds_per_step": round(statistics.median(seconds), 4),
        "samples_per_s": round(samples / sum(seconds), 1),
        "candidates_per_s": round(candidates / sum(seconds), 1),
        "tokens_per_s": round(tokens / sum(seconds), 1),
        "model_gflops_per_s": round(rate / 1e9, 2),
        "mfu": round(rate / peak, 3),
    }


def aggregation_cost(trainer: Trainer, batch: Batch, candidates: int, ranks: Ranks, repeats: int) -> dict[str, object]:
    """The same candidates as user-day samples and as one sample each, both trained for a step."""
    together = with_candidates(batch, candidates)
    apart = list(in_budget(one_per_candidate(together), trainer.config.token_budget))

    def separately() -> None:
        for part in apart:
            trainer.train_step.run([part], trainer.position)

    trainer.train_step.run([together], trainer.position)
    seconds = [
        (timed(lambda: trainer.train_step.run([together], trainer.position), ranks), timed(separately, ranks))
        for _ in range(repeats)
    ]
    return {
        "candidates": candidates,
        "tokens_user_day": token_count(together),
        "tokens_per_exposure": sum(map(token_count, apart)),
        "seconds_user_day": round(statistics.median(a for a, _ in seconds), 4),
        "seconds_per_exposure": round(statistics.median(b for _, b in seconds), 4),
        "speedup": round(statistics.median(b / a for a, b in seconds), 2),
    }


def timed(run: Callable[[], object], ranks: Ranks) -> float:
    """Seconds, by the clock of the page's first paragraph."""
    if ranks.device.type == "cpu":
        began = time.process_time()
        run()
        return time.process_time() - began
    torch.cuda.synchronize()
    wall = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - wall


# ---------------------------------------------------------------------- batches


def with_candidates(batch: Batch, candidates: int) -> Batch:
    """Every sample with exactly so many candidates, its own repeated."""
    lengths = batch.candidates.lengths
    offsets = torch.arange(len(batch) + 1, device=lengths.device) * candidates
    each = torch.arange(candidates, device=lengths.device)
    index = (batch.candidates.offsets[:-1, None] + each % lengths[:, None]).flatten()
    return select(batch, torch.arange(len(batch), device=lengths.device), index, offsets, None)


def one_per_candidate(batch: Batch) -> Batch:
    """Every candidate a sample of its own: the user and history repeated, and the realtime events that it sees."""
    owner = torch.repeat_interleave(batch.candidates.lengths)
    index = torch.arange(len(owner), device=owner.device)
    offsets = torch.arange(len(owner) + 1, device=owner.device)
    return select(batch, owner, index, offsets, batch.candidate_sees.long())


def select(
    batch: Batch, rows: torch.Tensor, index: torch.Tensor, offsets: torch.Tensor, seen: torch.Tensor | None
) -> Batch:
    """Samples `rows` ([S]) of a batch with candidates `index`, divided by `offsets`; `seen` ([S]) cuts their realtime events."""
    groups = {}
    realtime = torch.zeros(0, dtype=torch.int64)
    for name, group in batch.groups.items():
        if name == "candidates":
            groups[name] = group.take(index, offsets)
            continue
        begin, end = group.offsets[rows], group.offsets[rows + 1]
        if name == "realtime":
            end = end if seen is None else begin + seen
            cut, at = ranges(begin, end)
            realtime = at
        else:
            cut, at = ranges(begin, end)
        groups[name] = group.take(at, cut)
    return Batch(
        groups=groups,
        sample_id=[batch.sample_id[i] for i in rows.tolist()],
        user=batch.user[rows],
        window_start=batch.window_start[rows],
        request=batch.request[index],
        item=batch.item[index],
        labels={k: v[index] for k, v in batch.labels.items()},
        weights={k: v[index] for k, v in batch.weights.items()},
        oracles={k: v[index] for k, v in batch.oracles.items()},
        candidate_sees=batch.candidate_sees[index],
        realtime_sees=batch.realtime_sees[realtime],
        realtime_available=batch.realtime_available[realtime],
    )


def head(batch: Batch, samples: int) -> Batch:
    """The samples with the longest histories."""
    rows = batch.groups["history"].lengths.argsort(descending=True)[:samples]
    offsets, index = ranges(batch.candidates.offsets[rows], batch.candidates.offsets[rows + 1])
    return select(batch, rows, index, offsets, None)


def in_budget(batch: Batch, budget: int) -> Iterator[Batch]:
    """A batch of one candidate a sample, cut by tokens."""
    tokens = sum(group.lengths for group in batch.groups.values()).cumsum(0)  # type: ignore[union-attr]
    part = (tokens - 1) // budget
    for p in part.unique():
        rows = (part == p).nonzero().squeeze(1)
        yield select(
            batch, rows, rows, torch.arange(len(rows) + 1, device=rows.device), batch.candidate_sees[rows].long()
        )


# ---------------------------------------------------------------------- set-up


def make_samples(folder: Path, schema: Schema, users: int) -> Path:
    """A small marketplace, built."""
    generate(folder / "data", users=users, days=6, seed=0)
    build(BuildConfig(schema=schema, data=folder / "data", out=folder / "built", first=FIRST, last=LAST))
    return folder / "built"


def make_trainer(name: str, schema: Schema, samples: Path, ranks: Ranks, budget: int) -> Trainer:
    """A trainer that writes nothing."""
    config = TrainConfig(
        schema=schema, samples=samples, dates=(FIRST,), out=samples / f"run-{name}", model=name, token_budget=budget,
        device=ranks.device.type, spike_factor=0,
    )  # fmt: skip
    return Trainer(config, ranks, None)


def cycle(trainer: Trainer) -> Iterator[Batch]:
    """The reader's batches, again and again."""
    while True:
        yield from trainer.prefetcher.batches(trainer.prefetcher.reader_state["epoch"])


if __name__ == "__main__":
    main()
