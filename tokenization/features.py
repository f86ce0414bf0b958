"""From what a sample stores to what a lookup reads: ids to rows, numbers to inputs, derived features on the way.

Every operation is stacked over the features of a token group: a group of twenty hashed ids costs the launches of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genrank.schemas.derive.tables import TYPE, transform_of
from genrank.schemas.features import Feature, HashedCross, TimeGap, TimePart
from genrank.schemas.ids import MISSING_ID, MISSING_ROW, SPECIAL_ROWS, UNKNOWN_ROW, hash_string
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.schemas.transforms import AutoDis, Dense, FixedBuckets, Log1p, QuantileBuckets
from genrank.schemas.vocabularies import Dynamic, Enumerated, Hashed, Identity, Vocabulary
from genrank.tokenization.batch import Batch, Ragged
from genrank.tokenization.plan import Lookup, Plan

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@dataclass
class Encoded:
    """A token group, ready for lookups; N rows."""

    rows: Tensor
    """[lookups of one value, N] int64 in the plan's order: physical rows; raw ids where the table is dynamic."""
    ragged: dict[str, Ragged]
    """Multi-valued features: the same, per value."""
    numbers: Tensor
    """[N, 2 * dense numbers] float32: per number the transformed value (0 where missing) and the missing flag."""
    soft: Tensor
    """[N, AutoDis numbers] float32, sign(x) log(1 + |x|); NaN where missing."""


