"""Dynamic vocabularies' kernels (in Triton's interpreter) against the vocabularies that a CPU has, which a dictionary checks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_samples import BOUNDARIES, demo_schema, write_random_samples
from torch import Tensor

import genrank.schemas as s
from genrank.kernels.lookups import gpu as lookups_gpu
from genrank.kernels.vocabulary import gpu
from genrank.kernels.vocabulary.layout import EMPTY
from genrank.kernels.vocabulary.triton_reset import inverse_normal
from genrank.schemas.ids import MISSING_ID
from genrank.schemas.table import Initializer, LogicalTable
from genrank.tokenization import device_vocabulary
from genrank.tokenization.checkpoint import load_tables, save_tables
from genrank.tokenization.device_vocabulary import DeviceVocabulary
from genrank.tokenization.dynamic import AnyVocabulary, Asked, DynamicVocabulary, answers
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.initial_rows import DeviceReset, initial_rows
from genrank.tokenization.plan import make_plan
from genrank.tokenization.reader import SampleReader

IDS = st.one_of(
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from([MISSING_ID, MISSING_ID + 1, MISSING_ID + 2]),
    st.integers(-(2**62), 2**62),
)
OPTIONS = st.fixed_dictionaries(
    {
        "capacity": st.sampled_from([1, 2, 3, 5, 9]),
        "admit_after": st.integers(1, 3),
        "evict": st.sampled_from(["age", "frequency"]),
        "max_age": st.sampled_from([None, "2ms"]),
    }
)
FEW = settings(
    max_examples=2,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
"""The interpreter takes half a second a step, and would take minutes to shrink."""


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs where there are a dozen ids, arrays that grow and slots that fill up within a few steps."""
    for name, tuned in vars(gpu).items():
        if name.endswith("_tuned") and name not in ("reset_tuned", "select_tuned", "release_tuned", "free_rows_tuned"):
            monkeypatch.setattr(tuned, "configs", [triton.Config({"BLOCK": 16})])
    monkeypatch.setattr(gpu, "RELEASED", 16)
    monkeypatch.setattr(gpu, "DIGIT", 16)  # Fewer passes.
    monkeypatch.setattr(device_vocabulary, "FIRST_ROOM", 2)


def pair(options: dict[str, object]) -> tuple[DynamicVocabulary, DeviceVocabulary]:
    table = LogicalTable("t", ("candidates.t",), 4, s.Dynamic(**options))
    return DynamicVocabulary(table), DeviceVocabulary(table, "cpu")


def assert_equal(ours: AnyVocabulary, wanted: AnyVocabulary) -> None:
    (step, entries), (wanted_step, wanted_entries) = ours.state(), wanted.state()
    assert step == wanted_step and len(ours) == len(wanted)
    for name, values in vars(wanted_entries).items():
        assert torch.equal(vars(entries)[name], values), name


def ask(vocabularies: list[AnyVocabulary], batches: list[Tensor], now: int) -> list[tuple[list[int], list[int]]]:
    asked = [
        Asked(*each, 100 * i) for i, each in enumerate(zip(vocabularies, (b.clone() for b in batches), strict=True))
    ]
    found = answers(asked, torch.tensor(now))
    return [(rows.tolist(), new[new >= 0].tolist()) for rows, new in found]


@FEW
@given(
    st.lists(OPTIONS, min_size=2, max_size=2),
    st.lists(st.lists(st.lists(IDS, max_size=24), min_size=2, max_size=2), min_size=3, max_size=4),
)
def test_does_what_a_cpu_does(
    small_blocks: None, options: list[dict[str, object]], stream: list[list[list[int]]]
) -> None:
    """Two vocabularies in the same launches; one goes on from its own state in the middle."""
    pairs = [pair(each) for each in options]
    for now, ids in enumerate(stream):
        batches = [torch.tensor(each, dtype=torch.int64) for each in ids]
        wanted = ask([cpu for cpu, _ in pairs], batches, now)
        assert ask([device for _, device in pairs], batches, now) == wanted
        for cpu, device in pairs:
            assert_equal(device, cpu)
            assert device.next_row == cpu.next_row
        if now == 1:
            cpu, device = pairs[0]
            moved = pair(options[0])
            moved[0].load(*device.state())
            moved[1].load(*cpu.state())
            pairs[0] = moved
    for (cpu, device), ids in zip(pairs, batches, strict=True):
        assert torch.equal(device.rows_of(ids), cpu.rows_of(ids))


def test_full_tables_evict_and_forget(small_blocks: None) -> None:
    """More rows than a block, ties among scores, and more ids waiting than may; evicted by age and by frequency."""
    pairs = [pair({"capacity": 20, "evict": evict}) for evict in ("age", "frequency")]
    for now, size in enumerate((20, 45, 12)):
        ids = torch.randint(0, 70, (size,), generator=torch.Generator().manual_seed(now)) * 7919
        found = ask([device for _, device in pairs], [ids, ids], now)
        assert found == ask([cpu for cpu, _ in pairs], [ids, ids], now)
        for cpu, device in pairs:
            assert_equal(device, cpu)


