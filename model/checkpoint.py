"""Checkpoints: dense state, embedding tables by logical table, and the trainer's position; whole or not there.

    checkpoints/step-N/
      manifest.json   schema and fingerprint, model, step, and size and digest of every file; written last
      dense.pt        model, optimizer, trainer
      tables/         `tokenization.checkpoint`'s

A checkpoint is written beside its place under another name and renamed when complete; one that a crash tore has no place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from genrank.model.documents import Best, CheckpointManifest, FileDigest, ModelIdentity, read_document
from genrank.model.parallel import shard_like, whole
from genrank.model.ranks import Ranks
from genrank.schemas.checked_json import checked, with_checksum
from genrank.schemas.console import logger
from genrank.schemas.errors import UserError
from genrank.schemas.files import file_sha256, move, sync
from genrank.schemas.schema import Schema
from genrank.tokenization.checkpoint import save_tables
from genrank.tokenization.embedding import Embeddings

FORMAT = 1
_OF_FEATURE = (".weights.of_", ".moments.of_")
"""In the names of parameters that belong to one feature (tokenization.tokens.Projection)."""


class DenseState(TypedDict):
    """What dense.pt holds."""

    model: dict[str, Tensor]
    """Parameters and buffers, whole, by name."""
    optimizer: dict[str, dict[str, Tensor]]
    """What the optimizer remembers of each parameter, by its name."""
    position: dict[str, int | float]
    """The fields of `checkpoint_manager.Position`."""
    readers: list[dict[str, int]]
    """Each rank's reader's position."""


def save_checkpoint(
    run: Path,
    step: int,
    *,
    schema: Schema,
    model: ModelIdentity,
    dense: DenseState,
    embeddings: Embeddings,
    ranks: Ranks,
    builds: Mapping[str, str],
    keep: int,
    protect: Sequence[int] = (),
) -> Path:
    """Write `run/checkpoints/step-N` and drop the oldest beyond `keep`, but none of the `protect` steps.

    Every rank calls it; rank 0 returns when the checkpoint is in its place.

    Args:
        builds: of the samples read, by day.
    """
    root = run / "checkpoints"
    final, staging = root / f"step-{step}", root / f".step-{step}.incomplete"
    if ranks.is_main:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    ranks.barrier()
    with _removed_on_failure(staging, ranks):
        save_tables(embeddings, staging / "tables")
        ranks.barrier()
        if ranks.is_main:
            torch.save(dict(dense), staging / "dense.pt")
            files = sorted(path for path in staging.rglob("*") if path.is_file())
            digests = {
                str(p.relative_to(staging)): FileDigest(bytes=p.stat().st_size, sha256=file_sha256(p)) for p in files
            }
            manifest = CheckpointManifest(
                format=FORMAT,
                step=step,
                model=model,
                fingerprint=schema.fingerprint,
                schema=schema,
                boundaries=embeddings.boundaries,
                files=digests,
                builds=dict(builds),
            )
            text = with_checksum(manifest.model_dump_json(by_alias=True), indent=None)
            (staging / "manifest.json").write_text(text)
            for path in [*files, staging / "manifest.json"]:
                sync(path)
            shutil.rmtree(final, ignore_errors=True)
            move(staging, final)
            # Later ones are damaged, or of a way that training left when it went on from an earlier one.
            later = [s for s in steps_of(run) if s > step]
            old = [s for s in steps_of(run) if s <= step and s not in protect]
            for stale in [*later, *old[: max(len(old) - keep, 0)]]:
                shutil.rmtree(root / f"step-{stale}")
    ranks.barrier()
    return final


@contextmanager
def _removed_on_failure(staging: Path, ranks: Ranks) -> Iterator[None]:
    """An error, Ctrl-C or SIGTERM leaves nothing of an unfinished checkpoint."""
    try:
        yield
    except BaseException:
        if ranks.is_main:
            shutil.rmtree(staging, ignore_errors=True)
        raise


def steps_of(run: Path) -> list[int]:
    """Steps that a run has complete checkpoints of, ascending; folders of other names are none of ours."""
    names = (path.parent.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*/manifest.json"))
    return sorted(int(name) for name in names if name.isdecimal() and name.isascii() and str(int(name)) == name)


def find_checkpoint(path: Path, step: int | None = None, *, report: bool = True) -> Path:
    """The checkpoint that a run's folder, or a checkpoint's own, means: `step`, or the best, or else the newest.

    Where neither the step nor the checkpoint is named, one with a damaged file gives way to the newest that is whole.

    Args:
        report: log it if that happens.

    Raises:
        UserError: there is none, or none that is whole.
    """
    path = Path(path)
    if (path / "manifest.json").is_file() and step is None:
        return path
    steps = steps_of(path)
    if step is not None:
        if step not in steps:
            raise UserError(f"{path}: no checkpoint of step {step}; it has {steps or 'none'}")
        return path / "checkpoints" / f"step-{step}"
    if not steps:
        raise UserError(
            f"{path}: no complete checkpoint in it; train first, or give the --out folder of `genrank train`"
        )
    best = path / "checkpoints" / "best.json"
    wanted = read_document(best, Best).step if best.is_file() else steps[-1]
    first = wanted if wanted in steps else steps[-1]
    return newest_whole(path, [first, *(s for s in reversed(steps) if s != first)], report=report)


def newest_whole(run: Path, steps: Sequence[int], *, report: bool = True) -> Path:
    """The first of a run's checkpoints, in the order given, whose every file is as it was written.

    Args:
        report: log those that aren't, if another is.

    Raises:
        UserError: there is none; of the first.
    """
    damaged: list[UserError] = []
    for step in steps:
        folder = run / "checkpoints" / f"step-{step}"
        try:
            read_manifest(folder)
        except UserError as error:
            damaged.append(error)
            continue
        if report:
            for each in damaged:
                logger.warning(f"{str(each).partition(';')[0]}; {folder.name} takes its place")
        return folder
    raise damaged[0]


def read_manifest(folder: Path) -> CheckpointManifest:
    """The manifest of a checkpoint, every file of which is as it was written.

    Raises:
        UserError: a file is missing or changed, or the checkpoint is not this program's.
    """
    manifest = _manifest(folder)
    if damaged := _damaged(folder, manifest):
        raise UserError(
            f"{damaged[0]}; use another checkpoint (--checkpoint of `genrank evaluate`; `genrank verify` lists damaged files) or "
            "train again"
        )
    return manifest


def damaged_files(folder: Path) -> list[str]:
    """Of a checkpoint: which of its files are not as its manifest says, a line each.

    Raises:
        UserError: the manifest can't be read.
    """
    return _damaged(folder, _manifest(folder))


def _manifest(folder: Path) -> CheckpointManifest:
    try:
        text = (folder / "manifest.json").read_text()
        content = checked(text)
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError("it names no format")
        format_ = content["format"]
        if format_ != FORMAT:
            raise UserError(f"{folder} has checkpoint format {format_}; this version reads {FORMAT}")
        return CheckpointManifest.model_validate_json(json.dumps(content))
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        raise UserError(
            f"{folder} is not a checkpoint of `genrank train` (manifest.json: {where}: {wrong['msg']})"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a checkpoint of `genrank train` (manifest.json: {error})") from None


def _damaged(folder: Path, manifest: CheckpointManifest) -> list[str]:
    found = []
    for name, wanted in manifest.files.items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            found.append(f"{folder / 'manifest.json'} names a file outside of the checkpoint: {name}")
        elif not path.is_file() or path.stat().st_size != wanted.bytes or file_sha256(path) != wanted.sha256:
            found.append(f"{path} is missing or damaged")
    return found


def load_dense(folder: Path) -> DenseState:
    """What `save_checkpoint` got as `dense`, on the CPU; nothing but tensors, numbers and names is read.

    Raises:
        UserError: the file is torn, would run code, or holds something else.
    """
    path = folder / "dense.pt"
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile or torn file makes of the reader
        why = (str(error).splitlines() or [""])[0][:120]
        refused = (
            "was refused: it holds more than tensors, numbers and names" if "Weights only" in why else "can't be read"
        )
        raise UserError(
            f"{path} {refused} ({type(error).__name__}); use another checkpoint, or one that you trust"
        ) from None
    if wrong := _not_dense(found):
        raise UserError(f"{path} is not what `genrank train` writes ({wrong}); use another checkpoint")
    return cast(DenseState, found)


def _not_dense(found: object) -> str | None:
    """What is wrong with the content of a dense.pt; None where nothing is."""

    def named(value: object, holds: Callable[[object], bool]) -> bool:
        return isinstance(value, dict) and all(isinstance(k, str) and holds(v) for k, v in value.items())

    def tensors(value: object) -> bool:
        return named(value, lambda each: isinstance(each, Tensor))

    def numbers(value: object) -> bool:
        return named(value, lambda each: isinstance(each, int | float))

    if not isinstance(found, dict):
        return f"a {type(found).__name__}"
    checks: dict[str, Callable[[object], bool]] = {
        "model": tensors,
        "optimizer": lambda value: named(value, tensors),
        "position": numbers,
        "readers": lambda value: isinstance(value, list) and all(map(numbers, value)),
    }
    return next((name for name, holds in checks.items() if not holds(found.get(name))), None)


def load_weights(model: nn.Module, state: Mapping[str, Tensor], folder: Path, *, grown: bool = False) -> None:
    """Fill a model's dense parameters from a checkpoint.

    Args:
        grown: the schema may have gained or lost features since: a new one's projection starts fresh, a lost one's is dropped.

    Raises:
        UserError: the parameters are another model's.
    """
    own = model.state_dict()
    wrong = [n for n, value in state.items() if n in own and own[n].shape != value.shape]
    other = [
        n
        for n in sorted({*own, *state})
        if (n in own) != (n in state) and not (grown and any(part in n for part in _OF_FEATURE))
    ]
    if wrong or other:
        name = (wrong or other)[0]
        shapes = [list(values[name].shape) if name in values else "none" for values in (state, own)]
        raise UserError(
            f"{folder} does not fit this model: parameter {name} is {shapes[0]} there and {shapes[1]} here; "
            "train with the checkpoint's --model, --set and schema (`genrank schema diff`), or without it"
        )
    model.load_state_dict({n: shard_like(v, own[n]) for n, v in state.items() if n in own}, strict=False)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What the optimizer remembers of each parameter, by the parameter's name, as whole tensors; every rank calls it."""
    return {
        name: {key: whole(value) for key, value in optimizer.state[p].items()}
        for name, p in model.named_parameters()
        if p in optimizer.state
    }


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """The inverse of `optimizer_state`; a parameter it doesn't name starts fresh.

    A scalar (AdamW's `step`) goes where the optimizer keeps it: beside the parameter if `fused` or `capturable`, else on the CPU.
    """
    on_device = {
        p for group in optimizer.param_groups if group.get("fused") or group.get("capturable") for p in group["params"]
    }
    for name, p in model.named_parameters():
        if name in state:
            home = p.device if p in on_device else torch.device("cpu")
            optimizer.state[p] = {
                key: shard_like(value, p) if value.dim() else value.to(home, copy=True)
                for key, value in state[name].items()
            }
