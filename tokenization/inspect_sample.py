"""One stored sample, found by its id or chosen for its day, with its tokens laid out and its values as text."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from genrank.schemas.derive.tables import TYPE, event_names, logical_tables
from genrank.schemas.errors import UserError
from genrank.schemas.files import reading
from genrank.schemas.ids import MISSING_ID
from genrank.schemas.manifest import sample_days, sample_files
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.tokenization.arrangement import arrange, group_kinds
from genrank.tokenization.batch import Batch, Ragged
from genrank.tokenization.plan import tokens_per_row
from genrank.tokenization.sample_columns import SampleColumns
from genrank.tokenization.views import view_of
from genrank.tokenization.visibility import CANDIDATE, HISTORY, REALTIME, Rule, mtgr
from genrank.tokenization.visibility import USER as USER_GROUP
from genrank.tokenization.vocabularies import vocabulary_rows

HEADINGS: dict[int, list[str]] = {
    USER_GROUP: [],
    HISTORY: ["event"],
    REALTIME: ["event", "available", "sees"],
    CANDIDATE: ["request", "item", "labels", "sees"],
}


@dataclass
class Sample:
    """One stored sample with its tokens laid out; T tokens."""

    schema: Schema
    batch: Batch
    group: npt.NDArray[np.int32]
    """[T]: 0 user, 1 history, 2 realtime, 3 candidate."""
    mask: npt.NDArray[np.bool_]
    """[T, T] bool: row q sees column k."""


def interesting_sample(samples_root: Path | str, schema: Schema, day: str) -> str:
    """The id of a sample of a day worth looking at.

    The first with history, realtime events, 5 to 40 candidates and a positive label; else the one that comes nearest. Deterministic.

    Raises:
        UserError: the day isn't published, or has no samples.
    """
    columns = ["sample_id", f"{CANDIDATES}.ts", *(f"{s.name}.ts" for s in schema.sequences)]
    columns += [f"labels.{label.name}" for label in schema.labels]
    best: tuple[int, str] | None = None
    for path in sample_files(samples_root, day, schema):
        with reading(path):
            batches = list(pq.ParquetFile(path).iter_batches(columns=columns))
        for rows in batches:
            candidates = pc.list_value_length(rows[CANDIDATES].field("ts")).to_numpy()
            score = 4 * ((candidates >= 5) & (candidates <= 40)).astype(int)
            for sequence in schema.sequences:
                events = pc.list_value_length(rows[sequence.name].field("ts")).to_numpy()
                score += 2 * (events > 0) + ((events >= 3) & (events <= 60))
            for label in schema.labels:
                values = rows["labels"].field(label.name)
                owner = np.repeat(np.arange(len(rows)), np.diff(values.offsets.to_numpy()))
                score += np.bincount(owner[values.flatten().to_numpy() > 0], minlength=len(rows)) > 0
            if len(score) and (best is None or score.max() > best[0]):
                best = int(score.max()), rows["sample_id"][int(score.argmax())].as_py()
    if best is None:
        raise UserError(f"{samples_root} has no samples on {day}")
    return best[1]


def _find(path: Path, sample_id: str, columns: SampleColumns) -> tuple[pa.Table, int] | None:
    """The rows of the sample's user and day, and which is the sample's, if the file holds it."""
    user_day = sample_id.rpartition(":")[0] + ":"
    first_row = 0
    with reading(path):
        file = pq.ParquetFile(path)
        for number in range(file.num_row_groups):
            ids = file.read_row_group(number, columns=["sample_id"])["sample_id"]
            at = pc.index(ids, sample_id).as_py()
            if at >= 0:
                columns.check_schema(file.schema_arrow, path)
                rows = np.flatnonzero(pc.starts_with(ids, user_day).to_numpy())
                table = file.read_row_group(number, columns=columns.names).take(rows)
                columns.check(table, path, first_row + int(rows[0]))
                return table, at - int(rows[0])
            first_row += len(ids)
    return None


def load_sample(samples_root: Path | str, sample_id: str, schema: Schema, rule: Rule = mtgr) -> Sample:
    """A stored sample by its id.

    Raises:
        UserError: no such sample.
    """
    days = sample_days(samples_root)
    named = [day for day in days if f":{day}:" in sample_id]
    columns = SampleColumns(schema)
    for day in named or days:
        for path in sample_files(samples_root, day, schema):
            if found := _find(path, sample_id, columns):
                table, at = found
                view = view_of(columns.stored_rows([table]), schema, "user_day")
                return _lay_out(schema, view.batch(np.array([at])), rule)
    where = f"days {days[0]} to {days[-1]}" if days else "no published day"
    raise UserError(f"{samples_root} has no sample {sample_id!r} ({where}); an id reads <user>:<day>:<chunk>")


def _lay_out(schema: Schema, batch: Batch, rule: Rule) -> Sample:
    place = arrange(schema, batch)
    begin, end = rule(place.layout)
    key = torch.arange(len(begin))
    mask = (key >= begin[:, None]) & (key < end[:, None]) | torch.eye(len(begin), dtype=torch.bool)
    return Sample(schema, batch, place.layout.group.numpy(), mask.numpy())


class SampleText:
    """Stored values as text: ids that have a name by it, times in the schema's offset."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.schema = sample.schema
        self.batch = sample.batch
        self.names = {
            feature: vocabulary_rows(table.vocabulary).id_names(table.vocabulary)
            for table in logical_tables(self.schema)
            for feature in table.features
        }
        self.kinds = {(g, f.name): f.stored for g, features in self.schema.groups() for f in features}
        self.types = {s.name: event_names(s) for s in self.schema.sequences}

    def time(self, ms: int) -> str:
        """`2026-01-05 07:03:21`, or only the time inside the sample's day."""
        days = self.schema.local_days
        when = dt.datetime.fromtimestamp(int(days.local(np.array([ms]))[0]) / 1000, dt.UTC)
        inside = days.day(ms) == days.day(int(self.batch.window_start[0]))
        return when.strftime("%H:%M:%S" if inside else "%Y-%m-%d %H:%M:%S")

    def features(self, group: str) -> list[str]:
        """Stored features of a group, the ones least often missing first, then by name."""
        names = [name for name in self.batch.groups[group].features if name != TYPE]
        return sorted(names, key=lambda name: self._missing(group, name))

    def _missing(self, group: str, name: str) -> float:
        leaf = self.batch.groups[group].features[name]
        gone = leaf.offsets.diff() == 0 if isinstance(leaf, Ragged) else leaf.isnan() | (leaf == MISSING_ID)
        return float(gone.float().mean()) if len(gone) else 0.0

    def value(self, group: str, name: str, row: int) -> str:
        """One stored value; `·` where it's missing."""
        leaf = self.batch.groups[group].features[name]
        if isinstance(leaf, Ragged):
            if self.kinds.get((group, name)) == "vector":
                numbers = leaf.values[leaf.offsets[row] : leaf.offsets[row + 1]].tolist()
                return " ".join(f"{x:.3g}" for x in numbers[:3]) + (" ..." if len(numbers) > 3 else "") or "·"
            ids = leaf.values[leaf.offsets[row] : leaf.offsets[row + 1]].tolist()
            return " ".join(self._id(group, name, each) for each in ids) or "·"
        value = leaf[row].item()
        if self.kinds.get((group, name)) == "number":
            return "·" if math.isnan(value) else f"{value:.4g}"
        if value == MISSING_ID:
            return "·"
        return self.time(int(value)) if self.kinds.get((group, name)) == "time" else self._id(group, name, int(value))

    def _id(self, group: str, name: str, value: int) -> str:
        known = self.names.get(f"{group}.{name}", {}).get(value)
        # A hashed string has no name any more; four hex digits distinguish two.
        return (
            "·" if value == MISSING_ID else known or (str(value) if abs(value) < 10**12 else f"#{value & 0xFFFF:04x}")
        )

    def event(self, group: str, row: int) -> str:
        """The type of a sequence's event."""
        types = self.types[group]
        at = int(self.batch.groups[group].features[TYPE][row])  # type: ignore[index]
        return types[at] if 0 <= at < len(types) else f"type {at}"

    def labels(self, row: int) -> str:
        """A candidate's labels: the tasks that are positive, `?` where one isn't mature."""
        found = []
        for task, values in self.batch.labels.items():
            if float(self.batch.weights[task][row]) == 0:
                found.append(f"{task}?")
            elif (value := float(values[row])) != 0:
                found.append(task if value == 1 else f"{task} {value:.3g}")
        return ", ".join(found) or "-"

    def headings(self, group: str) -> list[str]:
        """What is said of a group's tokens before their features; `sees` counts realtime events."""
        return HEADINGS[group_kinds(self.schema)[group]]

    def heading_values(self, group: str, row: int) -> list[str]:
        """The values of `headings`."""
        batch, kind = self.batch, group_kinds(self.schema)[group]
        if kind == CANDIDATE:
            sees = int(batch.candidate_sees[row])
            return [str(int(batch.request[row])), str(int(batch.item[row])), self.labels(row), str(sees)]
        if kind == REALTIME:
            available = self.time(int(batch.realtime_available[row]))
            return [self.event(group, row), available, str(int(batch.realtime_sees[row]))]
        return [self.event(group, row)] if kind == HISTORY else []

    def shown_groups(self) -> list[tuple[str, int]]:
        """(group, its number) of the groups that have tokens, in token order."""
        return [(name, kind) for name, kind in group_kinds(self.schema).items() if tokens_per_row(self.schema, name)]


def title_of(sample: Sample) -> str:
    """One line that says what the sample is."""
    counts = {name: len(group.ts) for name, group in sample.batch.groups.items() if name != USER}
    counted = ", ".join(f"{n} {name}" for name, n in counts.items())
    requests = len(set(sample.batch.request.tolist()))
    return f"{sample.batch.sample_id[0]}: {len(sample.group)} tokens ({counted}; {requests} requests)"


def coarse(sample: Sample, most: int) -> npt.NDArray[np.int64]:
    """[n, n] int with n <= most: the group of the keys that a cell's queries see, -1 where they see none."""
    t = len(sample.group)
    step = -(-t // most)
    edges = np.arange(0, t, step)
    seen = np.maximum.reduceat(np.maximum.reduceat(sample.mask.astype(np.int8), edges, 0), edges, 1)
    return np.where(seen > 0, sample.group[edges][None, :].astype(int), -1)
