"""What only a GPU would suffer from, shown without one: rows that no program writes, waits for the device, launches on the
wrong device, updates that tuning repeats, addresses beyond 32 bits."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from benchmarks.kernels_features import autodis_launches, vocabulary_launches
from genrank.kernels import jagged, launch
from genrank.kernels.attention import (
    AttentionCall,
    IntervalMask,
    RelativeBias,
    interval_attention,
    local_positions,
    reference_attention,
    row_scale,
)
from genrank.kernels.attention import gpu as attention_gpu
from genrank.kernels.attention import plan as attention_plan
from genrank.kernels.autodis import Number, autodis, table
from genrank.kernels.autodis import gpu as autodis_gpu
from genrank.kernels.jagged import gpu as jagged_gpu
from genrank.kernels.launch import Tuned, recording
from genrank.kernels.norm import gpu as norm_gpu
from genrank.kernels.norm import group_layer_norm, norm_gate
from genrank.kernels.rowwise import gpu as rowwise_gpu
from genrank.kernels.rowwise import rowwise_adagrad_, rowwise_adam_
from genrank.kernels.vocabulary import gpu as vocabulary_gpu

from .cases import make_batch

TUNED = {
    f"{module.__name__}.{name}": tuned
    for module in (attention_gpu, attention_plan, autodis_gpu, jagged_gpu, norm_gpu, rowwise_gpu, vocabulary_gpu)
    for name, tuned in vars(module).items()
    if isinstance(tuned, Tuned)
}


@pytest.fixture
def triton_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENRANK_KERNELS", "triton")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory comes filled with NaN, or the largest integer; ops that aren't deterministic raise."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def gradients(out: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))]


def test_no_op_leaves_memory_unwritten(poisoned: None, triton_backend: None) -> None:
    """Empty samples, lengths of 1, groups without tokens, and more programs than work."""
    assert torch.empty(3).isnan().all()
    torch.manual_seed(0)
    batch = make_batch([0, 5, 1, 0, 40, 0], "mtgr", seed=3)
    tokens = batch.tokens
    q, k, v = (torch.randn(tokens, 2, d, requires_grad=True) for d in (16, 16, 24))
    tables = [torch.randn(n, 2, requires_grad=True) for n in (9, 6)]
    bias = RelativeBias(*tables, torch.arange(tokens) * 1000)
    out = interval_attention(q, k, v, batch.offsets, batch.begin, batch.end, bias=bias, divisor="visible", dropout=0.2)
    found = gradients(out, q, k, v, *tables)
    groups = torch.full((tokens,), 2, dtype=torch.int32)
    x, u = (torch.randn(tokens, 24, requires_grad=True) for _ in range(2))
    weight, shift = (torch.randn(4, 24, requires_grad=True) for _ in range(2))
    found += gradients(group_layer_norm(x, groups, weight, shift), x, weight, shift)
    gated = norm_gate(x, u, weight, shift, order="norm_gate", group_ids=groups)
    found += gradients(gated, x, u, weight, shift)
    lengths = batch.offsets.diff()
    halves = [torch.nn.functional.pad(half.cumsum(0), (1, 0)) for half in (lengths // 2, lengths - lengths // 2)]
    parts = [torch.randn(int(half[-1]), 24, requires_grad=True) for half in halves]
    whole, _ = jagged.jagged_concat(list(zip(parts, halves, strict=True)))
    found += gradients(whole, *parts)
    numbers = [Number(0, 3, 2, 1.0)]
    parameters = [torch.randn(shape, requires_grad=True) for shape in numbers[0].shapes]
    found += gradients(autodis(torch.ones(1, 3), numbers, parameters, table(numbers)), *parameters)
    assert all(t.isfinite().all() for t in found)


@pytest.mark.parametrize("lengths", [[20, 0, 70], []])
def test_rows_that_belong_to_no_sample_are_zero(lengths: list[int], poisoned: None) -> None:
    """Tensors padded to a fixed size, as compiled models want them: longer than their offsets say."""
    batch = make_batch(lengths, "mtgr", seed=5)
    used, tokens = batch.tokens, batch.tokens + 300
    torch.manual_seed(0)
    q, k, v, grad_out = (torch.randn(tokens, 2, 16) for _ in range(4))
    begin, end = (torch.cat([x, torch.full((300,), 7, dtype=torch.int32)]) for x in (batch.begin, batch.end))
    scale = torch.rand(tokens)

    def run(upto: int) -> list[Tensor]:
        mask = IntervalMask(batch.offsets, batch.offsets, None, begin[:upto], end[:upto])
        call = AttentionCall(mask, scale[:upto], RelativeBias(), 0.25)
        out = attention_gpu.forward(*(x[:upto] for x in (q, k, v)), call)
        return [out, *attention_gpu.backward(*(x[:upto] for x in (grad_out, q, k, v)), call)]

    for padded, plain in zip(run(tokens), run(used), strict=True):
        assert torch.equal(padded[:used], plain)
        assert (padded[used:] == 0).all()


def test_rows_beyond_the_offsets_never_land_on_others(triton_backend: None) -> None:
    a, b = torch.arange(5.0)[:, None].repeat(1, 3), torch.arange(10.0, 14.0)[:, None].repeat(1, 3)
    parts = [torch.tensor([0, 1, 3]), torch.tensor([0, 2, 4])]
    whole, _ = jagged.jagged_concat([(a, parts[0]), (b, parts[1])])
    assert whole[:, 0].tolist() == [0, 10, 11, 1, 2, 12, 13, 3, 4]


def test_parts_of_two_dtypes_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast a projection is bfloat16 and an embedding is not: nothing may be rounded on the way."""
    offsets = torch.tensor([0, 2])
    parts = [(torch.full((2, 3), 1.5, dtype=torch.bfloat16), offsets), (torch.full((2, 3), 0.1), offsets)]
    for backend in ("", "triton"):
        monkeypatch.setenv("GENRANK_KERNELS", backend)
        whole, _ = jagged.jagged_concat(parts)
        assert whole.dtype == torch.float32 and torch.equal(whole[2:], parts[1][0])


