"""Batch -> tokens: projections of each token group, position and time encodings, group ids, and what each token sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genrank.kernels.jagged import Permute, interleave
from genrank.schemas.derive.columns import SchemaScope
from genrank.schemas.derive.tables import TYPE
from genrank.schemas.errors import UserError
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.tokenization import event_actions
from genrank.tokenization.batch import Batch, Group, pick, ranges
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.feature_norm import FeatureNorms
from genrank.tokenization.jagged_tokens import Candidates, Tokens
from genrank.tokenization.plan import tokens_per_row
from genrank.tokenization.projections import equalize, group_projection, tokens_of
from genrank.tokenization.visibility import CANDIDATE as CANDIDATE_GROUP
from genrank.tokenization.visibility import HISTORY as HISTORY_GROUP
from genrank.tokenization.visibility import REALTIME as REALTIME_GROUP
from genrank.tokenization.visibility import USER as USER_GROUP
from genrank.tokenization.visibility import Layout
from genrank.tokenization.wants import One, TokenShape, Wants

TIME_BUCKETS = 64
"""Log-2 buckets of time on each side of the window's start, two per octave of seconds: up to 2^32 s."""


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
        matrices: dict[str, Tensor]
        if known:
            matrices = self.embeddings(batch)
        else:
            matrices = self.embeddings(batch, {name for name, kind in self.kinds.items() if kind != HISTORY_GROUP})
        return self.norms.scaled(matrices) if self.norms is not None else matrices

    def tokens(self, batch: Batch, matrices: Mapping[str, Tensor], *, known: bool = True) -> Tokens:
        """The tokens of a batch whose `features` are at hand.

        Args:
            known: False makes the rows of realtime events and candidates alone, for a sample of whose others the encoder has all that it
                needs; what they see still counts the sample's rows with the others.
        """
        if self.wants.newest:
            batch, matrices = newest_events(self.schema, batch, matrices, self.wants.newest)
        pieces = []
        for part in self.parts:
            if not known and part.kind <= HISTORY_GROUP:
                pieces.append(torch.zeros((0, self.d_model), device=batch.user.device))
            elif part.separator:
                pieces.append(self.separators[f"of_{part.name}"].expand(len(batch), -1))
            elif part.per_row:
                pieces.append(self._tokens(batch, part, matrices[part.name]))
            else:
                pieces.append(torch.zeros((0, self.d_model), device=batch.user.device))
        place = arrange(self.schema, batch, self.parts)
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

    def _tokens(self, batch: Batch, part: Part, matrix: Tensor) -> Tensor:
        """[N * per_row, d_model]: the tokens of a group's N rows."""
        group, name = batch.groups[part.name], f"of_{part.name}"
        tokens: Tensor = self.projections[name](matrix)
        if name in self.positions:
            tokens = tokens + self.positions[name](self._position(group, part))
        if self.time is not None and part.kind != USER_GROUP:
            start = torch.repeat_interleave(batch.window_start, group.lengths, output_size=len(group.ts))
            tokens = tokens + _repeat(self.time(time_bucket(group.ts - start)), part.per_row)
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
        if part.kind == HISTORY_GROUP and self.wants.positions == "newest":
            place = torch.repeat_interleave(group.offsets[1:] * k - 1, lengths, output_size=len(n)) - n
        else:
            place = n - torch.repeat_interleave(group.offsets[:-1] * k, lengths, output_size=len(n))
        limit = next(s.max_length for s in self.schema.sequences if s.name == part.name) * k
        return place.clamp_(max=limit - 1)


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


class Part(NamedTuple):
    """Tokens of one sort, as they lie in every sample."""

    name: str
    """The token group, or the sequence that a separator follows."""
    kind: int
    """0 user, 1 history, 2 realtime, 3 candidate."""
    per_row: int
    """Tokens of each of the group's rows."""
    separator: bool = False
    """One learned token a sample, available before the window."""


def parts_of(schema: Schema, wants: Wants | None = None) -> list[Part]:
    """What a sample's rows of `Tokens.x` are, in token order.

    Raises:
        UserError: groups of features that are not the schema's.
    """
    wants = Wants() if wants is None else wants
    shape, kinds = token_shape(schema, wants), group_kinds(schema)
    sequences = [name for name in kinds if name not in (USER, CANDIDATES)] if wants.sequence else []
    parts = [Part(USER, USER_GROUP, shape.user)]
    for name in sequences:
        parts.append(Part(name, kinds[name], tokens_of_event(schema, name, wants)))
        if wants.separators and name != sequences[-1]:
            parts.append(Part(name, HISTORY_GROUP, 1, separator=True))
    if isinstance(wants.candidate, One):
        parts.append(Part(CANDIDATES, CANDIDATE_GROUP, 1))
    return [part for part in parts if part.per_row] or parts


def token_shape(schema: Schema, wants: Wants) -> TokenShape:
    """How many tokens of each sort an encoder gets of a schema's samples.

    Raises:
        UserError: groups of features that are not the schema's.
    """
    own = {tokens_of_event(schema, s.name, wants) for s in schema.histories}
    return TokenShape(
        user=tokens_of(schema, USER, wants.user),
        candidate=tokens_of(schema, CANDIDATES, wants.candidate),
        sequences=len(schema.sequences) if wants.sequence else 0,
        event_tokens=own.pop() if len(own) == 1 else int(not own),
    )


