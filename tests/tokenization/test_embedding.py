"""Lookups read the rows the plan says, merged or not, on either backend, and learn as the slow formula does."""

from __future__ import annotations

import itertools
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_samples import BOUNDARIES, demo_schema, write_random_samples
from torch import Tensor

import genrank.schemas as s
from genrank.schemas.errors import UserError
from genrank.tokenization.batch import Batch
from genrank.tokenization.checkpoint import load_tables, save_tables
from genrank.tokenization.embedding import Embeddings, pool
from genrank.tokenization.initial_rows import initial_rows
from genrank.tokenization.plan import make_plan
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.table_backend import EPS, StatePlace

DAY = "2026-01-01"
SCHEMA = demo_schema()


def with_items(vocabulary: object, **options: object) -> s.Schema:
    """The demo schema with another item table."""
    items = s.Table(name="item", dim=16, vocabulary=vocabulary, **options)  # type: ignore[arg-type]

    def changed(features: tuple[s.Feature, ...]) -> tuple[s.Feature, ...]:
        return tuple(
            f.model_copy(update={"table": items}) if getattr(f, "table", None) is not None else f for f in features
        )

    sequences = tuple(q.model_copy(update={"features": changed(q.features)}) for q in SCHEMA.sequences)
    candidates = SCHEMA.candidates.model_copy(update={"features": changed(SCHEMA.candidates.features)})
    return demo_schema(sequences=sequences, candidates=candidates)


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[Batch]:
    root = write_random_samples(tmp_path_factory.mktemp("samples"), SCHEMA, [DAY])
    return list(SampleReader(root, SCHEMA, [DAY], token_budget=500))


def train(embeddings: Embeddings, batches: list[Batch]) -> dict[str, Tensor]:
    """Some steps of a loss that depends on every column and on the feature, not on where its columns lie."""
    for step, batch in enumerate(batches):
        out = embeddings(batch)
        loss = torch.zeros(())
        for group, matrix in out.items():
            for name, columns in embeddings.layout[group].items():
                part = matrix[:, columns]
                weight = torch.linspace(-1, 1, part.shape[1]) * (len(name) % 5 + step + 1)
                loss = loss + (part * weight).sum() / len(batch) + part.square().sum() / len(batch)
        loss.backward()
    embeddings.eval()
    with torch.no_grad():
        return by_feature(embeddings, embeddings(batches[0]))


def by_feature(embeddings: Embeddings, out: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        f"{group}.{name}": matrix[:, columns]
        for group, matrix in out.items()
        for name, columns in embeddings.layout[group].items()
    }


def test_every_vector_is_the_row_the_plan_says(batches: list[Batch]) -> None:
    plan = make_plan(SCHEMA)
    embeddings = Embeddings(plan, backend="torch", boundaries=BOUNDARIES)
    out = by_feature(embeddings, embeddings(batches[0]))
    for lookup in plan.lookups:
        if lookup.pooling is None:
            encoder = embeddings.encoders[embeddings.groups.index(lookup.group)]
            at = [each for each in plan.lookups_of(lookup.group) if not each.pooling].index(lookup)
            rows = encoder(batches[0])[0][at]
            weight = embeddings.tables.shards(lookup.merged)[0].weight
            assert torch.equal(out[f"{lookup.group}.{lookup.feature}"], weight[rows])


def test_merged_equals_unmerged_to_the_bit(batches: list[Batch]) -> None:
    merged = Embeddings(make_plan(SCHEMA), backend="torch", boundaries=BOUNDARIES)
    apart = Embeddings(make_plan(SCHEMA, merge=False), backend="torch", boundaries=BOUNDARIES)
    apart.soft.load_state_dict(merged.soft.state_dict())
    assert len(apart.plan.tables) > len(merged.plan.tables)
    a, b = train(merged, batches), train(apart, batches)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise", "auto"])
