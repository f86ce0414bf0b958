"""The batches that are timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.kernels_cases import Batch, hstu, mtgr


@dataclass(frozen=True)
class Shape:
    """`targets` and `window` say how Meta's kernel expresses the mask; targets is None where it cannot."""

    name: str
    make: Callable[[], Batch]
    heads: int
    dim: int
    longest: int
    targets: int | None = None
    window: int = 0
    biased: bool = False
    """With HSTU's bias, both tables trained, and a divisor of each query's own, as its presets have them."""
    softmax: bool = False
    """Span attention by softmax, the mask's intervals cut into two spans."""


def uniform(samples: int, longest: int) -> list[int]:
    """Lengths 0.9 N .. N."""
    generator = torch.Generator().manual_seed(longest)
    low = max(1, int(0.9 * longest))
    return torch.randint(low, longest + 1, (samples,), generator=generator).tolist()


def zipf(samples: int, longest: int) -> list[int]:
    """Most samples short, some as long as can be: rank-frequency slope 1."""
    generator = torch.Generator().manual_seed(longest)
    ranks = torch.rand(samples, generator=generator).mul(math.log(longest / 32)).exp() * 32
    return ranks.int().clamp(1, longest).tolist()


def shapes(rehearse: bool) -> Iterator[Shape]:
    """In order of what matters most, should the time end early."""
    if rehearse:
        yield Shape("mtgr K=8", lambda: mtgr(2, 5, 2, 8), 1, 16, 15)
        yield Shape("causal N=32", lambda: hstu(uniform(2, 32)), 2, 16, 32, targets=0)
        return
    tokens = 2**18
    for n in (4096, 1024):
        yield Shape(f"causal N={n}", lambda n=n: hstu(uniform(tokens // n, n)), 4, 128, n, targets=0)
    for k in (32, 300, 1024):
        yield Shape(f"mtgr K={k} H2 D256", lambda k=k: mtgr(64, 1000, 100, k), 2, 256, 1100 + k)
    yield Shape("targets K=1024 N=2124 H2 D256", lambda: hstu([2124] * 64, 1024), 2, 256, 2124, targets=1024)
    for n in (2048, 8192, 512):
        yield Shape(f"causal N={n}", lambda n=n: hstu(uniform(tokens // n, n)), 4, 128, n, targets=0)
    for n in (1024, 4096):
        yield Shape(f"targets 20 N={n}", lambda n=n: hstu(uniform(tokens // n, n), 20), 4, 128, n, targets=20)
    yield Shape("zipf N=4096", lambda: hstu(zipf(512, 4096)), 4, 128, 4096, targets=0)
    window = hstu(uniform(32, 8192), window=1024)
    yield Shape("window 1024 N=8192", lambda: window, 4, 128, 8192, targets=0, window=1024)
    n = 16384
    yield Shape(f"causal N={n}", lambda: hstu(uniform(tokens // n, n)), 4, 128, n, targets=0)
    for k in (32, 300, 1024):
        yield Shape(f"mtgr K={k} H3 D256", lambda k=k: mtgr(64, 1000, 100, k), 3, 256, 1100 + k)


GLUON = (
    *("causal N=4096", "mtgr K=300 H2 D256", "causal N=1024", "mtgr K=1024 H2 D256", "causal N=16384"),
    *("targets 20 N=4096", "zipf N=4096", "mtgr K=8"),
)
"""Where the kernels for sm_90 are compared with the others."""


def other_shapes(rehearse: bool) -> Iterator[Shape]:
    """Where the kernels for sm_90 are compared with the others under a bias and by softmax."""
    if rehearse:
        yield Shape("bias targets 4 N=12", lambda: hstu([12, 9], 4), 1, 16, 12, biased=True)
        yield Shape("softmax causal N=12", lambda: hstu([12, 9]), 1, 16, 12, softmax=True)
        return
    tokens = 2**18
    for n in (4096, 1024):
        yield Shape(f"bias causal N={n}", lambda n=n: hstu(uniform(tokens // n, n)), 4, 128, n, biased=True)
    yield Shape("bias hstu-large targets 20 N=2048", lambda: hstu(zipf(256, 2048), 20), 8, 64, 2048, biased=True)
    for n, dim in ((4096, 128), (1024, 64)):
        yield Shape(f"softmax causal N={n} D{dim}", lambda n=n: hstu(uniform(tokens // n, n)), 4, dim, n, softmax=True)


FLEX = ("causal N=4096", "mtgr K=1024 H2 D256", "mtgr K=300 H2 D256", "zipf N=4096")
"""FlexAttention compiles for each shape, half a minute each: these four."""
TMA = ("causal N=4096", "mtgr K=1024 H2 D256", "mtgr K=8")
"""Where loading by TMA is tried."""
ORDER = ("causal N=4096", "causal N=1024", "mtgr K=300 H2 D256", "zipf N=4096", "mtgr K=8")
"""Where the order of units is compared with the heaviest of the whole batch first."""
META_TMA = ("causal N=4096", "targets K=1024 N=2124 H2 D256")
"""Where Meta's is."""
