"""Blocks on one another (HSTU, MTGR), and a last norm because the residual stream is never normalised itself.

`forward` computes all rows of a batch together. `user_state` and `score` compute the same in two parts, for inference: keys and values of
a request's sequence once, then each candidate's rows against them (M-FALCON: HSTU, arXiv:2402.17152, section 3.4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from genrank.kernels.attention import Divisor, delta_attention, interval_attention, local_positions
from genrank.kernels.spans import Spans, make_spans
from genrank.model.encoders.block import Block, BlockConfig, Norm, autocast_dtype, streamed
from genrank.model.encoders.interface import Candidates, Encoder
from genrank.model.encoders.jagged_rows import Joined
from genrank.model.encoders.listwise import attend, by_request, rivals_of
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.visibility import CANDIDATE


@dataclass
class StackState:
    """Keys and values of B sequences, S tokens together, per layer."""

    offsets: Tensor
    """[B+1] int64."""
    keys: list[Tensor]
    """Per layer [S, heads, qk_dim]."""
    values: list[Tensor]
    """Per layer [S, heads, v_dim]."""
    seconds: Tensor
    """[S] int64: epoch seconds."""
    share: Tensor | None
    """[B] float32: 1 / n of each sample, where the divisor is "length"."""


LENGTH_COUNTS = (
    'divisor="length" divides by the number of candidates, too: train with --set divisor=visible, or a number, whose scores do not depend'
    " on it"
)


class NewRows(NamedTuple):
    """R rows that read the keys of sequences and their own, sample by sample."""

    x: Tensor
    """[R, dim]."""
    joined: Joined
    """Of the sequences' S rows and these."""
    begin: Tensor
    end: Tensor
    """[R] int32: the keys that each sees, beside its own."""
    positions: Tensor
    """[S + R] int32, of all keys."""
    seconds: Tensor
    """[R] int64."""
    group_ids: Tensor
    """[R] int32."""
    spans: Spans | None = None
    """In place of `begin` and `end` and oneself, where rows see several spans of keys."""


