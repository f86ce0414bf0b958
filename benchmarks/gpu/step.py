"""A training step of the dense half, as `model.train_step` takes it on a GPU: encoder, heads, loss, backward, clipping, AdamW.

The tokens' vectors are random: tables and their lookups are not part of it (`benchmarks/tables.py`). Each step has its tokens for
the first time, so that what attention plans once a batch is part of every step.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.gpu.correctness import implementation
from benchmarks.gpu.session import Session, environment
from benchmarks.gpu.speed import ceilings
from benchmarks.kernels_cases import Batch, mtgr
from genrank.kernels.launch import Launch, recording
from genrank.model.encoders import PRESETS, BlockConfig, Counts, MtgrConfig, build_encoder
from genrank.model.heads import Heads
from genrank.model.losses import loss_sums, total_loss, weight_sums
from genrank.model.optimizer import adamw
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.visibility import CANDIDATE, HISTORY, REALTIME, USER

TINY = MtgrConfig(dim=16, layers=1, heads=1, qk_dim=16, v_dim=16)
STEPS = 20
"""Of training that are compared with the reference's."""
LARGEST_DIFFERENCE = 1e-3
"""Of any of their losses, or of a gradient of the first step (as the norm of its difference), relative: what float32's rounding
makes of them stays well below."""


class Task(NamedTuple):
    """What `model.losses` reads of a schema's label."""

    name: str
    given: str | None = None
    kind: str = "binary"
    weight: float = 1.0
    positive_weight: float = 1.0


TASKS: Any = [Task("click"), Task("purchase", given="click")]


@dataclasses.dataclass(frozen=True)
class Case:
    """`samples` user-days of `static` user and history tokens, `realtime` tokens and `candidates`."""

    name: str
    config: BlockConfig
    samples: int
    static: int
    realtime: int
    candidates: int

    @property
    def length(self) -> int:
        return self.static + self.realtime + self.candidates

    def batch(self) -> Batch:
        return mtgr(self.samples, self.static, self.realtime, self.candidates)

    def tokens(self, device: str) -> Tokens:
        """Random vectors under MTGR's mask."""
        batch, generator = self.batch(), torch.Generator().manual_seed(0)
        kinds = [USER] + [HISTORY] * (self.static - 1) + [REALTIME] * self.realtime + [CANDIDATE] * self.candidates
        groups = torch.tensor(kinds, dtype=torch.int32).repeat(self.samples)
        return Tokens(
            x=torch.randn(batch.tokens, self.config.dim, generator=generator).to(device).requires_grad_(),
            offsets=batch.offsets.to(device, torch.int32),
            group_ids=groups.to(device),
            begin=batch.begin.to(device),
            end=batch.end.to(device),
            timestamps=torch.zeros(batch.tokens, dtype=torch.int64, device=device),
            candidate_rows=(groups == CANDIDATE).nonzero().squeeze(1).to(device),
            max_length=self.length,
            lengths=torch.full((self.samples,), self.length),
            history_lengths=torch.full((self.samples,), self.static - 1),
        )


def cases(rehearse: bool) -> list[Case]:
    if rehearse:
        return [Case("mtgr K=8", TINY, 2, 5, 2, 8)]
    return [Case(f"mtgr-{size} K=300", PRESETS[f"mtgr-{size}"], 64, 1000, 100, 300) for size in ("small", "large")]


def with_streams(given: list[Case]) -> list[Case]:
    """Each of the cases, and beside it the same with its residual stream in bfloat16."""
    other = [
        dataclasses.replace(c, name=f"{c.name} stream", config=dataclasses.replace(c.config, stream="bfloat16"))
        for c in given
    ]
    return [each for pair in zip(given, other, strict=True) for each in pair]


Encode = Callable[[Tokens], Tensor]


