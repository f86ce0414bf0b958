"""Merged tables on TorchRec: fbgemm's fused kernels, sharded over ranks by the planner; the same code for one process or many.

Found on torchrec 1.8 and worked around here: a sharding without an explicit compute kernel falls back to a dense one that
corrupts the heap on the CPU, so `fused` is the only kernel the planner may choose; data-parallel and column-wise sharding of an
EmbeddingCollection fail or differ, so it chooses between row-wise and table-wise; fused Adam has no CPU mode, so tables learn by
rowwise Adagrad.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import Tensor, nn
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbedding
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ShardingType
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from genrank.schemas.errors import UserError
from genrank.tokenization.initial_rows import INIT_CHUNK, initial_rows
from genrank.tokenization.plan import MergedTable, Plan
from genrank.tokenization.table_backend import EPS, Shard, Sharding


class TorchrecTables:
    """The merged tables of a plan, sharded over the ranks of the default process group (one is made if there is none).

    Sparse gradients are averaged over ranks, as DistributedDataParallel averages dense ones: a rank's loss is the mean over its
    own samples.

    Rows are deduplicated in two stages. Before the all-to-all, a row that repeats in a rank's batch is asked for once; its vector
    and its summed gradient cross the wire once. After it, a row that several ranks ask for is looked up once by the rank that
    owns it, and its gradients reach the optimizer as one sum. torchrec has the first stage for itself, for CUDA only
    (`use_index_dedup`).

    Args:
        sharding: `auto` lets the planner choose; `row_wise` and `table_wise` ask for one.
        dedup: the stages; fewer than both are there to be compared with.

    Raises:
        UserError: a table that learns by rowwise Adam.
    """

    def __init__(
        self,
        plan: Plan,
        device: torch.device,
        lr: float,
        seed: int,
        sharding: Sharding = "auto",
        *,
        dedup: Literal[0, 1, 2] = 2,
    ) -> None:
        for table in plan.tables:
            if table.optimizer.kind != "rowwise_adagrad":
                names = ", ".join(member.name for member in table.members)
                raise UserError(
                    f'tables {names} learn by {table.optimizer.kind}, which backend "torchrec" can\'t; '
                    'use SparseOptimizer(kind="rowwise_adagrad") or backend "torch"'
                )
        if not dist.is_initialized():
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        self.plan = plan
        self.seed = seed
        # A single rank's kernels see every repetition anyway, and sum its gradients themselves.
        self.dedup = dedup if dist.get_world_size() > 1 else 0
        self.module = _shard(_Collections(plan, lr), plan, device, sharding)
        if self.dedup == 2:
            for collection in self.module.module.of.values():
                collection._lookups = [_OnceEach(lookup) for lookup in collection._lookups]
        self._shards = {table.name: list(self._local(table)) for table in plan.tables}
        for table in plan.tables:
            for shard in self._shards[table.name]:
                rows = torch.arange(shard.first, shard.first + len(shard.weight), device=shard.weight.device)
                for chunk in torch.split(rows, INIT_CHUNK):
                    shard.weight[chunk - shard.first] = initial_rows(table, chunk, seed)
        self.lr = lr

    @property
    def lr(self) -> float:
        """Sparse learning rate, multiplied by each table's `lr_scale`."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = value
        for kernel in self._kernels():
            # Tables with different optimizer settings never share a kernel.
            table = self.plan.by_name[kernel.config.embedding_tables[0].name]
            kernel.emb_module.set_learning_rate(value * table.optimizer.lr_scale)

    def lookup(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Merged table -> [K] int64 physical rows, to [K, dim] float32; under autograd, backward updates the rows.

        Every rank takes part in every lookup, with no rows if it has none to look up.
        """
        return self.dispatch(rows)()

    def dispatch(self, rows: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        """Rows set out for the ranks that hold them; the rest of `lookup` when called, once, and by all ranks."""
        if torch.is_inference_mode_enabled():
            # fbgemm's operators have no kernel for inference tensors: leave the mode, with copies made outside it.
            with torch.inference_mode(False), torch.no_grad():
                found = self.lookup({name: at.clone() for name, at in rows.items()})
            return lambda: found
        for name, at in rows.items():
            _check_range(self.plan.by_name[name], at)
        if not self.dedup:
            whole: Callable[[], dict[str, Tensor]] = self.module.module.dispatch(rows)
            return whole
        distinct, inverse = {}, {}
        for name, at in rows.items():
            distinct[name], inverse[name] = torch.unique(at, return_inverse=True)
        finish = self.module.module.dispatch(distinct)
        return lambda: {name: vectors.index_select(0, inverse[name]) for name, vectors in finish().items()}

    def hold(self, held: bool) -> None:
        """Refused: fbgemm's kernels apply every backward at once."""
        if held:
            raise UserError(
                'gradient accumulation: backend "torchrec" applies sparse gradients in every backward; '
                'raise the token budget instead, or use backend "torch"'
            )

    def reset(self, merged: str, rows: Tensor) -> None:
        """Initial weights, and no optimizer state, for [K] int64 physical rows (below 0: none); every rank passes the same rows."""
        for shard in self._shards[merged]:
            own = rows[(rows >= shard.first) & (rows < shard.first + len(shard.weight))]
            shard.weight[own - shard.first] = initial_rows(self.plan.by_name[merged], own, self.seed)
            for state in shard.state.values():
                state[own - shard.first] = 0

    def shards(self, merged: str) -> list[Shard]:
        """The rows of a merged table that this rank holds."""
        return self._shards[merged]

    def updates(self, merged: str) -> int:
        """0: rowwise Adagrad, the one optimizer here, counts no steps."""
        return 0

    def set_updates(self, merged: str, count: int) -> None:
        """Nothing: see `updates`."""

    # ------------------------------------------------------------------ inside torchrec

    def _kernels(self) -> Iterator[BatchedFusedEmbedding]:
        # torchrec keeps its kernels out of `modules()`.
        for collection in self.module.module.of.values():
            for lookup in collection._lookups:
                yield from (module for module in lookup.modules() if isinstance(module, BatchedFusedEmbedding))

    def _local(self, table: MergedTable) -> Iterator[Shard]:
        for kernel in self._kernels():
            weights = kernel.emb_module.split_embedding_weights()
            states = kernel.emb_module.split_optimizer_states()
            for config, weight, (second, *_) in zip(kernel.config.embedding_tables, weights, states, strict=True):
                if config.name == table.name and len(weight):
                    yield Shard(config.local_metadata.shard_offsets[0], weight, {"second": second.view(-1)})


class _OnceEach(nn.Module):
    """A rank's lookup in its shards, with each row that was asked for looked up once."""

    def __init__(self, lookup: nn.Module) -> None:
        super().__init__()
        self.lookup = lookup

    def forward(self, asked: KeyedJaggedTensor) -> Tensor:
        """What ranks asked for, table by table and rank by rank, to the rows' vectors in that order, flattened."""
        rows, keys = asked.values(), asked.keys()
        if not len(rows):
            empty: Tensor = self.lookup(asked)
            return empty
        # Equal rows of different tables stay apart: MAX_ROWS keeps a table's below 2^31.
        counts = asked.lengths().view(len(keys), -1).sum(1)
        table = torch.arange(len(keys), device=rows.device).repeat_interleave(counts, output_size=len(rows))
        distinct, inverse = torch.unique((table << 31) + rows, return_inverse=True)
        lengths = torch.bincount(distinct >> 31, minlength=len(keys))
        once = KeyedJaggedTensor(keys=keys, values=distinct & (2**31 - 1), lengths=lengths)
        vectors: Tensor = self.lookup(once).view(len(distinct), -1)
        return vectors.index_select(0, inverse).view(-1)


class _Collections(nn.Module):
    """One EmbeddingCollection per dim; the merged tables are its tables, and its features."""

    def __init__(self, plan: Plan, lr: float) -> None:
        super().__init__()
        self.names: dict[int, list[str]] = {}
        for table in plan.tables:
            self.names.setdefault(table.dim, []).append(table.name)
        self.of = nn.ModuleDict({str(dim): _collection(plan, names, lr) for dim, names in self.names.items()})

    def forward(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        # All lookups begin before the first is waited for.
        begun = [self.of[str(dim)](_keyed(names, rows)) for dim, names in self.names.items()]
        return {name: jagged.values() for found in begun for name, jagged in found.items()}

    def dispatch(self, rows: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
        """`forward` of sharded collections in two parts: what ranks ask of each other, and, when called, what they answer."""
        asked = []
        for dim, names in self.names.items():
            collection: Any = self.of[str(dim)]
            context = collection.create_context()
            asked.append((collection, context, collection.input_dist(context, _keyed(names, rows))))
        sent = [(collection, context, sizes.wait()) for collection, context, sizes in asked]

        def finish() -> dict[str, Tensor]:
            begun = [each.compute_and_output_dist(context, ids.wait()) for each, context, ids in sent]
            return {name: jagged.values() for found in begun for name, jagged in found.items()}

        return finish


def _collection(plan: Plan, names: list[str], lr: float) -> EmbeddingCollection:
    tables = [plan.by_name[name] for name in names]
    configs = [
        EmbeddingConfig(name=t.name, embedding_dim=t.dim, num_embeddings=t.rows, feature_names=[t.name]) for t in tables
    ]
    collection = EmbeddingCollection(tables=configs, device=torch.device("meta"))
    for table in tables:
        settings = {
            "lr": lr * table.optimizer.lr_scale,
            "eps": EPS,
            "weight_decay": table.optimizer.weight_decay,
            "weight_decay_mode": WeightDecayMode.L2,
        }
        apply_optimizer_in_backward(RowWiseAdagrad, [collection.embeddings[table.name].weight], settings)
    return collection


def _keyed(names: list[str], rows: dict[str, Tensor]) -> KeyedJaggedTensor:
    """A merged table's rows are one bag of one sample: the result keeps their order."""
    values = torch.cat([rows[name] for name in names])
    lengths = torch.tensor([len(rows[name]) for name in names], device=values.device)
    return KeyedJaggedTensor(keys=names, values=values, lengths=lengths)


def _shard(module: _Collections, plan: Plan, device: torch.device, sharding: Sharding) -> DistributedModelParallel:
    kinds = {
        "auto": [ShardingType.ROW_WISE.value, ShardingType.TABLE_WISE.value],
        "row_wise": [ShardingType.ROW_WISE.value],
        "table_wise": [ShardingType.TABLE_WISE.value],
    }[sharding]
    constraints = {
        table.name: ParameterConstraints(sharding_types=kinds, compute_kernels=[EmbeddingComputeKernel.FUSED.value])
        for table in plan.tables
    }
    # Both warn, once per table or batch, of settings that only their own fleet has.
    for name in ("torchrec", "torch.fx._symbolic_trace"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        topology = Topology(world_size=dist.get_world_size(), compute_device=device.type)
        planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
        sharders = [EmbeddingCollectionSharder()]
        chosen = planner.collective_plan(module, sharders, dist.group.WORLD)
        return DistributedModelParallel(module, device=device, plan=chosen, sharders=sharders)


def _check_range(table: MergedTable, rows: Tensor) -> None:
    """A row out of range would silently be some other row, or another table's."""
    if not len(rows):
        return
    inside = (rows.amin() >= 0) & (rows.amax() < table.rows)
    if rows.device.type == "cuda":
        torch._assert_async(inside, f"a row of merged table {table.name} is out of range")
    elif not bool(inside):
        raise IndexError(
            f"merged table {table.name} has {table.rows} rows; rows {rows.min()}..{rows.max()} were looked up"
        )
