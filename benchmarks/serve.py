"""What a request costs in process, from Arrow rows to probabilities: one row a candidate, user-aggregated, micro-batched, cached.

python -m benchmarks.serve                      every length and number of candidates, mtgr-tiny
python -m benchmarks.serve --model mtgr-small --device cuda --repeats 50
python -m benchmarks.serve --append 64 --lengths 4000 --candidates 256      a kept user's history goes on
python -m benchmarks.serve --storage --run RUN --samples DIR --dates D        what storing keys in fewer bits costs
python -m benchmarks.serve --run RUN --export DIR      a checkpoint, its exported programs and the compiled ones (`genrank export --compiled`)

Rows are of one user: a history of N events, 32 realtime events, K candidates. `row` has the whole of it once for each candidate; it is timed on
`--rows` candidates, and its candidates a second are theirs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from rich.table import Table as Shown

import genrank.schemas as s
from genrank.model.config import samples_folder
from genrank.model.evaluate import LoadedModel, load_model
from genrank.model.losses import predictions
from genrank.model.metrics import Predictions
from genrank.model.predict import candidate_users
from genrank.model.registry import choose_model
from genrank.schemas.configuration import parse_dates
from genrank.schemas.console import print_whole
from genrank.schemas.errors import UserError
from genrank.serving.engine import Engine
from genrank.serving.example_rows import example_rows
from genrank.serving.exported import ExportedScorer
from genrank.serving.model_scorer import ModelScorer
from genrank.serving.sample_rows import request_schema
from genrank.serving.scorer import CheckpointScorer
from genrank.serving.stored_keys import Storage
from genrank.serving.user_cache import Entry, Key, UserCache
from genrank.tokenization.reader import SampleReader

DAY = 1_767_225_600_000
REALTIME = 32
COLUMNS = {"user_id": "int64", "item_id": "int64", "category": "int64", "price": "float32", "ts": "int64"}
ITEM = s.Categorical(name="item_id", table=s.Table(name="item", dim=32, vocabulary=s.Hashed(size=100_000)))
CATEGORY = s.Categorical(name="category", table=s.Table(name="category", dim=8, vocabulary=s.Hashed(size=1_000)))
EVENT = (ITEM, CATEGORY, s.Numeric(name="price", transform=s.Log1p()), s.TimeGap(name="gap", transform=s.Log1p()))


def schema_of(length: int) -> s.Schema:
    """A user with a history of so many events."""
    clicks = s.Events(source="clicks")
    counts = [
        s.CrossFeature(name=f"{k}_clicks_7d", op="count", source="clicks", keys=(k,), window="7d")
        for k in ("item_id", "category", "user_id")
    ]
    return s.Schema(
        name="serve",
        sources=(
            s.EventLog(name="exposures", path="exposures/dt={dt}", columns=COLUMNS),
            s.EventLog(name="clicks", path="clicks/dt={dt}", columns=COLUMNS),
        ),
        sequences=(
            s.EventSequence(name="history", events=(clicks,), features=EVENT, max_length=length),
            s.EventSequence(name="realtime", scope="realtime", events=(clicks,), features=EVENT, max_length=100),
        ),
        candidates=s.Candidates(features=(ITEM, CATEGORY, s.Numeric(name="price", transform=s.Log1p()), *counts)),
        labels=(s.Label(name="click", source="clicks", window="10m"),),
    )


def request(
    schema: s.Schema, length: int, candidates: int, rows: int = 1, *, user: int = 1, missing: int = 0
) -> pa.RecordBatch:
    """A user's rows, the same but for their candidates; `missing`: of the history's newest events."""
    random = np.random.default_rng(user)

    def events(start: int, stop: int, count: int, numbers: tuple[str, ...]) -> dict[str, object]:
        ts = np.sort(random.integers(start, stop, count))
        found: dict[str, object] = {name: random.gamma(2.0, 20.0, count).astype(np.float32) for name in numbers}
        ids = {"item_id": random.zipf(1.3, count) % 10**6, "category": random.integers(0, 500, count)}
        return {**found, **ids, "ts": ts}

    history = events(DAY - 90 * 86_400_000, DAY, length, ("price",)) | {"type": np.zeros(length, np.int32)}
    history = {name: values[: length - missing] for name, values in history.items()}
    realtime = events(DAY, DAY + 3_600_000, REALTIME, ("price",)) | {"type": np.zeros(REALTIME, np.int32)}
    realtime["available"] = realtime["ts"]
    made = []
    for row in range(rows):
        numbers = ("price", "item_id_clicks_7d", "category_clicks_7d", "user_id_clicks_7d")
        ranked = events(DAY + 7_200_000, DAY + 7_200_001, candidates, numbers)
        ranked |= {"request": np.full(candidates, 1), "item": ranked["item_id"]}
        made.append(
            {
                "sample_id": f"{user}:2026-01-01:{row}",
                "user_id": user,
                "window_start": DAY,
                "window_end": DAY + 86_400_000,
                "history": history,
                "realtime": realtime,
                "candidates": ranked,
                "mask": {
                    "candidate_sees": np.full(candidates, REALTIME, np.int32),
                    "realtime_sees": np.arange(REALTIME, dtype=np.int32),
                },
            }
        )
    wanted = request_schema(schema)
    return pa.RecordBatch.from_pylist([{name: one[name] for name in wanted.names} for one in made], schema=wanted)


class Cost(NamedTuple):
    """Of one way at one size."""

    p50: float
    p99: float
    """ms of a call."""
    per_second: float
    """Candidates, at the median."""
    memory: int
    """Bytes that the process (of a GPU: its tensors) takes at the most."""


def measure(call: Callable[[], object], candidates: int, repeats: int, device: torch.device) -> Cost:
    """Of some calls, after one that isn't counted."""
    call()
    _reset_peak(device)
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()  # its scores are numpy's: the device is done
        taken.append(time.perf_counter() - began)
    p50 = statistics.median(taken)
    p99 = float(np.percentile(taken, 99))
    return Cost(1e3 * p50, 1e3 * p99, candidates / p50, _peak(device))


