"""`genrank score`: a row a candidate of stored samples, day by day, published whole.

    OUT/scores/dt=<day>/manifest.json, build=<id>/part-00000.parquet, ...   (`model.predictions.scored_schema`)
    OUT/.scoring/dt=<day>/build=<id>/                                       parts of a day that isn't whole yet

A part is a window of the reader's order, in the batches that `genrank evaluate` reads: its scores are evaluation's to the bit on a CPU, whoever
computes it. Ranks of torchrun take turns at the windows and need not know of one another; a part is there whole or not at all; who
finds all parts of a day there publishes it. So a command that was killed, or a rank of it, goes on where it was when it is given again.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from genrank.model.config import samples_folder
from genrank.model.evaluate import LoadedModel, load_model
from genrank.model.predict import predict
from genrank.model.predictions import scored_rows, scored_schema, write_predictions
from genrank.model.ranks import Ranks, own_device, place_among_ranks
from genrank.schemas.checked_json import checked, with_checksum
from genrank.schemas.console import logger, with_progress
from genrank.schemas.digest import digest
from genrank.schemas.files import file_sha256
from genrank.schemas.manifest import MANIFEST, DataFile, build_ids
from genrank.schemas.publishing import point_to, publish_build
from genrank.serving.config import ScoreConfig
from genrank.serving.scorer import require_ranking
from genrank.tokenization.reader import SampleReader

FORMAT = 1


class ScoresManifest(BaseModel):
    """`manifest.json` of a day of scores: the same bytes whenever the same samples are scored by the same checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    dt: str
    build_id: str
    model: str
    step: int
    checkpoint: str
    """`LoadedModel.checkpoint`."""
    fingerprint: str
    samples_build: str
    tasks: tuple[str, ...]
    candidates: int
    files: tuple[DataFile, ...]

    @classmethod
    def read(cls, day: Path) -> ScoresManifest | None:
        """The manifest of a day's folder; None where there is none that can be read."""
        try:
            return cls.model_validate(checked((day / MANIFEST).read_bytes()))
        except (FileNotFoundError, ValueError, ValidationError):
            return None


def score(config: ScoreConfig) -> dict[str, int]:
    """Score the candidates of some days; every rank that torchrun starts calls it.

    Returns:
        Day -> its candidates, of days that are published when this process ends: of several ranks the last to end knows all.

    Raises:
        UserError: no such run or day, damaged files, a model that scores no candidates.
    """
    device = own_device(config.device)
    loaded = load_model(config.run, step=config.checkpoint, device=device)
    require_ranking(loaded, config.run)
    samples = samples_folder(config.samples)
    builds = build_ids(samples, config.dates)
    published = {}
    for dt, build in builds.items():
        day = _Day(config, loaded, samples, dt, build, device.type)
        if not day.is_published:
            day.score(Ranks(0, 1, device))
        if day.is_published:
            published[dt] = day.candidates
    return published


class _Day:
    """A day's scores, on their way."""

    def __init__(
        self, config: ScoreConfig, loaded: LoadedModel, samples: Path, dt: str, samples_build: str, device: str
    ) -> None:
        self.loaded, self.dt, self.samples_build = loaded, dt, samples_build
        # Scores depend, in their last bits, on which samples are computed together and where.
        self.build = digest([loaded.checkpoint, samples_build, config.token_budget, device])
        self.folder = config.out / "scores" / f"dt={dt}"
        self.final = self.folder / f"build={self.build}"
        self.staged = config.out / ".scoring" / f"dt={dt}" / f"build={self.build}"
        self.reader = SampleReader(
            samples, loaded.schema, [dt], view="user_day", token_budget=config.token_budget, shuffle=False
        )
        self.parts = [f"part-{number:05d}.parquet" for number in range(self.reader.count_windows())]

    @property
    def is_published(self) -> bool:
        """Whether these scores are there."""
        found = ScoresManifest.read(self.folder)
        return found is not None and found.build_id == self.build and self.final.is_dir()

    @property
    def candidates(self) -> int:
        """Of the published day."""
        found = ScoresManifest.read(self.folder)
        return found.candidates if found else 0

    def score(self, ranks: Ranks) -> None:
        """This rank's parts that aren't there yet; and, where all are, the day.

        Args:
            ranks: this process alone, with its device.
        """
        if self.final.is_dir():  # A publication was killed just before its last step.
            self._publish()
            return
        rank, size = place_among_ranks()
        left = [n for n in range(rank, len(self.parts), size) if not (self.staged / self.parts[n]).is_file()]
        if done := len(range(rank, len(self.parts), size)) - len(left):
            logger.info(f"{self.dt}: goes on; {done} of {done + len(left)} parts were there")
        windows = self.reader.chosen_windows(left)
        schema = self.loaded.schema
        for number in with_progress(left, f"scoring {self.dt}", unit="part"):
            batches = (batch for batch, _ in next(windows))
            rows = [
                scored_rows(schema, batch.to("cpu"), scores)
                for batch, scores in predict(self.loaded.model, batches, schema, ranks)
            ]
            write_predictions(self.staged / self.parts[number], rows, scored_schema(schema))
        if all((self.staged / part).is_file() for part in self.parts):
            self._publish()

    def _publish(self) -> None:
        """Ranks that are done at once may do it twice: each writes the same."""
        try:
            manifest = self._manifest(self.final if self.final.is_dir() else self.staged)
            if not self.final.is_dir():
                publish_build(self.folder, self.build, self.staged, manifest)
        except OSError:  # Gone from there, or in its place already: another rank was faster.
            if not self.final.is_dir():
                raise
            manifest = self._manifest(self.final)
        point_to(self.folder, self.build, manifest)
        shutil.rmtree(self.staged.parent, ignore_errors=True)
        with suppress(OSError):  # Another day's parts are there.
            self.staged.parent.parent.rmdir()

    def _manifest(self, folder: Path) -> str:
        files = tuple(_listed(folder / part, f"{self.final.name}/{part}") for part in self.parts)
        manifest = ScoresManifest(
            format=FORMAT,
            dt=self.dt,
            build_id=self.build,
            model=self.loaded.name,
            step=self.loaded.step,
            checkpoint=self.loaded.checkpoint,
            fingerprint=self.loaded.schema.fingerprint,
            samples_build=self.samples_build,
            tasks=tuple(label.name for label in self.loaded.schema.labels),
            candidates=sum(file.rows for file in files),
            files=files,
        )
        return with_checksum(manifest.model_dump_json())


def _listed(file: Path, name: str) -> DataFile:
    rows = pq.read_metadata(file).num_rows
    return DataFile(path=name, rows=rows, bytes=file.stat().st_size, sha256=file_sha256(file))
