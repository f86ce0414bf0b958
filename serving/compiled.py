"""Exported programs compiled ahead of time (PyTorch's AOTInductor): `encoder/<name>.pt2` -> `compiled/<name>.pt2`.

A compiled program is a shared library with its weights, made for one kind of machine: a PyTorch, a device, and the instructions that its
processor must have. `MachineKind` records that kind; a loader on any other takes the exported program. Operations of genrank's own are
called through PyTorch's dispatcher, as the exported programs call them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict

from genrank.schemas.errors import UserError

Program = Callable[..., object]

# What x86-64-v4 and -v3 of the psABI stand for, as PyTorch names it.
_V3 = {"avx2", "fma3", "bmi", "bmi2", "f16c", "lzcnt"}
_V4 = _V3 | {"avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl"}


class MachineKind(BaseModel):
    """What a compiled program is made for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    """cpu or cuda."""
    pytorch: str
    """Its version and build."""
    machine: str
    """x86_64, aarch64, ..."""
    instructions: tuple[str, ...]
    """What the processor has, as `torch.cpu.get_capabilities` names it, and a GPU's architecture (sm_90)."""

    @classmethod
    def here(cls, device: torch.device) -> Self:
        """This process's, with that device."""
        has = {name for name, value in torch.cpu.get_capabilities().items() if value is True}
        if device.type == "cuda":
            has.add("sm_{}{}".format(*torch.cuda.get_device_capability(device)))
        return cls(
            device=device.type, pytorch=torch.__version__, machine=platform.machine(), instructions=tuple(sorted(has))
        )

    def unlike(self, here: MachineKind) -> str:
        """Why what was compiled for this kind can't run on another; empty: it can."""
        for wanted, has, what in (
            (self.pytorch, here.pytorch, "PyTorch"),
            (self.device, here.device, "device"),
            (self.machine, here.machine, "processor"),
        ):
            if wanted != has:
                return f"they are for {what} {wanted}, this is {has}"
        lacking = sorted(set(self.instructions) - set(here.instructions))
        return f"they need {', '.join(lacking)}, which this machine lacks" if lacking else ""


def compile_programs(programs: Path, folder: Path) -> None:
    """Compile every program of a folder into another, under the same names. Takes a C++ compiler, and a minute or more.

    Raises:
        UserError: there is no compiler, or it fails.
    """
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    folder.mkdir(parents=True)
    settings = {} if (level := _level()) is None else {"cpp.march": level}
    for path in sorted(programs.glob("*.pt2")):
        try:
            torch._inductor.aoti_compile_and_package(
                torch.export.load(path), package_path=str(folder / path.name), inductor_configs=settings
            )
        except InvalidCxxCompiler:
            raise UserError(
                "--compiled needs a C++ compiler (g++, or what the variable CXX names); install one, or export without --compiled"
            ) from None
        except CppCompileError as error:
            why = str(error).strip().splitlines()[-1]
            raise UserError(
                f"--compiled: the C++ compiler fails on {path.name} ({why}); export without --compiled"
            ) from None


def load_compiled(path: Path, device: torch.device) -> Program:
    """A compiled program, on this kind of machine.

    Raises:
        UserError: its library can't be loaded.
    """
    index = -1 if device.index is None else device.index
    try:
        # What `torch._inductor.aoti_load_package` wraps: that one also runs a C++ compiler, to find out what the processor has, which
        # `MachineKind` knows.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, index)
    except (RuntimeError, OSError) as error:
        why = str(error).strip().splitlines()[0]
        raise UserError(f"{path} can't be loaded ({why}); export the run here again, or without --compiled") from None
    return lambda *given: tuple(loader.boxed_run(list(given)))


def _level() -> str | None:
    """The level of x86-64 to compile for: `native`, the default, would use instructions that nothing records."""
    if platform.machine() != "x86_64":
        return None
    has = set(MachineKind.here(torch.device("cpu")).instructions)
    return "x86-64-v4" if has >= _V4 else "x86-64-v3" if has >= _V3 else "x86-64"
