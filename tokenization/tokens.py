"""Batch -> tokens: one projection per token group, position and time encodings, group ids, and what each token sees."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genrank.kernels.jagged import Permute, interleave
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.tokenization.batch import Batch, Group, pick
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.feature_norm import FeatureNorms
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.plan import tokens_per_row
from genrank.tokenization.visibility import CANDIDATE as CANDIDATE_GROUP
from genrank.tokenization.visibility import HISTORY as HISTORY_GROUP
from genrank.tokenization.visibility import REALTIME as REALTIME_GROUP
from genrank.tokenization.visibility import USER as USER_GROUP
from genrank.tokenization.visibility import Layout, Rule, mtgr

TIME_BUCKETS = 64
"""Log-2 buckets of time on each side of the window's start, two per octave of seconds: up to 2^32 s."""


class Tokenizer(nn.Module):
    """From a batch to the encoder's input.

    Args:
        embeddings: the features' vectors.
        visibility: the rule of `tokenization.visibility` that says which tokens each one sees.
        feature_norm: every feature at one scale before the projection, see `FeatureNorm`.
        candidate_numbers: whether a candidate's token holds its numbers.
        equal_start: projections of features that read one table begin equal, so that an id is the same direction in every
            group's tokens until training moves them apart.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        d_model: int,
        *,
        visibility: Rule = mtgr,
        feature_norm: bool = False,
        candidate_numbers: bool = True,
        equal_start: bool = False,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.schema = embeddings.plan.schema
        self.visibility = visibility
        self.kinds = group_kinds(self.schema)
        self.per_row = {name: tokens_per_row(self.schema, name) for name in self.kinds}
        self.projections = nn.ModuleDict(
            {f"of_{name}": _projection(embeddings, name, d_model, candidate_numbers) for name in self.kinds}
        )
        if equal_start:
            _equalize(embeddings, self.projections)
        self.norms = FeatureNorms(embeddings) if feature_norm else None
        self.positions = nn.ModuleDict(
            {f"of_{s.name}": nn.Embedding(s.max_length * self.per_row[s.name], d_model) for s in self.schema.sequences}
        )
        for positions in self.positions.values():
            assert isinstance(positions, nn.Embedding)
            nn.init.normal_(positions.weight, std=0.02)
        self.time = nn.Embedding(2 * TIME_BUCKETS, d_model)
        nn.init.normal_(self.time.weight, std=0.02)
        self.to(next(embeddings.buffers()).device)

    def forward(self, batch: Batch) -> Tokens:
        """The tokens of a batch on the embeddings' device."""
        return self.tokens(batch, self.features(batch))

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """Group -> [N, width(group)] float32: what is projected to tokens, at one scale where asked for."""
        matrices: dict[str, Tensor] = self.embeddings(batch)
        return self.norms.scaled(matrices) if self.norms is not None else matrices

    def tokens(self, batch: Batch, features: Mapping[str, Tensor]) -> Tokens:
        """The tokens of a batch whose `features` are at hand."""
        parts = []
        for name, kind in self.kinds.items():
            group, k = batch.groups[name], self.per_row[name]
            if k == 0:
                continue
            tokens = self.projections[f"of_{name}"](features[name])
            if f"of_{name}" in self.positions:
                tokens = tokens + self.positions[f"of_{name}"](self._position(group, name, k))
            if kind != USER_GROUP:
                start = torch.repeat_interleave(batch.window_start, group.lengths, output_size=len(group.ts))
                tokens = tokens + _repeat(self.time(time_bucket(group.ts - start)), k)
            parts.append(tokens)
        place = arrange(self.schema, batch)
        begin, end = self.visibility(place.layout)
        return Tokens(
            x=Permute.apply(torch.cat(parts), place.order, place.inverse),  # type: ignore[no-untyped-call]
            offsets=place.offsets.to(torch.int32),
            group_ids=place.layout.group,
            begin=begin,
            end=end,
            timestamps=place.timestamps,
            candidate_rows=place.candidate_rows,
            max_length=int(place.lengths.max()) if len(batch) else 0,
            lengths=place.lengths,
            history_lengths=place.history_lengths,
        )

    def _position(self, group: Group, name: str, k: int) -> Tensor:
        """[k * N] int64: history counts from the newest event; realtime from the oldest, because how many follow must not show."""
        n = torch.arange(k * len(group.ts), device=group.ts.device)
        lengths = group.lengths * k
        if self.kinds[name] == HISTORY_GROUP:
            place = torch.repeat_interleave(group.offsets[1:] * k - 1, lengths, output_size=len(n)) - n
        else:
            place = n - torch.repeat_interleave(group.offsets[:-1] * k, lengths, output_size=len(n))
        limit = next(s.max_length for s in self.schema.sequences if s.name == name) * k
        return place.clamp_(max=limit - 1)