class GroupEncoder(nn.Module):
    """Encodes one token group. Holds constants only, nothing that is learned.

    Args:
        boundaries: `<group>.<feature>` -> fitted boundaries, for every number in quantile buckets.
    """

    first_rows: Tensor
    shift: Tensor
    scale: Tensor
    ids_at: Tensor
    buckets_at: Tensor
    edges: Tensor
    edge_counts: Tensor

    def __init__(self, plan: Plan, group: str, boundaries: Mapping[str, Sequence[float]]) -> None:
        super().__init__()
        schema = plan.schema
        self.group = group
        self.offset_ms = schema.offset_ms
        self.histories = [s.name for s in schema.histories]
        self.realtime = schema.realtime.name if schema.realtime else None
        self.features = {feature.name: feature for feature in dict(schema.groups())[group]}
        self.lookups = plan.lookups_of(group)
        single = [lookup for lookup in self.lookups if lookup.pooling is None]
        vocabularies = {lookup.feature: plan.logical[lookup.table][0].vocabulary for lookup in self.lookups}
        self.single = len(single)
        self.ragged = {lookup.feature: Vocabularies([vocabularies[lookup.feature]]) for lookup in _ragged(self.lookups)}
        self.starts = {lookup.feature: _start(lookup, plan) for lookup in self.lookups}
        self.ragged_encoders = nn.ModuleList(self.ragged.values())

        # Positions in `rows` by how the row is found: through a vocabulary, a bucket, a part of the time, the event's type.
        self.ids: list[tuple[int, str]] = []
        self.buckets: list[tuple[int, str]] = []
        self.parts: list[tuple[int, str]] = []
        self.type_at: int | None = None
        for at, lookup in enumerate(single):
            feature = self.features.get(lookup.feature)
            if feature is None:
                assert lookup.feature == TYPE
                self.type_at = at
            elif isinstance(feature, TimePart):
                self.parts.append((at, feature.part))
            elif transform_of(feature):
                self.buckets.append((at, feature.name))
            else:
                self.ids.append((at, feature.name))
        self.vocabularies = Vocabularies([vocabularies[name] for _, name in self.ids])
        self.event_types = len(next((s.events for s in schema.sequences if s.name == group), ()))

        numbers = [f for f in self.features.values() if isinstance(transform_of(f), Dense | Log1p)]
        self.logs = [f.name for f in numbers if isinstance(transform_of(f), Log1p)]
        self.denses = [f.name for f in numbers if isinstance(transform_of(f), Dense)]
        self.softs = [f.name for f in self.features.values() if isinstance(transform_of(f), AutoDis)]
        dense = [transform_of(self.features[name]) for name in self.denses]
        self._constant("first_rows", [[self.starts[lookup.feature]] for lookup in single] or [[0]], torch.int64)
        self._constant("shift", [[t.shift] for t in dense if isinstance(t, Dense)] or [[0.0]], torch.float32)
        self._constant("scale", [[t.scale] for t in dense if isinstance(t, Dense)] or [[1.0]], torch.float32)
        edges = [_edges(group, self.features[name], boundaries) for _, name in self.buckets]
        width = max(map(len, edges), default=0)
        self._constant("edges", [e + [torch.inf] * (width - len(e)) for e in edges] or [[]], torch.float64)
        # Index tensors that stay on the device: an index by a Python list is a copy to it, every time.
        self._constant("ids_at", [at for at, _ in self.ids], torch.int64)
        self._constant("buckets_at", [at for at, _ in self.buckets], torch.int64)
        self._constant("edge_counts", [[len(e)] for e in edges] or [[0]], torch.int64)

    def _constant(self, name: str, values: object, dtype: torch.dtype) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)

    @property
    def number_names(self) -> list[str]:
        """Dense and log numbers, in the column order of `Encoded.numbers`."""
        return self.logs + self.denses

    def forward(self, batch: Batch) -> Encoded:
        """Rows, ids and numbers of this group's N rows."""
        group = batch.groups[self.group]
        n, device = len(group.ts), group.ts.device
        rows = torch.empty((self.single, n), dtype=torch.int64, device=device)
        if self.ids:
            ids = torch.stack([self._id(batch, name) for _, name in self.ids])
            rows.index_copy_(0, self.ids_at, self.vocabularies(ids))
        if self.buckets:
            x = torch.stack([self.number(batch, name) for _, name in self.buckets]).double()
            rows.index_copy_(0, self.buckets_at, self._bucket_rows(x))
        if self.parts:
            local = group.ts + self.offset_ms
            for at, part in self.parts:
                rows[at] = time_part(local, part) + SPECIAL_ROWS
        if self.type_at is not None:
            types = _tensor(group.features[TYPE])
            known = (types >= 0) & (types < self.event_types)
            rows[self.type_at] = torch.where(known, types + SPECIAL_ROWS, UNKNOWN_ROW)
        if self.single:
            rows += self.first_rows
        ragged = {}
        for name, vocabulary in self.ragged.items():
            leaf = group.features[name]
            assert isinstance(leaf, Ragged)
            ragged[name] = Ragged(vocabulary(leaf.values[None])[0] + self.starts[name], leaf.offsets)
        return Encoded(rows, ragged, self._numbers(batch, n), self._softs(batch, n))

    # ------------------------------------------------------------------ numbers

    def _numbers(self, batch: Batch, n: int) -> Tensor:
        if not self.number_names:
            return torch.empty((n, 0), device=batch.window_start.device)
        x = torch.stack([self.number(batch, name) for name in self.number_names])
        missing = x.isnan()
        x = x.nan_to_num(0.0)
        logs = len(self.logs)
        y = torch.cat([signed_log(x[:logs]), (x[logs:] - self.shift) * self.scale]) if self.denses else signed_log(x)
        return torch.stack([y.masked_fill(missing, 0.0), missing.float()], 1).flatten(0, 1).t()

    def _softs(self, batch: Batch, n: int) -> Tensor:
        if not self.softs:
            return torch.empty((n, 0), device=batch.window_start.device)
        return signed_log(torch.stack([self.number(batch, name) for name in self.softs], 1))

    def _bucket_rows(self, x: Tensor) -> Tensor:
        bucket = torch.searchsorted(self.edges, x.contiguous(), right=True)
        return torch.where(x.isnan(), MISSING_ROW, torch.minimum(bucket, self.edge_counts) + SPECIAL_ROWS)

    def number(self, batch: Batch, name: str) -> Tensor:
        """[N] float32: the raw number of a feature, stored or derived; NaN where missing."""
        feature = self.features[name]
        if isinstance(feature, TimeGap):
            return self._gap(batch, feature)
        return _tensor(batch.groups[self.group].features[name])

    def _gap(self, batch: Batch, feature: TimeGap) -> Tensor:
        """Seconds since the moment the feature names; NaN where there is none."""
        group = batch.groups[self.group]
        if feature.column:
            since = _tensor(group.features[feature.name])
        elif self.group == CANDIDATES:
            since = newest_visible(batch, self.histories, self.realtime)
        else:
            # The event before; none before a sample's first, which is the next sample's (or past the end) where it has no event.
            since = nn.functional.pad(group.ts, (1, 0)).index_fill_(0, group.offsets[:-1], MISSING_ID)[:-1]
        missing = since == MISSING_ID
        seconds = (group.ts - since.masked_fill(missing, 0)).double() / 1000
        return seconds.masked_fill(missing, torch.nan).float()

    # ------------------------------------------------------------------ ids

    def _id(self, batch: Batch, name: str) -> Tensor:
        """[N] int64: the stored id, or the hash of several."""
        feature = self.features[name]
        if isinstance(feature, HashedCross):
            return cross([self._operand(batch, of) for of in feature.of])
        return _tensor(batch.groups[self.group].features[name])

    def _operand(self, batch: Batch, of: str) -> Tensor:
        group = batch.groups[self.group]
        owner, _, name = of.rpartition(".")
        if owner in ("", self.group):
            return _tensor(group.features[name])
        users = _tensor(batch.groups[USER].features[name])
        return torch.repeat_interleave(users, group.lengths, output_size=len(group.ts))


