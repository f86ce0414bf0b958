"""Batch -> one matrix per token group: every embedded feature, one fused lookup per merged table, learned in backward.

Two backends with the same plan, results and checkpoints: `torchrec` (fbgemm's fused kernels, sharded over ranks) and `torch`
(plain tensors, for boxes without torchrec).
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genrank.schemas.derive.tables import transform_of
from genrank.schemas.errors import UserError
from genrank.schemas.transforms import AutoDis
from genrank.tokenization.batch import Batch
from genrank.tokenization.dynamic import DynamicVocabulary
from genrank.tokenization.features import Encoded, GroupEncoder, quantile_features
from genrank.tokenization.plan import Lookup, Plan
from genrank.tokenization.torch_tables import Shard, StatePlace, TorchTables

Backend = Literal["auto", "torchrec", "torch"]
Sharding = Literal["auto", "row_wise", "table_wise"]


class Tables(Protocol):
    """The merged tables of a plan, as a backend keeps them."""

    lr: float
    """Sparse learning rate, multiplied by each table's `lr_scale`."""
    seed: int
    """Of the initial rows, those given to new ids included."""

    def lookup(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Merged table -> [K] int64 physical rows, to [K, dim] float32; under autograd, backward updates the rows."""

    def dispatch(self, rows: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        """The part of `lookup` that doesn't read rows; the rest when called."""

    def hold(self, held: bool) -> None:
        """While held, backward gathers gradients without applying them; the next backward after it applies all at once."""

    def reset(self, merged: str, rows: Tensor) -> None:
        """Initial weights, and no optimizer state, for [K] int64 physical rows."""

    def shards(self, merged: str) -> list[Shard]:
        """The rows of a merged table that this process holds."""


class _Block(NamedTuple):
    """The columns of a group that come from one merged table."""

    merged: str
    dim: int
    first: int
    last: int
    """Its one-valued features are rows [first, last) of `Encoded.rows`."""
    pooled: list[Lookup]


class _Begun(NamedTuple):
    """A batch's lookup up to where rows are read."""

    batch: Batch
    encoded: dict[str, Encoded]
    given: list[tuple[str, Tensor]]
    """Merged tables' rows that have a new owner: initial weights when the lookup is finished, not before."""
    pieces: dict[str, list[Tensor]]
    finish: Callable[[], dict[str, Tensor]]


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
    ) -> None:
        super().__init__()
        for group, name, _ in quantile_features(plan.schema):
            if f"{group}.{name}" not in (boundaries or {}):
                raise UserError(
                    f"feature {group}.{name} has quantile buckets but no fitted boundaries; "
                    "fit them on the training days (tokenization.quantiles.fit_boundaries)"
                )
        self.plan = plan
        self.boundaries = {name: list(values) for name, values in (boundaries or {}).items()}
        self.groups = [name for name, _ in plan.schema.groups()]
        self.encoders = nn.ModuleList(GroupEncoder(plan, name, self.boundaries) for name in self.groups)
        self.soft = nn.ModuleList(SoftBuckets(plan, name) for name in self.groups)
        self.blocks = {name: list(_blocks(plan, name)) for name in self.groups}
        self.layout = {name: dict(self._columns(name)) for name in self.groups}
        """Group -> feature -> its columns; a dense or log number has two: the value and the missing flag."""
        self.to(device)
        self.backend = choose_backend(backend)
        self.group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
        self.vocabularies = {
            name: DynamicVocabulary(table, device) for name, (table, _) in plan.logical.items() if table.dynamic
        }
        """Logical table -> the ids that have rows in it."""
        self._begun: deque[_Begun] = deque()
        self.tables: Tables = _make_tables(self.backend, plan, torch.device(device), lr, seed, sharding, state)

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
        """Begin a training batch's lookup while the one before it is computed: ids become rows, and on sharded tables set out for the
        ranks that hold them. `forward` of this same batch finishes it; it reads rows after every update before it, so that nothing
        changes but the time. Dispatch batches in the order they are computed in; state that is saved in between counts them as seen."""
        self._begun.append(self._begin(batch))

    def _begin(self, batch: Batch) -> _Begun:
        encoded: dict[str, Encoded] = {
            name: encoder(batch) for name, encoder in zip(self.groups, self.encoders, strict=True)
        }
        given = self._resolve(batch, encoded)
        wanted: dict[str, list[Tensor]] = {table.name: [] for table in self.plan.tables}
        for group, each in encoded.items():
            for block in self.blocks[group]:
                if block.last > block.first:
                    wanted[block.merged].append(each.rows[block.first : block.last].t().reshape(-1))
                wanted[block.merged] += [each.ragged[lookup.feature].values for lookup in block.pooled]
        rows = {merged: torch.cat(pieces)[: 0 if batch.filler else None] for merged, pieces in wanted.items()}
        return _Begun(batch, encoded, given, wanted, self.tables.dispatch(rows))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Group -> [N, width(group)] float32, N the group's rows in the batch.

        A filler batch reads zeros: nothing of it is counted, looked up or learned, but the rank takes part in what the others do.
        """
        begun = self._begun.popleft() if self._begun and self._begun[0].batch is batch else self._begin(batch)
        encoded = begun.encoded
        for merged, rows in begun.given:
            self.tables.reset(merged, rows)
        vectors = begun.finish()
        if batch.filler:
            sizes = {merged: sum(map(len, pieces)) for merged, pieces in begun.pieces.items()}
            vectors = {name: torch.cat([v, v.new_zeros(sizes[name], v.shape[1])]) for name, v in vectors.items()}
        found = {
            # Splitting costs backward a copy of all gradients; one piece is whole already.
            merged: iter(torch.split(vectors[merged], list(map(len, pieces))) if len(pieces) > 1 else [vectors[merged]])
            for merged, pieces in begun.pieces.items()
        }
        out: dict[str, Tensor] = {}
        for group, soft in zip(self.groups, self.soft, strict=True):
            single, pooled = [], []
            for block in self.blocks[group]:
                if block.last > block.first:
                    single.append(next(found[block.merged]).view(-1, (block.last - block.first) * block.dim))
                for lookup in block.pooled:
                    ragged = encoded[group].ragged[lookup.feature]
                    pooled.append(pool(next(found[block.merged]), ragged.offsets, lookup.pooling == "mean"))
            columns = [*single, *pooled, soft(encoded[group].soft), encoded[group].numbers]
            out[group] = torch.cat([c for c in columns if c.shape[1]] or columns[-1:], 1)
        return out

    def _resolve(self, batch: Batch, encoded: dict[str, Encoded]) -> list[tuple[str, Tensor]]:
        """Dynamic ids to physical rows, in place; in training mode they're counted, admitted and evicted on the way. Returns the
        merged tables' rows that got a new owner."""
        renewed = []
        for name, vocabulary in self.vocabularies.items():
            merged, start = self.plan.logical[name][1], self.plan.start_of(name)
            where = [
                encoded[lookup.group].ragged[lookup.feature].values
                if lookup.pooling
                else encoded[lookup.group].rows[at]
                for lookup, at in self.plan.readers_of(name)
            ]
            ids = torch.cat(where)[: 0 if batch.filler else None]
            if self.training:
                rows, given = vocabulary.observe(ids, int(batch.window_start.max()) if len(ids) else 0, self.group)
                if len(given):
                    renewed.append((merged.name, given + start))
            else:
                rows = vocabulary.rows_of(ids)
            if len(rows):
                for target, part in zip(where, torch.split(rows + start, list(map(len, where))), strict=True):
                    target.copy_(part)
        return renewed

    def _columns(self, group: str) -> Iterator[tuple[str, slice]]:
        at = self.groups.index(group)
        encoder, soft = self.encoders[at], self.soft[at]
        assert isinstance(encoder, GroupEncoder) and isinstance(soft, SoftBuckets)
        lookups = self.plan.lookups_of(group)
        widths = [(lookup.feature, lookup.dim) for lookup in lookups if not lookup.pooling]
        widths += [(lookup.feature, lookup.dim) for lookup in lookups if lookup.pooling]
        widths += soft.widths + [(name, 2) for name in encoder.number_names]
        start = 0
        for feature, width in widths:
            yield feature, slice(start, start + width)
            start += width


