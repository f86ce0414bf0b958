"""`genrank train`: samples in, a run's folder out. `Trainer.run` is the loop.

Its parts: `prefetch` gives each step its batches, `train_step` takes the step, `checkpoint_manager` saves how far it is and goes on from there.
"""

from __future__ import annotations

import contextlib
import math
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from genrank.model.checkpoint import find_checkpoint, read_manifest, steps_of
from genrank.model.checkpoint_manager import CheckpointManager
from genrank.model.config import TrainConfig, samples_folder
from genrank.model.documents import Best, EvalRow, LogRow, StepRow, Summary, Versions, read_document, write_document
from genrank.model.encoders import EncoderConfig
from genrank.model.encoders.block import parameter_count
from genrank.model.flops import matmul_rate
from genrank.model.interface import Model
from genrank.model.prefetch import Prefetcher, make_reader, reader_processes
from genrank.model.progress import SETTLING_STEPS, Progress, StepClock, StepTime, peak_gpu_bytes, speeds
from genrank.model.ranks import Ranks, join_ranks
from genrank.model.registry import ChosenModel, choose_model, recorded_model
from genrank.model.run_dir import RunDir
from genrank.model.tasks.base import Metrics
from genrank.model.train_step import TrainStep, trains_in_bf16
from genrank.model.whole_fit import fit_whole
from genrank.schemas.errors import UserError
from genrank.schemas.manifest import build_ids
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.quantiles import fit_boundaries


class TrainResult(NamedTuple):
    """What `train` leaves behind."""

    run: Path
    steps: int
    metrics: Metrics
    """Of the last evaluation; empty without `eval_dates`."""
    was_complete: bool = False
    """Nothing was left to do."""


def train(config: TrainConfig) -> TrainResult:
    """Train a model and write its run folder; go on where an interrupted run of the same configuration stopped.

    Raises:
        UserError: bad configuration, samples or checkpoint, or a loss that is not a number; each names the remedy.
    """
    ranks = join_ranks(config.device)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(RunDir.open(config)) if ranks.is_main else None
        if (config.out / "summary.json").is_file():
            summary = read_document(config.out / "summary.json", Summary)
            if summary.epochs == config.epochs and summary.max_steps == config.max_steps:
                return TrainResult(config.out, summary.steps, {}, was_complete=True)
        chosen = choose_model(config.model, config.settings)
        if not chosen.spec.by_steps:
            return TrainResult(config.out, 1, fit_whole(config, chosen, ranks, run))
        trainer = Trainer(config, ranks, run)
        stack.callback(trainer.reader.stop)
        return trainer.run()