class Record:
    """Costs in a file, a JSON line each: what is there is not measured again.

    Args:
        path: of the file; None keeps them in memory alone.
        setting: distinguishes the costs of other settings.
    """

    def __init__(self, path: Path | None, setting: str) -> None:
        self.path, self.setting = path, setting
        lines = path.read_text().splitlines() if path is not None and path.is_file() else []
        found = (json.loads(line) for line in lines)
        self.costs = {tuple(each["cell"]): Cost(*each["cost"]) for each in found if each["setting"] == setting}

    def cost(self, length: int, count: int, way: str, measured: Callable[[], Cost]) -> Cost:
        """The cost of a way."""
        cell = (length, count, way)
        if cell not in self.costs:
            self.costs[cell] = measured()
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a") as file:
                    line = {"setting": self.setting, "cell": cell, "cost": self.costs[cell]}
                    file.write(json.dumps(line) + "\n")
        return self.costs[cell]


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def loaded_model(schema: s.Schema, name: str, settings: dict[str, str], device: torch.device) -> LoadedModel:
    """A model with fresh weights."""
    torch.manual_seed(0)
    chosen = choose_model(name, settings)
    model = chosen.build(chosen.embeddings(schema, device=device, backend="torch")).to(device).eval()
    return LoadedModel(model, schema, 0, name, chosen.task(schema), {}, "fresh")


def ways(given: argparse.Namespace, loaded: LoadedModel, device: torch.device) -> dict[str, CheckpointScorer]:
    """Scorers by what they are called."""
    cache = UserCache(4 << 30, storage="bf16")
    return {
        "row": CheckpointScorer(loaded, device),
        "aggregated": CheckpointScorer(loaded, device),
        "micro-batched": CheckpointScorer(loaded, device, micro_batch=given.micro_batch),
        "cached": CheckpointScorer(loaded, device, micro_batch=given.micro_batch, cache=cache),
    }


