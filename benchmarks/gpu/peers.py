"""What others have: Meta's Triton kernel and PyTorch's FlexAttention, each at its best setting."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.shapes import META_TMA, Shape
from benchmarks.kernels_cases import Batch

META = Path(__file__).parents[2] / "peers" / "generative-recommenders"


class Run(NamedTuple):
    """A forward that can be repeated, what it differentiates in, and the upstream gradient."""

    attend: Callable[[], Tensor]
    leaves: list[Tensor]
    upstream: Tensor


def meta_module() -> Any:
    """Meta's attention file; it needs torch and triton only."""
    if not META.exists():
        raise FileNotFoundError("peers/generative-recommenders is not there")
    if str(META) not in sys.path:
        sys.path.insert(0, str(META))
    from generative_recommenders.ops.triton import triton_hstu_attention

    return triton_hstu_attention


def meta_kernels() -> list[Any]:
    """Its two autotuned kernels, without the configurations of fewer than 2048 pairs a block: they cannot win at these
    head dims and lengths, and compiling them would take the minutes that there are. Nor those that unroll their loop: of these
    one (backward, 32 x 128, unrolled 4 times, 8 warps, 2 stages, not sequence-parallel) reads past its memory at uneven lengths."""
    meta = meta_module()
    kernels = [meta._hstu_attn_fwd, meta._hstu_attn_bwd]
    for kernel in kernels:
        kernel.configs = [c for c in kernel.configs if kept(c.kwargs)]
    return kernels


def kept(options: Mapping[str, Any]) -> bool:
    """Whether a configuration of Meta's is measured."""
    return options["BLOCK_M"] * options["BLOCK_N"] >= 2048 and options.get("UNROLL", 1) == 1


def meta_runs(shape: Shape, batch: Batch, q: Tensor, k: Tensor, v: Tensor, upstream: Tensor) -> dict[str, Run]:
    """Meta's Triton kernel with the runtime length in its autotune key and samples sorted by length; for the shapes that
    matter most also by TMA, which wants contiguous tensors."""
    meta_kernels()
    meta = meta_module()
    from generative_recommenders.common import set_use_runtime_max_seq_len

    set_use_runtime_max_seq_len(True)
    samples = len(batch.offsets) - 1
    targets = torch.full((samples,), shape.targets or 0, dtype=torch.int32, device=q.device) if shape.targets else None
    leaves = [x.detach().contiguous().requires_grad_() for x in (q, k, v)]

    def run(tma: bool) -> Callable[[], Tensor]:
        return lambda: meta.triton_hstu_mha(
            N=shape.longest, alpha=shape.dim**-0.5, q=leaves[0], k=leaves[1], v=leaves[2], seq_offsets=batch.offsets,
            num_targets=targets, max_attn_len=shape.window, sort_by_length=True, enable_tma=tma,
        )  # fmt: skip

    by_tma = shape.name in META_TMA and torch.cuda.get_device_capability()[0] >= 9
    settings = [False, True] if by_tma else [False]
    return {"tma" if tma else "pointers": Run(run(tma), leaves, upstream) for tma in settings}


def flex_run(batch: Batch, q: Tensor, k: Tensor, v: Tensor, upstream: Tensor) -> Run:
    """FlexAttention with the same mask over the packed batch. It has a softmax where we have SiLU: the same matrix
    products over the same pairs, not the same function."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    index = torch.arange(batch.tokens, device=q.device)
    sample = torch.searchsorted(batch.offsets, index, right=True) - 1
    start = batch.offsets[sample]
    low, high = start + batch.begin, start + batch.end

    def visible(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return ((column >= low[row]) & (column < high[row])) | (row == column)

    # Compiled, the mask is evaluated block by block; otherwise it would be a matrix of tokens x tokens.
    on_gpu = q.device.type == "cuda"
    mask = create_block_mask(visible, None, None, batch.tokens, batch.tokens, device=str(q.device), _compile=on_gpu)
    run = torch.compile(flex_attention, dynamic=False) if on_gpu else flex_attention
    dense = [x.detach().transpose(0, 1).unsqueeze(0).contiguous().requires_grad_(on_gpu) for x in (q, k, v)]
    above = upstream.transpose(0, 1).unsqueeze(0).contiguous()
    return Run(lambda: run(*dense, block_mask=mask), dense, above)