class Trainer:
    """A model, its optimizers and its data, and the loop over them.

    Args:
        run: the run's folder on rank 0, None on the others.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, run: RunDir | None) -> None:
        self.config, self.ranks, self.folder = config, ranks, run
        if config.deterministic:
            # Of the kernels too: `kernels.tuning` then chooses none by timing.
            torch.use_deterministic_algorithms(True)
        self.samples = samples_folder(config.samples)
        origin = find_checkpoint(config.from_checkpoint, report=ranks.is_main) if config.from_checkpoint else None
        self.chosen = _choose(config, origin)
        self._require_its_stream()
        self.task = self.chosen.task(config.schema)
        readers = reader_processes(config, ranks)
        self.reader = make_reader(
            config, self.samples, config.schema, config.dates, ranks, shuffle=True, readers=readers
        )
        self.builds = build_ids(self.samples, [*config.dates, *config.eval_dates])
        self._require_something_to_learn()
        self.reader.start()

        self.embeddings = self._make_embeddings(origin)
        self.model = self._make_model()
        self.train_step = TrainStep(self.model, self.task, self.embeddings, config, ranks, run)
        self.checkpoints = CheckpointManager(
            config,
            ranks,
            self.model,
            self.embeddings,
            self.train_step.optimizer,
            self.reader,
            run,
            self.builds,
            self.chosen.fields(),
        )
        self.position = self.checkpoints.restore(origin)
        self.prefetcher = Prefetcher(self.reader, self.embeddings, config, ranks, self._pauses_after_this_step)
        self.process_steps = 0
        """Steps taken by this process."""
        self.flops = 0
        """Of the model, forward and backward, since the last line of the log."""
        self.peak = 1.0
        if self.model.counts_flops:
            half = self.train_step.bf16 and ranks.device.type == "cuda"
            self.peak = matmul_rate(ranks.device, torch.bfloat16 if half else torch.float32)

    # ------------------------------------------------------------------ the loop

    def run(self) -> TrainResult:
        """Train to the end; what else there is to know is in the run's folder."""
        config, at = self.config, self.position
        metrics: Metrics = {}
        stop = False
        clock = StepClock()
        with Progress(config.model, at.total_steps, self.ranks.is_main) as progress, self._profiler() as profiler:
            while at.epoch < config.epochs and not stop:
                clock.start()
                for batches in clock.waiting(self.prefetcher.steps(at.epoch)):
                    loss, tasks = self.train_step.run(batches, at)
                    at.step += 1
                    self._account(batches, loss, tasks, clock.lap(), progress)
                    profiler.step()
                    evaluates, saves = self._evaluates_at(at.step), self.checkpoints.due(at.step)
                    if evaluates:
                        metrics, stop = self._evaluate()
                    if saves:
                        self._save()
                    if stop or at.step == config.max_steps:
                        stop = True
                        break
                    if evaluates or saves:
                        clock.start()
                else:
                    self._require_a_step()
                    at.epoch += 1
                    if config.eval_dates and not config.eval_every:
                        metrics, stop = self._evaluate()
                    if not config.checkpoint_every:
                        self._save()
            if config.eval_dates and not metrics:
                metrics, _ = self._evaluate()
            self._save()
        self._finish()
        return TrainResult(config.out, at.step, metrics)

    def _evaluates_at(self, step: int) -> bool:
        return self.config.eval_every > 0 and step % self.config.eval_every == 0

    def _pauses_after_this_step(self) -> bool:
        done = self.position.step + 1
        return done == self.config.max_steps or self._evaluates_at(done) or self.checkpoints.due(done)

    def _save(self) -> None:
        self._count_flops()
        self.checkpoints.save(self.position, self.prefetcher.reader_state)

    def _account(
        self, batches: list[Batch], loss: float, tasks: dict[str, float], took: StepTime, progress: Progress
    ) -> None:
        """Count over all ranks, learn whether rank 0 wants a checkpoint, and log every `log_every` steps."""
        at = self.position
        own = [batch for batch in batches if batch.sample_id]
        counts = [sum(map(len, own)), sum(len(batch.item) for batch in own), sum(map(token_count, own))]
        shared = [*counts, int(self.checkpoints.overdue())]
        samples, candidates, tokens, overdue = self.ranks.sum_numbers(shared)
        if overdue:
            self.checkpoints.save_after(at.step + 1)
        at.samples += samples
        at.candidates += candidates
        at.tokens += tokens
        at.seconds += took.seconds
        self.process_steps += 1
        if self.process_steps > SETTLING_STEPS:
            at.timed_steps += 1
            at.timed_seconds += took.seconds
            at.timed_samples += samples
            at.timed_tokens += tokens
            at.waited_seconds += took.waited
        progress.update(at.step, at.epoch, loss, samples, tokens, took)
        logs = at.step % self.config.log_every == 0 or at.step == 1
        if logs or self.process_steps == SETTLING_STEPS:
            self._count_flops()
        if logs:
            self._log(
                StepRow(
                    step=at.step,
                    epoch=at.epoch,
                    loss=loss,
                    tasks=tasks,
                    lr=self.train_step.lr,
                    sparse_lr=self.embeddings.lr,
                    **progress.rates(self.flops, self.peak).model_dump(),
                    peak_gpu_bytes=peak_gpu_bytes(self.ranks.device),
                    time=round(time.time(), 3),
                )
            )
            self.flops = 0

    def _count_flops(self) -> None:
        """Read what the model has counted since it was last read, which waits for the device."""
        if not self.model.counts_flops:
            return
        flops = self.model.take_flops()
        self.flops += flops
        if self.process_steps > SETTLING_STEPS:
            self.position.timed_flops += flops
        if self.position.flops is not None:
            self.position.flops += self.ranks.sum_numbers([flops])[0]

    def _log(self, row: LogRow) -> None:
        if self.folder:
            self.folder.log(row)

    # ------------------------------------------------------------------ before it

    def _require_its_stream(self) -> None:
        own = self.chosen.config
        if isinstance(own, EncoderConfig) and own.stream != "float32" and not trains_in_bf16(self.config, self.ranks):
            raise UserError(
                f"--set stream={own.stream}: without autocast nothing is rounded; give --precision bf16, or stream=float32"
            )

    def _require_something_to_learn(self) -> None:
        config, days = self.config, ", ".join(self.config.dates)
        if not self.reader.stored_rows:
            raise UserError(f"--dates {days}: the samples of these days are empty; nothing to train on")
        self.task.require_learnable(self.samples, config.dates)

    def _require_a_step(self) -> None:
        if not self.position.step:
            days = ", ".join(self.config.dates)
            raise UserError(f"--dates {days}: the samples of these days hold no candidate; nothing to train on")

    def _make_embeddings(self, origin: Path | None) -> Embeddings:
        """Tables as the schema declares them; quantile boundaries as `origin` has them, or fitted on the training days."""
        config = self.config
        boundaries = (
            read_manifest(origin).boundaries if origin else fit_boundaries(self.samples, config.schema, config.dates)
        )
        torch.manual_seed(config.seed)
        return self.chosen.embeddings(
            config.schema,
            device=self.ranks.device,
            boundaries=boundaries,
            backend=config.backend,
            lr=config.sparse_lr,
            state=config.sparse_state,
            seed=config.seed,
        )

    def _make_model(self) -> Model:
        """The configured model on the embeddings, on the device."""
        config = self.config
        # Again: a backend's tables may have drawn, and the dense start must not depend on it.
        torch.manual_seed(config.seed)
        model = self.chosen.build(self.embeddings).to(self.ranks.device)
        if self.ranks.size > 1 and not model.several_ranks:
            raise UserError(f"--model {config.model}: it trains in one process; start it without torchrun")
        model.prepare(self.samples, config.dates)
        model.set_phase(config.phase)
        if config.recompute:
            model.recompute_activations()
        if config.compile:
            model.compile_dense()
        return model

    # ------------------------------------------------------------------ evaluation on the way

    def _evaluate(self) -> tuple[Metrics, bool]:
        """Metrics on the evaluation days, and whether to stop early."""
        config, at = self.config, self.position
        metrics = self.task.validate(self.model, config, self.samples, self.ranks, bf16=self.train_step.bf16)
        kept = {task: {n: e.value for n, e in each.items() if n != "logloss"} for task, each in metrics.items()}
        self._log(EvalRow(step=at.step, eval=kept, time=round(time.time(), 3)))
        headline = self.task.headline
        values = [each[headline].value for each in metrics.values() if headline in each]
        known = [value for value in values if value is not None]
        score = sum(known) / len(known) if known else math.nan
        if score > at.best:
            at.best, at.best_step, at.worse = score, at.step, 0
            if config.patience:
                self._save()
                if self.ranks.is_main:
                    best = Best(step=at.step, metric=headline, value=score)
                    write_document(config.out / "checkpoints" / "best.json", best, guarded=True)
        else:
            at.worse += 1
        return metrics, bool(config.patience) and at.worse >= config.patience

    # ------------------------------------------------------------------ the end

    def _finish(self) -> None:
        if not self.folder:
            return
        config, at = self.config, self.position
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
        if at.timed_steps:
            took = StepTime(at.timed_seconds, at.waited_seconds)
            rates = speeds(at.timed_steps, at.timed_samples, at.timed_tokens, at.timed_flops, took, self.peak)
        else:  # too short a run to leave its first steps out
            rates = speeds(at.step, at.samples, at.tokens, 0, StepTime(at.seconds, math.nan), self.peak)
        self.folder.finish(
            Summary(
                model=config.model,
                settings=dict(config.settings),
                schema=config.schema.name,
                fingerprint=config.schema.fingerprint,
                train_dates=list(config.dates),
                eval_dates=list(config.eval_dates),
                samples_root=str(config.samples),
                builds=self.builds,
                dense_parameters=parameter_count([self.model]),
                sparse_rows=sum(table.rows for table in self.embeddings.plan.tables),
                ids={name: len(vocabulary) for name, vocabulary in sorted(self.embeddings.vocabularies.items())},
                steps=at.step,
                best_step=at.best_step or None,
                epochs=config.epochs,
                max_steps=config.max_steps,
                samples=at.samples,
                candidates=at.candidates,
                flops=at.flops if self.model.counts_flops else None,
                seconds=round(at.seconds, 3),
                timed_steps=at.timed_steps,
                **rates.model_dump(),
                peak_rss_bytes=peak,
                peak_gpu_bytes=peak_gpu_bytes(self.ranks.device),
                device=str(self.ranks.device) if self.ranks.device.type == "cpu" else torch.cuda.get_device_name(),
                ranks=self.ranks.size,
                versions=Versions(torch=torch.__version__, python=platform.python_version()),
            )
        )

    @contextlib.contextmanager
    def _profiler(self) -> Iterator[torch.profiler.profile | _NoProfiler]:
        if not (self.config.profile and self.ranks.is_main):
            yield _NoProfiler()
            return
        handler = torch.profiler.tensorboard_trace_handler(str(self.config.out / "profile"))
        schedule = torch.profiler.schedule(wait=8, warmup=2, active=5, repeat=1)
        with torch.profiler.profile(schedule=schedule, on_trace_ready=handler, record_shapes=True) as profiler:
            yield profiler


class _NoProfiler:
    def step(self) -> None:
        pass


def _choose(config: TrainConfig, origin: Path | None) -> ChosenModel:
    """The configured model; of a training that goes on, with the fields that its checkpoint recorded."""
    own = [config.out / "checkpoints" / f"step-{step}" for step in reversed(steps_of(config.out))]
    for folder in (*own, *([origin] if origin else [])):
        try:
            identity = read_manifest(folder).model
        except UserError:  # damaged: training goes on from an older one
            continue
        if identity.name == config.model:
            return recorded_model(identity, config.settings)
    return choose_model(config.model, config.settings)


def token_count(batch: Batch) -> int:
    """Rows of every group: what the token budget counts, but for rows of several tokens."""
    return sum(len(group.ts) for group in batch.groups.values())
