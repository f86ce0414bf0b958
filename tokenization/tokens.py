"""Batch -> tokens: projections of each token group, position and time encodings, group ids, and what each token sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from genrank.kernels.compiled import compiled
from genrank.kernels.jagged import permuted
from genrank.schemas.derive.columns import SchemaScope
from genrank.schemas.derive.tables import TYPE
from genrank.schemas.errors import UserError
from genrank.schemas.group import EventSequence
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.tokenization import event_actions
from genrank.tokenization.arrangement import (
    TIME_BUCKETS,
    Arrangement,
    Counted,
    Part,
    PositionalRows,
    arrange,
    buckets_of,
    group_kinds,
    parts_of,
    repeated,
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

    zero_row: Tensor

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
        self.d_model = d_model
        self.time = nn.Embedding(2 * TIME_BUCKETS, d_model) if wants.ages else None
        if self.time is not None:
            nn.init.normal_(self.time.weight, std=0.02)
        self._rows = self._positional_rows(sequences)
        self.register_buffer("zero_row", torch.zeros(1, d_model), persistent=False)
        self.separators = nn.ParameterDict(
            {f"of_{part.name}": 0.02 * torch.randn(d_model) for part in self.parts if part.separator}
        )
        self.to(next(embeddings.buffers()).device)

    def _positional_rows(self, sequences: Sequence[EventSequence]) -> PositionalRows | None:
        counted, first = {}, 0
        for each in sequences:
            rows = each.max_length * tokens_of_event(self.schema, each.name, self.wants)
            newest = each.scope == "history" and self.wants.positions == "newest"
            counted[each.name] = Counted(rows - 1, newest, first)
            first += rows
        times = first if self.wants.ages else None
        zero = first + (2 * TIME_BUCKETS if self.wants.ages else 0)
        return PositionalRows(counted, times, zero) if zero else None

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
        place = arrange(self.schema, batch, self.parts, self._rows)
        begin, end = self.wants.rule(place.layout)
        if not known:
            return self._later(batch, matrices, place, begin, end)
        x, of_candidates = self._dense(matrices, place, place.order, place.inverse, self._candidate_ages(batch))
        return Tokens(
            x=x,
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
            candidates=None if of_candidates is None else self._candidates(batch, of_candidates, place),
        )

    def _later(
        self, batch: Batch, matrices: Mapping[str, Tensor], place: Arrangement, begin: Tensor, end: Tensor
    ) -> Tokens:
        """The rows that are no user's and no history's, in their order; waits for the device."""
        group = place.layout.group
        kept = (group > HISTORY_GROUP).nonzero().squeeze(1)
        lengths = place.lengths - place.history_lengths - sum(p.per_row for p in self.parts if p.kind == USER_GROUP)
        offsets = place.offsets - nn.functional.pad(place.known.cumsum(0), (1, 0))

        def picked(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[kept]

        order = place.order[kept] - (len(group) - len(kept))
        x, of_candidates = self._dense(matrices, place, order, None, self._candidate_ages(batch), known=False)
        return Tokens(
            x=x,
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
            candidates=None if of_candidates is None else self._candidates(batch, of_candidates, place),
        )

    # ------------------------------------------------------------------ what is learned

    def compile_dense(self, backend: str = "inductor") -> None:
        """torch.compile what is computed of features' vectors; where tokens go is found before.

        Args:
            backend: `kernels.compiled`.
        """
        self._dense = compiled(self._dense, backend)  # type: ignore[method-assign]

    def _dense(
        self,
        matrices: Mapping[str, Tensor],
        place: Arrangement,
        order: Tensor,
        inverse: Tensor | None,
        ages: Tensor | None,
        known: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """[T, d_model], the tokens that are rows of their samples; and [C, Tc, d_model], those of candidates that are not.

        Args:
            matrices: the groups' features.
            order: [T] int64: which token, counted group by group, lies at each place.
            inverse: of the order; None: without a gradient.
            ages: `_candidate_ages`.
            known: False: of realtime events and candidates alone.
        """
        pieces = [self._piece(part, matrices, place) for part in self.parts if known or part.kind > HISTORY_GROUP]
        x = torch.cat(pieces) if pieces else torch.zeros((0, self.d_model), device=order.device)
        candidates = None
        if self.parts[-1].name != CANDIDATES:
            candidates = self.projections[f"of_{CANDIDATES}"](matrices[CANDIDATES])
            if self.time is not None:
                candidates = candidates + repeated(self.time(ages), self.shape.candidate)
            candidates = candidates.view(len(matrices[CANDIDATES]), self.shape.candidate, self.d_model)
        if self._rows is None:
            return permuted(x, order, inverse), candidates
        table = [*self.positions.parameters(), *([] if self.time is None else [self.time.weight]), self.zero_row]
        rows = [each[len(each) - len(x) :] for each in place.positional]
        return permuted(x, order, inverse, torch.cat(table), rows), candidates

    def _piece(self, part: Part, matrices: Mapping[str, Tensor], place: Arrangement) -> Tensor:
        """[tokens, d_model] of a part, sample after sample."""
        if part.separator:
            row: Tensor = self.separators[f"of_{part.name}"]
            return row.expand(len(place.users), -1)
        if part.per_row:
            tokens: Tensor = self.projections[f"of_{part.name}"](matrices[part.name])
            return tokens
        return torch.zeros((0, self.d_model), device=place.order.device)

    def _candidate_ages(self, batch: Batch) -> Tensor | None:
        """[C] int64: the time buckets of candidates that are no rows, where they have any."""
        apart = self.time is not None and self.parts[-1].name != CANDIDATES
        return buckets_of(batch, batch.candidates) if apart else None

    # ------------------------------------------------------------------ what is only placed

    def _candidates(self, batch: Batch, x: Tensor, place: Arrangement) -> Candidates:
        layout, owner = place.of_candidates(self.schema, batch, self.parts)
        begin, end = self.wants.rule(layout)
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
