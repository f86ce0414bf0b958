"""Samples of some days: what past days come to is compacted, cross features meet their exposures, buckets are assembled, the gate
judges them, and each day is published.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq

from genrank.pipelines import hot_keys
from genrank.pipelines.assemble import Assembler
from genrank.pipelines.compaction.plan import CompactionPlan
from genrank.pipelines.compaction.reader import PastReader
from genrank.pipelines.compaction.writer import compact
from genrank.pipelines.cross_feature_routing import CrossFeatureRouter
from genrank.pipelines.days import dt_of, moment_text
from genrank.pipelines.engine import AnyEngine
from genrank.pipelines.gate.judge import Expected, Gate, QuarantineRate
from genrank.pipelines.leaf_summaries import join_summaries
from genrank.pipelines.messages import KeyCount, LeafSummary, SampleReport
from genrank.pipelines.moving import move_files
from genrank.pipelines.partials import Partial, PartialRef, PartialStore
from genrank.pipelines.partials_job import Partials
from genrank.pipelines.plan import FEWEST_BUCKETS, BuildPlan
from genrank.pipelines.publish import publish
from genrank.pipelines.sample_statistics import path_of
from genrank.pipelines.user_profile import Profiles
from genrank.schemas import Snapshot
from genrank.schemas.files import move
from genrank.schemas.manifest import MANIFEST, Counts, DataFile, SampleManifest

KEY_ROWS = 500_000
"""Exposures that a slot of keys is sized for: what it holds of one takes a small part of what a bucket of users does."""


class SamplesJob:
    """Makes and publishes samples; files that tasks write lie below `staging` until then."""

    def __init__(
        self,
        plan: BuildPlan,
        engine: AnyEngine,
        store: PartialStore,
        partials: Partials,
        staging: Path,
        run_id: str,
        gate: Gate,
    ) -> None:
        self.plan, self.engine, self.store, self.partials = plan, engine, store, partials
        self.schema, self.staging, self.run_id, self.gate = plan.schema, staging, run_id, gate

    def run(self, days: Sequence[int]) -> Iterator[SampleManifest]:
        """The days' manifests, each as it is published; nothing is where the gate refuses one.

        Raises:
            UserError: the gate refuses a day (`gate.judge`).
        """
        assembler = self._assembler(days)
        title = dt_of(days[0]) if len(days) == 1 else f"{dt_of(days[0])} .. {dt_of(days[-1])}"
        buckets, router = self.plan.buckets, assembler.router
        routed = self.engine.map(f"route {title}", range(buckets), router.route)
        slots = buckets + router.key_slots
        answered = self.engine.exchange(f"cross features {title}", [routed], slots, router.answer_queries)
        samples = self.engine.exchange(f"samples {title}", [answered], buckets, assembler.assemble)
        written = self.engine.collect(samples)
        reports, joins = SampleReport.collected(written), LeafSummary.collected(written)
        expected = {day: Expected(self._exposures(day), tuple(self._quarantine_rates(day))) for day in days}
        found = self.gate.judge(days, reports, expected, joins)
        for day in days:
            self._keep_statistics(day, found[day].summaries)
            yield self._publish(day, [report for report in reports if report.day == day])

    # ------------------------------------------------------------------ what tasks need

    def _assembler(self, days: Sequence[int]) -> Assembler:
        refs: dict[str, tuple[PartialRef, ...]] = {
            name: tuple(self.store.ref(partial, day) for day, partial in sorted(partials.items()))
            for name, partials in self.partials.items()
        }
        reader = PastReader(self.schema, refs, self.plan.buckets, known=self.store.written)
        past = self._compacted(days, refs, reader)
        router = self._router(days, reader, past)
        profiles = Profiles(self.schema, self.plan.buckets, self._profiles(days), reader.schemas)
        staging = str(self.staging / "samples")
        return Assembler(router, past.sequences, profiles, self.plan.as_of, self.plan.landed, self.run_id, staging)

    def _compacted(
        self, days: Sequence[int], refs: dict[str, tuple[PartialRef, ...]], reader: PastReader
    ) -> CompactionPlan:
        # What this day compacts is for the next one, so it isn't worth making unless days follow each other.
        follows = (self.plan.out / "samples" / f"dt={dt_of(days[0] - 1)}" / MANIFEST).is_file()
        plan = self.plan
        past = CompactionPlan(
            self.schema, plan.out, days[0], days[-1], refs, plan.keys, plan.buckets, plan.begun, make=follows
        )
        compact(past, self.engine, reader, self.staging)
        return past

    def _router(self, days: Sequence[int], reader: PastReader, past: CompactionPlan) -> CrossFeatureRouter:
        buckets = self.plan.buckets
        exposures = sum(self._exposures(day) for day in days)
        slots = min(buckets, max(FEWEST_BUCKETS, -(-exposures // KEY_ROWS)))
        router = CrossFeatureRouter(self.schema, buckets, tuple(days), reader, past.tiles, hot={}, key_slots=slots)
        if exposures <= hot_keys.HOT_ROWS:
            return router
        counted = self.engine.collect(self.engine.map("count keys", range(buckets), router.count))
        return replace(router, hot=hot_keys.hot_keys(KeyCount.collected(counted), slots))

    def _profiles(self, days: Sequence[int]) -> dict[str, dict[int, PartialRef]]:
        """User snapshot -> day built -> its partial."""
        profiles: dict[str, dict[int, PartialRef]] = {}
        for source in self.schema.sources:
            if isinstance(source, Snapshot) and source.key == self.schema.exposures.user:
                for day in days:
                    at = self.plan.snapshot_at(source, day)
                    if at in self.partials[source.name]:
                        profiles.setdefault(source.name, {})[day] = self.store.ref(self.partials[source.name][at], at)
        return profiles

    # ------------------------------------------------------------------ what is kept

    def _of_day(self, day: int) -> dict[str, Partial]:
        """Source -> its partial of a day."""
        return {name: partials[day] for name, partials in self.partials.items() if day in partials}

    def _exposures(self, day: int) -> int:
        partial = self.partials[self.schema.candidates.source].get(day)
        return partial.rows if partial else 0

    def _quarantine_rates(self, day: int) -> Iterator[QuarantineRate]:
        for name, partial in self._of_day(day).items():
            rate = sum(partial.quarantined.values()) / max(1, partial.rows_in)
            limit = self.schema.source(name).max_quarantine_rate
            yield QuarantineRate(name, dt_of(day), rate, limit, partial.quarantined)

    def _keep_statistics(self, day: int, summaries: Sequence[LeafSummary]) -> None:
        path = path_of(self.plan.out, dt_of(day))
        path.parent.mkdir(parents=True, exist_ok=True)
        joins = {
            f"{name} → {snapshot}": (found, partial.rows)
            for name, partial in self._of_day(day).items()
            for snapshot, found in partial.joins.items()
        }
        table = LeafSummary.table([*join_summaries(day, joins), *summaries])
        temporary = self.staging / path.name
        self.staging.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, temporary, compression="zstd")
        move(temporary, path)

    def _publish(self, day: int, reports: list[SampleReport]) -> SampleManifest:
        staged = self.staging / "publish" / f"dt={dt_of(day)}"
        staged.mkdir(parents=True)
        files, moves = [], []
        for report in sorted(reports, key=lambda report: report.bucket):
            if report.path:
                name = f"part-{report.bucket:05d}.parquet"
                moves.append((Path(report.path), staged / name))
                path = f"build={self.run_id}/{name}"
                files.append(DataFile(path=path, rows=report.rows, bytes=report.bytes, sha256=report.sha256))
        move_files(self.engine, moves)
        of_day = self._of_day(day)
        counts = Counts.model_validate(
            {
                "in": {n: p.rows_in for n, p in of_day.items()},
                "out": {n: p.rows for n, p in of_day.items()},
                "duplicates": {n: p.duplicates for n, p in of_day.items()},
                "quarantined": {n: p.quarantined for n, p in of_day.items()},
                "exposures_down_sampled": sum(report.down_sampled for report in reports),
            }
        )
        manifest = SampleManifest(
            schema=self.schema.name,
            fingerprint=self.schema.fingerprint,
            samples_fingerprint=self.schema.samples_fingerprint,
            build_id=self.run_id,
            dt=dt_of(day),
            engine=self.engine.name,
            as_of=moment_text(self.plan.as_of),
            files=tuple(files),
            samples=sum(report.rows for report in reports),
            candidates=sum(report.candidates for report in reports),
            inputs=tuple(i for p in of_day.values() for i in p.inputs),
            counts=counts,
            partials=self.plan.inputs_of(day),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        publish(self.plan.out / "samples", manifest, staged)
        return manifest
