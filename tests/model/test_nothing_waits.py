"""A training step of the dense half never waits for the device: on one without data, whatever reads anything back fails.

PyTorch's meta device stands in for the GPU: shapes and autograd, no values, so that `.item()`, `.tolist()`, `nonzero` and `.cpu()`
raise. What a meta device would let through is looked for: copies from the host that wait, and lists that become such copies.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genrank.kernels.attention import AttentionCall, IntervalMask, RelativeBias
from genrank.kernels.attention import gpu as attention_gpu
from genrank.kernels.launch import recording
from genrank.kernels.norm import gpu as norm_gpu
from genrank.model.checkpoint_manager import Position
from genrank.model.config import TrainConfig, samples_folder
from genrank.model.losses import loss_sums, total_loss, weight_sums
from genrank.model.ranks import Ranks
from genrank.model.registry import choose_model
from genrank.model.retriever import Retriever
from genrank.model.tasks.ranking import Ranking
from genrank.model.train_step import TrainStep
from genrank.schemas.schema import Schema
from genrank.schemas.table import LogicalTable
from genrank.schemas.vocabularies import Dynamic
from genrank.tokenization.batch import Batch
from genrank.tokenization.device_vocabulary import DeviceVocabulary
from genrank.tokenization.dynamic import Asked, answers
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.replicas import Replicas

META = torch.device("meta")
aten = torch.ops.aten


def devices(values: Any) -> set[str]:
    return {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}


class Copies(TorchDispatchMode):
    """Fails on copies that wait, and on indices that only the other side has."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket
        if name in (aten._to_copy, aten.copy_) and len(devices((args, out))) > 1:
            waits = not (kwargs.get("non_blocking") or (name is aten.copy_ and len(args) > 2 and args[2]))
            assert not waits, f"{func}: a copy between host and device that waits"
        elif name in (aten.index, aten.index_put, aten.index_put_):
            assert devices(args) <= {"meta"} or "meta" not in devices(args), f"{func}: an index from the host"
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool and i.is_meta]
            assert not masks or (name is not aten.index and not args[2].dim()), (
                f"{func}: a mask, which has to be counted"
            )
        return out