def test_torchrec_equals_torch(batches: list[Batch], sharding: str) -> None:
    optimizer = s.SparseOptimizer(lr_scale=0.5, weight_decay=0.01)
    plan = make_plan(with_items(s.Hashed(size=997), optimizer=optimizer))
    results, states = [], []
    for backend in ("torch", "torchrec"):
        torch.manual_seed(0)
        embeddings = Embeddings(plan, backend=backend, boundaries=BOUNDARIES, sharding=sharding, lr=0.1)  # type: ignore[arg-type]
        results.append(train(embeddings, batches))
        embeddings.lr = 0.02
        embeddings.train()
        results[-1] |= {f"again {k}": v for k, v in train(embeddings, batches).items()}
        states.append({t.name: embeddings.tables.shards(t.name)[0] for t in plan.tables})
    for name, wanted in results[0].items():
        torch.testing.assert_close(results[1][name], wanted, rtol=1e-4, atol=1e-6)
    for name, wanted in states[0].items():
        torch.testing.assert_close(states[1][name].state["second"], wanted.state["second"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "torchrec"])
def test_dynamic_table_trains_as_a_static_one_while_there_is_room(batches: list[Batch], backend: str) -> None:
    """With a row for every id and admission at once, only the initial weights depend on the kind of vocabulary."""
    zeros = s.Zeros()
    dynamic = make_plan(with_items(s.Dynamic(capacity=5000), initializer=zeros))
    static = make_plan(with_items(s.Identity(size=100_000), initializer=zeros))
    results = []
    for plan in (dynamic, static):
        torch.manual_seed(0)
        results.append(train(Embeddings(plan, backend=backend, boundaries=BOUNDARIES), batches))  # type: ignore[arg-type]
    for name, wanted in results[1].items():
        torch.testing.assert_close(results[0][name], wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", ["torch", "torchrec"])
def test_an_evicted_row_is_reset_with_its_optimizer_state(batches: list[Batch], backend: str) -> None:
    plan = make_plan(with_items(s.Dynamic(capacity=40)))
    embeddings = Embeddings(plan, backend=backend, boundaries=BOUNDARIES)  # type: ignore[arg-type]
    table = plan.logical["item"][1]
    shard = embeddings.tables.shards(table.name)[0]
    vocabulary = embeddings.vocabularies["item"]
    reset = 0
    for batch in batches:
        before = vocabulary.owner.clone()
        ids_before = vocabulary.entries.ids.clone()
        out = embeddings(batch)
        now, start = vocabulary.owner, plan.start_of("item")
        before = torch.nn.functional.pad(before, (0, len(now) - len(before)), value=-1)
        changed = [
            row
            for row in (now >= 0).nonzero().flatten().tolist()
            if before[row] < 0 or ids_before[before[row]] != vocabulary.entries.ids[now[row]]
        ]
        reset += sum(bool(before[row] >= 0) for row in changed)
        rows = torch.tensor(changed, dtype=torch.int64) + start
        torch.testing.assert_close(shard.weight[rows], initial_rows(table, rows, 0))
        assert not shard.state["second"][rows].any()
        sum((matrix.sum() for matrix in out.values()), torch.zeros(())).backward()
    assert reset > 10, "the stream evicted too little to show anything"


def test_a_dynamic_table_takes_memory_as_ids_appear(batches: list[Batch], tmp_path: Path) -> None:
    """Declared for 100 million ids (6.3 GiB with its optimizer state), it costs what the ids seen cost, on disk too."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = make_plan(with_items(s.Dynamic(capacity=100_000_000)))
    embeddings = Embeddings(plan, backend="torch", boundaries=BOUNDARIES)
    sizes = []
    for batch in batches:
        sum((matrix.sum() for matrix in embeddings(batch).values()), torch.zeros(())).backward()
        sizes.append(len(embeddings.vocabularies["item"]))
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] <= len(embeddings.vocabularies["item"].owner)
    save_tables(embeddings, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 << 20
    restored = Embeddings(plan, backend="torch", boundaries=BOUNDARIES, seed=3)
    load_tables(restored, tmp_path)
    own, start = embeddings.vocabularies["item"].next_row, plan.start_of("item")
    one, two = (e.tables.shards(plan.logical["item"][1].name)[0] for e in (embeddings, restored))
    assert torch.equal(one.weight[start : start + own], two.weight[start : start + own])
    assert torch.equal(one.state["second"][start : start + own], two.state["second"][start : start + own])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


def test_evaluation_changes_no_vocabulary(batches: list[Batch]) -> None:
    embeddings = Embeddings(make_plan(with_items(s.Dynamic(capacity=40))), backend="torch", boundaries=BOUNDARIES)
    embeddings(batches[0])
    embeddings.eval()
    before = embeddings.vocabularies["item"].state()
    embeddings(batches[1])
    after = embeddings.vocabularies["item"].state()
    assert before[0] == after[0] and torch.equal(before[1].counts, after[1].counts)


@pytest.mark.parametrize("backend", ["torch", "torchrec"])
def test_evaluates_in_inference_mode_and_learns_on(batches: list[Batch], backend: str) -> None:
    plan = make_plan(with_items(s.Dynamic(capacity=200)))
    embeddings = Embeddings(plan, backend=backend, boundaries=BOUNDARIES)  # type: ignore[arg-type]
    train(embeddings, batches[:1])
    with torch.no_grad():
        wanted = embeddings(batches[0])
    with torch.inference_mode():
        got = embeddings(batches[0])
    assert all(torch.equal(got[group], wanted[group]) for group in wanted)
    embeddings.train()
    after = train(embeddings, batches)
    assert not torch.equal(after["candidates.item_id"], by_feature(embeddings, wanted)["candidates.item_id"])


# ---------------------------------------------------------------------- learning


@pytest.mark.parametrize("state", ["device", "host"])
@pytest.mark.parametrize("kind", ["rowwise_adagrad", "rowwise_adam"])
def test_learns_as_the_formula_says(kind: str, state: StatePlace) -> None:
    """One table of three rows, some repeated in a batch, against the published update in float64."""
    optimizer = s.SparseOptimizer(kind=kind, weight_decay=0.1, lr_scale=2.0)  # type: ignore[arg-type]
    plan = make_plan(with_items(s.Hashed(size=997), optimizer=optimizer))
    tables = Embeddings(plan, backend="torch", boundaries=BOUNDARIES, lr=0.05, state=state).tables
    name = plan.logical["item"][1].name
    weight = tables.shards(name)[0].weight[:3].double().clone()
    first, second = torch.zeros_like(weight), torch.zeros(3, dtype=torch.float64)
    steps = [([0, 1, 1, 2], 1.0), ([2, 2], -3.0), ([0, 1, 2], 0.5)]
    for step, (rows, scale) in enumerate(steps, 1):
        factor = torch.arange(1, len(rows) * 16 + 1, dtype=torch.float32).view(-1, 16) * scale
        (tables.lookup({name: torch.tensor(rows)})[name] * factor).sum().backward()
        for row in sorted(set(rows)):
            grad = sum(factor[i].double() for i, r in enumerate(rows) if r == row)
            if kind == "rowwise_adagrad":
                grad = grad + 0.1 * weight[row]
                second[row] += grad.square().mean()
                weight[row] -= 0.1 * grad / (second[row].sqrt() + EPS)
            else:
                first[row] = 0.9 * first[row] + 0.1 * grad
                second[row] = 0.999 * second[row] + 0.001 * grad.square().mean()
                m, v = first[row] / (1 - 0.9**step), second[row] / (1 - 0.999**step)
                weight[row] -= 0.1 * (m / (v.sqrt() + EPS) + 0.1 * weight[row])
    shard = tables.shards(name)[0]
    torch.testing.assert_close(shard.weight[:3].double(), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shard.state["second"][:3].double(), second, rtol=1e-5, atol=1e-6)
    tables.reset(name, torch.tensor([1]))
    assert not shard.state["second"][1] and shard.state["second"][0] > 0


def test_accumulated_gradients_are_one_step() -> None:
    plan = make_plan(SCHEMA)
    name = plan.logical["item"][1].name
    a, b = (Embeddings(plan, backend="torch", boundaries=BOUNDARIES) for _ in range(2))
    rows = [torch.tensor([3, 4, 4]), torch.tensor([4, 5]), torch.tensor([3])]
    with a.accumulate():
        for part in rows[:-1]:
            (a.tables.lookup({name: part})[name] * part[:, None]).sum().backward()
        assert torch.equal(a.tables.shards(name)[0].weight, b.tables.shards(name)[0].weight)
    (a.tables.lookup({name: rows[-1]})[name] * rows[-1][:, None]).sum().backward()
    every = torch.cat(rows)
    (b.tables.lookup({name: every})[name] * every[:, None]).sum().backward()
    torch.testing.assert_close(a.tables.shards(name)[0].weight, b.tables.shards(name)[0].weight)


def test_rows_beside_a_batch_are_learned_in_the_same_step(batches: list[Batch]) -> None:
    embeddings = Embeddings(make_plan(SCHEMA), backend="torch", boundaries=BOUNDARIES)
    merged, start = embeddings.plan.logical["item"][1].name, embeddings.plan.start_of("item")
    table = embeddings.tables.tables[merged]
    rows = torch.tensor([5, 2, 5]) + start
    alone = embeddings(batches[0])
    matrices, beside = embeddings.with_rows(batches[0], merged, lambda: rows)
    for group, matrix in alone.items():
        assert torch.equal(matrix, matrices[group])
    assert torch.equal(beside, table.weight[rows])
    before = table.weight.clone()
    (beside.sum() + sum(matrix.sum() for matrix in matrices.values())).backward()
    assert embeddings.tables.updates(merged) == 1
    assert (table.weight[rows] != before[rows]).all()
    empty = embeddings.with_rows(batches[0], merged, lambda: rows[:0])[1]
    assert empty.shape == (0, 16)


def test_torchrec_refuses_what_it_cannot_do() -> None:
    adam = make_plan(with_items(s.Hashed(size=9), optimizer=s.SparseOptimizer(kind="rowwise_adam")))
    with pytest.raises(UserError, match="tables item learn by rowwise_adam"):
        Embeddings(adam, backend="torchrec", boundaries=BOUNDARIES)
    with pytest.raises(UserError, match=r"state in host memory: .*keeps it beside the rows"):
        Embeddings(make_plan(SCHEMA), backend="torchrec", boundaries=BOUNDARIES, state="host")
    embeddings = Embeddings(make_plan(SCHEMA), backend="torchrec", boundaries=BOUNDARIES)
    with pytest.raises(UserError, match="gradient accumulation"), embeddings.accumulate():
        pass
    with pytest.raises(IndexError, match=r"merged table d16 has 999 rows; rows 0..999"):
        embeddings.tables.lookup({"d8": torch.tensor([0]), "d16": torch.tensor([0, 999])})


# ---------------------------------------------------------------------- pieces


@given(st.lists(st.lists(st.floats(-5, 5, width=32), max_size=4), min_size=1, max_size=6), st.booleans())
def test_pool(rows: list[list[float]], mean: bool) -> None:
    values = torch.tensor([[v, 2 * v] for row in rows for v in row]).view(-1, 2)
    offsets = torch.tensor([0, *itertools.accumulate(map(len, rows))])
    got = pool(values, offsets, mean)
    for row, vector in zip(rows, got, strict=True):
        total = sum(row) / (max(len(row), 1) if mean else 1)
        torch.testing.assert_close(vector, torch.tensor([total, 2 * total]), rtol=1e-4, atol=1e-5)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.permutations(["a", "b", "c"]), st.integers(1, 3))
def test_initial_rows_depend_on_name_and_row_alone(names: list[str], dim: int) -> None:
    from genrank.schemas.table import LogicalTable
    from genrank.tokenization.plan import MergedTable

    members = tuple(LogicalTable(name, (f"user.{name}",), dim, s.Identity(size=ord(name) % 5 + 1)) for name in names)
    starts = tuple(itertools.accumulate((0, *(m.rows for m in members[:-1]))))
    table = MergedTable("d", members, starts)
    everything = initial_rows(table, torch.arange(table.rows), 7)
    for member, start in zip(members, starts, strict=True):
        alone = MergedTable("x", (member,), (0,))
        assert torch.equal(initial_rows(alone, torch.arange(member.rows), 7), everything[start : start + member.rows])
    assert not torch.equal(initial_rows(table, torch.arange(table.rows), 8), everything)


def test_initial_rows_are_normal() -> None:
    plan = make_plan(SCHEMA)
    rows = initial_rows(plan.by_name["d16"], torch.arange(999), 0)
    assert abs(float(rows.mean())) < 0.001 and float(rows.std()) == pytest.approx(0.02, rel=0.03)
    assert float(rows.abs().max()) < 0.02 * 6