class SoftBuckets(nn.Module):
    """AutoDis numbers of a group (Guo et al., KDD 2021, arXiv:2012.08986, equations 6 to 9), with a vector for missing.

    Numbers with equal (buckets, dim, temperature) are computed together; parameters are kept by feature.
    """

    def __init__(self, plan: Plan, group: str) -> None:
        super().__init__()
        self.kinds: dict[AutoDis, list[tuple[int, str]]] = {}
        features = dict(plan.schema.groups())[group]
        found = [(f.name, t) for f in features if isinstance(t := transform_of(f), AutoDis)]
        for at, (name, transform) in enumerate(found):
            self.kinds.setdefault(transform, []).append((at, name))
        self.of = nn.ModuleDict({f"of_{name}": _Soft(transform) for name, transform in found})

    @property
    def widths(self) -> list[tuple[str, int]]:
        """(feature, columns) in output order."""
        return [(name, kind.dim) for kind, members in self.kinds.items() for _, name in members]

    def forward(self, x: Tensor) -> Tensor:
        """[N, numbers] float32 with NaN for missing -> [N, sum of dims]."""
        # Stacked, not indexed by a list, which would be a copy to the device that waits.
        of_kind = {kind: torch.stack([x[:, at] for at, _ in members], 1) for kind, members in self.kinds.items()}
        out = [self._kind(kind, [n for _, n in members], of_kind[kind]) for kind, members in self.kinds.items()]
        return torch.cat(out, 1) if out else x

    def _kind(self, kind: AutoDis, names: list[str], x: Tensor) -> Tensor:
        def stacked(parameter: str) -> Tensor:
            return torch.stack([self.of[f"of_{name}"].get_parameter(parameter) for name in names])

        hidden = nn.functional.leaky_relu(x.nan_to_num(0.0)[:, :, None] * stacked("lift"))
        scores = torch.einsum("nfh,fhk->nfk", hidden, stacked("mixing")) + stacked("skip") * hidden
        vectors = torch.einsum("nfh,fhd->nfd", (scores / kind.temperature).softmax(-1), stacked("vectors"))
        return torch.where(x.isnan()[:, :, None], stacked("missing"), vectors).flatten(1)


