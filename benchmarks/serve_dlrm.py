"""MLPerf's DLRMv3 shape in inference: 5 layers, width 512, 4 heads of 128, 32 ragged histories of mean 1,024 and 2,048 candidates each, bf16.

python -m benchmarks.serve_dlrm --device cuda
python -m benchmarks.serve_dlrm --samples 2 --mean 32 --candidates 16 --repeats 2        a rehearsal on a CPU

The encoder alone: random tokens in, a vector a candidate out; everything in one pass, and in two parts (users once, candidates in micro-batches).
A public H100 profile of Meta's code gives 9.30 ms a batch, 10.6M tokens/s.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from rich.table import Table as Shown

from genrank.model.encoders import Candidates, Hstu, HstuConfig, split
from genrank.schemas.console import print_whole
from genrank.tokenization import visibility
from genrank.tokenization.jagged_tokens import Tokens

CONFIG = HstuConfig(
    dim=512, layers=5, heads=4, qk_dim=128, v_dim=128, divisor="visible", position_reach=0, time_buckets=0
)


def batch(samples: int, mean: int, candidates: int, device: torch.device, dtype: torch.dtype) -> Tokens:
    """Histories of mean/2 to 3*mean/2 events, drawn evenly, under HSTU's mask with candidates as targets."""
    random = torch.Generator().manual_seed(0)
    histories = torch.randint(mean // 2, mean + mean // 2 + 1, (samples,), generator=random)
    lengths = histories + candidates
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    total = int(offsets[-1])
    known = torch.repeat_interleave(histories, lengths)
    position = torch.arange(total) - torch.repeat_interleave(offsets[:-1], lengths)
    group = torch.where(position < known, visibility.HISTORY, visibility.CANDIDATE).to(torch.int32)
    none = torch.zeros_like(position)
    begin, end = visibility.hstu(visibility.Layout(position, group, none, known, none))
    return Tokens(
        x=torch.randn(total, CONFIG.dim, generator=random).to(device, dtype),
        offsets=offsets.to(device, torch.int32),
        group_ids=group.to(device),
        begin=begin.to(device),
        end=end.to(device),
        timestamps=(1_000 * position).to(device),
        candidate_rows=(group == visibility.CANDIDATE).nonzero().squeeze(1).to(device),
        max_length=int(lengths.max()),
        lengths=lengths,
        history_lengths=histories,
    )


def in_parts(encoder: Hstu, tokens: Tokens, size: int) -> torch.Tensor:
    """[C, dim]: users once, then so many candidates at a time."""
    sequence, ranked = split(tokens)
    state = encoder.user_state(sequence)
    count, parts = len(ranked.owner), []
    for at in range(0, count, size):
        to = at + size
        part = Candidates(
            ranked.x[at:to], ranked.owner[at:to], ranked.begin[at:to], ranked.end[at:to], ranked.timestamps[at:to]
        )
        parts.append(encoder.score(state, part))
    return torch.cat(parts)


def milliseconds(call: Callable[[], torch.Tensor], repeats: int, device: torch.device) -> tuple[float, float]:
    """(median, 99th percentile) of calls after three that aren't counted."""
    taken = []
    for at in range(repeats + 3):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if at >= 3:
            taken.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken), sorted(taken)[min(len(taken) - 1, int(0.99 * len(taken)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--mean", type=int, default=1_024)
    parser.add_argument("--candidates", type=int, default=2_048)
    parser.add_argument("--micro-batch", type=int, default=16_384)
    parser.add_argument("--repeats", type=int, default=50)
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.manual_seed(0)
    encoder = Hstu(CONFIG).to(device, torch.bfloat16).eval()
    tokens = batch(given.samples, given.mean, given.candidates, device, torch.bfloat16)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    shown = Shown(
        "way",
        "p50 ms",
        "p99 ms",
        "tokens/s",
        "peak MB",
        title=f"DLRMv3's shape on {where}, bf16, {len(tokens.x):,} tokens",
    )
    with torch.inference_mode():
        whole, parts = encoder(tokens), in_parts(encoder, tokens, given.micro_batch)
        torch.testing.assert_close(parts, whole, rtol=0.1, atol=0.1)  # bf16 through five layers
        for name, call in (
            ("one pass", lambda: encoder(tokens)),
            (f"in parts of {given.micro_batch:,}", lambda: in_parts(encoder, tokens, given.micro_batch)),
        ):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            p50, p99 = milliseconds(call, given.repeats, device)
            peak = f"{torch.cuda.max_memory_allocated() / 1e6:,.0f}" if device.type == "cuda" else "-"
            shown.add_row(name, f"{p50:.2f}", f"{p99:.2f}", f"{len(tokens.x) / p50 * 1e3:,.0f}", peak)
    print_whole(shown)


if __name__ == "__main__":
    main()
