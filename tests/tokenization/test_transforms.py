"""Transforms against slow references: buckets by bisection, scalars and AutoDis by their formulas in float64."""

from __future__ import annotations

import bisect
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import genrank.schemas as s
from genrank.kernels.autodis import LARGEST
from genrank.kernels.launch import recording
from genrank.tokenization.transforms import buckets_of, input_families
from genrank.tokenization.transforms.autodis import AutoDisEmbedding, AutoDisInputs
from genrank.tokenization.transforms.buckets import BucketRows, QuantileEdges
from genrank.tokenization.transforms.interface import register_buckets
from genrank.tokenization.transforms.scalars import ScalarInputs

numbers = st.one_of(st.floats(-(2.0**30), 2.0**30, width=32), st.just(math.nan))
edges = st.lists(st.floats(-1e6, 1e6), max_size=6, unique=True).map(sorted)


@given(st.lists(edges, min_size=1, max_size=4), st.data())
def test_buckets(all_edges: list[list[float]], data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 6))
    some = st.one_of(numbers, st.just(math.inf), st.just(-math.inf))
    x = [data.draw(st.lists(some, min_size=n, max_size=n)) for _ in all_edges]
    rows = BucketRows(all_edges)(torch.tensor(x, dtype=torch.float32).view(len(x), n)).tolist()
    assert rows == [
        [0 if math.isnan(v) else 2 + bisect.bisect_right(own, v) for v in values]
        for own, values in zip(all_edges, x, strict=True)
    ]


@given(st.lists(st.floats(-1e6, 1e6), max_size=50), st.integers(2, 10))
def test_quantile_edges(values: list[float], buckets: int) -> None:
    fitted = QuantileEdges().fit(s.QuantileBuckets(buckets=buckets), np.array(values))
    assert fitted == sorted(set(fitted)) and len(fitted) < buckets and bool(fitted) == bool(values)
    # As many edges as levels: none of them fell together.
    for level, edge in enumerate(fitted, 1) if len(fitted) == buckets - 1 else ():
        share = level / buckets * len(values)
        assert sum(value < edge for value in values) - 1 <= share <= sum(value <= edge for value in values) + 1


@given(st.lists(st.tuples(numbers, numbers, numbers), max_size=8))
def test_scalars(rows: list[tuple[float, float, float]]) -> None:
    families = input_families(
        [
            ("d", s.Dense(shift=2.0, scale=-0.5)),
            ("l", s.Log1p()),
            ("e", s.Dense()),
            ("b", s.FixedBuckets(boundaries=(1.0,))),
        ]
    )
    ((kind, members),) = families
    inputs = kind(members)
    assert isinstance(inputs, ScalarInputs) and inputs.widths == [("l", 2), ("d", 2), ("e", 2)]
    x = torch.tensor(rows, dtype=torch.float32).view(len(rows), 3).t()
    got = inputs(inputs.prepare(x))
    wanted = [
        [
            *((0.0, 1.0) if math.isnan(l) else (math.copysign(math.log1p(abs(l)), l), 0.0)),
            *((0.0, 1.0) if math.isnan(d) else ((d - 2) * -0.5, 0.0)),
            *((0.0, 1.0) if math.isnan(e) else (e, 0.0)),
        ]
        for l, d, e in rows
    ]
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float32).view(len(rows), 6), rtol=1e-5, atol=1e-6)


def test_scalars_refuse_another_order() -> None:
    with pytest.raises(ValueError, match="logarithms must lie before dense numbers"):
        ScalarInputs([("d", s.Dense()), ("l", s.Log1p())])


def autodis(embedding: AutoDisEmbedding, x: float, temperature: float) -> list[float]:
    """Equations 6 to 9 of arXiv:2012.08986, one number at a time, in float64."""
    lift, mixing, vectors = (getattr(embedding, name).double().tolist() for name in ("lift", "mixing", "vectors"))
    if math.isnan(x):
        return embedding.missing.double().tolist()  # type: ignore[no-any-return]
    x = math.copysign(math.log1p(abs(x)), x)
    hidden = [w * x if w * x > 0 else 0.01 * w * x for w in lift]
    skip = embedding.skip.item()
    scores = [sum(h * mixing[i][k] for i, h in enumerate(hidden)) + skip * hidden[k] for k in range(len(lift))]
    top = max(scores)
    weights = [math.exp((score - top) / temperature) for score in scores]
    return [sum(w * v[d] for w, v in zip(weights, vectors, strict=True)) / sum(weights) for d in range(len(vectors[0]))]