def test_rows_expire_in_the_step_that_needs_more_slots(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new slots hold no id until they are filled: nothing is written where an id that leaves isn't found, before them least of all."""
    cpu, device = pair({"capacity": 9, "max_age": "2ms"})
    before = []

    def make_behind_a_guard(self: DeviceVocabulary) -> None:
        make(self)
        slots = len(self.keys)
        memory = torch.full((slots + 8,), EMPTY)
        before.append(memory[:8])
        self.keys = memory[8:]

    make = DeviceVocabulary._make_slots
    monkeypatch.setattr(DeviceVocabulary, "_make_slots", make_behind_a_guard)
    for now, ids in enumerate([[7, 8], [8], [8], list(range(30, 60))]):
        batch = torch.tensor(ids)
        assert ask([device], [batch], now) == ask([cpu], [batch], now)
        assert_equal(device, cpu)
    assert before and all(torch.equal(guard, torch.full((8,), EMPTY)) for guard in before)


def test_a_row_beyond_the_capacity_is_refused() -> None:
    (_, large), (_, small) = pair({"capacity": 3}), pair({"capacity": 1})
    large.observe(torch.tensor([10, 20, 30]), 0)
    with pytest.raises(ValueError, match="beyond its capacity"):
        small.load(*large.state())


@pytest.mark.parametrize("initializer", [s.Normal(std=0.3), s.Uniform(bound=0.2), s.Zeros()])
def test_new_rows_start_as_on_a_cpu(initializer: Initializer) -> None:
    table = s.Table(name="city", dim=70, vocabulary=s.Dynamic(capacity=500), initializer=initializer)
    user = s.UserGroup(features=(s.Categorical(name="city", column="users.city", table=table),))
    (merged,) = (t for t in make_plan(demo_schema(user=user)).tables if t.dynamic)
    rows = torch.tensor([3, 9, 100, 450, -1, -1])
    weight, first, second = torch.full((502, 70), 7.0), torch.ones(502, 70), torch.ones(502)
    DeviceReset(merged, torch.device("cpu"))(weight, first, second, rows, 5)
    wanted = initial_rows(merged, rows[:4], 5)
    torch.testing.assert_close(weight[rows[:4]], wanted, rtol=1e-6, atol=0)
    assert (weight == 7).sum() == 498 * 70 and first.sum() == 498 * 70 and second.sum() == 498


@triton.jit
def quantile_kernel(values, numbers, out):
    at = tl.arange(0, 16)
    tl.store(out + at, inverse_normal(tl.load(values + at), numbers))


def test_the_quantile_in_the_tails() -> None:
    """Where the approximation changes: at exp(-2), exp(-32), and their reflections."""
    points = [
        2.0**-54,
        1e-15,
        1.2e-14,
        1.3e-14,
        1e-9,
        0.01,
        0.1353,
        0.1354,
        0.3,
        0.5,
        0.7,
        0.8646,
        0.8647,
        0.99,
        1 - 1e-9,
        1 - 2.0**-53,
    ]
    values = torch.tensor(points, dtype=torch.float64)
    out = torch.empty_like(values)
    quantile_kernel[(1,)](values, gpu.reset_numbers(1.0, torch.device("cpu"))[2:], out)
    torch.testing.assert_close(out, torch.special.ndtri(values), rtol=1e-13, atol=1e-15)


def test_checkpoints_are_those_of_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learned by kernels or without, with gradients of two batches at once: the same rows, and each reads the other's checkpoint."""
    for tuned in (lookups_gpu.vectors_tuned, lookups_gpu.vectors_backward_tuned):
        monkeypatch.setattr(tuned, "configs", [triton.Config({"BLOCK": 128})])  # Few programs.
    city = s.Table(
        name="city",
        dim=8,
        vocabulary=s.Dynamic(capacity=4, admit_after=2),
        optimizer=s.SparseOptimizer(kind="rowwise_adam"),
    )
    user = s.UserGroup(features=(s.Categorical(name="city", column="users.city", table=city),))
    schema = demo_schema(user=user)
    written = write_random_samples(tmp_path / "samples", schema, ["2026-01-01"], users=9)
    batches = list(SampleReader(written, schema, ["2026-01-01"], shuffle=False, token_budget=100))[:3]
    assert len(batches) == 3
    made = {}
    for backend in ("", "triton"):
        monkeypatch.setenv("GENRANK_KERNELS", backend)
        made[backend] = embeddings = Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES, lr=0.1)
        assert isinstance(embeddings.vocabularies["city"], DeviceVocabulary) == bool(backend)
        for at, batch in enumerate(batches):
            if at == 1:
                with embeddings.accumulate():
                    sum(matrix.sum() for matrix in embeddings(batch).values()).backward()
            else:
                sum(matrix.square().sum() for matrix in embeddings(batch).values()).backward()
        save_tables(embeddings, tmp_path / f"saved {backend}")
    assert_equal(made["triton"].vocabularies["city"], made[""].vocabularies["city"])
    for backend in made:
        monkeypatch.setenv("GENRANK_KERNELS", backend)
        other = Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES, seed=9)
        load_tables(other, tmp_path / f"saved {'' if backend else 'triton'}")
        assert_equal(other.vocabularies["city"], made[backend].vocabularies["city"])
        merged = other.plan.logical["city"][1].name
        for one, two in zip(other.tables.shards(merged), made[backend].tables.shards(merged), strict=True):
            used = other.plan.start_of("city") + other.vocabularies["city"].next_row
            torch.testing.assert_close(one.weight[:used], two.weight[:used], rtol=2e-5, atol=1e-6)
            for name, state in one.state.items():
                torch.testing.assert_close(state[:used], two.state[name][:used], rtol=2e-5, atol=1e-6)
