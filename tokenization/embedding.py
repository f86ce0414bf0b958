"""Batch -> one matrix per token group: every embedded feature, one fused lookup per merged table, learned in backward.

Two backends with the same plan, results and checkpoints: `torchrec` (fbgemm's fused kernels, sharded over ranks) and `torch`
(plain tensors, for boxes without torchrec).
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genrank.schemas.errors import UserError
from genrank.tokenization.batch import Batch
from genrank.tokenization.dynamic import AnyVocabulary, Asked, DynamicVocabulary, answers
from genrank.tokenization.features import Encoded, GroupEncoder, GroupInputs, fitted_features
from genrank.tokenization.merged_lookups import Found, MergedLookups, serves
from genrank.tokenization.merged_vectors import Scales
from genrank.tokenization.plan import Lookup, Plan
from genrank.tokenization.replicas import Replicas
from genrank.tokenization.table_backend import Backend, Sharding, StatePlace, Tables
from genrank.tokenization.torch_tables import TorchTables


class FeatureScales(Scales, Protocol):
    """The same, and on matrices that are at hand."""

    def scaled(self, matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Group -> [N, width(group)] float32, every feature at one scale."""


class _TableColumns(NamedTuple):
    """The columns of a group that come from one merged table."""

    merged: str
    dim: int
    first: int
    last: int
    """Its one-valued features are rows [first, last) of `Encoded.rows`."""
    pooled: list[Lookup]


class PendingLookup(NamedTuple):
    """A batch's lookup up to where rows are read."""

    batch: Batch
    encoded: dict[str, Encoded]
    given: list[tuple[str, Tensor]]
    """Merged tables' rows that have a new owner: initial weights when the lookup is finished, not before."""
    pieces: dict[str, list[Tensor]]
    finish: Callable[[], dict[str, Tensor]]
    found: Found | None = None
    """What a GPU's kernels found of all features at once; the rest is empty then."""