def test_nothing_waits_for_the_device(triton_backend: None) -> None:
    """On tensors without values: whatever reads one back to the host fails. (The bodies of the ops: PyTorch would run their
    fakes in their place.)"""
    with torch.device("meta"):
        tokens, samples = 96, 3
        offsets = torch.zeros(samples + 1, dtype=torch.int64)
        begin, end, groups = (torch.zeros(tokens, dtype=torch.int32) for _ in range(3))
        tables = [torch.zeros(n, 2) for n in (9, 6)]
        bias = RelativeBias(*tables, torch.zeros(tokens, dtype=torch.int64))
        q, k, v = (torch.zeros(tokens, 2, 16) for _ in range(3))
        x, u = (torch.zeros(tokens, 32) for _ in range(2))
        weight = torch.zeros(4, 32)
        rows, state = torch.zeros(tokens, dtype=torch.int64), torch.zeros(50)
        table, mean = torch.zeros(50, 32), torch.zeros(50, 32)
    mask = IntervalMask(offsets, offsets, None, begin, end)
    with recording() as launches:
        for divisor in ("length", "visible", 64):
            scale = row_scale(divisor, mask)  # type: ignore[arg-type]
            call = AttentionCall(mask, scale, bias, 0.25, 0.1, 3, divisor != "visible")
            attention_gpu.forward(q, k, v, call)
            attention_gpu.backward(v, q, k, v, call)
        norm = (weight, weight, groups, norm_gpu.GATE_NORM, 1e-6, 0.1, 3)
        _, statistics = norm_gpu.norm_gate_op._init_fn(x, u, *norm)
        norm_gpu.norm_gate_backward_op._init_fn(x, x, u, *norm[:3], statistics, norm_gpu.GATE_NORM, 0.1, 3)
        jagged_gpu.arrange_tokens([jagged_gpu.Part(0, 0, 4, 1, 0, 0, 0, -1, 0, 0, -1)], offsets[1:], (0, 1, 2, 3), 0)
        jagged_gpu.assemble(x, rows, table, [rows])
        whole = jagged_gpu.concat_op._init_fn([x, u], [offsets, offsets])
        jagged_gpu.split_op._init_fn(whole, [offsets, offsets], [tokens, tokens])
        rowwise_adagrad_(table, state, rows, x, lr=0.1)
        rowwise_adam_(table, mean, state, rows, x, step=1, lr=0.1)
    launches += [*autodis_launches(16, 8, "meta"), *vocabulary_launches("meta")]
    assert len({entry.kernel.__name__ for entry in launches}) == len({t.kernel for t in TUNED.values()})