class Vocabularies(nn.Module):
    """Ids to rows of their logical tables, for F features at once: [F, N] int64 -> [F, N] int64.

    Ids of dynamic vocabularies pass unchanged; the id map before the table gives them rows.
    """

    identity_at: Tensor
    hashed_at: Tensor
    enumerated_at: Tensor
    identity_sizes: Tensor
    hashed_sizes: Tensor
    values: Tensor
    rows: Tensor

    def __init__(self, vocabularies: list[Vocabulary]) -> None:
        super().__init__()
        self.identity = [i for i, v in enumerate(vocabularies) if isinstance(v, Identity)]
        self.hashed = [i for i, v in enumerate(vocabularies) if isinstance(v, Hashed)]
        self.enumerated = [i for i, v in enumerate(vocabularies) if isinstance(v, Enumerated)]
        for name, at in (("identity", self.identity), ("hashed", self.hashed), ("enumerated", self.enumerated)):
            self.register_buffer(f"{name}_at", torch.tensor(at, dtype=torch.int64), persistent=False)
        self.alone = len(set(map(type, vocabularies))) == 1
        self.dynamic_only = all(isinstance(v, Dynamic) for v in vocabularies)
        self._sizes("identity_sizes", [vocabularies[i].size for i in self.identity])
        self._sizes("hashed_sizes", [vocabularies[i].size for i in self.hashed])
        listed = [v for v in vocabularies if isinstance(v, Enumerated)]
        ids = [[hash_string(x) if isinstance(x, str) else x for x in v.values] for v in listed]
        width = max(map(len, ids), default=0)
        # Sorted ids with the row of each; padded at the end with the largest id and row, which changes no search result.
        pairs = [sorted(zip(each, range(SPECIAL_ROWS, SPECIAL_ROWS + len(each)), strict=True)) for each in ids]
        padded = [p + [p[-1]] * (width - len(p)) for p in pairs]
        self.register_buffer("values", torch.tensor([[v for v, _ in p] for p in padded]), persistent=False)
        self.register_buffer("rows", torch.tensor([[r for _, r in p] for p in padded]), persistent=False)

    def _sizes(self, name: str, sizes: list[int]) -> None:
        self.register_buffer(name, torch.tensor(sizes, dtype=torch.int64)[:, None], persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        if self.dynamic_only:
            return ids
        if self.alone:
            return self._rows_of_one_kind(ids)
        rows = ids.clone()
        for at, convert in (
            (self.identity_at, self._identity_rows),
            (self.hashed_at, self._hashed_rows),
            (self.enumerated_at, self._enumerated_rows),
        ):
            if len(at):
                rows.index_copy_(0, at, convert(ids.index_select(0, at)))
        return rows

    def _rows_of_one_kind(self, ids: Tensor) -> Tensor:
        if self.identity:
            return self._identity_rows(ids)
        return self._hashed_rows(ids) if self.hashed else self._enumerated_rows(ids)

    def _identity_rows(self, ids: Tensor) -> Tensor:
        known = (ids >= 0) & (ids < self.identity_sizes)
        return _or_missing(torch.where(known, ids + SPECIAL_ROWS, UNKNOWN_ROW), ids)

    def _hashed_rows(self, ids: Tensor) -> Tensor:
        return _or_missing((mix(ids) & (2**63 - 1)) % self.hashed_sizes + SPECIAL_ROWS, ids)

    def _enumerated_rows(self, ids: Tensor) -> Tensor:
        at = torch.searchsorted(self.values, ids.contiguous()).clamp_(max=self.values.shape[1] - 1)
        known = self.values.gather(1, at) == ids
        return _or_missing(torch.where(known, self.rows.gather(1, at), UNKNOWN_ROW), ids)


def signed_log(x: Tensor) -> Tensor:
    """sign(x) * log(1 + |x|)."""
    return torch.sign(x) * torch.log1p(x.abs())


def mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al., OOPSLA 2014), element by element: int64 -> int64, a bijection."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def cross(ids: list[Tensor]) -> Tensor:
    """[N] int64: one id from the combination of several, order mattering; missing where all of them are."""
    crossed = torch.zeros_like(ids[0])
    missing = torch.ones_like(ids[0], dtype=torch.bool)
    for each in ids:
        crossed = mix(crossed ^ mix(each))
        missing &= each == MISSING_ID
    return crossed.masked_fill(missing, MISSING_ID)


