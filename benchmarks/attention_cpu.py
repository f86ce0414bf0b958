"""Interval attention on CPU against padded dense attention, on long-tailed lengths: the ratio a trainer without GPU
feels.

    python -m benchmarks.attention_cpu [--samples 128] [--repeats 7] [--threads 1]

Writes benchmarks/results/attention_cpu.json; benchmarks/kernels.md says what it means. The peer is what a careful
PyTorch
user writes: one padded [B, H, N, D] batch, its masks made beforehand and given for free, autograd for the backward.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from genrank.kernels.attention import interval_attention

RESULT = Path(__file__).parent / "results" / "attention_cpu.json"


def long_tailed(samples: int, low: int, high: int, generator: torch.Generator) -> list[int]:
    """Lengths of a log: most are short, a few reach the maximum (log-normal, clipped)."""
    drawn = torch.randn(samples, generator=generator).mul(0.9).exp() * 2.2 * low
    return drawn.clamp(low, high).int().tolist()


def intervals(lengths: list[int], mask: str, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """offsets [B+1], begin [T], end [T]. "mtgr": 15 % realtime, up to 30 candidates, the rest static, in that order."""
    begins, ends = [], []
    for n in lengths:
        if mask == "causal":
            end = torch.arange(n) + 1
        else:
            candidates = min(n // 2, int(torch.randint(3, 31, (), generator=generator)))
            realtime = (n - candidates) * 15 // 100
            static = n - candidates - realtime
            sees = torch.randint(0, realtime + 1, (candidates,), generator=generator).sort().values
            end = torch.cat([torch.full((static,), static), static + torch.arange(realtime), static + sees])
        begins.append(torch.zeros(n, dtype=torch.int32))
        ends.append(end.int())
    return torch.tensor([0, *lengths]).cumsum(0), torch.cat(begins), torch.cat(ends)


class Padded:
    """The peer: everything padded to the longest sample."""

    def __init__(self, offsets: Tensor, begin: Tensor, end: Tensor) -> None:
        lengths = offsets.diff()
        batch, longest = len(lengths), int(lengths.max())
        index = torch.arange(longest)
        self.real = index < lengths[:, None]
        self.shape = (batch, longest)
        rows = torch.zeros(batch, longest, 2, dtype=torch.int32)
        rows[self.real] = torch.stack([begin, end], 1)
        seen = (index >= rows[..., :1]) & (index < rows[..., 1:]) | torch.eye(longest, dtype=torch.bool)
        self.mask = (seen & self.real[:, :, None] & self.real[:, None, :]).unsqueeze(1).float()
        self.mask /= lengths[:, None, None, None]

    def pad(self, x: Tensor) -> Tensor:
        dense = x.new_zeros(*self.shape, *x.shape[1:])
        dense[self.real] = x
        return dense.transpose(1, 2)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = self.pad(q), self.pad(k), self.pad(v)
        weights = F.silu(q @ k.transpose(2, 3) * q.shape[3] ** -0.5) * self.mask
        return (weights @ v).transpose(1, 2)[self.real]


def median_ms(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def measure(mask: str, samples: int, heads: int, dim: int, high: int, repeats: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    lengths = long_tailed(samples, 20, high, generator)
    offsets, begin, end = intervals(lengths, mask, generator)
    tokens = int(offsets[-1])
    q, k, v = (torch.randn(tokens, heads, dim, requires_grad=True) for _ in range(3))
    upstream = torch.randn(tokens, heads, dim)
    padded = Padded(offsets, begin, end)

    def ours() -> Tensor:
        return interval_attention(q, k, v, offsets, begin, end)

    torch.testing.assert_close(ours(), padded(q, k, v), rtol=1e-4, atol=1e-5)
    row: dict[str, object] = {
        "mask": mask, "samples": samples, "heads": heads, "dim": dim,
        "longest": max(lengths), "mean_length": round(tokens / samples, 1),
        "padded_pairs": samples * max(lengths) ** 2, "visible_pairs": int((end - begin).sum()),
    }  # fmt: skip
    for mode in ("forward", "forward_backward"):

        def step(attend: Callable[[], Tensor], mode: str = mode) -> object:
            if mode == "forward":
                with torch.no_grad():
                    return attend()
            return torch.autograd.grad(attend(), [q, k, v], upstream)

        mine = median_ms(lambda step=step: step(ours), repeats)
        theirs = median_ms(lambda step=step: step(lambda: padded(q, k, v)), repeats)
        row |= {
            f"{mode}_ms": round(mine, 2),
            f"{mode}_padded_ms": round(theirs, 2),
            f"{mode}_ratio": round(theirs / mine, 2),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [
        measure(mask, args.samples, 2, dim, high, args.repeats)
        for mask in ("mtgr", "causal")
        for dim in (32, 64)
        for high in (200, 400)
    ]
    for row in rows:
        print(row)
    ratios = [float(str(row["forward_backward_ratio"])) for row in rows]
    print(f"forward and backward: {min(ratios)}x to {max(ratios)}x, median {statistics.median(ratios)}x")
    RESULT.parent.mkdir(exist_ok=True)
    facts = {"cpu": platform.processor() or platform.machine(), "threads": args.threads, "torch": torch.__version__}
    RESULT.write_text(json.dumps({"machine": facts, "repeats": args.repeats, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