def requests(given: argparse.Namespace) -> None:
    """Every length, number of candidates and way."""
    device = torch.device(given.device)
    shown = Shown("N", "K", "way", "p50 ms", "p99 ms", "candidates/s", "peak memory MB")
    setting = f"{given.model} {given.set} {given.device} {given.repeats} {given.micro_batch} {given.rows}"
    record = Record(given.out, setting)
    costs: dict[tuple[int, int, str], Cost] = {}
    for length in given.lengths:
        schema = schema_of(length)
        scorers = ways(given, loaded_model(schema, given.model, dict(x.split("=") for x in given.set), device), device)
        single = request(schema, length, 1, given.rows)
        alone = partial(measure, partial(scorers["row"].score, single), given.rows, given.repeats, device)
        costs[length, 1, "row"] = record.cost(length, 1, "row", alone)
        _add(shown, length, 1, "row", costs[length, 1, "row"])
        for count in given.candidates:
            rows = request(schema, length, count)
            for way, scorer in scorers.items():
                if way != "row":
                    timed = partial(measure, partial(scorer.score, rows), count, given.repeats, device)
                    cost = costs[length, count, way] = record.cost(length, count, way, timed)
                    _add(shown, length, count, way, cost)
        cache = scorers["cached"].engine.cache
        if cache is not None and len(cache):
            shown.add_row(
                str(length), "", "one user in the cache", "", "", "", f"{cache.bytes[0] / 1e6:.2f}", end_section=True
            )
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    shown.title = f"{given.model} on {where}, {torch.get_num_threads()} threads, {given.repeats} calls each"
    print_whole(shown)
    print_whole(_judged(costs, given))


def _add(shown: Shown, length: int, count: int, way: str, cost: Cost) -> None:
    numbers = (f"{cost.p50:.1f}", f"{cost.p99:.1f}", f"{cost.per_second:,.0f}", f"{cost.memory / 1e6:.0f}")
    shown.add_row(str(length), str(count), way, *numbers)


def _judged(costs: dict[tuple[int, int, str], Cost], given: argparse.Namespace) -> Shown:
    shown = Shown("what must hold", "wanted", "found")
    longest, counts = max(given.lengths), given.candidates

    def rate(length: int, count: int, way: str) -> float:
        return costs[length, count, way].per_second

    if 256 in counts:
        for other in ("aggregated", "micro-batched"):
            ratio = rate(longest, 256, "cached") / rate(longest, 256, other)
            shown.add_row(f"cached / {other}, N = {longest}, K = 256", ">= 5", f"{ratio:.1f}")
    if 1024 in counts:
        ratio = rate(longest, 1024, "aggregated") / rate(longest, 1, "row")
        shown.add_row(f"aggregated / one row a candidate, N = {longest}, K = 1024", ">= 50", f"{ratio:.0f}")
    if len(counts) > 1:
        few, many = counts[-2:]
        for way in ("aggregated", "micro-batched", "cached"):
            slope = np.log(costs[longest, many, way].p50 / costs[longest, few, way].p50) / np.log(many / few)
            shown.add_row(f"{way}: time ~ K^slope from K = {few} to {many}", "<= 1.25", f"{slope:.2f}")
    return shown


# ---------------------------------------------------------------------- histories that go on


def appended(given: argparse.Namespace) -> None:
    """A kept user whose history has `--append` further events: computed anew, appended to, and asked for again."""
    device = torch.device(given.device)
    shown = Shown(
        "N", "K", "way", "p50 ms", "p99 ms", "candidates/s", "peak memory MB", title=f"{given.append} further events"
    )
    settings = {"visibility": "causal", "positions": "oldest", "ages": "false"} | dict(x.split("=") for x in given.set)
    for length in given.lengths:
        schema = schema_of(length)
        loaded = loaded_model(schema, given.model, settings, device)
        for count in given.candidates:
            cache = UserCache(4 << 30, storage="bf16")
            scorer = CheckpointScorer(loaded, device, micro_batch=given.micro_batch, cache=cache)
            if not scorer.engine.appends:
                raise UserError(f"{given.model} doesn't append: {'; '.join(scorer.engine.append_obstacles)}")
            scorer.score(request(schema, length, count, missing=given.append))
            key = Key(scorer.checkpoint, 1, None)
            before, rows = cache.get(key, device), request(schema, length, count)
            assert before is not None

            calls: dict[str, Callable[[], object]] = {
                "anew": partial(_anew, scorer, cache, rows),
                "extended": partial(_extended, scorer, cache, rows, key, before),
                "again": partial(scorer.score, rows),
            }
            for way, call in calls.items():
                _add(shown, length, count, way, measure(call, count, given.repeats, device))
            assert cache.counts.extended == given.repeats + 1
    print_whole(shown)


def _anew(scorer: CheckpointScorer, cache: UserCache, rows: pa.RecordBatch) -> None:
    cache.drop(scorer.checkpoint)
    scorer.score(rows)


