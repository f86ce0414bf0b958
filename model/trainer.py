"""`genrank train`: samples in, a run's folder out. `Trainer.run` is the loop; everything else serves it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import platform
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.checkpoint import (
    find_checkpoint,
    load_dense,
    load_optimizer_state,
    load_weights,
    optimizer_state,
    read_manifest,
    save_checkpoint,
    steps_of,
)
from model.config import TrainConfig, samples_folder
from model.encoders.block import parameter_count
from model.label_check import require_two_classes
from model.losses import Weighted, loss_sums, predictions, total_loss, weight_sums
from model.metrics import Estimate, Predictions
from model.parallel import gathered, spread, unsynchronised, whole_state
from model.peak import matmul_rate
from model.progress import Progress
from model.ranker import Ranker, build_model, model_config
from model.ranks import Ranks, join_ranks
from model.retriever import NEXT_ITEM, Retriever, RetrieverConfig, Task, catalogue, evaluate_retriever
from model.run_folder import RunFolder, read_json, write_json
from schemas.errors import UserError
from schemas.manifest import sample_files
from schemas.schema import Schema
from tokenization.batch import Batch
from tokenization.checkpoint import load_tables
from tokenization.embedding import Embeddings
from tokenization.plan import make_plan
from tokenization.quantiles import fit_boundaries
from tokenization.reader import SampleReader

SPIKE_WARMUP = 30
"""Steps before the running mean of the loss is trusted."""
SPIKES_IN_A_ROW = 5
"""So many skipped steps are no accident of one batch: training stops."""


class TrainResult(NamedTuple):
    """What `train` leaves behind."""

    run: Path
    steps: int
    metrics: dict[str, dict[str, Estimate]]
    """Of the last evaluation, by task; empty without `eval_dates`."""


def train(config: TrainConfig) -> TrainResult:
    """Train a model and write its run folder; go on where an interrupted run of the same configuration stopped.

    Raises:
        UserError: bad configuration, samples or checkpoint, or a loss that is not a number; each names the remedy.
    """
    ranks = join_ranks(config.device)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(RunFolder.open(config)) if ranks.chief else None
        if (config.out / "summary.json").is_file():
            summary = read_json(config.out / "summary.json")
            if summary["epochs"] == config.epochs and summary["max_steps"] == config.max_steps:
                return TrainResult(config.out, int(str(summary["steps"])), {})
        return Trainer(config, ranks, run).run()


@dataclass
class Position:
    """How far training is; with the reader's state, all that a resume needs: a step's randomness is a function of
    (seed, step, rank)."""

    step: int = 0
    epoch: int = 0
    total_steps: int = 0
    """Expected, for the learning rate's decay; fixed when training begins."""
    running_loss: float = math.nan
    spikes: int = 0
    samples: int = 0
    candidates: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    best_step: int = 0
    worse: int = 0
    """Evaluations since the best one."""
    log_lines: int = 0


