"""Batch -> tokens: projections of each token group, position and time encodings, group ids, and what each token sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from genrank.kernels.jagged import Permute
from genrank.schemas.derive.columns import SchemaScope
from genrank.schemas.derive.tables import TYPE
from genrank.schemas.errors import UserError
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.tokenization import event_actions
from genrank.tokenization.arrangement import (
    TIME_BUCKETS,
    Arrangement,
    Counted,
    Part,
    arrange,
    group_kinds,
    parts_of,
    repeated,
    time_bucket,
    token_shape,
    tokens_of_event,
)
from genrank.tokenization.batch import Batch, Group, pick, ranges
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.feature_norm import FeatureNorms
from genrank.tokenization.jagged_tokens import Candidates, Tokens
from genrank.tokenization.projections import equalize, group_projection
from genrank.tokenization.visibility import CANDIDATE as CANDIDATE_GROUP
from genrank.tokenization.visibility import HISTORY as HISTORY_GROUP
from genrank.tokenization.visibility import USER as USER_GROUP
from genrank.tokenization.wants import Wants


class Tokenizer(nn.Module):
    """From a batch to the encoder's input.

    Args:
        embeddings: the features' vectors.
        wants: who sees whom, how users and candidates become tokens, and what else the encoder asks for.

    Raises:
        UserError: groups of features that the encoder asks for are not the schema's, or requests that it doesn't declare.
    """

    def __init__(self, embeddings: Embeddings, d_model: int, wants: Wants | None = None) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.schema = schema = embeddings.plan.schema
        self.wants = wants = Wants() if wants is None else wants
        if wants.requests and (mistake := next(SchemaScope(schema).request_mistakes("listwise=true"), None)):
            raise UserError(mistake)
        self.kinds = group_kinds(schema)
        self.parts = parts_of(schema, wants)
        sequences = [s for s in schema.sequences if wants.sequence]
        self.shape = token_shape(schema, wants)
        groupings = {USER: wants.user, CANDIDATES: wants.candidate}
        names = [name for name in self.kinds if wants.sequence or name in groupings]
        self.projections = nn.ModuleDict(
            {
                f"of_{name}": group_projection(
                    embeddings, name, d_model, groupings.get(name), event_actions=wants.event_actions
                )
                for name in names
            }
        )
        if wants.equal_start:
            equalize(embeddings, self.projections)
        self.norms = FeatureNorms(embeddings) if wants.feature_norm else None
        self.positions = nn.ModuleDict(
            {
                f"of_{s.name}": nn.Embedding(s.max_length * tokens_of_event(schema, s.name, wants), d_model)
                for s in sequences
            }
        )
        for positions in self.positions.values():
            assert isinstance(positions, nn.Embedding)
            nn.init.normal_(positions.weight, std=0.02)
        self._counted = {
            s.name: Counted(
                s.max_length * tokens_of_event(schema, s.name, wants) - 1,
                s.scope == "history" and wants.positions == "newest",
            )
            for s in sequences
        }
        self.d_model = d_model
        self.time = nn.Embedding(2 * TIME_BUCKETS, d_model) if wants.ages else None
        if self.time is not None:
            nn.init.normal_(self.time.weight, std=0.02)
        self.separators = nn.ParameterDict(
            {f"of_{part.name}": 0.02 * torch.randn(d_model) for part in self.parts if part.separator}
        )
        self.to(next(embeddings.buffers()).device)

    def forward(self, batch: Batch) -> Tokens:
        """The tokens of a batch on the embeddings' device."""
        return self.tokens(batch, self.features(batch))

    def features(self, batch: Batch, *, known: bool = True) -> dict[str, Tensor]:
        """Group -> [N, width(group)] float32: what is projected to tokens, at one scale where asked for.

        Args:
            known: False leaves histories out.
        """
        groups = None if known else {name for name, kind in self.kinds.items() if kind != HISTORY_GROUP}
        matrices: dict[str, Tensor] = self.embeddings(batch, groups, self.norms)
        return matrices

    def tokens(self, batch: Batch, matrices: Mapping[str, Tensor], *, known: bool = True) -> Tokens:
        """The tokens of a batch whose `features` are at hand.

        Args:
            known: False makes the rows of realtime events and candidates alone, for a sample of whose others the encoder has all that it
                needs; what they see still counts the sample's rows with the others.
        """
        if self.wants.newest:
            batch, matrices = newest_events(self.schema, batch, matrices, self.wants.newest)
        place = arrange(self.schema, batch, self.parts, self._counted)
        pieces = []
        for part in self.parts:
            if not known and part.kind <= HISTORY_GROUP:
                pieces.append(torch.zeros((0, self.d_model), device=batch.user.device))
            elif part.separator:
                pieces.append(self.separators[f"of_{part.name}"].expand(len(batch), -1))
            elif part.per_row:
                pieces.append(self._tokens(batch, part, matrices[part.name], place))
            else:
                pieces.append(torch.zeros((0, self.d_model), device=batch.user.device))
        begin, end = self.wants.rule(place.layout)
        if not known:
            return self._later(torch.cat(pieces), batch, matrices, place, begin, end)
        return Tokens(
            x=Permute.apply(torch.cat(pieces), place.order, place.inverse),  # type: ignore[no-untyped-call]
            offsets=place.offsets.to(torch.int32),
            group_ids=place.layout.group,
            begin=begin,
            end=end,
            timestamps=place.timestamps,
            candidate_rows=place.candidate_rows,
            max_length=int(place.lengths.max()) if len(batch) else 0,
            lengths=place.lengths,
            history_lengths=place.history_lengths,
            slots=self._per_token(batch, place, _slots) if self.wants.slots else None,
            sequence_ids=self._per_token(batch, place, _sequence_ids) if self.wants.sequence_ids else None,
            event_types=self._event_types(batch, place) if self.wants.event_actions else None,
            requests=batch.request if self.wants.requests else None,
            candidates=None if self.parts[-1].name == CANDIDATES else self._candidates(batch, matrices, place),
        )

    def _later(
        self,
        pieces: Tensor,
        batch: Batch,
        matrices: Mapping[str, Tensor],
        place: Arrangement,
        begin: Tensor,
        end: Tensor,
    ) -> Tokens:
        """The rows that are no user's and no history's, in their order; waits for the device."""
        group = place.layout.group
        kept = (group > HISTORY_GROUP).nonzero().squeeze(1)
        lengths = place.lengths - place.history_lengths - sum(p.per_row for p in self.parts if p.kind == USER_GROUP)
        offsets = place.offsets - nn.functional.pad(place.known.cumsum(0), (1, 0))

        def picked(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[kept]

        return Tokens(
            x=pieces[place.order[kept] - (len(group) - len(pieces))],
            offsets=offsets.to(torch.int32),
            group_ids=group[kept],
            begin=begin[kept],
            end=end[kept],
            timestamps=place.timestamps[kept],
            candidate_rows=(group[kept] == CANDIDATE_GROUP).nonzero().squeeze(1),
            max_length=int(lengths.max()) if len(batch) else 0,
            lengths=lengths,
            history_lengths=torch.zeros_like(lengths),
            slots=picked(self._per_token(batch, place, _slots) if self.wants.slots else None),
            sequence_ids=picked(self._per_token(batch, place, _sequence_ids) if self.wants.sequence_ids else None),
            requests=batch.request if self.wants.requests else None,
            candidates=None if self.parts[-1].name == CANDIDATES else self._candidates(batch, matrices, place),
        )

    def _tokens(self, batch: Batch, part: Part, matrix: Tensor, place: Arrangement | None = None) -> Tensor:
        """[N * per_row, d_model]: the tokens of a group's N rows.

        Args:
            place: knows the rows' positions and time buckets, where a GPU's kernel found them.
        """
        group, name = batch.groups[part.name], f"of_{part.name}"
        tokens: Tensor = self.projections[name](matrix)
        if name in self.positions:
            found = place.positions.get(part.name) if place is not None else None
            tokens = tokens + self.positions[name](self._position(group, part) if found is None else found)
        if self.time is not None and part.kind != USER_GROUP:
            bucket = place.buckets.get(part.name) if place is not None else None
            if bucket is None:
                start = torch.repeat_interleave(batch.window_start, group.lengths, output_size=len(group.ts))
                bucket = time_bucket(group.ts - start)
            tokens = tokens + repeated(self.time(bucket), part.per_row)
        return tokens

    def _candidates(self, batch: Batch, matrices: Mapping[str, Tensor], place: Arrangement) -> Candidates:
        part = Part(CANDIDATES, CANDIDATE_GROUP, self.shape.candidate)
        layout, owner = place.of_candidates(self.schema, batch, self.parts)
        begin, end = self.wants.rule(layout)
        x = self._tokens(batch, part, matrices[CANDIDATES])
        x = x.view(len(owner), part.per_row, x.shape[-1])
        requests = batch.request if self.wants.requests else None
        return Candidates(x, owner, begin, end, batch.candidates.ts, requests)

    def _per_token(self, batch: Batch, place: Arrangement, value: Callable[[list[Part]], list[Tensor]]) -> Tensor:
        """[T] int32: what each part's tokens have by their place in the row."""
        found = []
        for part, values in zip(self.parts, value(self.parts), strict=True):
            rows = len(batch) if part.separator else len(batch.groups[part.name].ts)
            found.append(values.repeat(rows))
        on_device = torch.cat(found).to(place.order.device, non_blocking=True)
        return pick(on_device, place.order)

    def _event_types(self, batch: Batch, place: Arrangement) -> Tensor:
        """[T] int32: `Tokens.event_types`."""
        ranges, found = event_actions.type_ranges(self.schema), []
        for part in self.parts:
            rows = len(batch) if part.separator else len(batch.groups[part.name].ts)
            of_part = torch.full((rows, part.per_row), -1, dtype=torch.int32, device=place.order.device)
            if part.name in ranges and not part.separator:
                types = batch.groups[part.name].features[TYPE]
                assert isinstance(types, Tensor)
                of_part[:, 0] = types + ranges[part.name].start
            found.append(of_part.flatten())
        return pick(torch.cat(found), place.order)

    def _position(self, group: Group, part: Part) -> Tensor:
        """[k * N] int64: history counts from where `wants.positions` says; realtime from the oldest, because how many follow must not show."""
        k = part.per_row
        n = torch.arange(k * len(group.ts), device=group.ts.device)
        lengths = group.lengths * k
        if self._counted[part.name].newest:
            place = torch.repeat_interleave(group.offsets[1:] * k - 1, lengths, output_size=len(n)) - n
        else:
            place = n - torch.repeat_interleave(group.offsets[:-1] * k, lengths, output_size=len(n))
        return place.clamp_(max=self._counted[part.name].limit)


def newest_events(
    schema: Schema, batch: Batch, matrices: Mapping[str, Tensor], most: int
) -> tuple[Batch, dict[str, Tensor]]:
    """The batch and its groups' matrices with the newest `most` events of each history, which lie at each sample's end.

    What is left out was looked up as everything else, because lookups may have begun before; it gets no gradient. Of the histories' leaves
    the batch keeps times and types alone. Never waits for the device.
    """
    groups, kept = dict(batch.groups), dict(matrices)
    for history in schema.histories:
        group = groups[history.name]
        on_host = group.host_lengths.clamp(max=most)
        end = group.offsets[1:]
        offsets, rows = ranges(torch.maximum(group.offsets[:-1], end - most), end, int(on_host.sum()))
        host_offsets = nn.functional.pad(on_host.cumsum(0), (1, 0))
        kind = pick(group.features[TYPE], rows)  # type: ignore[arg-type]
        groups[history.name] = Group(offsets, group.ts.index_select(0, rows), {TYPE: kind}, host_offsets)
        if history.name in kept:
            kept[history.name] = kept[history.name].index_select(0, rows)
    return dataclasses.replace(batch, groups=groups), kept


def _slots(parts: list[Part]) -> list[Tensor]:
    """Of each part, [per_row] int32: `Tokens.slots` of a row's tokens."""
    users = sum(part.per_row for part in parts if part.kind == USER_GROUP)
    first = {USER_GROUP: 1, CANDIDATE_GROUP: 1 + users}
    return [
        torch.arange(first[part.kind], first[part.kind] + part.per_row, dtype=torch.int32)
        if part.kind in first
        else torch.zeros(part.per_row, dtype=torch.int32)
        for part in parts
    ]


def _sequence_ids(parts: list[Part]) -> list[Tensor]:
    """Of each part, [per_row] int32: `Tokens.sequence_ids` of a row's tokens."""
    names = list(dict.fromkeys(part.name for part in parts if part.name not in (USER, CANDIDATES)))
    number = {USER: 0, CANDIDATES: len(names) + 1} | {name: at + 1 for at, name in enumerate(names)}
    return [torch.full((part.per_row,), number[part.name], dtype=torch.int32) for part in parts]
