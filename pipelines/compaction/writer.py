"""What is missing of the past, made in tasks and committed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from genrank.pipelines import cross_features, sequences
from genrank.pipelines.compaction import sizes
from genrank.pipelines.compaction.plan import CompactionPlan, ReadPlan, TileRecipe
from genrank.pipelines.compaction.reader import PastReader
from genrank.pipelines.compaction.records import RECORD, USES, Compacted, KnownUse, Uses
from genrank.pipelines.compaction.uses import SequenceUse, TileUse, Use
from genrank.pipelines.days import dt_of
from genrank.pipelines.engine import AnyEngine, Piece
from genrank.pipelines.messages import CompactedReport
from genrank.pipelines.partials import PartialRef, install
from genrank.schemas.checked_json import with_checksum
from genrank.schemas.digest import digest
from genrank.schemas.files import file_sha256, sync


def compact(plan: CompactionPlan, engine: AnyEngine, reader: PastReader, staging: Path) -> None:
    """Make what the plan misses, in the engine's tasks, and have the plan read it."""
    if not plan.missing:
        return
    uses: list[Use] = [*plan.tiles, *plan.sequences]
    known = {use.name(plan.schema): KnownUse(source=use.source, snapshots=isinstance(use, SequenceUse)) for use in uses}
    Uses(known).write(plan.root / USES)
    writer = TileWriter(reader, plan.missing, str(staging / "blocks"))
    newest = max(recipe.last for recipes in plan.missing.values() for recipe in recipes)
    title = f"compact days up to {dt_of(newest)}"
    reports = CompactedReport.collected(engine.collect(engine.map(title, range(reader.buckets), writer.write)))
    for number, (use, recipes) in enumerate(plan.missing.items()):
        made = []
        for recipe in recipes:
            made.append(
                _commit(
                    plan,
                    engine,
                    use,
                    recipe,
                    [r for r in reports if (r.use, r.first, r.last) == (number, recipe.first, recipe.last)],
                )
            )
        plan.add(use, made)
    plan.missing = {}


def _commit(
    plan: CompactionPlan, engine: AnyEngine, use: Use, recipe: TileRecipe, reports: Sequence[CompactedReport]
) -> PartialRef:
    keys, present = plan.keys[use.source], plan.partials[use.source]
    covers = {dt_of(d): keys[d] for d in range(recipe.first, recipe.last + 1) if d in present}
    written = [report for report in reports if report.path]
    files = {report.bucket: f"bucket-{report.bucket:05d}.arrow" for report in written}
    record = Compacted(
        use=use.name(plan.schema),
        first=dt_of(recipe.first),
        last=dt_of(recipe.last),
        covers=covers,
        files=dict(sorted(files.items())),
        sha256={report.bucket: report.sha256 for report in written},
        buckets=plan.buckets,
        rows=sum(report.rows for report in written),
    )
    folder = plan.root / record.use / f"dt={record.last}" / digest([record.first, covers])
    staged = {files[report.bucket]: Path(report.path) for report in written}
    install(engine, folder, staged, RECORD, with_checksum(record.model_dump_json()))
    return PartialRef(recipe.last, str(folder), record.files, plan.buckets, record.sha256)


@dataclass(frozen=True)
class TileWriter:
    """Everything a task needs to compact days of a bucket; travels to tasks by pickle."""

    reader: PastReader
    missing: Mapping[Use, list[TileRecipe]]
    staging: str

    def write(self, bucket: int) -> Iterator[Piece]:
        """Map step: the bucket's file of everything missing; reports what was written."""
        for number, (use, recipes) in enumerate(self.missing.items()):
            for recipe in recipes:
                table = self._compact(use, recipe, bucket)
                path = Path(self.staging) / f"{number}-{recipe.last}-{bucket:05d}-{uuid.uuid4().hex[:12]}.arrow"
                if table.num_rows:
                    _write(table, path)
                written = str(path) if table.num_rows else ""
                sha256 = file_sha256(path) if written else ""
                yield CompactedReport(
                    number, recipe.first, recipe.last, bucket, written, table.num_rows, sha256
                ).piece()

    def _compact(self, use: Use, recipe: TileRecipe, bucket: int) -> pa.Table:
        return self._tile(use, recipe, bucket) if isinstance(use, TileUse) else self._history(use, recipe, bucket)

    def _tile(self, use: TileUse, recipe: TileRecipe, bucket: int) -> pa.Table:
        log = self.reader.schema.event_log(use.source)
        if recipe.stored:
            return self.reader.events({use: ReadPlan((recipe.stored,))}, bucket)[use]
        if recipe.parts:
            rows = pa.concat_tables([self._tile(use, part, bucket) for part in recipe.parts])
        else:
            rows = self.reader.events({use: ReadPlan((), recipe.days)}, bucket)[use]
        local_days = self.reader.schema.local_days
        settled = local_days.start(recipe.last + 1 + cross_features.settling_days(log))
        return cross_features.tile(use.key_set, log, rows, local_days.start(recipe.last), settled)

    def _history(self, use: SequenceUse, recipe: TileRecipe, bucket: int) -> pa.Table:
        """A period of days at a time, so that a task never holds the whole look-back."""
        local_days = self.reader.schema.local_days
        oldest, settled = local_days.start(recipe.first), local_days.start(recipe.last + 1)
        before = () if recipe.stored is None else (recipe.stored,)
        state = self.reader.rows(use, ReadPlan(before), bucket)
        for at in range(0, len(recipe.days), sizes.PERIOD):
            days = recipe.days[at : at + sizes.PERIOD]
            # Only the first days of all have nothing before them.
            reading = ReadPlan((), days, follows=bool(at or before), settled=settled)
            state = pa.concat_tables([state, self.reader.rows(use, reading, bucket)])
            state = sequences.newest(state, use.sequence.max_length, settled)
        return state.filter(pc.greater_equal(state.column("available"), oldest))


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Many small files: opening a Parquet file takes longer than reading one of these.
    with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table.combine_chunks())
    sync(path)