def test_a_kernel_launches_where_its_tensors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device, cuda:0 by default."""
    entered: list[Any] = []

    class Guard:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device)

        def __exit__(self, *_: object) -> None:
            entered.append("left")

    monkeypatch.setattr(torch.cuda, "device", Guard)
    tuned = TUNED["genrank.kernels.norm.gpu.forward_tuned"]
    monkeypatch.setattr(tuned, "_run", lambda *_: entered.append("launched"))
    with FakeTensorMode():
        x = torch.empty(3, device="cuda:1")
        tuned(lambda _: (1,), [7, x], {})
    assert entered == [torch.device("cuda:1"), "launched", "left"]


def test_what_updates_in_place_is_never_tuned() -> None:
    """Tuning runs a kernel dozens of times on the tensors at hand: ids would be entered and steps taken as often."""
    in_place = {"rowwise_kernel", *(t.kernel.__name__ for name, t in TUNED.items() if ".vocabulary." in name)}
    found = {tuned.kernel.__name__: len(tuned.configs) for tuned in TUNED.values()}
    assert {name: found[name] for name in in_place} == dict.fromkeys(in_place, 1)
    sums = {tuned.kernel.__name__: set(tuned.sums) for tuned in TUNED.values() if tuned.sums}
    assert sums == {"backward_q_kernel": {"position_sum", "time_sum"}}, "and what adds is set to zero between"


def test_what_a_choice_depends_on_is_in_its_key() -> None:
    """`fits` lets configurations through by arguments; a choice remembered under fewer would be taken where it doesn't fit."""

    class Asked(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            asked.add(name)
            return SimpleNamespace(element_size=lambda: 2, dtype=torch.bfloat16) if name.endswith("_data") else 128

        def get(self, name: str, default: Any = None) -> Any:
            return self[name]

        def __contains__(self, name: object) -> bool:
            return name in present

    same = {"WIDTH": ("DIM", "WIDTH"), "VALUE_WIDTH": ("VALUE_DIM",)}
    for name, tuned in TUNED.items():
        if tuned.fits is None:
            continue
        asked: set[str] = set()
        present = set(tuned.kernel.arg_names)
        for chosen in tuned.configs:
            for arch in (80, 90, 100):
                tuned.fits(chosen, Asked(), arch)
        missing = {a for a in asked if not a.endswith("_data") and not {a, *same.get(a, ())} & set(tuned.key)}
        if "GROUP_WIDTH" not in present:
            missing.discard("GROUP_WIDTH")
        assert not missing, f"{name}: {missing}"


def test_a_sample_beyond_32_bits_is_named() -> None:
    with torch.device("meta"):
        wide = torch.zeros(1, 1, 16).expand(4, 1, 16).as_strided((4, 1, 16), (2**20, 16, 1))
    attention_gpu.check_reach(2**11 - 1, wide)
    with pytest.raises(ValueError, match=r"a sample of 2048 tokens whose rows lie 1048576 elements apart"):
        attention_gpu.check_reach(2**11, wide)


def test_descriptors_want_rows_that_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads before tokens: as a matrix with a row for each token, its rows would overlap."""
    monkeypatch.setenv("GENRANK_TMA", "1")
    assert attention_gpu.descriptors(torch.zeros(8, 2, 64))[0] is not None
    assert attention_gpu.descriptors(torch.zeros(2, 8, 64).transpose(0, 1)) == (None,)


def test_heads_before_tokens_and_expanded_gradients(triton_backend: None) -> None:
    """Whatever the strides: heads apart, and a gradient of stride 0, as `sum` has it; some inputs without one."""
    batch = make_batch([40, 3], "mtgr", seed=2)
    q, k, v = (torch.randn(2, batch.tokens, 16).transpose(0, 1) for _ in range(3))
    v.requires_grad_()
    out = interval_attention(q, k, v, batch.offsets, batch.begin, batch.end)
    scale = row_scale("length", batch.mask)
    want = reference_attention(q, k, v, AttentionCall(batch.mask, scale, RelativeBias(), 0.25))
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    for got, exact in zip(torch.autograd.grad(out.sum(), v), torch.autograd.grad(want.sum(), v), strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "bias", "delta"])
def test_fake_tensors_tell_the_kernels_shapes_and_strides(kind: str, triton_backend: None) -> None:
    batch = make_batch([5, 0, 7], "mtgr", seed=2)
    tokens = batch.tokens
    q, k = (torch.randn(2, tokens, 16).transpose(0, 1) for _ in range(2))
    v = torch.randn(tokens, 2, 40)[..., ::2]
    bias = RelativeBias()
    if kind == "bias":
        bias = RelativeBias(torch.randn(9, 2), torch.randn(6, 2), torch.arange(tokens))
    own = local_positions(batch.offsets, tokens) if kind == "delta" else None
    where = (batch.offsets, batch.offsets, own, batch.begin, batch.end)
    rest = (*where, torch.rand(tokens), *bias, 0.5, 0.0, 0, True, -1)
    only = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.genrank.interval_attention, (q, k, v, *rest), test_utils=only)
    if kind != "delta":
        grads = (torch.randn(tokens, 2, 20), q, k, v, *rest)
        torch.library.opcheck(torch.ops.genrank.interval_attention_backward, grads, test_utils=only)


def test_compiled_around_the_kernels(triton_backend: None) -> None:
    """Batches of any size through one graph, forward and backward."""

    def block(x: Tensor, weight: Tensor, groups: Tensor, offsets: Tensor, begin: Tensor, end: Tensor) -> Tensor:
        unit = group_layer_norm(x, groups, weight, weight)
        q, k, v, u = (unit @ weight.t() @ weight.repeat(1, 4)).view(len(x), 2, 32).split([8, 8, 8, 8], 2)
        out = interval_attention(q, k, v, offsets, begin, end).flatten(1)
        return x + norm_gate(out, u.flatten(1), weight, weight, order="gate_norm", group_ids=groups)

    torch._dynamo.reset()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=True)
    weight = torch.randn(4, 16, requires_grad=True)
    for lengths in ([5, 9], [12, 2, 1]):
        batch = make_batch(lengths, "mtgr", seed=1)
        x = torch.randn(batch.tokens, 16)
        groups = torch.arange(batch.tokens, dtype=torch.int32) % 4
        given = (x, weight, groups, batch.offsets, batch.begin, batch.end)
        for got, want in zip(gradients(compiled(*given), weight), gradients(block(*given), weight), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_autocast_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 inputs stay float32 under autocast: the ops compute in the dtype that they are given."""
    batch = make_batch([30, 4], "mtgr", seed=1)
    q, k, v = (torch.randn(batch.tokens, 2, 16, requires_grad=True) for _ in range(3))
    where = (batch.offsets, batch.begin, batch.end)
    want = gradients(interval_attention(q, k, v, *where), q, k, v)
    for backend in ("", "triton"):
        monkeypatch.setenv("GENRANK_KERNELS", backend)
        with torch.autocast("cpu", torch.bfloat16):
            out = interval_attention(q, k, v, *where)
        assert out.dtype == torch.float32
        for got, exact in zip(gradients(out, q, k, v), want, strict=True):
            torch.testing.assert_close(got, exact, rtol=1e-3, atol=1e-4)
    assert launch.VARYING == ("seed", "tokens", "count")
