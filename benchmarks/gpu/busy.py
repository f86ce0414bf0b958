"""What keeps the card busy, or from it: the sparse optimizer, reading, and `genrank train` as a whole, reading included.

Reading and training need the packages of `pip install '.[train]'`; without them their rows say so. Samples are random ones of the
marketplace's schema, as `benchmarks.reader` writes them.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.session import Session, environment
from benchmarks.gpu.step import parts
from genrank.kernels.rowwise import rowwise_adagrad_

NEEDED = ("pyarrow", "pydantic", "sqlglot")
BUDGETS = (8_192, 65_536)
COMPILED = ("nothing compiled", "encoder compiled", "dense half compiled")
"""The last is `genrank train --compile`."""
ROOT = Path(__file__).resolve().parents[2]


def busy(session: Session) -> None:
    for name in ("uniform", "zipf", "one row"):
        session.attempt("sparse", name, lambda n=name: sparse(session, n))
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        session.write({"section": "reading", "name": "all", "left_out": f"{', '.join(lacking)} not installed"})
        return
    for count in (70,) if session.rehearse else (2_048, 65_536):
        session.attempt("autodis", f"{count} values", lambda n=count: autodis(session, n))
    with tempfile.TemporaryDirectory() as folder:
        for budget in (64,) if session.rehearse else BUDGETS:
            session.attempt("lookups", f"{budget} tokens", lambda b=budget: lookups(session, Path(folder), b))
        for capacity in (8,) if session.rehearse else (1 << 14, 1 << 20):
            name = f"lookups among {capacity} rows"
            session.attempt("vocabulary", name, lambda c=capacity: vocabulary(session, c))
        for budget in (256,) if session.rehearse else BUDGETS:
            for readers in (0, 1) if session.rehearse else (0, 1, 2, 4):
                name = f"{budget} tokens, readers {readers}"
                session.attempt("reading", name, lambda b=budget, r=readers: reading(session, Path(folder), b, r))
            for readers in (0, 1):
                name = f"{budget} tokens, readers {readers}"
                session.attempt("training", name, lambda b=budget, r=readers: training(session, Path(folder), b, r))
        # Last, as compiling takes a minute; both budgets without before one with.
        for how, budget in itertools.product(COMPILED, (64,) if session.rehearse else BUDGETS):
            name = f"{budget} tokens, {how}"
            session.attempt("training step", name, lambda b=budget, h=how: training_step(session, Path(folder), b, h))


# --- the sparse optimizer ---------------------------------------------------------------------------------------------


def entries(name: str, count: int, rows: int, device: str) -> Tensor:
    """[count] int64 rows of a batch's lookups: all alike popular, as ids are, or one that has all."""
    random = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if name == "one row":
        found = torch.zeros(count)
    elif name == "uniform":
        found = random * rows
    else:
        # Ranks by inverse transform: P(rank <= r) = log(r + 1) / log(rows + 1).
        found = torch.exp(random * torch.log(torch.tensor(rows + 1.0))) - 1
    return found.long().clamp_(0, rows - 1).to(device)