class Embeddings(nn.Module):
    """Every embedded feature and number of a batch, a matrix per token group.

    `parameters()` holds dense ones only (AutoDis); tables learn in backward, with their own optimizer.

    Args:
        plan: which table each feature reads.
        backend: `auto` takes torchrec where it is installed and a process group is running, else torch.
        sharding: of the torchrec backend's tables; `auto` leaves it to the planner.
        boundaries: fitted boundaries of numbers in quantile buckets: `tokenization.quantiles.fit_boundaries`.
        lr: sparse learning rate; set `embeddings.lr` to change it.
        state: where the torch backend keeps its optimizers' state: on the device, or in host memory.
        tables: take these in the place of tables of its own, of which `backend`, `sharding`, `lr`, `state` and `seed` speak.
        seed: of the initial rows. A logical table's initial rows don't depend on how it is merged or sharded.

    Raises:
        UserError: a quantile feature without boundaries, or a table that the backend can't learn.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        backend: Backend = "auto",
        sharding: Sharding = "auto",
        device: torch.device | str = "cpu",
        boundaries: Mapping[str, Sequence[float]] | None = None,
        lr: float = 0.05,
        state: StatePlace = "device",
        seed: int = 0,
        tables: Tables | None = None,
    ) -> None:
        super().__init__()
        for group, name, transform in fitted_features(plan.schema):
            if f"{group}.{name}" not in (boundaries or {}):
                raise UserError(
                    f"feature {group}.{name} has {transform.kind} buckets but no fitted boundaries; "
                    "fit them on the training days (tokenization.quantiles.fit_boundaries)"
                )
        self.plan = plan
        self.boundaries = {name: list(values) for name, values in (boundaries or {}).items()}
        self.groups = [name for name, _ in plan.schema.groups()]
        self.encoders = nn.ModuleList(GroupEncoder(plan, name, self.boundaries) for name in self.groups)
        # Named as the checkpoints of release 0.1 name its parameters.
        self.soft = nn.ModuleList(GroupInputs(plan, name) for name in self.groups)
        self.columns = {name: list(_table_columns(plan, name)) for name in self.groups}
        self.layout = {name: dict(self._columns(name)) for name in self.groups}
        """Group -> feature -> its columns; a dense or log number has two: the value and the missing flag."""
        self.to(device)
        self.backend = choose_backend(backend)
        self.vocabularies = _make_vocabularies(plan, torch.device(device))
        """Logical table -> the ids that have rows in it."""
        self.replicas = Replicas.here() if self.vocabularies else None
        """The ranks that keep them, too."""
        self.frozen = False
        """Rows neither learn nor change their owners: no gradient reaches them, and no id is admitted or evicted."""
        self._pending: deque[PendingLookup] = deque()
        self.tables: Tables = (
            _make_tables(self.backend, plan, torch.device(device), lr, seed, sharding, state)
            if tables is None
            else tables
        )
        self.merged: MergedLookups | None = None
        """All lookups in three launches, where the tables are this process's own and lie on a GPU."""
        if isinstance(self.tables, TorchTables) and serves(self.tables.anchor):
            encoders = dict(zip(self.groups, self._encoders(), strict=True))
            inputs = dict(zip(self.groups, self._inputs(), strict=True))
            place = self.tables.anchor.device
            self.merged = MergedLookups(plan, encoders, self.layout, inputs, self.boundaries, place)

    @property
    def lr(self) -> float:
        """Sparse learning rate."""
        return self.tables.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.tables.lr = value

    def width(self, group: str) -> int:
        """Columns of a group's matrix."""
        return max((columns.stop for columns in self.layout[group].values()), default=0)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Gradient accumulation: backward passes inside only gather; the first one outside applies all of them at once."""
        self.tables.hold(True)
        try:
            yield
        finally:
            self.tables.hold(False)

    def dispatch(self, batch: Batch) -> None:
        """Begin a training batch's lookup while the one before it is computed.

        Ids become rows, and on sharded tables set out for the ranks that hold them. `forward` of this same batch finishes it; it reads
        rows after every update before it, so that nothing changes but the time. Dispatch batches in the order they are computed in;
        state that is saved in between counts them as seen.
        """
        self._pending.append(self._begin(batch))

    def _begin(
        self,
        batch: Batch,
        groups: Collection[str] | None = None,
        more: tuple[str, Callable[[], Tensor]] | None = None,
    ) -> PendingLookup:
        whole = groups is None and more is None and not batch.filler
        if whole and self.merged is not None and serves(self.merged.program.instructions):
            found = self.merged.find(batch)
            given = self._resolve(batch, {name: [ids] for name, ids in found.ids.items()})
            return PendingLookup(batch, {}, given, {}, dict, found)
        encoded = {
            name: encoder.encode(batch, inputs)
            for name, encoder, inputs in zip(self.groups, self._encoders(), self._inputs(), strict=True)
            if groups is None or name in groups
        }
        given = self._resolve(batch, {name: self._ids(name, encoded) for name in self.vocabularies})
        wanted: dict[str, list[Tensor]] = {table.name: [] for table in self.plan.tables}
        for group, each in encoded.items():
            for part in self.columns[group]:
                if part.last > part.first:
                    wanted[part.merged].append(each.rows[part.first : part.last].t().reshape(-1))
                wanted[part.merged] += [each.ragged[lookup.feature].values for lookup in part.pooled]
        if more is not None:
            merged, rows_of = more
            wanted[merged].append(rows_of())
        if groups is not None:
            wanted = {merged: pieces for merged, pieces in wanted.items() if pieces}
        rows = {merged: torch.cat(pieces)[: 0 if batch.filler else None] for merged, pieces in wanted.items()}
        return PendingLookup(batch, encoded, given, wanted, self.tables.dispatch(rows))

    def forward(
        self, batch: Batch, groups: Collection[str] | None = None, norms: FeatureScales | None = None
    ) -> dict[str, Tensor]:
        """Group -> [N, width(group)] float32, N the group's rows in the batch.

        Args:
            groups: only these, in inference on one process: the rest isn't looked up.
            norms: bring every feature to one scale.

        A filler batch reads zeros: nothing of it is counted, looked up or learned, but the rank takes part in what the others do.
        """
        dispatched = bool(self._pending) and self._pending[0].batch is batch
        pending = self._pending.popleft() if dispatched else self._begin(batch, groups)
        if pending.found is not None:
            return self._finish_merged(pending, pending.found, norms)
        matrices = self._finish(pending)[0]
        return matrices if norms is None else norms.scaled(matrices)

    def _finish_merged(self, pending: PendingLookup, found: Found, norms: FeatureScales | None) -> dict[str, Tensor]:
        assert self.merged is not None and isinstance(self.tables, TorchTables)
        for merged, rows in pending.given:
            self.tables.reset(merged, rows)
        return self.merged.vectors(pending.batch, found, self.tables, norms, learns=not self.frozen)

    def with_rows(self, batch: Batch, merged: str, rows: Callable[[], Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The same, and beside it [K, dim] rows of a merged table, in one lookup: a table's optimizer takes a step a lookup.

        Args:
            rows: gives [K] int64 physical rows, once the batch's ids have theirs.
        """
        return self._finish(self._begin(batch, more=(merged, rows)), merged)

    def _finish(self, pending: PendingLookup, more: str = "") -> tuple[dict[str, Tensor], Tensor]:
        """Group -> its matrix, and what was asked for beside them of the merged table `more`."""
        batch, encoded = pending.batch, pending.encoded
        for merged, rows in pending.given:
            self.tables.reset(merged, rows)
        vectors = pending.finish()
        if self.frozen:
            vectors = {name: v.detach() for name, v in vectors.items()}
        if batch.filler:
            sizes = {merged: sum(map(len, pieces)) for merged, pieces in pending.pieces.items()}
            vectors = {name: torch.cat([v, v.new_zeros(sizes[name], v.shape[1])]) for name, v in vectors.items()}
        found = {
            # Splitting costs backward a copy of all gradients; one piece is whole already.
            merged: iter(torch.split(vectors[merged], list(map(len, pieces))) if len(pieces) > 1 else [vectors[merged]])
            for merged, pieces in pending.pieces.items()
        }
        out: dict[str, Tensor] = {}
        for group, inputs in zip(self.groups, self.soft, strict=True):
            if group not in encoded:
                continue
            single, pooled = [], []
            for part in self.columns[group]:
                if part.last > part.first:
                    single.append(next(found[part.merged]).view(-1, (part.last - part.first) * part.dim))
                for lookup in part.pooled:
                    ragged = encoded[group].ragged[lookup.feature]
                    pooled.append(pool(next(found[part.merged]), ragged.offsets, lookup.pooling == "mean"))
            columns = [*single, *pooled, *inputs(encoded[group].inputs)]
            out[group] = (
                torch.cat(columns, 1)
                if columns
                else torch.empty((len(batch.groups[group].ts), 0), device=batch.user.device)
            )
        return out, next(found[more]) if more else batch.user.new_empty(0)

    def _ids(self, name: str, encoded: dict[str, Encoded]) -> list[Tensor]:
        """Where the ids of a dynamic table lie."""
        return [
            encoded[lookup.group].ragged[lookup.feature].values if lookup.pooling else encoded[lookup.group].rows[at]
            for lookup, at in self.plan.readers_of(name)
            if lookup.group in encoded
        ]

    def _resolve(self, batch: Batch, ids_of: Mapping[str, list[Tensor]]) -> list[tuple[str, Tensor]]:
        """Dynamic ids to physical rows, in place; in training mode they're counted, admitted and evicted on the way.

        Args:
            ids_of: logical table -> where its ids lie.

        Returns:
            The merged tables' rows that got a new owner.
        """
        asked = {
            name: Asked(
                self.vocabularies[name], torch.cat(where) if len(where) > 1 else where[0], self.plan.start_of(name)
            )
            for name, where in ids_of.items()
            if where and name in self.vocabularies
        }
        if batch.filler:
            asked = {name: each._replace(ids=each.ids[:0]) for name, each in asked.items()}
        renewed = []
        now = None
        if self.training and not self.frozen:
            now = batch.window_start.amax() if len(batch.window_start) else batch.window_start.new_zeros(())
        for name, (rows, given) in zip(asked, answers(list(asked.values()), now, self.replicas), strict=True):
            if len(given):
                renewed.append((self.plan.logical[name][1].name, given))
            if len(rows) and rows is not ids_of[name][0]:
                for target, part in zip(ids_of[name], torch.split(rows, list(map(len, ids_of[name]))), strict=True):
                    target.copy_(part)
        return renewed

    def _encoders(self) -> list[GroupEncoder]:
        return cast(list[GroupEncoder], list(self.encoders))

    def _inputs(self) -> list[GroupInputs]:
        return cast(list[GroupInputs], list(self.soft))

    def _columns(self, group: str) -> Iterator[tuple[str, slice]]:
        lookups = self.plan.lookups_of(group)
        widths = [(lookup.feature, lookup.dim) for lookup in lookups if not lookup.pooling]
        widths += [(lookup.feature, lookup.dim) for lookup in lookups if lookup.pooling]
        widths += self._inputs()[self.groups.index(group)].widths
        start = 0
        for feature, width in widths:
            yield feature, slice(start, start + width)
            start += width


