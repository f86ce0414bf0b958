"""Where the tokens of a batch go, before any of them is computed: sample after sample, each in the order U | S... | R | C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genrank.kernels.dispatch import backend_for
from genrank.kernels.jagged import interleave
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.tokenization import event_actions
from genrank.tokenization.batch import Batch, Group, pick
from genrank.tokenization.plan import tokens_per_row
from genrank.tokenization.projections import tokens_of
from genrank.tokenization.visibility import CANDIDATE as CANDIDATE_GROUP
from genrank.tokenization.visibility import HISTORY as HISTORY_GROUP
from genrank.tokenization.visibility import REALTIME as REALTIME_GROUP
from genrank.tokenization.visibility import USER as USER_GROUP
from genrank.tokenization.visibility import Layout
from genrank.tokenization.wants import One, TokenShape, Wants

TIME_BUCKETS = 64
"""Log-2 buckets of time on each side of the window's start, two per octave of seconds: up to 2^32 s."""


class Counted(NamedTuple):
    """How a sequence's learned positions are counted."""

    limit: int
    """The largest."""
    newest: bool
    """From the newest event on, instead of the oldest."""
    first: int = 0
    """The positional table's row of position 0."""


class PositionalRows(NamedTuple):
    """Which rows of one table are positions of sequences, which time buckets, and which is zero."""

    counted: Mapping[str, Counted]
    """Of each sequence."""
    times: int | None
    """The row of the first time bucket; None: there are none."""
    zero: int
    """Of tokens that have no position, or no time."""

    def used(self, positions: Tensor, buckets: Tensor) -> tuple[Tensor, ...]:
        """Those of the two that are not all `zero`."""
        return (*([positions] if self.counted else []), *([] if self.times is None else [buckets]))


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
    """[B+1] int64, or on a GPU int32."""
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
    positional: tuple[Tensor, ...] = ()
    """[T] int64 each, group by group: the rows of the positional table (`PositionalRows`) that are added to each token, those of positions and
    those of `time_bucket`, where it has any."""

    def of_candidates(self, schema: Schema, batch: Batch, parts: Sequence[Part]) -> tuple[Layout, Tensor]:
        """Where candidates that are no rows would lie, and [C] int64 the sample of each."""
        group = batch.candidates
        owner = torch.repeat_interleave(group.lengths, output_size=len(batch.item))
        sees = _realtime_seen(schema, batch, Part(CANDIDATES, CANDIDATE_GROUP, 1), parts)
        known = self.known[owner]
        kind = torch.full((len(owner),), CANDIDATE_GROUP, dtype=torch.int32, device=owner.device)
        return Layout(known + sees, kind, self.users[owner], known, sees), owner


def arrange(
    schema: Schema,
    batch: Batch,
    parts: Sequence[Part] | None = None,
    rows: PositionalRows | None = None,
) -> Arrangement:
    """The places of a batch's tokens: sample after sample, each in the order U | S... | R | C.

    Never waits for the device: how many tokens there are, the host knows from shapes and `Group.host_lengths`.

    Args:
        parts: what a sample's tokens are; by default the schema's user tokens, every event and one token a candidate.
        rows: of the positional table, where there is one.
    """
    parts = parts_of(schema) if parts is None else parts
    if len(batch) and backend_for(batch.window_start) == "triton":
        return _arrange_in_one_launch(batch, parts, rows)
    times, kinds, sees = [], [], []
    none = torch.zeros_like(batch.window_start)
    per_part, users, known = [], none, none
    lengths = histories = torch.zeros(len(batch), dtype=torch.int64)
    for part in parts:
        if part.separator:
            ts, tokens, on_host = batch.window_start, torch.ones_like(none), torch.ones_like(lengths)
        else:
            group, k = batch.groups[part.name], part.per_row
            ts, tokens, on_host = repeated(group.ts, k), group.lengths * k, group.host_lengths * k
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
        positional=() if rows is None else _positional(batch, parts, rows),
    )