class Trainer:
    """A model, its optimizers and its data, and the loop over them."""

    def __init__(self, config: TrainConfig, ranks: Ranks, run: RunFolder | None) -> None:
        self.config, self.ranks, self.folder = config, ranks, run
        self.precision = config.precision
        if self.precision == "auto":
            self.precision = "bf16" if ranks.device.type == "cuda" else "fp32"
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
        self.samples = samples_folder(config.samples)
        self.reader = make_reader(config, self.samples, config.schema, config.dates, ranks, shuffle=True)
        if not self.reader.stored_rows:
            raise UserError(
                f"--dates {', '.join(config.dates)}: the samples of these days are empty; nothing to train on"
            )
        if not isinstance(model_config(config.model, config.settings)[0], RetrieverConfig):
            require_two_classes(self.samples, config.schema, config.dates, mature=True)

        origin = find_checkpoint(config.from_checkpoint) if config.from_checkpoint else None
        boundaries = (
            read_manifest(origin).boundaries if origin else fit_boundaries(self.samples, config.schema, config.dates)
        )
        torch.manual_seed(config.seed)
        self.model_config, self.head_config = model_config(config.model, config.settings)
        self.embeddings = Embeddings(
            make_plan(config.schema),
            backend=config.backend,
            device=ranks.device,
            boundaries=boundaries,
            lr=config.sparse_lr,
            state=config.sparse_state,
            seed=config.seed,
        )
        torch.manual_seed(
            config.seed
        )  # again: a backend's tables may have drawn, and the dense start must not depend on it
        self.model = make_model(config, self.embeddings).to(ranks.device)
        self.tasks: Sequence[Weighted] = config.schema.labels
        if isinstance(self.model, Retriever):
            if ranks.size > 1:
                raise UserError(f"--model {config.model}: retrieval trains in one process; start it without torchrun")
            self.tasks = [Task(NEXT_ITEM, 1.0)]
            if self.model.config.sampling == "uniform":
                self.model.items = catalogue(self.samples, config.schema, config.dates)
        if isinstance(self.model, Ranker | Retriever):
            self.model.encoder.recompute = config.recompute
            if config.compile:
                require_compiler()
                self.model.encoder.compile(dynamic=True)
        elif config.compile or config.recompute:
            raise UserError(f"--compile and --recompute are for the encoders of mtgr and hstu; {config.model} has none")
        self.wrapped = spread(self.model, ranks, config.dense_parallel)
        self.optimizer = make_optimizer(self.model, config)
        self.peak = 1.0
        if isinstance(self.model, Ranker):
            half = self.precision == "bf16" and ranks.device.type == "cuda"
            self.peak = matmul_rate(ranks.device, torch.bfloat16 if half else torch.float32)
        self.position = Position()
        self.saved_step = -1
        self._restore(origin)
        self.reader_state = self.reader.state_dict()
        if ranks.device.type == "cuda":
            self.copies = torch.cuda.Stream()

    # ------------------------------------------------------------------ the loop

    def run(self) -> TrainResult:
        """Train to the end; the run's folder tells the rest."""
        config, at = self.config, self.position
        metrics: dict[str, dict[str, Estimate]] = {}
        stop = False
        with Progress(config.model, at.total_steps, self.ranks.chief) as progress, self._profiler() as profiler:
            while at.epoch < config.epochs and not stop:
                for batches in self._ahead(self._steps()):
                    began = time.perf_counter()
                    self._set_learning_rate()
                    torch.manual_seed(_mix(config.seed, at.step, self.ranks.rank))
                    loss, tasks = self._step(batches)
                    at.step += 1
                    at.seconds += time.perf_counter() - began
                    self._account(batches, loss, tasks, progress)
                    profiler.step()
                    if config.eval_every and at.step % config.eval_every == 0:
                        metrics, stop = self._evaluate()
                    if config.checkpoint_every and at.step % config.checkpoint_every == 0:
                        self._save()
                    if stop or at.step == config.max_steps:
                        stop = True
                        break
                else:
                    if not at.step:
                        days = ", ".join(config.dates)
                        raise UserError(
                            f"--dates {days}: the samples of these days hold no candidate; nothing to train on"
                        )
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

    def _steps(self) -> Iterator[list[Batch]]:
        """The batches of each optimizer step of this epoch, on the device. A rank that has run out of samples while another
        has not gets batches of weight 0: every rank takes every step."""
        batches = in_step(self._batches(), self.ranks)
        while group := list(itertools.islice(batches, self.config.accumulate)):
            yield [batch if own else without_weight(batch) for batch, own in group]

    def _ahead(self, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """The same; on sharded tables, the next step's ids travel while this one is computed (the third stage beside reading and
        computing). Not across a checkpoint or an evaluation: the dynamic vocabularies would know what comes after it."""
        if self.ranks.size == 1 or not self.config.lookups_ahead:
            yield from steps
            return
        following = next(steps, None)
        begun = False
        while following is not None:
            current = following
            ahead = not self._pauses_after_this_step()
            if ahead:
                following = next(steps, None)
                for batches in [current] * (not begun) + [following] * (following is not None):
                    self.embeddings.dispatch(batches[0])
            yield current
            begun = ahead
            if not ahead:
                following = next(steps, None)

    def _pauses_after_this_step(self) -> bool:
        config, done = self.config, self.position.step + 1
        every = [n for n in (config.checkpoint_every, config.eval_every) if n]
        return done == config.max_steps or any(done % n == 0 for n in every)

    def _batches(self) -> Iterator[Batch]:
        """The reader's batches with a candidate, on the device. The next one is read, and on a GPU copied on a stream of its own,
        while this one is computed; `reader_state` is the position after this one."""
        if self.reader_state["epoch"] > self.position.epoch:
            return  # resumed where this rank had read its share of the epoch, and another had not
        ahead: tuple[Batch, torch.cuda.Event | None, dict[str, int]] | None = None
        for batch in itertools.chain((batch for batch in self.reader if len(batch.item)), [None]):
            following = (*self._send(batch), self.reader.state_dict()) if batch is not None else None
            if ahead is not None:
                current, arrived, self.reader_state = ahead
                if arrived is not None:
                    torch.cuda.current_stream().wait_event(arrived)
                    current.record_stream(torch.cuda.current_stream())
                yield current
            ahead = following
        self.reader_state = self.reader.state_dict()

    def _send(self, batch: Batch) -> tuple[Batch, torch.cuda.Event | None]:
        """The batch on the device, and on a GPU when it will have arrived there."""
        if self.ranks.device.type == "cpu":
            return batch, None
        with torch.cuda.stream(self.copies):
            return batch.pin_memory().to(self.ranks.device, non_blocking=True), self.copies.record_event()

    def _step(self, batches: list[Batch]) -> tuple[float, dict[str, float]]:
        """One optimizer step; returns the mean loss and each task's.

        Gradients are weighted by the global sum of weights, over ranks and accumulated batches: how samples fall into batches does
        not change what is minimised.
        """
        normalisers = self.ranks.sum(torch.stack([self._weights(b) for b in batches]).sum(0))
        seen = torch.zeros_like(normalisers)
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            with contextlib.nullcontext() if last else self._gather_gradients():
                with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    found = self.wrapped(batch)
                sums = found if isinstance(self.model, Retriever) else self._loss_sums(found, batch)
                # DDP and the sharded tables average over ranks; the normaliser is already global.
                loss = total_loss(sums, normalisers, self.tasks) * self.ranks.size
                each = torch.stack([s.detach().double() for s in sums.values()])
                if self._is_sane(each, batch):
                    loss.backward()
                    seen += each
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        means = (self.ranks.sum(seen) / normalisers.clamp(min=1e-12)).tolist()
        tasks = {task.name: mean for task, mean in zip(self.tasks, means, strict=True)}
        return sum(task.weight * tasks[task.name] for task in self.tasks), tasks

    def _weights(self, batch: Batch) -> Tensor:
        """float64 [tasks]: what a batch's loss sums are divided by, before ranks add theirs."""
        if isinstance(self.model, Retriever):
            return self.model.query_count(batch)
        return weight_sums(batch.weights, self.config.schema.labels)

    def _loss_sums(self, logits: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return loss_sums(logits, batch.labels, batch.weights, self.config.schema.labels)

    @contextlib.contextmanager
    def _gather_gradients(self) -> Iterator[None]:
        """Backward only adds up: no reduction over ranks, no sparse update."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.embeddings.accumulate())
            stack.enter_context(unsynchronised(self.wrapped))
            yield

    def _is_sane(self, sums: Tensor, batch: Batch) -> bool:
        """Whether to learn from a batch, decided before anything is updated and by all ranks alike.

        Raises:
            UserError: the loss is not a number, or too many spikes in a row.
        """
        config, at = self.config, self.position
        weights = self._weights(batch)
        total_sums, total_weights = self.ranks.sum(torch.stack([sums.to(weights.device), weights]))
        means = total_sums / total_weights.clamp(min=1e-12)
        loss = sum(task.weight * mean for task, mean in zip(self.tasks, means.tolist(), strict=True))
        if not math.isfinite(loss):
            where = self._name_batch(batch, "nan", loss)
            raise UserError(
                f"the loss is {loss} at step {at.step + 1}, on {where}; nothing of the batch was learned. Lower --lr, look at the"
                f" batch's samples (`genrank show`), and run again: it goes on from the last checkpoint"
            )
        spike = config.spike_factor and at.step >= SPIKE_WARMUP and loss > config.spike_factor * at.running_loss
        if spike:
            at.spikes += 1
            where = self._name_batch(batch, "spike", loss)
            if at.spikes >= SPIKES_IN_A_ROW:
                raise UserError(
                    f"the loss was above {config.spike_factor:g} times its running mean in {at.spikes} steps in a row, last at step"
                    f" {at.step + 1} on {where}: training diverges; lower --lr or raise --warmup-steps"
                )
            return False
        at.spikes = 0
        at.running_loss = loss if math.isnan(at.running_loss) else 0.98 * at.running_loss + 0.02 * loss
        return True

    def _name_batch(self, batch: Batch, event: str, loss: float) -> str:
        """Write the batch's samples to the log, and say which they are in a few words."""
        ids = batch.sample_id
        if self.folder:
            self.folder.log({"step": self.position.step, "event": event, "loss": str(loss), "sample_ids": ids})
        return f"the batch of {len(ids)} samples from {ids[0]} to {ids[-1]} (all named in log.jsonl)"

    # ------------------------------------------------------------------ around the step

    def _set_learning_rate(self) -> None:
        config, at = self.config, self.position
        warm = min(1.0, (at.step + 1) / max(warmup(config, at.total_steps), 1))
        self.embeddings.lr = config.sparse_lr * warm
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * warm * decay_factor(config, at.step, at.total_steps)

    def _account(self, batches: list[Batch], loss: float, tasks: dict[str, float], progress: Progress) -> None:
        """Count, and every `log_every` steps tell."""
        at = self.position
        counts = torch.tensor([[len(b), len(b.item), token_count(b)] for b in batches if b.sample_id] or [[0] * 3])
        samples, candidates, tokens = self.ranks.sum(counts.sum(0).to(self.ranks.device)).tolist()
        at.samples += samples
        at.candidates += candidates
        at.tokens += tokens
        progress.update(at.step, at.epoch, loss, samples, tokens)
        if at.step % self.config.log_every == 0 or at.step == 1:
            self._log(
                {
                    "step": at.step,
                    "epoch": at.epoch,
                    "loss": loss,
                    "tasks": tasks,
                    "lr": self.optimizer.param_groups[0]["lr"],
                    "sparse_lr": self.embeddings.lr,
                    **progress.rates(
                        self.model.work.flops(self.model.encoder.config) if isinstance(self.model, Ranker) else 0,
                        self.peak,
                    ),
                }
            )

    def _log(self, row: dict[str, object]) -> None:
        if self.folder:
            self.folder.log({**row, "time": round(time.time(), 3)})

    def _evaluate(self) -> tuple[dict[str, dict[str, Estimate]], bool]:
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
                if self.ranks.chief:
                    write_json(config.out / "checkpoints" / "best.json", {"step": at.step, "gauc": score})
        else:
            at.worse += 1
        return metrics, bool(config.patience) and at.worse >= config.patience

    def _metrics(self) -> dict[str, dict[str, Estimate]]:
        config = self.config
        if isinstance(self.model, Retriever):
            rows, _, _ = evaluate_retriever(
                self.model, self.samples, config.eval_dates, trained=config.dates, token_budget=config.token_budget
            )
            return {NEXT_ITEM: rows["model"]}
        reader = make_reader(config, self.samples, config.schema, config.eval_dates, self.ranks, shuffle=False)
        found = {label.name: Predictions(label.kind) for label in config.schema.labels}
        with gathered(self.model):
            for batch, scores in predict(self.model, reader, config.schema, self.ranks, self.precision):
                for task, each in found.items():
                    each.update(candidate_users(batch), batch.labels[task], scores[task], batch.weights[task])
        return {task: each.gather().compute() for task, each in found.items()}

    # ------------------------------------------------------------------ checkpoints

    def _save(self) -> None:
        """Write this step's checkpoint; every rank's reader is in it."""
        at, config = self.position, self.config
        if at.step == self.saved_step:
            return
        self.saved_step = at.step
        at.log_lines = self.folder.lines if self.folder else 0
        save_checkpoint(
            config.out,
            at.step,
            schema=config.schema,
            model=self._model_identity(),
            dense={
                "model": whole_state(self.model),
                "optimizer": optimizer_state(self.model, self.optimizer),
                "position": dataclasses.asdict(at),
                "readers": self.ranks.gather(self.reader_state),
            },
            embeddings=self.embeddings,
            ranks=self.ranks,
            keep=config.keep_checkpoints,
            protect=[at.best_step] if config.patience else [],
        )

    def _restore(self, origin: Path | None) -> None:
        """Go on from this run's own newest checkpoint; or begin with `origin`'s weights; or begin."""
        config = self.config
        own = steps_of(config.out)
        if own:
            folder = config.out / "checkpoints" / f"step-{own[-1]}"
            read_manifest(folder)
            state = self._load(folder)
            self.position = Position(**state["position"])  # type: ignore[arg-type]
            self.saved_step = self.position.step
            readers = state["readers"]
            assert isinstance(readers, list)
            if len(readers) == self.ranks.size:
                self.reader.load_state_dict(readers[self.ranks.rank])
            else:
                self._begin_epoch(folder, readers)
        if self.folder:
            self.folder.rewind(self.position.log_lines)
        if own:
            return
        if origin:
            model, wanted = read_manifest(origin).model, self._model_identity()
            if model != wanted:
                raise UserError(
                    f"--from-checkpoint {config.from_checkpoint}: it is of model {_model_name(model)}, not of"
                    f" {_model_name(wanted)}; give the same --model and --set"
                )
            self._load(origin, origin=True)
        self.position.total_steps = self._steps_ahead(config.epochs)
        if config.max_steps:
            self.position.total_steps = min(self.position.total_steps, config.max_steps)

    def _begin_epoch(self, folder: Path, readers: list[dict[str, int]]) -> None:
        """Go on with another number of processes than wrote the checkpoint: only between epochs does one position say for all what
        has been read."""
        at = self.position
        if any(reader["window"] or reader["batches"] or reader["epoch"] != at.epoch for reader in readers):
            raise UserError(
                f"{folder} was written in the middle of an epoch by {len(readers)} processes and {self.ranks.size} resume it; start"
                f" as many, or give a new --out with --from-checkpoint {self.config.out}, which begins the days anew"
            )
        self.reader.load_state_dict({**self.reader.state_dict(), "epoch": at.epoch})
        at.total_steps = at.step + self._steps_ahead(self.config.epochs - at.epoch)

    def _steps_ahead(self, epochs: int) -> int:
        """Optimizer steps of so many epochs, estimated alike by all ranks."""
        batches = max(int(str(n)) for n in self.ranks.gather(self.reader.estimate_batches()))
        return max(1, math.ceil(batches / self.config.accumulate)) * epochs

    def _load(self, folder: Path, *, origin: bool = False) -> dict[str, object]:
        """Model, tables and optimizer from a checkpoint; returns its dense part."""
        state = load_dense(folder)
        load_weights(self.model, state["model"], folder, grown=origin)  # type: ignore[arg-type]
        load_optimizer_state(self.model, self.optimizer, state["optimizer"])  # type: ignore[arg-type]
        load_tables(self.embeddings, folder / "tables", reset=self.config.reset_tables if origin else ())
        return state

    def _model_identity(self) -> dict[str, object]:
        return {"name": self.config.model, "settings": dict(self.config.settings)}

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
        if not (self.config.profile and self.ranks.chief):
            yield _NoProfiler()
            return
        handler = torch.profiler.tensorboard_trace_handler(str(self.config.out / "profile"))
        schedule = torch.profiler.schedule(wait=8, warmup=2, active=5, repeat=1)
        with torch.profiler.profile(schedule=schedule, on_trace_ready=handler, record_shapes=True) as profiler:
            yield profiler


class _NoProfiler:
    def step(self) -> None:
        pass


# ---------------------------------------------------------------------- pieces that evaluation shares


def make_reader(
    config: TrainConfig, samples: Path, schema: Schema, dates: tuple[str, ...], ranks: Ranks, *, shuffle: bool
) -> SampleReader:
    """A reader of this rank's share of some days.

    Raises:
        UserError: a day isn't published, or its samples don't serve the schema.
    """
    for date in dates:
        sample_files(samples, date, schema)
    return SampleReader(
        samples,
        schema,
        dates,
        view=config.view,
        token_budget=config.token_budget,
        shuffle=shuffle,
        by_length=config.by_length and shuffle,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.size,
    )


def make_model(config: TrainConfig, embeddings: Embeddings) -> nn.Module:
    """The configured model on these embeddings."""
    own, head = model_config(config.model, config.settings)
    return build_model(own, head, embeddings, [label.name for label in config.schema.labels])


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over the dense parameters; norms, biases and other vectors don't decay."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=(0.9, 0.98), eps=1e-8)


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


def warmup(config: TrainConfig, total: int) -> int:
    """Steps of warm-up: at most half of all, so that a short run reaches its learning rate."""
    return min(config.warmup_steps, total // 2)


def decay_factor(config: TrainConfig, step: int, total: int) -> float:
    """The dense learning rate at a step, as a share of its peak (warm-up aside)."""
    if config.decay == "none":
        return 1.0
    warm = warmup(config, total)
    done = min(1.0, max(0, step - warm) / max(total - warm, 1))
    shape = 0.5 * (1 + math.cos(math.pi * done)) if config.decay == "cosine" else 1 - done
    return config.final_lr + (1 - config.final_lr) * shape


def predict(
    model: nn.Module, reader: SampleReader, schema: Schema, ranks: Ranks, precision: str = "fp32"
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Each batch of this rank's reader and, per task, its candidates' predictions [C] float32. Ranks look rows up together: one
    that has no batch left computes with another's until all are done, and keeps nothing of it."""
    keep_rate = 1.0 if schema.candidates.keep_correction else schema.candidates.negative_keep_rate
    training = model.training
    model.eval()
    try:
        for batch, own in in_step((batch for batch in reader if len(batch.item)), ranks):
            batch = batch.to(ranks.device)
            with torch.inference_mode(), torch.autocast(ranks.device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = model(batch)
            if own:
                yield batch, predictions(logits, schema.labels, keep_rate)
    finally:
        model.train(training)


def in_step(batches: Iterator[Batch], ranks: Ranks) -> Iterator[tuple[Batch, bool]]:
    """As many batches on every rank as on the one that has most, and whether each is this rank's own: one that has run out gets its
    last one again, or another rank's where it never had any."""
    if ranks.size == 1:
        yield from ((batch, True) for batch in batches)
        return
    last: Batch | None = None
    while True:
        batch = next(batches, None)
        last = last if batch is None else batch
        has, ever = zip(*ranks.gather((batch is not None, last is not None)), strict=True)  # type: ignore[call-overload]
        if not any(has):
            return
        if not all(ever):
            lent = ranks.any_of(None if batch is None else batch.to("cpu"))
            last = last if lent is None or last is not None else lent.to(ranks.device)
        assert last is not None
        yield last, batch is not None


def candidate_users(batch: Batch) -> Tensor:
    """[C] int64: the user of each candidate."""
    return torch.repeat_interleave(batch.user, batch.candidates.lengths, output_size=len(batch.item))


def token_count(batch: Batch) -> int:
    """Rows of every group: what the token budget counts, but for rows of several tokens."""
    return sum(len(group.ts) for group in batch.groups.values())


def without_weight(batch: Batch) -> Batch:
    """The same batch with nothing to learn from, and no samples to count."""
    weights = {task: torch.zeros_like(weight) for task, weight in batch.weights.items()}
    return dataclasses.replace(batch, sample_id=[], weights=weights, filler=True)


def _model_name(model: dict[str, object]) -> str:
    settings = model.get("settings")
    assert isinstance(settings, dict)
    return " ".join([str(model["name"]), *(f"--set {k}={v}" for k, v in settings.items())])


def _mix(seed: int, step: int, rank: int) -> int:
    """A seed for one step of one rank."""
    return (seed * 1_000_003 + step) * 1_009 + rank
