"""The processes of a run: one, or those that torchrun started (gloo on CPU, NCCL on GPU)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from genrank.schemas.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    size: int
    device: torch.device
    host: dist.ProcessGroup | None = None
    """What hosts exchange messages by, past their GPUs, which would finish all their work first; None: as everything else."""

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every rank's `values`; a new tensor."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def sum_numbers(self, values: list[int]) -> list[int]:
        """The same of numbers that the host has; no device is waited for."""
        if self.size == 1:
            return values
        total = torch.tensor(values)
        dist.all_reduce(total, group=self.host)
        return [int(value) for value in total.tolist()]

    def gather(self, value: object) -> list[object]:
        """Every rank's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[object] = [None] * self.size
        dist.all_gather_object(values, value, group=self.host)
        return values

    def any_of(self, value: T | None) -> T | None:
        """The value of the first rank that has one."""
        return next((each for each in self.gather(value) if each is not None), None)  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()


def join_ranks(device: str = "auto") -> Ranks:
    """Join the process group that torchrun's environment describes; alone without one.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    own = own_device(device)
    rank, size = place_among_ranks()
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    host = dist.new_group(backend="gloo") if size > 1 and own.type == "cuda" else None
    return Ranks(rank, size, own, host)


def place_among_ranks() -> tuple[int, int]:
    """This process's rank and how many there are, by torchrun's environment."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def own_device(device: str = "auto") -> torch.device:
    """The device that `--device` names: of several GPUs this process's.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu")
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: use auto, cpu or cuda")
    kind = "cuda" if cuda and device != "cpu" else "cpu"
    own = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(own)
    return own