def _extended(scorer: CheckpointScorer, cache: UserCache, rows: pa.RecordBatch, key: Key, before: Entry) -> None:
    cache.put(key, before)
    scorer.score(rows)


# ---------------------------------------------------------------------- fewer bits


def storage(given: argparse.Namespace) -> None:
    """A trained run's scores with keys and values stored in fewer bits, beside those of one pass."""
    loaded = load_model(given.run, device=given.device)
    task = loaded.schema.labels[0].name
    kinds: tuple[Storage | None, ...] = (None, "float32", "bf16", "int8")
    scores: dict[str, list[torch.Tensor]] = {}
    found = {str(kind): Predictions() for kind in kinds}
    reader = SampleReader(
        samples_folder(given.samples), loaded.schema, parse_dates(given.dates), view="user_day", shuffle=False
    )
    caches = {kind: UserCache(1 << 30, storage=kind) for kind in kinds if kind}
    for batch in reader:
        if not len(batch.item):
            continue
        for kind in kinds:
            engine = Engine(loaded.model, loaded.checkpoint, cache=caches[kind] if kind else None)
            own = predictions(engine.logits(batch), loaded.schema.labels)[task]
            scores.setdefault(str(kind), []).append(own)
            found[str(kind)].update(candidate_users(batch), batch.labels[task], own, batch.weights[task])
    whole = torch.cat(scores["None"])
    shown = Shown(
        "stored as", "largest difference", "mean difference", f"{task} GAUC", title=f"{len(whole):,} candidates"
    )
    for kind in kinds:
        difference = (torch.cat(scores[str(kind)]) - whole).abs()
        gauc = found[str(kind)].compute()["gauc"].value
        shown.add_row(
            str(kind or "one pass"), f"{float(difference.max()):.1e}", f"{float(difference.mean()):.1e}", f"{gauc:.5f}"
        )
    print_whole(shown)


# ---------------------------------------------------------------------- exports


def exports(given: argparse.Namespace) -> None:
    """What a run's checkpoint, its export and the export's compiled programs take for the same made-up requests, in turn."""
    device = torch.device(given.device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    shown = Shown(
        "N", "K", "way", "scored by", "ms", "largest difference", title=f"medians of {given.repeats} calls each"
    )
    for way, settings in (("whole", {}), ("cached", {"micro_batch": given.micro_batch})):

        def cache(way: str = way) -> UserCache | None:
            return UserCache(4 << 30, storage="float32") if way == "cached" else None

        scorers: dict[str, ModelScorer] = {
            "checkpoint": CheckpointScorer.load(given.run, device, cache=cache(), **settings),
            "exported": ExportedScorer.load(given.export, device, cache=cache(), compiled=False, **settings),
            "compiled": (compiled := ExportedScorer.load(given.export, device, cache=cache(), **settings)),
        }
        if not compiled.compiled:
            raise UserError(
                f"--export {given.export} holds no compiled programs for this machine; export it here with --compiled"
            )
        for length in given.lengths:
            for count in given.candidates:
                rows = example_rows(compiled.schema, 1, events=length, ranked=count)
                scores = {name: scorer.score(rows) for name, scorer in scorers.items()}
                taken: dict[str, list[float]] = {name: [] for name in scorers}
                for _ in range(given.repeats):
                    for name, scorer in scorers.items():
                        began = clock()
                        scorer.score(rows)
                        taken[name].append(clock() - began)
                for name, times in taken.items():
                    difference = float(np.abs(scores[name] - scores["checkpoint"]).max())
                    ms = 1e3 * statistics.median(times)
                    shown.add_row(str(length), str(count), way, name, f"{ms:.1f}", f"{difference:.1e}")
    print_whole(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = {"type": lambda text: [int(n) for n in text.split(",")]}
    parser.add_argument("--model", default="mtgr-tiny")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lengths", default=[1_100, 4_000], **numbers)
    parser.add_argument("--candidates", default=[32, 256, 1_024, 4_096], **numbers)
    parser.add_argument("--micro-batch", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="costs are kept here, and not measured again")
    parser.add_argument("--append", type=int, default=0, help="further events of a kept history, at --candidates each")
    parser.add_argument("--storage", action="store_true")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--export", type=Path)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--dates")
    given = parser.parse_args()
    if given.storage:
        storage(given)
    elif given.append:
        appended(given)
    elif given.export:
        exports(given)
    else:
        requests(given)


if __name__ == "__main__":
    main()
