"""Random samples for the encoders of sequences, and the same ones otherwise: reordered, alone, with other candidates or another future."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor

from genrank.model.encoders import Encoder, EncoderConfig, build_encoder
from genrank.tokenization.jagged_tokens import Candidates, Tokens

CANDIDATE_TOKENS = 3
USER_TOKENS = 2


def make(config: EncoderConfig, seed: int = 0) -> Encoder:
    """Away from the symmetric start."""
    torch.manual_seed(seed)
    encoder = build_encoder(config).double().eval()
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return encoder


@dataclasses.dataclass
class Sample:
    """One sample: its rows without candidates, and the candidates."""

    x: Tensor
    """[T, dim] of user, history and realtime rows."""
    group: list[int]
    sequence: list[int]
    end: list[int]
    """Under the causal rule."""
    stamps: list[int]
    candidates: Tensor
    """[C, Tc, dim]."""
    sees: list[int]
    """Rows that each candidate sees."""
    exposed: list[int]
    """Its timestamp."""


def draw_sample(seed: int, dim: int, tokens: int = 1, *, sequences: int = 2, longest: int = 14) -> Sample:
    """Two user rows, `sequences` histories, realtime rows with ties, one to four candidates."""
    g = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    histories = [number(0, longest) for _ in range(sequences)]
    realtime, candidates = number(0, 6), number(1, 4)
    group = [0] * USER_TOKENS + [1] * sum(histories) + [2] * realtime
    sequence = [0] * USER_TOKENS
    for at, n in enumerate(histories):
        sequence += [at + 1] * n
    sequence += [sequences + 1] * realtime
    known = USER_TOKENS + sum(histories)
    end = list(range(known))
    for at in range(realtime):
        tie = at and number(0, 3) == 0
        end.append(end[-1] if tie else known + at)
    stamps = sorted(torch.randint(0, 10**7, (known + realtime,), generator=g).tolist())
    return Sample(
        torch.randn(known + realtime, dim, generator=g, dtype=torch.float64),
        group,
        sequence,
        end,
        [1_700_000_000_000 + t for t in stamps],
        torch.randn(candidates, tokens, dim, generator=g, dtype=torch.float64),
        [known + number(0, realtime) for _ in range(candidates)],
        [1_700_010_000_000 + number(0, 10**6) for _ in range(candidates)],
    )


def rows_of(samples: list[Sample]) -> Tokens:
    """As the tokenizer makes it for one token a candidate: each a row at the end of its sample."""
    whole = [
        dataclasses.replace(
            s,
            x=torch.cat([s.x, s.candidates[:, 0]]),
            group=[*s.group, *[3] * len(s.sees)],
            sequence=[*s.sequence, *[max(s.sequence) + 1] * len(s.sees)],
            end=[*s.end, *s.sees],
            stamps=[*s.stamps, *s.exposed],
        )
        for s in samples
    ]
    tokens = batch_of(whole)
    return dataclasses.replace(tokens, candidates=None, candidate_rows=(tokens.group_ids == 3).nonzero().squeeze(1))


def batch_of(samples: list[Sample]) -> Tokens:
    """As the tokenizer makes it for several tokens a candidate: beside the rows."""
    lengths = [len(s.group) for s in samples]
    owner = [b for b, s in enumerate(samples) for _ in s.sees]
    return Tokens(
        x=torch.cat([s.x for s in samples]),
        offsets=torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32),
        group_ids=torch.tensor([g for s in samples for g in s.group], dtype=torch.int32),
        begin=torch.zeros(sum(lengths), dtype=torch.int32),
        end=torch.tensor([e for s in samples for e in s.end], dtype=torch.int32),
        timestamps=torch.tensor([t for s in samples for t in s.stamps]),
        candidate_rows=torch.zeros(0, dtype=torch.int64),
        max_length=max(lengths),
        lengths=torch.tensor(lengths),
        history_lengths=torch.tensor([s.group.count(1) for s in samples]),
        sequence_ids=torch.tensor([i for s in samples for i in s.sequence], dtype=torch.int32),
        candidates=Candidates(
            torch.cat([s.candidates for s in samples]),
            torch.tensor(owner),
            torch.zeros(len(owner), dtype=torch.int32),
            torch.tensor([e for s in samples for e in s.sees], dtype=torch.int32),
            torch.tensor([t for s in samples for t in s.exposed]),
        ),
    )


def cut(sample: Sample, candidate: int) -> Sample:
    """What was known at a candidate's exposure, with that candidate alone: its request's sample."""
    upto = sample.sees[candidate]
    return Sample(
        sample.x[:upto],
        sample.group[:upto],
        sample.sequence[:upto],
        sample.end[:upto],
        sample.stamps[:upto],
        sample.candidates[candidate : candidate + 1],
        [upto],
        [sample.exposed[candidate]],
    )