@pytest.mark.parametrize(
    ("temperature", "backend"), [(0.5, ""), (1.0, ""), (3.0, ""), (0.5, "triton"), (0.5, "reference")]
)
def test_autodis(temperature: float, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENRANK_KERNELS", backend)
    torch.manual_seed(0)
    one, two = s.AutoDis(buckets=4, dim=3, temperature=temperature), s.AutoDis(buckets=5, dim=2)
    inputs = AutoDisInputs([("a", one), ("b", two), ("c", one)])
    for parameter in inputs.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.tensor([[0.0, -3.5, 1e4, math.nan], [2.0, math.nan, -1.0, 0.5], [7.0, 0.1, math.nan, -1e3]])
    got = inputs(inputs.prepare(x))
    # Equal transforms lie together.
    assert inputs.widths == [("a", 3), ("c", 3), ("b", 2)]
    wanted = [
        [
            value
            for at, name, kind in ((0, "a", one), (2, "c", one), (1, "b", two))
            for value in autodis(inputs.get_submodule(f"of_{name}"), float(x[at, i]), kind.temperature)  # type: ignore[arg-type]
        ]
        for i in range(4)
    ]
    torch.testing.assert_close(got.double(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-4, atol=1e-5)


def test_autodis_of_other_sizes_are_computed_apart_and_every_parameter_learns() -> None:
    """Padded to another's size a number has its own gradients, and a small one isn't padded to the size of a large one."""
    kinds = {"a": s.AutoDis(buckets=4, dim=3), "b": s.AutoDis(buckets=40, dim=2), "c": s.AutoDis(buckets=7, dim=2)}
    torch.manual_seed(1)
    inputs = AutoDisInputs(list(kinds.items()))
    assert [each.buckets for each in inputs.sets] == [7, 40] and inputs.widths == [("a", 3), ("c", 2), ("b", 2)]
    assert not [name for name in inputs.state_dict() if not name.startswith("of_")]
    x = torch.tensor([[0.5, math.nan, -2.0], [1.0, 3.0, math.nan], [math.nan, 0.1, -9.0]])
    alone = {name: AutoDisInputs([(name, kind)]) for name, kind in kinds.items()}
    for name, each in alone.items():
        each.load_state_dict({k: v for k, v in inputs.state_dict().items() if k.startswith(f"of_{name}.")})
    got = inputs(inputs.prepare(x))
    wanted = torch.cat([alone[name](alone[name].prepare(x["abc".index(name)][None])) for name in "acb"], 1)
    torch.testing.assert_close(got, wanted)
    for out in (got, wanted):
        (out * torch.arange(1.0, 8.0)).sum().backward()
    for each in alone.values():
        for key, parameter in each.named_parameters():
            torch.testing.assert_close(inputs.get_parameter(key).grad, parameter.grad)


def test_autodis_of_more_buckets_than_the_kernels_take_runs_as_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    for buckets, launched in ((LARGEST, 1), (LARGEST + 1, 0)):
        with recording() as launches:
            found = AutoDisInputs([("a", s.AutoDis(buckets=buckets))])(torch.ones(1, 3))
        assert found.shape == (3, 8) and len(launches) == launched


def test_the_order_of_columns() -> None:
    found = input_families([("a", s.Dense()), ("b", s.AutoDis()), ("c", s.Log1p()), ("d", s.AutoDis(dim=2))])
    assert [(kind, [name for name, _ in members]) for kind, members in found] == [
        (AutoDisInputs, ["b", "d"]),
        (ScalarInputs, ["c", "a"]),
    ]


def test_which_transforms_have_buckets() -> None:
    assert [buckets_of(t) is None for t in (s.Dense(), s.Log1p(), s.AutoDis())] == [True] * 3
    fixed, quantile = buckets_of(s.FixedBuckets(boundaries=(3.0,))), buckets_of(s.QuantileBuckets())
    assert fixed and quantile and not fixed.fitted and quantile.fitted
    assert fixed.edges(s.FixedBuckets(boundaries=(3.0,)), None) == [3.0]
    with pytest.raises(ValueError, match="transform kind 'fixed' is"):
        register_buckets("fixed", QuantileEdges())