class Stack(Encoder[StackState]):
    """The blocks that HSTU and MTGR are made of."""

    config: BlockConfig
    blocks: nn.ModuleList

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers - 1))
        self.blocks.append(Block(config, config.final_norm))
        self.final_norm = Norm(config.final_norm, config.dim, config.eps, groups=config.group_count)

    def forward(self, tokens: Tokens, rows: Tensor | None = None) -> Tensor:
        """[C, dim]: the candidates' vectors; of other rows of the tokens ([R] int64) where given."""
        few = rows is None and len(tokens.candidate_rows) < len(tokens.x)
        rows = tokens.candidate_rows if rows is None else rows
        if not self.config.listwise:
            return self._vectors(tokens, rows, alone=few)
        tokens, place, spans = by_request(tokens)
        return self._vectors(tokens, place[rows], spans)

    def encode(self, tokens: Tokens) -> Tensor:
        """[T, dim]: every token's vector."""
        return self._vectors(tokens, None)

    def _vectors(
        self, tokens: Tokens, rows: Tensor | None, spans: Spans | None = None, *, alone: bool = False
    ) -> Tensor:
        """Of rows of the tokens ([R] int64, each at most once), for which alone the last block gates and projects; None: of all. alone: and which
        alone have queries there."""
        positions = candidate_positions(tokens) if self.config.position_reach else None
        seconds = tokens.timestamps // 1000 if self.config.time_buckets else None
        x = functional.dropout(streamed(tokens.x, self.config), self.config.input_dropout, self.training)
        groups = self._groups(tokens)
        tokens = dataclasses.replace(tokens, group_ids=groups)
        change = shift = None
        for number, block in enumerate(self.blocks, 1):
            last = number == self.config.layers
            given = (x, tokens, positions, seconds, change, shift, rows if last else None, spans, alone and last)
            if self.recompute and self.training:
                x, change, shift = checkpoint(block, *given, use_reentrant=False)
            else:
                x, change, shift = block(*given)
        groups = groups if rows is None else groups.index_select(0, rows)
        # As PyTorch's layer norm under autocast.
        dtype = None if autocast_dtype(x) is None else torch.float32
        return self.final_norm.after(x, change, groups, self.config.residual_scale, dtype, shift)[1]

    # ------------------------------------------------------------------ in two parts

    @torch.no_grad()
    def user_state(self, sequence: Tokens, beside: Tensor | None = None) -> StackState:
        """Keys and values of every layer.

        Args:
            sequence: user, history and realtime tokens; no candidates.
            beside: [B] int64, how many candidates each sample has in all: `divisor="length"` divides by them, too.

        Raises:
            ValueError: the divisor is "length" and the number of candidates isn't given; or in training.
        """
        self._require_evaluation()
        share = self._share(sequence, beside)
        groups = self._groups(sequence)
        positions = local_positions(sequence.offsets, sequence.x.shape[0])
        seconds = sequence.timestamps // 1000
        state = StackState(sequence.offsets.long(), [], [], seconds, share)
        of_row = (
            None
            if share is None
            else torch.repeat_interleave(share, state.offsets.diff(), output_size=seconds.shape[0])
        )
        x = streamed(sequence.x, self.config)
        for block in self._blocks():
            rows = block.project(x, groups)
            state.keys.append(rows.k)
            state.values.append(rows.v)
            if len(state.keys) == self.config.layers:
                break  # nothing reads what the last block makes of the sequence
            attended = interval_attention(
                rows.q,
                rows.k,
                rows.v,
                sequence.offsets,
                sequence.begin,
                sequence.end,
                alpha=self.config.alpha,
                divisor=self._divisor,
                bias=block.bias(positions, seconds),
                max_length=sequence.max_length,
            )
            x = block.merge(x, _scaled(attended, of_row).flatten(1), rows.u, groups)
        return state

    @property
    def dependence(self) -> str | None:
        """On their number where the divisor is the sample's length; on the rivals of a request where it is read listwise."""
        if self.config.divisor == "length":
            return 'with divisor="length" a score depends on how many candidates are scored beside it; train with --set divisor=visible'
        if self.config.listwise:
            return "with listwise=true the candidates of a request see each other; train with --set listwise=false"
        return None

    @property
    def extends(self) -> bool:
        """Unless the divisor is the sample's length, which every further row changes."""
        return self.config.divisor != "length"

    @torch.no_grad()
    def extend(self, state: StackState, later: Tokens, rounded: Callable[[Tensor], Tensor] | None = None) -> StackState:
        """Keys and values of every layer, of the rows before and the further ones."""
        self._require_evaluation()
        if not self.extends:
            raise ValueError(LENGTH_COUNTS)
        own = later.offsets.diff()
        owner = torch.repeat_interleave(own, output_size=later.x.shape[0])
        joined = Joined(state.offsets, owner)
        places = torch.arange(state.seconds.shape[0] + owner.shape[0], device=owner.device)
        starts = torch.repeat_interleave(
            joined.k_offsets[:-1], joined.k_offsets.diff(), output_size=state.seconds.shape[0] + owner.shape[0]
        )
        rows = NewRows(
            later.x, joined, later.begin, later.end, (places - starts).to(torch.int32), later.timestamps // 1000,
            self._groups(later),
        )  # fmt: skip
        keys, values = self._run(state, rows, rounded)[1:]
        return StackState(joined.k_offsets, keys, values, joined.rows(state.seconds, rows.seconds), None)

    @torch.no_grad()
    def score(self, state: StackState, candidates: Candidates) -> Tensor:
        """[C, dim], by attention of the candidates' rows alone: each sees its part of the sequence, and itself."""
        self._require_evaluation()
        if candidates.x.shape[1] != 1:
            raise ValueError(f"this encoder takes one token a candidate, got {candidates.x.shape[1]}")
        # The kernel takes queries sample by sample.
        rivals = rivals_of(candidates) if self.config.listwise else None
        order = torch.argsort(candidates.owner, stable=True) if rivals is None else rivals.order
        owner, end = candidates.owner[order], candidates.end[order]
        joined = Joined(state.offsets, owner)
        positions = joined.rows(local_positions(state.offsets, state.seconds.shape[0]).to(torch.int32), end)
        group_ids = torch.full_like(
            end, CANDIDATE if self.config.norm_groups == "kind" else self.config.group_count - 1
        )
        x, begin = candidates.x[order].squeeze(1), candidates.begin[order]
        spans = None
        if rivals is not None:
            own = (joined.q_positions[rivals.first], joined.q_positions[rivals.last] + 1)
            spans = make_spans(joined.q_offsets, joined.k_offsets, [(begin, end), own])
        rows = NewRows(x, joined, begin, end, positions, candidates.timestamps[order] // 1000, group_ids, spans)
        x = self._run(state, rows, share=None if state.share is None else state.share[owner])[0]
        scored = torch.empty_like(x)
        scored[order] = x
        vectors: Tensor = self.final_norm(scored, group_ids)
        return vectors

    def _run(
        self,
        state: StackState,
        new: NewRows,
        rounded: Callable[[Tensor], Tensor] | None = None,
        share: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """[R, dim]: what the layers make of further rows; and every layer's keys and values, theirs among them."""
        x, seconds = streamed(new.x, self.config), new.joined.rows(state.seconds, new.seconds)
        keys, values = [], []
        for block, before, values_before in zip(self._blocks(), state.keys, state.values, strict=True):
            rows = block.project(x, new.group_ids)
            k, v = (rows.k, rows.v) if rounded is None else (rounded(rows.k), rounded(rows.v))
            keys.append(new.joined.rows(before, k))
            values.append(new.joined.rows(values_before, v))
            bias = block.bias(new.positions, seconds)
            if new.spans is not None:
                attended = attend(
                    rows.q,
                    keys[-1],
                    values[-1],
                    new.spans,
                    new.joined.places,
                    alpha=self.config.alpha,
                    divisor=self.config.span_divisor,
                    bias=bias,
                )
            else:
                attended = delta_attention(
                    rows.q,
                    keys[-1],
                    values[-1],
                    new.joined.q_offsets,
                    new.joined.k_offsets,
                    new.joined.q_positions,
                    new.begin,
                    new.end,
                    alpha=self.config.alpha,
                    divisor=self._divisor,
                    bias=bias,
                )
            x = block.merge(x, _scaled(attended, share).flatten(1), rows.u, new.group_ids)
        return x, keys, values

    def _groups(self, tokens: Tokens) -> Tensor:
        """[T] int32: what the group norm goes by."""
        if self.config.norm_groups == "kind":
            return tokens.group_ids
        assert tokens.sequence_ids is not None  # `wants` asks for them
        return tokens.sequence_ids

    @property
    def _divisor(self) -> Divisor:
        return 1 if self.config.divisor == "length" else self.config.divisor

    def _share(self, sequence: Tokens, beside: Tensor | None) -> Tensor | None:
        if self.config.divisor != "length":
            return None
        if beside is None:
            raise ValueError(f"{LENGTH_COUNTS}; or give `beside`, how many candidates there are in all")
        return 1.0 / (sequence.offsets.diff() + beside).float()

    def shardable_layers(self) -> Sequence[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def _require_evaluation(self) -> None:
        if self.training:
            raise ValueError("user_state and score are for inference: call eval() first; forward trains")


def _scaled(attended: Tensor, share: Tensor | None) -> Tensor:
    """[T, heads, v_dim] times 1 / n ([T])."""
    return attended if share is None else attended * share.to(attended.dtype)[:, None, None]


def candidate_positions(tokens: Tokens) -> Tensor:
    """int32 [T]: a token's index in its sample; a candidate's is the end of what it sees, so that no score depends on the order
    of the candidates, nor on how many events followed the exposure."""
    lengths = (tokens.offsets[1:] - tokens.offsets[:-1]).long()
    index = torch.arange(tokens.x.shape[0], device=tokens.x.device)
    start = torch.repeat_interleave(tokens.offsets[:-1].long(), lengths, output_size=index.shape[0])
    return torch.where(tokens.group_ids == CANDIDATE, tokens.end, (index - start).to(torch.int32))