class _Soft(nn.Module):
    """The parameters of one AutoDis number."""

    def __init__(self, kind: AutoDis) -> None:
        super().__init__()
        h = kind.buckets
        self.lift = nn.Parameter(torch.empty(h).uniform_(-1, 1))
        self.mixing = nn.Parameter(torch.empty(h, h).uniform_(-(h**-0.5), h**-0.5))
        self.skip = nn.Parameter(torch.ones(1))
        self.vectors = nn.Parameter(torch.empty(h, kind.dim).normal_(std=0.02))
        self.missing = nn.Parameter(torch.zeros(kind.dim))


def pool(values: Tensor, offsets: Tensor, mean: bool) -> Tensor:
    """[M, D] vectors to [N, D]: the sum, or mean, of each row's values; zeros for a row without any.

    Args:
        offsets: [N+1] int64.
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


def _blocks(plan: Plan, group: str) -> Iterator[_Block]:
    lookups = plan.lookups_of(group)
    single = [lookup.merged for lookup in lookups if lookup.pooling is None]
    for table in plan.tables:
        first = single.index(table.name) if table.name in single else 0
        pooled = [lookup for lookup in lookups if lookup.pooling and lookup.merged == table.name]
        if table.name in single or pooled:
            yield _Block(table.name, table.dim, first, first + single.count(table.name), pooled)
