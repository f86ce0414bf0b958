"""The field's own benchmark shapes: MLPerf's stack of HSTU layers in training and in inference, Meta's attention beside ours at the same shapes,
and how many supervised positions a second two ways of making samples give.

recommendation_v4 (MLPerf Training): HSTU on Yambda, 3 layers of 512, 4 heads of 128, causal over 2,048 and 4,096 events. DLRMv3 (MLPerf
Inference): 5 such layers, 32 histories of 1,024 on average, 2,048 candidates each. Tokens are random: tables are not part of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.correctness import implementation
from benchmarks.gpu.peers import META
from benchmarks.gpu.session import Session
from benchmarks.gpu.shapes import Shape, uniform
from benchmarks.gpu.speed import measure_attention, measure_meta
from benchmarks.gpu.step import matmul_ceiling
from benchmarks.kernels_cases import Batch, hstu, join
from genrank.model.encoders import Counts, Hstu, HstuConfig
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.visibility import HISTORY

LISTENS = 16
"""Of a user's day on Yambda, about: as many anchors has a user-day sample."""
PUBLISHED_MS = 9.30
"""A batch of DLRMv3's shape in a public H100 profile of Meta's code."""
LARGEST_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 0.03}
"""Of a sample's vectors from the reference's in the same precision, as the norm of the difference."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A stack over one batch, and which rows are read."""

    name: str
    layers: int
    make: Callable[[], Batch]
    targets: int | None = None
    """The last so many rows of each sample alone are read; None: every row."""

    def config(self, rehearse: bool) -> HstuConfig:
        width, layers = (16, 1) if rehearse else (512, self.layers)
        heads = 1 if rehearse else 4
        return HstuConfig(
            dim=width, layers=layers, heads=heads, qk_dim=width // heads, v_dim=width // heads, divisor="visible",
            position_reach=0, time_buckets=0,
        )  # fmt: skip


def listens(samples: int, length: int) -> Batch:
    """A sample a listen, as recommendation_v4 has them: causal, of which the last position is supervised."""
    return hstu(uniform(samples, length))


def user_days(samples: int, length: int) -> Batch:
    """A sample a user and day: the same events, the day's listens behind them, and a candidate for each of these, which sees what came before."""
    made = []
    for history in uniform(samples, length):
        events = torch.arange(history + LISTENS) + 1
        ends = torch.cat([events, history + torch.arange(LISTENS)])
        made.append((torch.zeros_like(ends), ends))
    return join(made)


