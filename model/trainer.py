"""`genrank train`: samples in, a run's folder out. `Trainer.run` is the loop.

Its parts: `prefetch` gives each step its batches, `train_step` takes the step, `checkpoint_manager` saves how far it is and goes on from there.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from genrank.model.checkpoint import find_checkpoint, read_manifest
from genrank.model.config import TrainConfig, samples_folder
from genrank.model.encoders.block import parameter_count
from genrank.model.prefetch import Prefetcher, make_reader
from genrank.model.label_guard import require_two_classes
from genrank.model.train_step import TrainStep
from genrank.model.metrics import Estimate, Predictions
from genrank.model.parallel import gathered
from genrank.model.flops import matmul_rate
from genrank.model.predict import candidate_users, predict
from genrank.model.progress import Progress
from genrank.model.ranker import Ranker, build_model, model_config
from genrank.model.ranks import Ranks, join_ranks
from genrank.model.checkpoint_manager import CheckpointManager
from genrank.model.retriever import NEXT_ITEM, Retriever, RetrieverConfig, catalogue, evaluate_retriever
from genrank.model.run_dir import RunDir, read_json, write_json
from genrank.schemas.errors import UserError
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan
from genrank.tokenization.quantiles import fit_boundaries

Metrics = dict[str, dict[str, Estimate]]
"""Task -> metric -> its value and interval."""


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
            summary = read_json(config.out / "summary.json")
            if summary["epochs"] == config.epochs and summary["max_steps"] == config.max_steps:
                return TrainResult(config.out, int(str(summary["steps"])), {}, was_complete=True)
        return Trainer(config, ranks, run).run()


class Trainer:
    """A model, its optimizers and its data, and the loop over them.

    Args:
        run: the run's folder on rank 0, None on the others.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, run: RunDir | None) -> None:
        self.config, self.ranks, self.folder = config, ranks, run
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
        self.samples = samples_folder(config.samples)
        self.reader = make_reader(config, self.samples, config.schema, config.dates, ranks, shuffle=True)
        self._require_something_to_learn()

        origin = find_checkpoint(config.from_checkpoint) if config.from_checkpoint else None
        self.embeddings = self._make_embeddings(origin)
        self.model = self._make_model()
        self.train_step = TrainStep(self.model, self.embeddings, config, ranks, run)
        self.checkpoints = CheckpointManager(
            config, ranks, self.model, self.embeddings, self.train_step.optimizer, self.reader, run
        )
        self.position = self.checkpoints.restore(origin)
        self.prefetcher = Prefetcher(self.reader, self.embeddings, config, ranks, self._pauses_after_this_step)
        self.peak = 1.0
        if isinstance(self.model, Ranker):
            half = self.train_step.bf16 and ranks.device.type == "cuda"
            self.peak = matmul_rate(ranks.device, torch.bfloat16 if half else torch.float32)

    # ------------------------------------------------------------------ the loop

    def run(self) -> TrainResult:
        """Train to the end; the run's folder tells the rest."""
        config, at = self.config, self.position
        metrics: Metrics = {}
        stop = False
        with Progress(config.model, at.total_steps, self.ranks.is_main) as progress, self._profiler() as profiler:
            while at.epoch < config.epochs and not stop:
                began = time.perf_counter()
                for batches in self.prefetcher.steps(at.epoch):
                    loss, tasks = self.train_step.run(batches, at)
                    at.step += 1
                    # Reading included: on a GPU it goes on while the device is still computing this step.
                    at.seconds += time.perf_counter() - began
                    self._account(batches, loss, tasks, progress)
                    profiler.step()
                    if self._evaluates_at(at.step):
                        metrics, stop = self._evaluate()
                    if self.checkpoints.due(at.step):
                        self._save()
                    if stop or at.step == config.max_steps:
                        stop = True
                        break
                    began = time.perf_counter()
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
        self.checkpoints.save(self.position, self.prefetcher.reader_state)

    def _account(self, batches: list[Batch], loss: float, tasks: dict[str, float], progress: Progress) -> None:
        """Count over all ranks, hear whether rank 0 wants a checkpoint, and every `log_every` steps tell."""
        at = self.position
        own = [batch for batch in batches if batch.sample_id]
        counts = [sum(map(len, own)), sum(len(batch.item) for batch in own), sum(map(token_count, own))]
        told = [*counts, int(self.checkpoints.overdue())]
        samples, candidates, tokens, overdue = self.ranks.sum_numbers(told)
        if overdue:
            self.checkpoints.save_after(at.step + 1)
        at.samples += samples
        at.candidates += candidates
        at.tokens += tokens
        progress.update(at.step, at.epoch, loss, samples, tokens)
        if at.step % self.config.log_every == 0 or at.step == 1:
            flops = self.model.work.flops(self.model.encoder.config) if isinstance(self.model, Ranker) else 0
            self._log(
                {
                    "step": at.step,
                    "epoch": at.epoch,
                    "loss": loss,
                    "tasks": tasks,
                    "lr": self.train_step.lr,
                    "sparse_lr": self.embeddings.lr,
                    **progress.rates(flops, self.peak),
                }
            )

    def _log(self, row: dict[str, object]) -> None:
        if self.folder:
            self.folder.log({**row, "time": round(time.time(), 3)})

    # ------------------------------------------------------------------ before it

    def _require_something_to_learn(self) -> None:
        config, days = self.config, ", ".join(self.config.dates)
        if not self.reader.stored_rows:
            raise UserError(f"--dates {days}: the samples of these days are empty; nothing to train on")
        if not isinstance(model_config(config.model, config.settings)[0], RetrieverConfig):
            require_two_classes(self.samples, config.schema, config.dates, mature=True)

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
        return Embeddings(
            make_plan(config.schema),
            backend=config.backend,
            device=self.ranks.device,
            boundaries=boundaries,
            lr=config.sparse_lr,
            state=config.sparse_state,
            seed=config.seed,
        )

    def _make_model(self) -> nn.Module:
        """The configured model on the embeddings, on the device."""
        config = self.config
        # Again: a backend's tables may have drawn, and the dense start must not depend on it.
        torch.manual_seed(config.seed)
        own, head = model_config(config.model, config.settings)
        tasks = [label.name for label in config.schema.labels]
        model = build_model(own, head, self.embeddings, tasks).to(self.ranks.device)
        if isinstance(model, Retriever):
            if self.ranks.size > 1:
                raise UserError(f"--model {config.model}: retrieval trains in one process; start it without torchrun")
            if model.config.sampling == "uniform":
                model.items = catalogue(self.samples, config.schema, config.dates)
        if isinstance(model, Ranker | Retriever):
            model.encoder.recompute = config.recompute
            if config.compile:
                require_compiler()
                model.encoder.compile(dynamic=True)
        elif config.compile or config.recompute:
            raise UserError(f"--compile and --recompute are for the encoders of mtgr and hstu; {config.model} has none")
        return model

    # ------------------------------------------------------------------ evaluation on the way

    def _evaluate(self) -> tuple[Metrics, bool]:
        """Metrics on the evaluation days, and whether to stop early."""
        config, at = self.config, self.position
        metrics = self._metrics()
        kept = {task: {n: e.value for n, e in each.items() if n != "logloss"} for task, each in metrics.items()}
        self._log({"step": at.step, "eval": kept})
        headline = "mrr" if isinstance(self.model, Retriever) else "gauc"
        values = [each[headline].value for each in metrics.values() if headline in each]
        known = [value for value in values if value is not None]
        score = sum(known) / len(known) if known else math.nan
        if score > at.best:
            at.best, at.best_step, at.worse = score, at.step, 0
            if config.patience:
                self._save()
                if self.ranks.is_main:
                    write_json(config.out / "checkpoints" / "best.json", {"step": at.step, "gauc": score})
        else:
            at.worse += 1
        return metrics, bool(config.patience) and at.worse >= config.patience

    def _metrics(self) -> Metrics:
        config = self.config
        if isinstance(self.model, Retriever):
            rows, _, _ = evaluate_retriever(
                self.model, self.samples, config.eval_dates, trained=config.dates, token_budget=config.token_budget
            )
            return {NEXT_ITEM: rows["model"]}
        reader = make_reader(config, self.samples, config.schema, config.eval_dates, self.ranks, shuffle=False)
        found = {label.name: Predictions(label.kind) for label in config.schema.labels}
        with gathered(self.model):
            for batch, scores in predict(self.model, reader, config.schema, self.ranks, bf16=self.train_step.bf16):
                for task, each in found.items():
                    each.update(candidate_users(batch), batch.labels[task], scores[task], batch.weights[task])
        return {task: each.gather().compute() for task, each in found.items()}

    # ------------------------------------------------------------------ the end

    def _finish(self) -> None:
        if not self.folder:
            return
        config, at = self.config, self.position
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
        seconds = max(at.seconds, 1e-9)
        self.folder.finish(
            {
                "model": config.model,
                "settings": dict(config.settings),
                "schema": config.schema.name,
                "fingerprint": config.schema.fingerprint,
                "train_dates": list(config.dates),
                "eval_dates": list(config.eval_dates),
                "samples_root": str(config.samples),
                "dense_parameters": parameter_count([self.model]),
                "sparse_rows": sum(table.rows for table in self.embeddings.plan.tables),
                "ids": {name: len(vocabulary) for name, vocabulary in sorted(self.embeddings.vocabularies.items())},
                "steps": at.step,
                "best_step": at.best_step or None,
                "epochs": config.epochs,
                "max_steps": config.max_steps,
                "samples": at.samples,
                "candidates": at.candidates,
                "seconds": round(seconds, 3),
                "samples_per_s": at.samples / seconds,
                "tokens_per_s": at.tokens / seconds,
                "peak_rss_bytes": peak,
                "device": str(self.ranks.device) if self.ranks.device.type == "cpu" else torch.cuda.get_device_name(),
                "ranks": self.ranks.size,
                "versions": {"torch": torch.__version__, "python": platform.python_version()},
            }
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


def require_compiler() -> None:
    """torch.compile writes C++, on a GPU for what launches its kernels.

    Raises:
        UserError: there is no compiler.
    """
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if not any(map(shutil.which, wanted)):
        raise UserError(
            f"--compile: no C++ compiler found ({', '.join(wanted)}); install one, set CXX, or leave --compile out"
        )


def token_count(batch: Batch) -> int:
    """Rows of every group: what the token budget counts, but for rows of several tokens."""
    return sum(len(group.ts) for group in batch.groups.values())