class Lists(TorchFunctionMode):
    """Fails on Python lists on their way to the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor):
            device = kwargs.get("device")
            assert device is None or torch.device(device).type != "meta", f"{func.__name__}: a list to the device"
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].is_meta:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(i, list) for i in index), "an index by a list is a copy to the device"
        return func(*args, **kwargs)


@contextmanager
def nothing_waits() -> Iterator[None]:
    with Lists(), Copies():
        yield


@pytest.fixture(scope="module")
def batch(schema, samples) -> Batch:
    reader = SampleReader(samples_folder(samples), schema, ["2026-01-01"], token_budget=1500, shuffle=False, prefetch=0)
    return next(iter(reader))


OPTIONS = {
    "mtgr": ("mtgr-tiny", {}),
    "mtgr with attention's dropout": ("mtgr-tiny", {"attention_dropout": "0.1", "divisor": "length"}),
    "mtgr, mmoe": ("mtgr-tiny", {"head.kind": "mmoe"}),
    "hstu": ("hstu-tiny", {}),
    "hstu, public code": ("hstu-tiny", {"concat_ua": "true", "window": "20", "full_tail": "3"}),
    "hstu, loss on history": ("hstu-tiny", {"visibility": "causal", "history_loss": "1"}),
    "onetrans": ("onetrans-tiny", {}),
    "hstu, shortened": ("hstu-tiny", {"stochastic_length": "1.5", "max_history": "30"}),
    "dlrm": ("dlrm", {}),
    # Not din, nor heteroatt, hiformer, hhft, rankmixer and tokenmixer, which pool as it does: how many events all candidates see together, the
    # pairs, is counted on the device. Nor longer, grab and ultra-hstu: so are the rows that are no candidates (`split`).
    "dcn": ("dcn", {}),
    "sasrec": ("sasrec", {}),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_training_step(option: str, schema, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the lookup of the embeddings: tokens, encoder, heads, loss, backward, clipping, AdamW."""
    from random_samples import BOUNDARIES

    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    embeddings = Embeddings(make_plan(schema), backend="torch", device=META, boundaries=BOUNDARIES)
    tasks = [label.name for label in schema.labels]
    model = choose_model(*OPTIONS[option]).build(embeddings, tasks).to(META)
    assert not isinstance(model, Retriever)
    rows = {name: len(group.ts) for name, group in batch.groups.items()}
    matrices = {
        n: torch.zeros(rows[n], embeddings.width(n), device=META, requires_grad=True) for n in embeddings.groups
    }
    monkeypatch.setattr(embeddings, "forward", lambda *_, **__: matrices)
    optimizer = torch.optim.AdamW(model.parameters())
    with nothing_waits(), recording():
        sent = batch.to(META)
        for _ in range(2):
            logits = model(sent)
            sums = loss_sums(logits, sent.labels, sent.weights, schema.labels)
            total_loss(sums, weight_sums(sent.weights, schema.labels), schema.labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            assert all(p.grad is not None for p in model.heads.parameters())
            optimizer.zero_grad()
    assert all(m.grad is not None for m in matrices.values() if m.shape[1]), "the step has no backward"
    assert [logits[t].shape for t in tasks] == [batch.item.shape] * len(tasks)


def test_a_training_step_with_its_tables(schema, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features, lookups and in backward the tables' own optimizer, too."""
    from random_samples import BOUNDARIES

    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    plan = make_plan(schema)
    embeddings = Embeddings(plan, backend="torch", device=META, boundaries=BOUNDARIES)
    assert not embeddings.vocabularies
    model = choose_model("mtgr-tiny").build(embeddings, ["click"]).to(META)
    with nothing_waits(), recording() as launches:
        model(batch.to(META))["click"].sum().backward()
    updates = [x for x in launches if x.kernel.__name__ == "rowwise_kernel" and x.constants["FIRST"]]
    assert len(updates) == len(plan.tables) > 1


def test_a_training_step_with_dynamic_vocabularies(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that are new, rows that are given, evicted and initialised, while gradients are gathered besides: all on the device."""
    from random_samples import BOUNDARIES, demo_schema

    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    declared = demo_schema().model_dump_json()
    dynamic = '{"kind":"dynamic","capacity":997,"admit_after":2,"max_age":"3d"}'
    found = Schema.model_validate_json(declared.replace('{"kind":"hashed","size":997}', dynamic))
    plan = make_plan(found)
    embeddings = Embeddings(plan, backend="torch", device=META, boundaries=BOUNDARIES)
    assert list(embeddings.vocabularies) == ["item"]
    model = choose_model("mtgr-tiny").build(embeddings, ["click"]).to(META)
    with nothing_waits(), recording() as launches:
        with embeddings.accumulate():
            model(batch.to(META))["click"].sum().backward()
        model(batch.to(META))["click"].sum().backward()
        model.eval()
        model(batch.to(META))
    counts = Counter(launch.kernel.__name__ for launch in launches)
    assert counts["give_kernel"] == counts["release_kernel"] == counts["reset_kernel"] == 2
    assert counts["look_up_kernel"] == 3


def test_ranks_tell_one_another_what_they_saw() -> None:
    """From device to device, and only how many ids there are by way of the hosts, which know it. (One process stands for all ranks.)"""
    table = LogicalTable("item", ("candidates.item",), 4, Dynamic(capacity=5))
    vocabularies = [DeviceVocabulary(table, META) for _ in range(2)]
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=3)
    try:
        asked = [
            Asked(v, torch.zeros(n, dtype=torch.int64, device=META), 0)
            for v, n in zip(vocabularies, (7, 0), strict=True)
        ]
        now = torch.zeros((), dtype=torch.int64, device=META)
        with nothing_waits(), recording() as launches:
            found = answers(asked, now, Replicas(dist.group.WORLD, dist.group.WORLD))
    finally:
        dist.destroy_process_group()
    assert [(len(rows), len(new)) for rows, new in found] == [(7, 3 * 7), (0, 0)]
    assert Counter(launch.kernel.__name__ for launch in launches)["give_kernel"] == 1


def test_a_step_waits_once_a_batch(schema, batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To learn whether to learn from it; nowhere else in the step of `genrank train`."""
    from random_samples import BOUNDARIES

    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # The meta device has none.
    embeddings = Embeddings(make_plan(schema), backend="torch", device=META, boundaries=BOUNDARIES)
    tasks = [label.name for label in schema.labels]
    model = choose_model("mtgr-tiny").build(embeddings, tasks).to(META)
    config = TrainConfig(schema=schema, samples=tmp_path, dates=("2026-01-01",), out=tmp_path, clip_norm=1.0)
    train_step = TrainStep(model, Ranking(schema), embeddings, config, Ranks(0, 1, META), None)
    reads: list[Tensor] = []

    def read(sums: Tensor, batch: Batch) -> tuple[list[float], list[float]]:
        reads.append(sums)
        return [5.0, 6.0], [10.0, 0.0]

    monkeypatch.setattr(train_step, "_read", read)
    with nothing_waits(), recording():
        sent = batch.to(META)
        _, each = train_step.run([sent, sent], Position())
    assert len(reads) == 2 and each == {"click": 0.5, "watch": 12 / 1e-12}


@pytest.mark.parametrize("bias", [False, True])
def test_launching_attention(bias: bool) -> None:
    """What the step's attention op does between the kernels, which PyTorch's fake implementation leaves out."""
    lengths = torch.tensor([3, 0, 200])
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32).to(META)
    begin, end = (torch.zeros(203, dtype=torch.int32, device=META) for _ in range(2))
    q, k, v, grad = (torch.zeros(203, 2, 16, device=META) for _ in range(4))
    tables = (torch.zeros(9, 2, device=META), torch.zeros(5, 2, device=META)) if bias else (None, None)
    stamps = torch.zeros(203, dtype=torch.int64, device=META) if bias else None
    mask, scale = IntervalMask(offsets, offsets, None, begin, end), torch.ones(203, device=META)
    call = AttentionCall(mask, scale, RelativeBias(*tables, stamps), 0.25, max_length=200)
    with nothing_waits(), recording() as launches:
        attention_gpu.forward(q, k, v, call)
        attention_gpu.backward(grad, q, k, v, call)
    assert len(launches) == 5, "two of the plan, forward, dQ, dK with dV"


def test_launching_norms() -> None:
    x, groups = torch.zeros(7, 16, device=META), torch.zeros(7, dtype=torch.int32, device=META)
    tables = [torch.zeros(4, 16, device=META) for _ in range(2)]
    rest = (groups, norm_gpu.GATE_NORM, 1e-6, 0.0, 0)
    with nothing_waits(), recording() as launches:
        _, statistics = norm_gpu.norm_gate_op._init_fn(x, x, *tables, *rest)
        norm_gpu.norm_gate_backward_op._init_fn(x, x, x, *tables, groups, statistics, norm_gpu.GATE_NORM, 0.0, 0)
        norm_gpu.add_norm_op._init_fn(x, x, x[0], *tables, groups, 1.0, 1e-6, x.dtype)
        norm_gpu.add_norm_backward_op._init_fn(x, x, x, x[0], *tables, groups, statistics, 1.0, x.dtype)
    assert len(launches) == 4


@pytest.mark.parametrize(
    "read",
    [
        lambda x, i: x.sum().item(),
        lambda x, i: x.tolist(),
        lambda x, i: bool((x > 0).any()),
        lambda x, i: (x > 0).nonzero(),
        lambda x, i: x[x > 0],
        lambda x, i: torch.repeat_interleave(x, i),
        lambda x, i: torch.unique(i),
        lambda x, i: x[[0, 1]],
        lambda x, i: x[torch.tensor([0, 1])],
        lambda x, i: torch.tensor([1.0], device=META),
        lambda x, i: torch.ones(3).to(META),
        lambda x, i: x.cpu(),
    ],
    ids=["item", "tolist", "bool", "nonzero", "mask", "repeat", "unique", "list", "index", "tensor", "to", "cpu"],
)
def test_what_waits_is_found(read: Any) -> None:
    x, i = torch.ones(4, device=META), torch.ones(4, dtype=torch.int64, device=META)
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), nothing_waits():
        read(x, i)


def test_lengths_stay_on_the_host(batch: Batch) -> None:
    sent = batch.to(META)
    for name, group in sent.groups.items():
        assert group.ts.is_meta and torch.equal(group.host_lengths, batch.groups[name].lengths)
    whole = dataclasses.replace(batch.groups["user"], host_offsets=None)
    assert torch.equal(whole.host_lengths, whole.lengths)