class Step:
    """A model, its optimizer and one batch to train it on.

    Args:
        half: bfloat16 by autocast, with float32 weights; else float32.
        encode: what computes the encoder's function in its place, a peer.
    """

    def __init__(
        self, case: Case, device: str, half: bool, peer: Callable[[nn.Module, Case], Encode] | None = None
    ) -> None:
        torch.manual_seed(0)
        self.case, self.device, self.half = case, device, half
        self.encoder = build_encoder(case.config).to(device)
        self.heads = Heads(case.config.dim, [task.name for task in TASKS]).to(device)
        self.encode: Encode = peer(self.encoder, case) if peer else self.encoder
        self.tokens = case.tokens(device)
        generator = torch.Generator().manual_seed(1)
        count = case.samples * case.candidates
        self.labels = {t.name: (torch.rand(count, generator=generator) < 0.2).float().to(device) for t in TASKS}
        self.weights = {t.name: torch.ones(count, device=device) for t in TASKS}
        self.model = nn.ModuleList([self.encoder, self.heads])
        self.optimizer = adamw(self.model, 1e-3, 0.01)

    def __call__(self) -> Tensor:
        """The loss before the step, on the device."""
        loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.tokens.x.grad = None
        return loss.detach()

    def gradients(self) -> list[Tensor]:
        """Of the tokens' vectors and of every parameter, in float64."""
        leaves = [self.tokens.x, *self.model.parameters()]
        return [gradient.double() for gradient in torch.autograd.grad(self.loss(), leaves)]

    def loss(self) -> Tensor:
        tokens = dataclasses.replace(self.tokens, begin=self.tokens.begin.clone(), end=self.tokens.end.clone())
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            logits = self.heads(self.encode(tokens))
        sums = loss_sums(logits, self.labels, self.weights, TASKS)
        return total_loss(sums, weight_sums(self.weights, TASKS), TASKS)

    def flops(self) -> int:
        """Of the encoder's matrix products over visible pairs, forward and backward, as the trainer counts them."""
        batch, rows = self.case.batch(), self.tokens.candidate_rows.cpu()
        seen = int((batch.end - batch.begin)[rows].sum())
        return 3 * self.case.config.flops(Counts(batch.tokens, batch.pairs, len(rows), seen))


# --- correctness ------------------------------------------------------------------------------------------------------


def check_losses(session: Session) -> dict[str, Any]:
    """Training in float32 goes the way that it goes with the reference ops, and begins with their gradients: that of the history's
    vectors comes through attention alone."""
    case = Case("", PRESETS["mtgr-small"], 32, 100, 20, 40)
    case, steps = (cases(True)[0], 2) if session.rehearse else (case, STEPS)
    gradients, losses = [], []
    for which in ("triton", "reference"):
        with implementation(which):
            step = Step(case, session.device, half=False)
            gradients.append(step.gradients())
            losses.append(torch.stack([step() for _ in range(steps)]).double())
    return compared(losses, gradients)


def compared(losses: list[Tensor], gradients: list[list[Tensor]]) -> dict[str, Any]:
    """Ours and the reference's; both losses must fall."""
    mine, wanted = losses
    difference = float(((mine - wanted).abs() / wanted).max())
    norms = [(ours - theirs).norm() / theirs.norm() for ours, theirs in zip(*gradients, strict=True)]
    of_gradients = float(torch.stack(norms).max())
    return {
        "steps": len(mine),
        "first_loss": round(float(wanted[0]), 4),
        "last_loss": round(float(wanted[-1]), 4),
        "largest_difference": difference,
        "gradients_difference": of_gradients,
        "correct": max(difference, of_gradients) <= LARGEST_DIFFERENCE and bool(mine[-1] < mine[0]),
    }


def check_waiting(session: Session) -> dict[str, Any]:
    """A step under PyTorch's own alarm: whatever makes the host wait for the device raises."""
    case = dataclasses.replace(cases(session.rehearse)[0], samples=2 if session.rehearse else 16)
    step = Step(case, session.device, half=not session.rehearse)
    loss = step()
    if session.rehearse:
        return {"correct": bool(loss.isfinite())}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"correct": bool(loss.isfinite())}


# --- speed ------------------------------------------------------------------------------------------------------------


def measure(
    session: Session, case: Case, peer: Callable[[nn.Module, Case], Encode] | None = None, seconds: float = 2.0
) -> dict[str, Any]:
    """Median step; rates; share of the matrix-product rate (MFU); peak memory; for ours, where the time goes."""
    half = not session.rehearse
    step = Step(case, session.device, half, peer)
    first = float(step())
    tokens = len(step.tokens.x)
    row: dict[str, Any] = {"tokens": tokens, "candidates": case.samples * case.candidates, "first_loss": first}
    if session.rehearse:
        return {**row, "step_ms": 1.0}
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    ms = statistics.median(step_times(step, seconds))
    row |= {
        "step_ms": round(ms, 3),
        "tokens_per_s": round(1e3 * tokens / ms),
        "candidates_per_s": round(1e3 * row["candidates"] / ms),
        "tflops": round(step.flops() / ms / 1e9, 1),
        "mfu": round(step.flops() / ms / 1e9 / matmul_ceiling(session), 3),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }
    if peer is None:
        row["parts"] = parts(step, ms)
    return row


