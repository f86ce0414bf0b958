"""A run's folder: config.json, schema.json, log.jsonl, tensorboard/, checkpoints/, and summary.json when training is over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pydantic import ValidationError

from genrank.model.config import FREE_TO_CHANGE, TrainConfig
from genrank.model.documents import (
    LOG_ROW,
    LogRow,
    StepRow,
    Summary,
    read_document,
    read_text,
    write_document,
)
from genrank.schemas.errors import UserError
from genrank.schemas.files import write_atomically
from genrank.schemas.lock import LOCK, locked
from genrank.schemas.present.serialization import from_json
from genrank.schemas.review.diff import diff, in_one_line
from genrank.schemas.schema import Schema

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


class RunDir:
    """What training writes, besides checkpoints. Rank 0 only."""

    def __init__(self, path: Path, fresh: bool, lock: ExitStack) -> None:
        self.path = path
        self._fresh, self._lock = fresh, lock
        self._log = (path / "log.jsonl").open("a", buffering=1)
        self._tensorboard: SummaryWriter | None = None
        self.lines = 0
        """Of the log."""

    @classmethod
    def open(cls, config: TrainConfig) -> RunDir:
        """The folder of this configuration: made, or found where an interrupted run left it.

        Raises:
            UserError: the folder holds a run of another configuration, another training is at work in it, or it can't be written.
        """
        with ExitStack() as stack:
            stack.enter_context(locked(config.out, "training"))
            fresh = cls._claim(config)
            return cls(config.out, fresh, stack.pop_all())

    @staticmethod
    def _claim(config: TrainConfig) -> bool:
        """Write the configuration down; returns whether there was none."""
        path, own = config.out, config.as_json()
        fresh = not (path / "config.json").is_file()
        if not fresh:
            other = read_json(path / "config.json")
            changed = sorted(k for k in own if k not in FREE_TO_CHANGE and own[k] != other.get(k))
            if differences := diff(read_schema(path), config.schema):
                changed.append(f"schema ({in_one_line(differences)})")
            if changed:
                raise UserError(
                    f"--out {path}: holds a run with another {', '.join(changed)}; give a new --out, "
                    "or remove the folder to start over"
                )
        write_json(path / "config.json", own)
        write_atomically(path / "schema.json", config.schema.model_dump_json(indent=1))
        return fresh

    def rewind(self, lines: int) -> None:
        """Forget what was logged after the first `lines`: a resumed run writes it again."""
        path = self.path / "log.jsonl"
        self._log.close()
        write_atomically(path, "".join(path.read_text().splitlines(keepends=True)[:lines]))
        self._log = path.open("a", buffering=1)
        self.lines = lines

    def log(self, row: LogRow) -> None:
        """One line of log.jsonl, and its numbers as TensorBoard scalars."""
        self._log.write(row.model_dump_json() + "\n")
        self.lines += 1
        if self._tensorboard is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._tensorboard = SummaryWriter(str(self.path / "tensorboard"))
        for name, value in _scalars("", row.model_dump()):
            self._tensorboard.add_scalar(name, value, row.step)

    def finish(self, summary: Summary) -> None:
        """Write summary.json: the run is complete."""
        write_document(self.path / "summary.json", summary)

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if kind is not None and self._fresh and not self.lines:
            # Refused before the first step: another try, with other flags, must find the folder as it was.
            for name in ("config.json", "schema.json", "log.jsonl"):
                (self.path / name).unlink(missing_ok=True)
            if [left.name for left in self.path.iterdir()] == [LOCK]:
                (self.path / LOCK).unlink()
                self.path.rmdir()
        self._lock.close()


def _scalars(prefix: str, row: Mapping[str, object]) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in row.items():
        if isinstance(value, dict):
            found += _scalars(f"{prefix}{key}/", value)
        elif isinstance(value, int | float) and key not in ("step", "time"):
            found.append((prefix + key, float(value)))
    return found


def read_schema(run: Path) -> Schema:
    """The schema a run was trained with.

    Raises:
        UserError: the folder is no run, or its schema.json is damaged.
    """
    path = run / "schema.json"
    if not path.is_file():
        raise UserError(f"{run}: no schema.json in it; give the --out folder of `genrank train`")
    return from_json(path.read_bytes(), where=str(path))


def read_log(run: Path) -> list[LogRow]:
    """The lines of a run's log.jsonl.

    Raises:
        UserError: it is missing or broken.
    """
    path = run / "log.jsonl"
    rows: list[LogRow] = []
    try:
        for line in read_text(path).splitlines():
            rows.append(LOG_ROW.validate_json(line))
    except ValidationError as error:
        raise UserError(f"{path}: line {len(rows) + 1}: {error.errors()[0]['msg']}; remove that line") from None
    return rows


def training_message(run: Path) -> str:
    """What a complete training took in, by its summary and the first and last loss of its log."""
    done = read_document(run / "summary.json", Summary)
    losses = [row.loss for row in read_log(run) if isinstance(row, StepRow)]
    took = f"{done.steps:,} steps over {done.samples:,} samples in {done.seconds:,.0f} s"
    speed = f" ({done.samples_per_s:,.0f} samples/s, {done.tokens_per_s:,.0f} tokens/s, {done.device})"
    return took + speed + (f"; training loss {losses[0]:.4f} -> {losses[-1]:.4f}" if losses else "")


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file.

    Raises:
        UserError: it is missing or broken.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); write it again with the command that made it") from None
    if not isinstance(value, dict):
        raise UserError(
            f"{path} holds {text.strip()[:20]}, not an object; write it again with the command that made it"
        )
    return value


def write_json(path: Path, value: object) -> None:
    """Atomically: a reader sees the old file or the new one."""
    write_atomically(path, json.dumps(value, indent=1, default=str) + "\n")