@dataclass
class Arrangement:
    """Where each token of a batch goes, before any of them is computed; T tokens."""

    order: Tensor
    """[T] int64: which token, counted group by group, lies at each place of the sample-major order."""
    inverse: Tensor
    """[T] int64: the place of each."""
    offsets: Tensor
    """[B+1] int64."""
    layout: Layout
    timestamps: Tensor
    """[T] int64 epoch ms."""
    candidate_rows: Tensor
    """[C] int64."""
    lengths: Tensor
    """[B] int64 on the host: tokens of each sample."""
    history_lengths: Tensor
    """[B] int64 on the host: history tokens of each."""


def arrange(schema: Schema, batch: Batch) -> Arrangement:
    """The places of a batch's tokens: sample after sample, each in the order U | S... | R | C.

    Never waits for the device: how many tokens there are, the host knows from shapes and `Group.host_lengths`.
    """
    times, kinds, sees = [], [], []
    none = torch.zeros_like(batch.window_start)
    per_group, users, known = [], none, none
    lengths = histories = torch.zeros(len(batch), dtype=torch.int64)
    for name, kind in group_kinds(schema).items():
        group, k = batch.groups[name], tokens_per_row(schema, name)
        if k == 0:
            continue
        ts = _repeat(group.ts, k)
        times.append(ts)
        kinds.append(torch.full((len(ts),), kind, dtype=torch.int32, device=ts.device))
        sees.append(_realtime_seen(schema, batch, name, kind, k))
        tokens = group.lengths * k
        per_group.append(tokens)
        users = users + tokens if kind == USER_GROUP else users
        known = known + tokens if kind <= HISTORY_GROUP else known
        on_host = group.host_lengths * k
        lengths = lengths + on_host
        histories = histories + on_host if kind == HISTORY_GROUP else histories
    parts = list(nn.functional.pad(torch.stack(per_group).cumsum(1), (1, 0)))
    order, inverse, offsets = interleave(parts, list(map(len, times)))
    total, of_sample = len(order), offsets.diff()

    def spread(per_sample: Tensor) -> Tensor:
        return torch.repeat_interleave(per_sample, of_sample, output_size=total)

    position = torch.arange(total, device=order.device) - spread(offsets[:-1])
    return Arrangement(
        order=order,
        inverse=inverse,
        offsets=offsets,
        layout=Layout(
            position, pick(torch.cat(kinds), order), spread(users), spread(known), pick(torch.cat(sees), order)
        ),
        timestamps=pick(torch.cat(times), order),
        # Candidates are the last group: their tokens, in order, lie at the end of `inverse`.
        candidate_rows=inverse[total - len(batch.item) :],
        lengths=lengths,
        history_lengths=histories,
    )


def _realtime_seen(schema: Schema, batch: Batch, name: str, kind: int, k: int) -> Tensor:
    """[k * N] int64: realtime tokens that were available before each token of a group was."""
    group = batch.groups[name]
    if kind == CANDIDATE_GROUP:
        realtime = schema.realtime
        return batch.candidate_sees.long() * (tokens_per_row(schema, realtime.name) if realtime else 0)
    if kind != REALTIME_GROUP:
        return torch.zeros(k * len(group.ts), dtype=torch.int64, device=group.ts.device)
    seen = batch.realtime_sees.long() * k
    if k == 1:
        return seen
    # An interleaved token sees its own event's earlier tokens too, where they follow what the event sees: not after a tie.
    index = torch.arange(len(group.ts), device=seen.device)
    index -= torch.repeat_interleave(group.offsets[:-1], group.lengths, output_size=len(index))
    step = torch.arange(k, device=seen.device)
    return (seen[:, None] + torch.where((seen == index * k)[:, None], step, 0)).flatten()


def _repeat(rows: Tensor, k: int) -> Tensor:
    return rows if k == 1 else rows.repeat_interleave(k, 0, output_size=k * len(rows))