def inference(samples: int, mean: int, candidates: int) -> Batch:
    """Histories of mean / 2 to 3 / 2 mean events, each with so many candidates that see it."""
    generator = torch.Generator().manual_seed(0)
    histories = torch.randint(mean // 2, mean + mean // 2 + 1, (samples,), generator=generator)
    return hstu((histories + candidates).tolist(), candidates)


def training_cases(rehearse: bool) -> list[Case]:
    lengths, tokens = ((12,), 24) if rehearse else ((2048, 4096), 2**17)
    return [Case(f"recommendation_v4 L={n}", 3, lambda n=n: listens(tokens // n, n)) for n in lengths]  # type: ignore[misc]


def inference_case(rehearse: bool) -> Case:
    samples, mean, candidates = (2, 6, 4) if rehearse else (32, 1024, 2048)
    return Case("DLRMv3 inference", 5, lambda: inference(samples, mean, candidates), candidates)


class Prepared:
    """A case on the device.

    Args:
        samples: only the first so many.
    """

    def __init__(self, session: Session, case: Case, *, train: bool, samples: int | None = None) -> None:
        torch.manual_seed(0)
        self.session, self.train, self.half = session, train, not session.rehearse
        config = case.config(session.rehearse)
        batch = case.make()
        if samples is not None:
            kept = int(batch.offsets[samples])
            batch = Batch(batch.offsets[: samples + 1], batch.begin[:kept], batch.end[:kept])
        self.config, self.batch, self.encoder = config, batch, Hstu(config).to(session.device).train(train)
        lengths = batch.offsets.diff()
        ends = batch.offsets[1:]
        count = case.targets
        rows = torch.arange(batch.tokens) if count is None else (ends[:, None] - torch.arange(count, 0, -1)).flatten()
        dtype = torch.float32
        if self.half and not train:
            self.encoder, dtype = self.encoder.bfloat16(), torch.bfloat16
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randn(batch.tokens, config.dim, generator=generator).to(session.device, dtype)
        place = batch.to(session.device)
        self.tokens = Tokens(
            x=drawn.requires_grad_(train),
            offsets=place.offsets.to(torch.int32),
            group_ids=torch.full((batch.tokens,), HISTORY, dtype=torch.int32, device=session.device),
            begin=place.begin,
            end=place.end,
            timestamps=torch.zeros(batch.tokens, dtype=torch.int64, device=session.device),
            candidate_rows=rows.to(session.device),
            max_length=int(lengths.max()),
            lengths=lengths,
            history_lengths=lengths,
        )
        self.upstream = torch.randn(len(rows), config.dim, generator=generator).to(session.device, dtype)

    def forward(self) -> Tensor:
        """[rows, dim]. The tokens are new each time: planning attention is part of it, as in training."""
        tokens = dataclasses.replace(self.tokens, begin=self.tokens.begin.clone(), end=self.tokens.end.clone())
        with torch.autocast(self.session.device, torch.bfloat16, enabled=self.half and self.train):
            vectors: Tensor = self.encoder(tokens)
        return vectors

    def step(self) -> None:
        """Forward and backward, gradients of the tokens and of all weights."""
        torch.autograd.grad(self.forward(), [self.tokens.x, *self.encoder.parameters()], self.upstream.float())

    def flops(self) -> int:
        """Of one forward pass; where candidates alone are read, the last layer's are theirs."""
        batch, rows = self.batch, self.tokens.candidate_rows.cpu()
        few = len(rows) < batch.tokens
        seen = int((batch.end - batch.begin)[rows].sum()) if few else 0
        return self.config.flops(Counts(batch.tokens, batch.pairs, len(rows) if few else 0, seen))

    def facts(self) -> dict[str, int]:
        return {"samples": len(self.batch.offsets) - 1, "tokens": self.batch.tokens, "pairs": self.batch.pairs}


def check(session: Session, case: Case, *, train: bool) -> dict[str, Any]:
    """The first sample's vectors, beside the reference ops' in the same precision."""
    found = []
    for which in ("triton", "reference"):
        with implementation(which), torch.no_grad():
            found.append(Prepared(session, case, train=train, samples=1).forward().double())
    difference = float((found[0] - found[1]).norm() / found[1].norm())
    largest = LARGEST_DIFFERENCE[torch.float32 if session.rehearse else torch.bfloat16]
    return {"difference": difference, "correct": difference <= largest}


def measure_stack(session: Session, case: Case, *, train: bool) -> dict[str, Any]:
    """Milliseconds of a forward pass, and in training of forward and backward; rates of what is timed."""
    row: dict[str, Any] = {"tuned": check(session, case, train=train)}
    prepared = Prepared(session, case, train=train)
    with torch.no_grad():
        forward = session.time_ms(prepared.forward)
    row |= {**prepared.facts(), "forward_ms": round(forward, 3)}
    ms, flops = forward, prepared.flops()
    if train:
        ms, flops = session.time_ms(prepared.step), 3 * flops
        row["step_ms"] = round(ms, 3)
    row |= {"tokens_per_s": round(1e3 * prepared.batch.tokens / ms), "tflops": round(flops / ms / 1e9, 1)}
    return row if session.rehearse else row | {"mfu": round(flops / ms / 1e9 / matmul_ceiling(session), 3)}


def measure_anchors(session: Session, length: int, samples: int) -> dict[str, Any]:
    """Forward and backward of as many samples of either kind: anchors (supervised positions) a second."""
    row: dict[str, Any] = {}
    kinds = {"listen": (listens, 1), "day": (user_days, LISTENS)}
    for kind, (make, anchors) in kinds.items():
        case = Case(kind, 3, lambda make=make: make(samples, length), anchors)  # type: ignore[misc]
        prepared = Prepared(session, case, train=True)
        ms = session.time_ms(prepared.step)
        row |= {
            f"{kind}_ms": round(ms, 3),
            f"{kind}_anchors": samples * anchors,
            f"{kind}_tokens": prepared.batch.tokens,
        }
        row[f"{kind}_anchors_per_s"] = round(1e3 * samples * anchors / ms, 1)
    return row | {"ratio": round(row["day_anchors_per_s"] / row["listen_anchors_per_s"], 2)}


def attention_shapes(rehearse: bool) -> list[Shape]:
    """The attention of the cases alone."""
    cases = [inference_case(rehearse)] if rehearse else [*training_cases(rehearse), inference_case(rehearse)]
    found = []
    for case in cases:
        config, longest = case.config(rehearse), int(case.make().offsets.diff().max())
        found.append(Shape(case.name, case.make, config.heads, config.qk_dim, longest, case.targets or 0))
    return found


def mlperf(session: Session) -> None:
    """The section."""
    for case in training_cases(session.rehearse):
        session.attempt("shapes", case.name, lambda c=case: measure_stack(session, c, train=True))
    case = inference_case(session.rehearse)
    published = {} if session.rehearse else {"published_ms": PUBLISHED_MS}
    session.attempt("shapes", case.name, lambda: measure_stack(session, case, train=False) | published)
    for length, samples in ((12, 2),) if session.rehearse else ((4096, 32), (2048, 64)):
        session.attempt("shapes anchors", f"L={length}", lambda n=length, s=samples: measure_anchors(session, n, s))
    for shape in attention_shapes(session.rehearse):
        session.attempt("shapes attention", shape.name, lambda s=shape: measure_attention(session, s))
        session.attempt("shapes meta", shape.name, lambda s=shape: meta(session, s))


def meta(session: Session, shape: Shape) -> dict[str, Any]:
    """Meta's attention on the same tensors, or why it isn't measured."""
    if not META.exists():
        return {"left_out": "peers/generative-recommenders is not there"}
    if session.rehearse:
        return {"left_out": "Meta's kernel needs a GPU"}
    return measure_meta(session, shape)