def step_times(step: Step, seconds: float) -> Iterator[float]:
    """Milliseconds of each step, one launched after the other as in training: from the end of one to the end of the next."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
    for event in events:
        event.record()
        step()
    torch.cuda.synchronize()
    one = events[1].elapsed_time(events[-1]) / (len(events) - 2)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(min(100, max(10, int(1e3 * seconds / one))) + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    return (a.elapsed_time(b) for a, b in itertools.pairwise(events))


def matmul_ceiling(session: Session) -> float:
    """TFLOPS of this run's large matrix product; measured here where its own section could not."""
    for row in session.rows():
        if row["section"] == "ceilings" and "matmul_tflops" in row:
            return float(row["matmul_tflops"])
    return float(ceilings(session)["matmul_tflops"])


PARTS = {
    "norm and gate": ("norm_forward_kernel", "norm_backward_kernel"),
    "attention": ("forward_kernel", "backward_q_kernel", "backward_kv_kernel", "summary_kernel", "units_kernel"),
    "matrix products": ("gemm", "cutlass", "cublas", "nvjet", "xmma", "splitk", "gemv"),
    "optimizer and clipping": ("multi_tensor_apply", "fusedadam", "fused_adam"),
}
"""By what a kernel's name contains; the first that fits. Everything else is pointwise: SiLU, casts, residual sums, the loss."""


def part_of(kernel: str) -> str:
    return next((part for part, names in PARTS.items() if any(name in kernel.lower() for name in names)), "pointwise")


def parts(run: Callable[[], object], ms: float, steps: int = 3) -> dict[str, float]:
    """Share of a step's time by the kernels that ran, and `idle`: the device's, waiting for the host."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            run()
        torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    for event in profiler.events():
        # Annotations span kernels that are counted themselves.
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            spent[part_of(event.name)] += event.time_range.elapsed_us() / 1e3 / steps
    shares = {part: round(spent[part] / ms, 3) for part in (*PARTS, "pointwise")}
    return shares | {"idle": round(max(0.0, 1 - sum(spent.values()) / ms), 3)}


# --- peers ------------------------------------------------------------------------------------------------------------


def padded(encoder: nn.Module, case: Case, how: str, compiled: bool) -> Encode:
    """The encoder over a padded batch in plain PyTorch, a block compiled as one by torch.compile. All samples of these batches are
    equally long: nothing is padded, which is the most that can be said for it.

    how: "dense" is the very same function, with a score for every pair. "flex" has FlexAttention in its place, with the same mask
        and matrix products, and its softmax where we have SiLU.
    """
    config = case.config
    run: Callable[..., Tensor] = dense_block if how == "dense" else flex_block
    if compiled:
        run = torch.compile(run, dynamic=False)
    masks: list[Any] = []

    def encode(tokens: Tokens) -> Tensor:
        shape = (case.samples, case.length)
        begin, end = tokens.begin.view(*shape, 1), tokens.end.view(*shape, 1)
        # Once, not every step as ours is planned: making FlexAttention's each time may compile it each time.
        if not masks:
            masks.append((begin, end) if how == "dense" else flex_mask(begin, end, compiled))
        groups = tokens.group_ids.long().view(shape)
        x = tokens.x.view(*shape, -1)
        for block in encoder.blocks:  # type: ignore[union-attr]
            x = run(x, groups, masks[0], config.heads, config.eps, *block.parameters())
        rows = tokens.candidate_rows
        return encoder.final_norm(x.flatten(0, 1)[rows], tokens.group_ids[rows])  # type: ignore[operator]

    return encode


def flex_mask(begin: Tensor, end: Tensor, compiled: bool) -> Any:
    low, high = begin.squeeze(2), end.squeeze(2)

    def sees(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return ((column >= low[b, row]) & (column < high[b, row])) | (row == column)

    batch, length = low.shape
    return create_block_mask(sees, batch, None, length, length, device=str(low.device), _compile=compiled)


def dense_block(
    x: Tensor, groups: Tensor, bounds: tuple[Tensor, Tensor], heads: int, eps: float, *weights: Tensor
) -> Tensor:
    """`model.encoders.block` under MTGR's choices, over [B, L, dim]; `bounds`: begin and end, [B, L, 1]; `weights` in the order of
    its parameters."""
    u, q, k, v = split_heads(x, groups, heads, eps, weights)
    index = torch.arange(x.shape[1], device=x.device)
    visible = (index >= bounds[0]) & (index < bounds[1]) | (index[:, None] == index)
    scores = F.silu(q @ k.transpose(2, 3) / q.shape[3] ** 0.5)
    return gated(x, u, (scores * visible.unsqueeze(1) / x.shape[1]) @ v, groups, eps, weights)


def flex_block(x: Tensor, groups: Tensor, mask: Any, heads: int, eps: float, *weights: Tensor) -> Tensor:
    u, q, k, v = split_heads(x, groups, heads, eps, weights)
    return gated(x, u, flex_attention(q, k, v, block_mask=mask), groups, eps, weights)


def split_heads(
    x: Tensor, groups: Tensor, heads: int, eps: float, weights: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U [B, L, heads * d]; Q, K, V [B, heads, L, d]."""
    projected = F.silu(F.linear(group_norm(x, groups, *weights[:2], eps), *weights[2:4]))
    u, v, q, k = projected.chunk(4, 2)
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return u, q, k, v