def sparse(session: Session, name: str) -> dict[str, Any]:
    """Rowwise Adagrad on a batch's gradients: ms, beside `unique` and `index_add` in PyTorch; and whether it is right and repeats."""
    count, rows, dim = (150, 20, 8) if session.rehearse else (1 << 20, 1 << 20, 64)
    where = entries(name, count, rows, session.device)
    grads = torch.randn(count, dim, generator=torch.Generator().manual_seed(1)).to(session.device)

    def update(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        table = torch.ones(rows, dim, device=session.device, dtype=dtype)
        state = torch.zeros(rows, device=session.device, dtype=dtype)
        rowwise_adagrad_(table, state, where, grads.to(dtype), lr=0.1)
        return table, state

    ours, again = update(), update()
    total = torch.zeros(rows, dim, device=session.device, dtype=torch.float64).index_add_(0, where, grads.double())
    state = total.square().mean(1)
    wanted = 1 - 0.1 * total / (state.sqrt() + 1e-8).unsqueeze(1)
    error = float((ours[0].double() - wanted).abs().max())
    table, second = update()
    ms = session.time_ms(lambda: rowwise_adagrad_(table, second, where, grads, lr=0.1))
    with environment("GENRANK_KERNELS", "reference"):
        plain = session.time_ms(lambda: rowwise_adagrad_(table, second, where, grads, lr=0.1))
    return {
        "entries": count, "dim": dim, "largest_row": int(torch.bincount(where).max()), "ms": round(ms, 3),
        "pytorch_ms": round(plain, 3), "gb_s": round(1e-6 * 4 * dim * count / ms, 1), "error": error,
        "correct": error < 1e-3 and all(torch.equal(a, b) for a, b in zip(ours, again, strict=True)),
    }  # fmt: skip


# --- numbers ----------------------------------------------------------------------------------------------------------


def autodis(session: Session, count: int) -> dict[str, Any]:
    """The marketplace's two AutoDis numbers by the kernels, and (apart) by PyTorch's operations: launches, not work, are the time of either."""
    import genrank.schemas as s
    from genrank.tokenization.transforms.autodis import AutoDisInputs

    torch.manual_seed(0)
    inputs = AutoDisInputs([("a", s.AutoDis()), ("b", s.AutoDis(buckets=8))]).to(session.device)
    values = torch.randn(2, count)
    values[:, ::5] = math.nan
    values = values.to(session.device)
    together: Any = inputs.sets[0]
    parameters = list(inputs.parameters())
    upstream = torch.linspace(-1, 1, 16 * count, device=session.device).view(count, 16)
    row: dict[str, Any] = {"values": count}
    results: list[list[Tensor]] = []
    for name, run in (("", together), ("apart_", together.by_operations)):
        out = run(parameters, values)
        results.append([out.detach(), *torch.autograd.grad(out, parameters, upstream, retain_graph=True)])
        with torch.no_grad():
            forward = session.time_ms(lambda: run(parameters, values))  # noqa: B023
        backward = session.time_ms(lambda: torch.autograd.grad(out, parameters, upstream, retain_graph=True))  # noqa: B023
        row |= {f"{name}forward_ms": round(forward, 4), f"{name}backward_ms": round(backward, 4)}
    errors = [float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in zip(*results, strict=True)]
    return {**row, "difference": max(errors), "correct": max(errors) < 1e-3}


# --- reading, and training with it ------------------------------------------------------------------------------------


def schema() -> Any:
    from genrank.schemas.load import load_schema

    return load_schema(str(ROOT / "examples" / "marketplace" / "schema.py"))


def small_vocabularies(declared: Any) -> Any:
    """The schema with dynamic tables of 64 rows, of which each step's kernels read every one: seconds in an interpreter."""
    from genrank.schemas import from_json, to_json

    return from_json(re.sub(r'("capacity": ?)[0-9]+', r"\g<1>64", to_json(declared)))


def samples(session: Session, folder: Path) -> Path:
    """Where they are; written when they are first asked for."""
    from benchmarks.reader import publish, random_day

    if not (root := folder / "samples").exists():
        declared = schema()
        publish(root, declared, random_day(declared, *((30, 0, 12) if session.rehearse else (8_192, 0))))
    return root


def reading(session: Session, folder: Path, budget: int, readers: int) -> dict[str, Any]:
    """An epoch's batches on the device, nothing done with them; the second epoch is timed."""
    from genrank.tokenization.reader import SampleReader

    cuda = session.device == "cuda"
    reader = SampleReader(
        samples(session, folder), schema(), ["2026-01-01"], token_budget=budget, readers=readers, pinned=cuda
    )
    try:
        for _ in range(2):
            tokens = batches = 0
            start = time.perf_counter()
            for batch in reader:
                moved = batch.pin_memory().to(session.device) if cuda else batch
                tokens += sum(len(group.ts) for group in moved.groups.values())
                batches += 1
                if cuda:
                    torch.cuda.synchronize()
            seconds = time.perf_counter() - start
    finally:
        reader.stop()
    return {"batches": batches, "ms": round(1e3 * seconds / batches, 2), "tokens_per_s": round(tokens / seconds)}


def lookups(session: Session, folder: Path, budget: int) -> dict[str, Any]:
    """A batch's features to tokens and back, tables' updates included: all at once; the same with the dynamic vocabularies in PyTorch, which waits
    for the device; and feature by feature. All give the same."""
    from genrank.model.registry import choose_model
    from genrank.tokenization.dynamic import DynamicVocabulary
    from genrank.tokenization.embedding import Embeddings
    from genrank.tokenization.features import fitted_features
    from genrank.tokenization.plan import make_plan
    from genrank.tokenization.reader import SampleReader

    declared = small_vocabularies(schema()) if session.rehearse else schema()
    edges = {f"{group}.{name}": [1.0, 10.0, 100.0] for group, name, _ in fitted_features(declared)}
    reader = SampleReader(samples(session, folder), declared, ["2026-01-01"], token_budget=budget, prefetch=0)
    # In turn: a batch's ids are new once only.
    batches = [batch.to(session.device) for batch in itertools.islice(reader, 8)]
    row: dict[str, Any] = {}
    found: list[list[Tensor]] = []
    for name in ("merged_ms", "vocabularies_wait_ms", "apart_ms"):
        torch.manual_seed(0)
        embeddings = Embeddings(make_plan(declared), backend="torch", device=session.device, boundaries=edges)
        embeddings.merged = None if name == "apart_ms" else embeddings.merged
        if name == "vocabularies_wait_ms":
            logical = {table: embeddings.plan.logical[table][0] for table in embeddings.vocabularies}
            embeddings.vocabularies = {t: DynamicVocabulary(each, session.device) for t, each in logical.items()}
        tokenizer = (
            choose_model("mtgr-tiny" if session.rehearse else "mtgr-small").build(embeddings, ["click"]).tokenizer
        )

        def step(tokenizer: Any = tokenizer, turn: Any = itertools.cycle(batches)) -> Tensor:
            x: Tensor = tokenizer(next(turn)).x
            x.backward(torch.ones_like(x))
            return x.detach()

        weights = [embeddings.tables.shards(table.name)[0].weight for table in embeddings.plan.tables]
        found.append([step(), *(weight.clone() for weight in weights)])
        if not session.rehearse:
            row[name] = round(session.time_ms(step), 2)
    first, *others = found
    differences = [float((a - b).abs().max()) for other in others for a, b in zip(first, other, strict=True)]
    return {**row, "difference": max(differences), "correct": max(differences) < 1e-3}


def vocabulary(session: Session, capacity: int) -> dict[str, Any]:
    """A dynamic vocabulary of a stream that overfills it: ms a step of the kernels, which must not wait, and of PyTorch on the same device, which
    waits; every row, count and eviction as on a CPU."""
    import genrank.schemas as s
    from genrank.kernels.launch import to_device
    from genrank.schemas.table import LogicalTable
    from genrank.tokenization.device_vocabulary import DeviceVocabulary
    from genrank.tokenization.dynamic import Asked, DynamicVocabulary, answers

    table = LogicalTable("ids", ("candidates.ids",), 64, s.Dynamic(capacity=capacity, evict="frequency", max_age="9ms"))
    size, steps = (12, 2) if session.rehearse else (1 << 18, 24)
    generator = torch.Generator().manual_seed(0)
    # Ids as popular as 1 / rank, from a catalogue four times as large, of which a share is new each time.
    ranks = (torch.rand(steps, size, generator=generator, dtype=torch.float64) * math.log(4 * capacity + size)).exp()
    stream = ranks.long() + torch.arange(steps)[:, None] * (capacity // 8)
    sent = stream.to(session.device)
    ours = DeviceVocabulary(table, session.device)
    others = [DynamicVocabulary(table, session.device), DynamicVocabulary(table, "cpu")]
    clocks = [to_device([now], sent.device) for now in range(steps)]
    same, spent = True, {"ms": 0.0, "waiting_ms": 0.0}
    for now, ids in enumerate(sent):
        wanted, _ = others[1].observe(stream[now], now)
        for name, each in (("ms", ours), ("waiting_ms", others[0])):
            asked = [Asked(each, ids.clone(), 0)]
            wait(session)
            began = time.perf_counter()
            # The first step makes room for as many ids; Triton's first launches compile, and ask for the device's properties.
            with must_not_wait(session, name == "ms" and now > 0):
                ((rows, _),) = answers(asked, clocks[now])
            wait(session)
            spent[name] += 1e3 * (time.perf_counter() - began) if now else 0.0
            same = same and torch.equal(rows.cpu(), wanted)
    (_, found), (_, exact) = ours.state(), others[1].state()
    same = same and all(torch.equal(vars(found)[name].cpu(), values) for name, values in vars(exact).items())
    timed = {} if session.rehearse else {name: round(ms / (steps - 1), 3) for name, ms in spent.items()}
    return {"ids": size, **timed, "correct": same}


def wait(session: Session) -> None:
    if session.device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def must_not_wait(session: Session, strict: bool) -> Iterator[None]:
    """Inside, what waits for the device raises."""
    if strict and session.device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if session.device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def training(session: Session, folder: Path, budget: int, readers: int) -> dict[str, Any]:
    """`genrank train`: its own summary, and the processes that reading takes for the step to wait for nothing."""
    from genrank.model.config import TrainConfig
    from genrank.model.trainer import train

    steps = 2 if session.rehearse else 60 if budget < 10_000 else 24
    with tempfile.TemporaryDirectory() as out, environment("GENRANK_KERNELS", ""):
        config = TrainConfig(
            schema=schema(),
            samples=samples(session, folder),
            dates=("2026-01-01",),
            out=Path(out) / "run",
            model="mtgr-tiny" if session.rehearse else "mtgr-small",
            token_budget=budget,
            readers=readers,
            max_steps=steps,
            epochs=4,
            device=session.device,
        )
        train(config)
        summary = json.loads((config.out / "summary.json").read_text())
    kept = ("step_ms", "input_wait", "tokens_per_s", "mfu", "peak_gpu_bytes", "timed_steps")
    row = {name: summary[name] for name in kept if summary.get(name) is not None}
    alone = {
        found["ms"]: int(found["name"].rsplit(" ", 1)[1])
        for found in session.rows()
        if found["section"] == "reading" and found["name"].startswith(f"{budget} tokens") and "ms" in found
    }
    if "step_ms" in row:
        enough = [readers for ms, readers in alone.items() if readers and ms <= row["step_ms"]]
        row["cores_to_read"] = min(enough, default=f"more than {max(alone.values(), default=0)}")
    return {**row, "cores": os.cpu_count()}


def training_step(session: Session, folder: Path, budget: int, how: str) -> dict[str, Any]:
    """A step of `genrank train` on batches that are on the device: features, dense half, loss, backward, both optimizers. Its first loss is that
    of the step of which nothing is compiled."""
    from genrank.kernels.compiled import compiled
    from genrank.model.checkpoint_manager import Position
    from genrank.model.config import TrainConfig
    from genrank.model.ranker import Ranker
    from genrank.model.ranks import Ranks
    from genrank.model.registry import choose_model
    from genrank.model.train_step import TrainStep
    from genrank.tokenization.embedding import Embeddings
    from genrank.tokenization.features import fitted_features
    from genrank.tokenization.plan import make_plan
    from genrank.tokenization.reader import SampleReader

    declared = small_vocabularies(schema()) if session.rehearse else schema()
    root, backend = samples(session, folder), "eager" if session.rehearse else "inductor"
    # Without dropout, whose values are the compiler's own.
    chosen = (
        choose_model("mtgr-tiny", {"dropout": "0", "layers": "1"})
        if session.rehearse
        else choose_model("mtgr-small", {"dropout": "0"})
    )
    reader = SampleReader(root, declared, ["2026-01-01"], token_budget=budget, prefetch=0)
    batches = [batch.to(session.device) for batch in itertools.islice(reader, 1 if session.rehearse else 8)]
    edges = {f"{group}.{name}": [1.0, 10.0, 100.0] for group, name, _ in fitted_features(declared)}
    with environment("GENRANK_KERNELS", ""):
        torch.manual_seed(0)
        embeddings = Embeddings(make_plan(declared), backend="torch", device=session.device, boundaries=edges)
        model = chosen.build(embeddings, [label.name for label in declared.labels]).to(session.device)
        assert isinstance(model, Ranker)
        if how == "encoder compiled":
            model.encoder.forward = compiled(model.encoder.forward, backend)
        elif how == "dense half compiled":
            model.compile_dense(backend)
        config = TrainConfig(schema=declared, samples=root, dates=("2026-01-01",), out=folder / "unused")
        ranks = Ranks(0, 1, torch.device(session.device))
        step = TrainStep(model, chosen.task(declared), embeddings, config, ranks, None)
        turn, at = itertools.cycle(batches), Position(total_steps=1_000)
        begun = time.perf_counter()
        loss, _ = step.run([next(turn)], at)
        first = time.perf_counter() - begun
        for timed in (False, True):  # The first time round, kernels are tuned.
            wait(session)
            begun = time.perf_counter()
            for _ in range(len(batches) * (3 if timed and not session.rehearse else 1)):
                step.run([next(turn)], at)
            wait(session)
            seconds = time.perf_counter() - begun
    ms = 1e3 * seconds / (len(batches) * (1 if session.rehearse else 3))
    tokens = sum(len(group.ts) for batch in batches for group in batch.groups.values()) / len(batches)
    without = f"{budget} tokens, {COMPILED[0]}"
    found = {row["name"]: row.get("loss") for row in session.rows() if row["section"] == "training step"}.get(without)
    row = {"ms": round(ms, 2), "first_s": round(first, 1), "tokens_per_s": round(1e3 * tokens / ms), "loss": loss}
    if not session.rehearse:
        row["idle"] = parts(lambda: step.run([next(turn)], at), ms, len(batches))["idle"]
    return row if found is None else {**row, "correct": abs(loss - found) < 0.01 * found}
