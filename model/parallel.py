"""Dense parameters over ranks: whole on every rank (DDP), or in shards (FSDP2). Checkpoints hold whole tensors either way, so
that a run moves between kinds and numbers of ranks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from genrank.model.interface import Model
from genrank.model.ranks import Ranks

DenseParallel = Literal["ddp", "fsdp"]


def spread(model: Model, ranks: Ranks, kind: DenseParallel) -> nn.Module:
    """What to call in the model's place: gradients are averaged over ranks. With `fsdp` the parameters become shards, in place:
    make the optimizer afterwards. A layer of the encoder is gathered when it is computed, everything else with the whole."""
    if ranks.size == 1:
        return model
    if kind == "ddp":
        warnings.filterwarnings(
            "ignore", message="`broadcast_buffers` is deprecated"
        )  # its successor is newer than torch 2.11
        return DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for layer in model.shardable_layers():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # A task's logits are a view; nothing changes them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return model


@contextmanager
def unsynchronised(wrapped: nn.Module) -> Iterator[None]:
    """Backward inside adds to a rank's own gradients: accumulation."""
    if isinstance(wrapped, DistributedDataParallel):
        with wrapped.no_sync():
            yield
    elif isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(False)
        yield
        wrapped.set_requires_gradient_sync(True)
    else:
        yield


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every rank holds the whole parameters, and forward passes wait for no other rank: evaluation, where ranks have
    different numbers of batches."""
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)


def whole(value: Tensor) -> Tensor:
    """A parameter or an optimizer's state of it, as one tensor; every rank calls it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is held: on its device, and as this rank's shard if `like` is one."""
    value = value.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state with whole tensors; every rank calls it."""
    with torch.no_grad():
        return {name: whole(value) for name, value in model.state_dict().items()}