def _arrange_in_one_launch(batch: Batch, parts: Sequence[Part], rows: PositionalRows | None) -> Arrangement:
    from genrank.kernels.jagged import gpu

    records: list[gpu.Part] = []
    first = 0
    times = -1 if rows is None or rows.times is None else rows.times
    lengths = histories = torch.zeros(len(batch), dtype=torch.int64)
    sees = {REALTIME_GROUP: batch.realtime_sees, CANDIDATE_GROUP: batch.candidate_sees}
    for part in parts:
        k, count = part.per_row, rows.counted.get(part.name) if rows else None
        if part.separator:
            record = gpu.Part(0, batch.window_start.data_ptr(), len(batch), 1, part.kind, first, 0, -1, 0, 0, -1)
            on_host = torch.ones_like(lengths)
        else:
            group, seen = batch.groups[part.name], sees.get(part.kind)
            tokens = len(group.ts) * k
            record = gpu.Part(
                *(group.offsets.data_ptr(), group.ts.data_ptr(), tokens, k, part.kind, first),
                0 if seen is None else seen.data_ptr(),
                *((count.first, count.limit, int(count.newest)) if count else (-1, 0, 0)),
                times if part.kind != USER_GROUP else -1,
            )
            on_host = group.host_lengths * k
        records.append(record)
        first += record.tokens
        lengths = lengths + on_host
        histories = histories + on_host if part.kind == HISTORY_GROUP else histories
    zero = -1 if rows is None else rows.zero
    made = gpu.arrange_tokens(
        records, batch.window_start, (USER_GROUP, HISTORY_GROUP, REALTIME_GROUP, CANDIDATE_GROUP), zero
    )
    return Arrangement(
        order=made.order,
        inverse=made.inverse,
        offsets=made.offsets,
        layout=Layout(made.position, made.groups, made.users, made.known, made.sees),
        timestamps=made.timestamps,
        candidate_rows=made.inverse[first - (len(batch.item) if parts[-1].kind == CANDIDATE_GROUP else 0) :],
        lengths=lengths,
        history_lengths=histories,
        users=made.users_of,
        known=made.known_of,
        positional=() if rows is None else rows.used(made.positions, made.buckets),
    )


def _positional(batch: Batch, parts: Sequence[Part], rows: PositionalRows) -> tuple[Tensor, ...]:
    positions, buckets = [], []
    for part in parts:
        count = None if part.separator else rows.counted.get(part.name)
        group = batch.groups[part.name]
        none = batch.window_start.new_full((len(batch) if part.separator else part.per_row * len(group.ts),), rows.zero)
        positions.append(none if count is None else count.first + positions_of(group, part.per_row, count))
        if part.separator or part.kind == USER_GROUP or rows.times is None:
            buckets.append(none)
        else:
            buckets.append(rows.times + repeated(buckets_of(batch, group), part.per_row))
    return rows.used(torch.cat(positions), torch.cat(buckets))


def positions_of(group: Group, k: int, counted: Counted) -> Tensor:
    """[k * N] int64 of a group's N rows of k tokens: history counts from where `wants.positions` says; realtime from the oldest, because how
    many follow must not show."""
    n = torch.arange(k * len(group.ts), device=group.ts.device)
    lengths = group.lengths * k
    if counted.newest:
        place = torch.repeat_interleave(group.offsets[1:] * k - 1, lengths, output_size=len(n)) - n
    else:
        place = n - torch.repeat_interleave(group.offsets[:-1] * k, lengths, output_size=len(n))
    return place.clamp_(max=counted.limit)


def buckets_of(batch: Batch, group: Group) -> Tensor:
    """[N] int64: `time_bucket` of the time between the window's start and each of a group's N rows."""
    start = torch.repeat_interleave(batch.window_start, group.lengths, output_size=len(group.ts))
    return time_bucket(group.ts - start)


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


def repeated(rows: Tensor, k: int) -> Tensor:
    """Each row k times, one after another."""
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