class Projection(nn.Module):
    """Concatenated features to one token. A weight per feature: checkpoints survive any merge, and added or dropped features."""

    def __init__(self, layout: dict[str, slice], d_model: int) -> None:
        super().__init__()
        width = sum(columns.stop - columns.start for columns in layout.values())
        self.columns = list(layout.values())
        bound = 1 / math.sqrt(max(width, 1))
        self.weights = nn.Module()
        for name, columns in layout.items():
            weight = torch.empty(d_model, columns.stop - columns.start).uniform_(-bound, bound)
            self.weights.register_parameter(f"of_{name}", nn.Parameter(weight))
        self.bias = nn.Parameter(torch.zeros(d_model))
        self.whole = _contiguous(self.columns)

    def forward(self, matrix: Tensor) -> Tensor:
        """[N, width(group)] -> [N, d_model]."""
        if not self.columns:
            return self.bias.expand(len(matrix), -1)
        x = matrix[:, self.whole] if self.whole else torch.cat([matrix[:, columns] for columns in self.columns], 1)
        return nn.functional.linear(x, torch.cat(list(self.weights.parameters()), 1), self.bias)


class _Several(nn.Module):
    """Several tokens a row, one after another: [N, width] -> [N * tokens, d_model]."""

    def __init__(self, projections: list[Projection]) -> None:
        super().__init__()
        self.projections = nn.ModuleList(projections)

    def forward(self, matrix: Tensor) -> Tensor:
        return torch.stack([projection(matrix) for projection in self.projections], 1).flatten(0, 1)


def group_kinds(schema: Schema) -> dict[str, int]:
    """Group name -> 0 user, 1 history, 2 realtime, 3 candidate, in token order."""
    kinds = {USER: USER_GROUP, CANDIDATES: CANDIDATE_GROUP}
    scopes = {s.name: HISTORY_GROUP if s.scope == "history" else REALTIME_GROUP for s in schema.sequences}
    return {name: (kinds | scopes)[name] for name, _ in schema.groups()}


def time_bucket(delta_ms: Tensor) -> Tensor:
    """int64 ms since the window's start -> int64 bucket in [0, 2 * TIME_BUCKETS): two per octave of seconds, by sign."""
    seconds = delta_ms.abs().double() / 1000
    bucket = (2 * torch.log2(1 + seconds)).long().clamp_(max=TIME_BUCKETS - 1)
    return torch.where(delta_ms < 0, TIME_BUCKETS - 1 - bucket, TIME_BUCKETS + bucket)


def _projection(embeddings: Embeddings, group: str, d_model: int, candidate_numbers: bool) -> nn.Module:
    schema, layout = embeddings.plan.schema, embeddings.layout[group]
    if group == CANDIDATES and not candidate_numbers:
        numbers = {feature.name for feature in schema.candidates.features if feature.number_transform}
        layout = {name: columns for name, columns in layout.items() if name not in numbers}
    if group == USER and schema.user.tokens == "feature":
        return _Several([Projection({name: columns}, d_model) for name, columns in layout.items()])
    interleaved = next((s.interleave for s in schema.sequences if s.name == group), ())
    side = {name: columns for name, columns in layout.items() if name not in interleaved}
    own = [Projection({name: layout[name]}, d_model) for name in interleaved]
    return _Several([Projection(side, d_model), *own]) if own else Projection(side, d_model)


def _equalize(embeddings: Embeddings, projections: nn.ModuleDict) -> None:
    """Features that read one logical table start with the weights of the first of them."""
    tables = {
        (group, lookup.feature): lookup.table
        for group in embeddings.groups
        for lookup in embeddings.plan.lookups_of(group)
    }
    first: dict[str, Tensor] = {}
    for key, module in projections.items():
        for part in module.projections if isinstance(module, _Several) else [module]:
            assert isinstance(part, Projection)
            for name, weight in part.weights.named_parameters():
                table = tables.get((key.removeprefix("of_"), name.removeprefix("of_")))
                if table is not None:
                    weight.data.copy_(first.setdefault(table, weight.data))


def _contiguous(columns: list[slice]) -> slice | None:
    """The one slice that the columns make up, if they do."""
    if not columns or any(a.stop != b.start for a, b in itertools.pairwise(columns)):
        return None
    return slice(columns[0].start, columns[-1].stop)
