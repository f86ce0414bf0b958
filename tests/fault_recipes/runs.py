"""Faults of samples, runs and the command."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genrank.command.interruption import Interrupted
from genrank.model.checkpoint import find_checkpoint
from genrank.model.config import TrainConfig
from genrank.model.documents import Summary, read_document
from genrank.model.evaluate import load_model
from genrank.model.run_dir import read_log, read_schema
from genrank.schemas.checked_json import checked, with_checksum
from genrank.schemas.configuration import from_values, parse_dates
from genrank.schemas.lock import locked
from genrank.schemas.manifest import sample_files
from genrank.tokenization.inspect_sample import load_sample
from tests.fault_recipes.place import DAYS, Place, a_schema, fault

# ---------------------------------------------------------------------- samples


def change(path: Path, edit: Callable[[dict[str, Any]], object], *, guarded: bool = True) -> None:
    """Edits a JSON record, as its own writer would where `guarded`, else by hand."""
    content = checked(path.read_bytes()) if guarded else json.loads(path.read_bytes())
    edit(content)
    path.write_text(with_checksum(json.dumps(content)) if guarded else json.dumps(content))


def manifest_of(p: Place) -> Path:
    return p.out / "samples" / f"dt={DAYS[0]}" / "manifest.json"


@fault("a day that is not published")
def _(p: Place) -> None:
    sample_files(p.out / "samples", "2026-01-09")


@fault("a manifest of another form")
def _(p: Place) -> None:
    manifest_of(p).write_text("[]")
    p.read()


@fault("a manifest that was changed")
def _(p: Place) -> None:
    change(manifest_of(p), lambda content: content.update(samples=7), guarded=False)
    p.read()


@fault("a manifest of another day")
def _(p: Place) -> None:
    shutil.copy(p.out / "samples" / f"dt={DAYS[1]}" / "manifest.json", manifest_of(p))
    p.read()


@fault("a file of samples is missing")
def _(p: Place) -> None:
    sample_files(p.out / "samples", DAYS[0])[0].unlink()
    p.read()


@fault("a flipped bit in samples")
def _(p: Place) -> None:
    file = sample_files(p.out / "samples", DAYS[0])[0]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    p.read()


@fault("samples of another schema")
def _(p: Place) -> None:
    p.read(a_schema({"delay": "5m"}))


@fault("a sample that there is none of")
def _(p: Place) -> None:
    load_sample(p.out / "samples", f"77:{DAYS[0]}:0", a_schema())


@fault("dates that end before they begin")
def _(p: Place) -> None:
    parse_dates(f"{DAYS[1]}:{DAYS[0]}")


@fault("a day that is none")
def _(p: Place) -> None:
    parse_dates("2026-02-30", "--day", one=True)


# ---------------------------------------------------------------------- runs


@fault("every checkpoint damaged")
def _(p: Place) -> None:
    for file in (p.run / "checkpoints").glob("step-*/dense.pt"):
        file.write_bytes(b"")
    p.evaluate()


@fault("a checkpoint's manifest of another form")
def _(p: Place) -> None:
    folder = p.checkpoint
    (folder / "manifest.json").write_text("null")
    load_model(folder)


@fault("a checkpoint's manifest that was changed")
def _(p: Place) -> None:
    folder = p.checkpoint
    change(folder / "manifest.json", lambda content: content.update(step=9), guarded=False)
    load_model(folder)


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, ("true",))


@fault("a checkpoint that would run a command")
def _(p: Place) -> None:
    import hashlib

    folder = p.checkpoint
    file = folder / "tables" / ".metadata"
    file.write_bytes(pickle.dumps(Hostile()))
    content = file.read_bytes()
    named = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def size(tables: dict[str, Any]) -> None:
        if ".metadata" in tables["files"]:
            tables["files"][".metadata"] = len(content)

    tables = folder / "tables" / "tables.json"
    change(tables, size, guarded=False)
    stored = {"bytes": tables.stat().st_size, "sha256": hashlib.sha256(tables.read_bytes()).hexdigest()}
    change(
        folder / "manifest.json",
        lambda manifest: manifest["files"].update({"tables/.metadata": named, "tables/tables.json": stored}),
    )
    load_model(folder)


@fault("a checkpoint of no such step")
def _(p: Place) -> None:
    find_checkpoint(p.run, 7)


@fault("a run without a checkpoint")
def _(p: Place) -> None:
    shutil.rmtree(p.run / "checkpoints")
    p.evaluate()


@fault("samples rebuilt under a run")
def _(p: Place) -> None:
    p.build(force=True)
    p.train(max_steps=4)


@fault("a run of other settings")
def _(p: Place) -> None:
    p.train(lr=0.5)


@fault("another training at work")
def _(p: Place) -> None:
    with locked(p.run, "training"):
        p.train()


@fault("a configuration that is null")
def _(p: Place) -> None:
    (p.run / "config.json").write_text("null")
    from_values(TrainConfig, {}, p.run / "config.json")


@fault("a configuration with an unknown key")
def _(p: Place) -> None:
    (p.root / "train.yaml").write_text("token_budgets: 3\n")
    from_values(TrainConfig, {}, p.root / "train.yaml")


@fault("a value out of range")
def _(p: Place) -> None:
    p.train(token_budget=0)


@fault("a broken line of a log")
def _(p: Place) -> None:
    (p.run / "log.jsonl").write_text('{"step": 1}\n')
    read_log(p.run)


@fault("a folder that is no run")
def _(p: Place) -> None:
    read_schema(p.out)


@fault("a run that has not ended")
def _(p: Place) -> None:
    (p.run / "summary.json").unlink()
    read_document(p.run / "summary.json", Summary)


# ---------------------------------------------------------------------- the command


@fault("Ctrl-C")
def _(p: Place) -> str:
    return str(Interrupted(signal.SIGINT))


@fault("SIGTERM")
def _(p: Place) -> str:
    return str(Interrupted(signal.SIGTERM))