def gated(x: Tensor, u: Tensor, attended: Tensor, groups: Tensor, eps: float, weights: tuple[Tensor, ...]) -> Tensor:
    normed = group_norm(attended.transpose(1, 2).flatten(2) * u, groups, *weights[4:6], eps)
    return x + F.linear(normed, *weights[6:8])


def group_norm(x: Tensor, groups: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], None, None, eps) * weight[groups] + bias[groups]


# --- sections ---------------------------------------------------------------------------------------------------------


def launches(device: str) -> Iterator[tuple[Launch, bool]]:
    """What a step launches, as `benchmarks.gpu.warmup` compiles it: by taking the step with two layers, the last being unlike the others, on fewer samples,
    whose integers are multiples of 16 where those of the timed batch are. No kernel runs; checks take the first configuration only."""
    for size in ("small", "large"):
        config = dataclasses.replace(PRESETS[f"mtgr-{size}"], layers=2)
        case = Case("", config, 16, 600, 100, 324)
        taken = [(each, True) for each in with_streams([case])] + [(case, False)] * (size == "small")
        for each, half in taken:
            with implementation("triton"), recording() as found:
                step = Step(each, device, half)
                step.loss().backward()
            yield from ((launch, half) for launch in found)


def step(session: Session) -> None:
    with environment("GENRANK_AUTOTUNE", "0"):
        session.attempt("correctness", "a step's losses", lambda: check_losses(session))
    session.attempt("correctness", "a step waits for nothing", lambda: check_waiting(session))
    for case in with_streams(cases(session.rehearse)):
        session.attempt("step", case.name, lambda c=case: measure(session, c))
    for how in ("dense", "flex"):
        for case in cases(session.rehearse):
            session.attempt(f"step {how}", case.name, lambda c=case, h=how: measure_peer(session, c, h))


def measure_peer(session: Session, case: Case, how: str) -> dict[str, Any]:
    compiled = not session.rehearse

    def peer(encoder: nn.Module, case: Case) -> Encode:
        return padded(encoder, case, how, compiled)

    if how == "flex" and not compiled:
        with torch.no_grad():  # Without a compiler it has no backward on a CPU.
            return {"first_loss": float(Step(case, session.device, False, peer).loss())}
    row = measure(session, case, peer)
    ours = next((r for r in session.rows() if (r["section"], r["name"]) == ("step", case.name)), {})
    if how == "dense" and abs(row["first_loss"] / ours.get("first_loss", row["first_loss"]) - 1) > 0.01:
        raise ValueError(f"the peer's loss is {row['first_loss']}, ours {ours['first_loss']}: not the same function")
    return row