def time_part(local: Tensor, part: str) -> Tensor:
    """The part of a local time, counted from 0: int64 epoch ms (shifted by the offset) -> int64.

    Weekday 0 is Monday. Day of month and month by Hinnant's civil-from-days (howardhinnant.github.io/date_algorithms.html).
    """
    days = torch.div(local, DAY_MS, rounding_mode="floor")
    hour = torch.div(local - days * DAY_MS, HOUR_MS, rounding_mode="floor")
    if part == "hour":
        return hour
    weekday = (days + 3) % 7
    if part == "weekday":
        return weekday
    if part == "hour_of_week":
        return weekday * 24 + hour
    z = days + 719_468
    era = torch.div(z, 146_097, rounding_mode="floor")
    doe = z - era * 146_097
    yoe = (doe - doe // 1_460 + doe // 36_524 - doe // 146_096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    march = (5 * doy + 2) // 153
    return doy - (153 * march + 2) // 5 if part == "day_of_month" else (march + 2) % 12


def newest_visible(batch: Batch, histories: list[str], realtime: str | None) -> Tensor:
    """[C] int64 epoch ms of the newest event each candidate sees; `MISSING_ID` if it sees none."""
    newest = torch.full_like(batch.window_start, MISSING_ID)
    for name in histories:
        history = batch.groups[name]
        if len(history.ts):
            last = history.ts[(history.offsets[1:] - 1).clamp_(min=0)]
            newest = torch.where(history.lengths > 0, torch.maximum(newest, last), newest)
    candidates = batch.candidates
    seen = torch.repeat_interleave(newest, candidates.lengths, output_size=len(candidates.ts))
    if realtime is None or not len(batch.groups[realtime].ts):
        return seen
    events = batch.groups[realtime]
    begin = torch.repeat_interleave(events.offsets[:-1], candidates.lengths, output_size=len(candidates.ts))
    last = begin + batch.candidate_sees - 1
    running = running_max(events.ts, events.offsets)
    return torch.where(batch.candidate_sees > 0, torch.maximum(seen, running[last.clamp(min=0)]), seen)


def running_max(values: Tensor, offsets: Tensor) -> Tensor:
    """[N] int64: the largest value so far within each segment. Values are epoch ms: below 2^43 in size (year 2248)."""
    segment = torch.repeat_interleave(offsets.diff(), output_size=len(values)) << 44
    return torch.cummax(segment + values, 0).values - segment


def _edges(group: str, feature: Feature, boundaries: Mapping[str, Sequence[float]]) -> list[float]:
    transform = transform_of(feature)
    if isinstance(transform, FixedBuckets):
        return list(transform.boundaries)
    assert isinstance(transform, QuantileBuckets)
    return list(boundaries[f"{group}.{feature.name}"])


def _ragged(lookups: list[Lookup]) -> list[Lookup]:
    return [lookup for lookup in lookups if lookup.pooling]


def _start(lookup: Lookup, plan: Plan) -> int:
    """What is added to a row to make it physical: nothing to an id that an id map has yet to place."""
    return 0 if plan.by_name[lookup.merged].dynamic else lookup.start


def _or_missing(rows: Tensor, ids: Tensor) -> Tensor:
    return torch.where(ids == MISSING_ID, MISSING_ROW, rows)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _tensor(leaf: Tensor | Ragged) -> Tensor:
    assert isinstance(leaf, Tensor)
    return leaf


def quantile_features(schema: Schema) -> list[tuple[str, str, QuantileBuckets]]:
    """(group, feature, transform) of every number in quantile buckets."""
    return [
        (group, feature.name, transform)
        for group, features in schema.groups()
        for feature in features
        if isinstance(transform := transform_of(feature), QuantileBuckets)
    ]