def tokens_of_event(schema: Schema, sequence: str, wants: Wants) -> int:
    """Tokens that an event of a sequence becomes."""
    return event_actions.TOKENS if wants.event_actions else tokens_per_row(schema, sequence)


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
    """[C] int64; empty where candidates are no rows."""
    lengths: Tensor
    """[B] int64 on the host: tokens of each sample."""
    history_lengths: Tensor
    """[B] int64 on the host: history tokens of each."""
    users: Tensor
    """[B] int64: user tokens of each sample."""
    known: Tensor
    """[B] int64: user and history tokens of each."""

    def of_candidates(self, schema: Schema, batch: Batch, parts: Sequence[Part]) -> tuple[Layout, Tensor]:
        """Where candidates that are no rows would lie, and [C] int64 the sample of each."""
        group = batch.candidates
        owner = torch.repeat_interleave(group.lengths, output_size=len(batch.item))
        sees = _realtime_seen(schema, batch, Part(CANDIDATES, CANDIDATE_GROUP, 1), parts)
        known = self.known[owner]
        kind = torch.full((len(owner),), CANDIDATE_GROUP, dtype=torch.int32, device=owner.device)
        return Layout(known + sees, kind, self.users[owner], known, sees), owner


def arrange(schema: Schema, batch: Batch, parts: Sequence[Part] | None = None) -> Arrangement:
    """The places of a batch's tokens: sample after sample, each in the order U | S... | R | C.

    Never waits for the device: how many tokens there are, the host knows from shapes and `Group.host_lengths`.

    Args:
        parts: what a sample's tokens are; by default the schema's user tokens, every event and one token a candidate.
    """
    parts = parts_of(schema) if parts is None else parts
    times, kinds, sees = [], [], []
    none = torch.zeros_like(batch.window_start)
    per_part, users, known = [], none, none
    lengths = histories = torch.zeros(len(batch), dtype=torch.int64)
    for part in parts:
        if part.separator:
            ts, tokens, on_host = batch.window_start, torch.ones_like(none), torch.ones_like(lengths)
        else:
            group, k = batch.groups[part.name], part.per_row
            ts, tokens, on_host = _repeat(group.ts, k), group.lengths * k, group.host_lengths * k
        times.append(ts)
        kinds.append(torch.full((len(ts),), part.kind, dtype=torch.int32, device=ts.device))
        sees.append(_realtime_seen(schema, batch, part, parts))
        per_part.append(tokens)
        users = users + tokens if part.kind == USER_GROUP else users
        known = known + tokens if part.kind <= HISTORY_GROUP else known
        lengths = lengths + on_host
        histories = histories + on_host if part.kind == HISTORY_GROUP else histories
    offsets_of = list(nn.functional.pad(torch.stack(per_part).cumsum(1), (1, 0)))
    order, inverse, offsets = interleave(offsets_of, list(map(len, times)))
    total, of_sample = len(order), offsets.diff()

    def spread(per_sample: Tensor) -> Tensor:
        return torch.repeat_interleave(per_sample, of_sample, output_size=total)

    position = torch.arange(total, device=order.device) - spread(offsets[:-1])
    # Candidates are the last part: their tokens, in order, lie at the end of `inverse`.
    ranked = len(batch.item) if parts[-1].kind == CANDIDATE_GROUP else 0
    return Arrangement(
        order=order,
        inverse=inverse,
        offsets=offsets,
        layout=Layout(
            position, pick(torch.cat(kinds), order), spread(users), spread(known), pick(torch.cat(sees), order)
        ),
        timestamps=pick(torch.cat(times), order),
        candidate_rows=inverse[total - ranked :],
        lengths=lengths,
        history_lengths=histories,
        users=users,
        known=known,
    )


def _realtime_seen(schema: Schema, batch: Batch, part: Part, parts: Sequence[Part]) -> Tensor:
    """[per_row * N] int64: realtime tokens that were available before each token of a part was."""
    if part.kind == CANDIDATE_GROUP:
        return batch.candidate_sees.long() * next((p.per_row for p in parts if p.kind == REALTIME_GROUP), 0)
    if part.kind != REALTIME_GROUP:
        rows = len(batch) if part.separator else len(batch.groups[part.name].ts)
        return torch.zeros(part.per_row * rows, dtype=torch.int64, device=batch.window_start.device)
    group, k = batch.groups[part.name], part.per_row
    seen = batch.realtime_sees.long() * k
    if k == 1:
        return seen
    # An interleaved token sees its own event's earlier tokens too, where they follow what the event sees: not after a tie.
    index = torch.arange(len(group.ts), device=seen.device)
    index -= torch.repeat_interleave(group.offsets[:-1], group.lengths, output_size=len(index))
    step = torch.arange(k, device=seen.device)
    return (seen[:, None] + torch.where((seen == index * k)[:, None], step, 0)).flatten()


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


def _repeat(rows: Tensor, k: int) -> Tensor:
    return rows if k == 1 else rows.repeat_interleave(k, 0, output_size=k * len(rows))


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