def pool(values: Tensor, offsets: Tensor, mean: bool) -> Tensor:
    """[M, D] vectors to [N, D]: the sum, or mean, of each row's values; zeros for a row without any.

    Args:
        values: [M, D] float32.
        offsets: [N+1] int64: row n pools values[offsets[n]:offsets[n+1]].
        mean: the mean instead of the sum.
    """
    lengths = offsets.diff()
    owner = torch.repeat_interleave(lengths, output_size=len(values))
    summed = values.new_zeros((len(lengths), values.shape[1])).index_add(0, owner, values)
    return summed / lengths.clamp(min=1)[:, None] if mean else summed


def choose_backend(backend: Backend) -> Literal["torchrec", "torch"]:
    """The backend that `auto` means here.

    Raises:
        UserError: torchrec is asked for and isn't installed.
    """
    installed = importlib.util.find_spec("torchrec") is not None
    if backend == "torchrec" and not installed:
        raise UserError('backend "torchrec": torchrec is not installed; install it or use backend "torch"')
    if backend == "auto":
        return "torchrec" if installed and dist.is_available() and dist.is_initialized() else "torch"
    return backend


def _make_tables(
    backend: Literal["torchrec", "torch"],
    plan: Plan,
    device: torch.device,
    lr: float,
    seed: int,
    sharding: Sharding,
    state: StatePlace,
) -> Tables:
    if backend == "torch":
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise UserError('backend "torch" keeps whole tables in one process; install torchrec to train with several')
        return TorchTables(plan, device, lr, seed, state)
    if state == "host":
        raise UserError(
            'optimizer state in host memory: backend "torchrec" keeps it beside the rows, in fbgemm\'s kernels; use backend "torch"'
        )
    from genrank.tokenization.torchrec_tables import TorchrecTables

    return TorchrecTables(plan, device, lr, seed, sharding)


def _make_vocabularies(plan: Plan, device: torch.device) -> dict[str, AnyVocabulary]:
    tables = {name: table for name, (table, _) in plan.logical.items() if table.dynamic}
    if serves(torch.empty(0, device=device)):
        from genrank.tokenization.device_vocabulary import DeviceVocabulary

        return {name: DeviceVocabulary(table, device) for name, table in tables.items()}
    return {name: DynamicVocabulary(table, device) for name, table in tables.items()}


def _table_columns(plan: Plan, group: str) -> Iterator[_TableColumns]:
    lookups = plan.lookups_of(group)
    single = [lookup.merged for lookup in lookups if lookup.pooling is None]
    for table in plan.tables:
        first = single.index(table.name) if table.name in single else 0
        pooled = [lookup for lookup in lookups if lookup.pooling and lookup.merged == table.name]
        if table.name in single or pooled:
            yield _TableColumns(table.name, table.dim, first, first + single.count(table.name), pooled)
