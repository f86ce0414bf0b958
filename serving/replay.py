"""The check before a launch: stored requests are answered by a server, or a model in process, and compared with what evaluation predicts.

Two things can differ. A score, because the serving path computes otherwise; and a value of the request, because whoever made it computes
features otherwise than the builder (training-serving skew): then its feature is named, with the request's value and the sample's.
"""

from __future__ import annotations

import itertools
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch

from genrank.model.evaluate import load_model
from genrank.model.predict import predict
from genrank.model.ranks import Ranks, own_device
from genrank.schemas.console import with_progress
from genrank.schemas.errors import UserError
from genrank.schemas.schema import CANDIDATES, Schema
from genrank.serving.request_contract import leaves_of
from genrank.serving.request_json import to_json
from genrank.serving.row_scores import score_rows
from genrank.serving.scorer import Scorer, Scores, require_ranking
from genrank.serving.stored_requests import RequestView, read_requests, stored_requests
from genrank.tokenization.reader import SampleReader

TOLERANCE = 1e-5
"""Of float32 scores: what another batch's rounding makes."""
TOGETHER = 64
"""Requests of one body, and of one call of a model."""


class Answerer(Protocol):
    """What answers requests."""

    def __call__(self, rows: pa.RecordBatch) -> Sequence[Scores]:
        """[candidates, tasks] of each row."""
        ...


class Worst(NamedTuple):
    """The largest difference of two scores."""

    difference: float
    sample_id: str
    candidate: int
    task: str
    answered: float
    expected: float


@dataclass
class Skew:
    """A feature of which requests hold other values than their samples."""

    requests: int = 0
    first: str = ""
    """Where, what the request has, and what the sample has."""


@dataclass
class Replayed:
    """What a replay found."""

    requests: int = 0
    candidates: int = 0
    worst: Worst | None = None
    absent: list[str] = field(default_factory=list)
    """Requests of which the samples hold no row, or one of other candidates."""
    skew: dict[str, Skew] = field(default_factory=dict)
    """Column of the request -> where it differs."""

    def within(self, tolerance: float) -> bool:
        """Whether every request has its sample, and no score differs by more."""
        return bool(self.requests) and not self.absent and (self.worst is None or self.worst.difference <= tolerance)


def replay(
    requests: Path, run: Path, samples_root: Path, answer: Answerer, *, device: str = "auto", threads: int = 4
) -> Replayed:
    """Answer stored requests and compare.

    Args:
        requests: a file of requests (`stored_requests.write_requests`), or one that a client's own code made of the same ids.
        run: whose predictions are right: the best checkpoint, or else the newest.
        samples_root: the folder with the `dt=...` folders that the requests are of.
        answer: what is compared.
        device: of the run's model.
        threads: requests are answered by so many at once.

    Raises:
        UserError: no such run, a request that doesn't hold, no sample of any request, or what `answer` raises.
    """
    expected = _Expected(run, samples_root, own_device(device))
    found = Replayed()
    asked = (
        batch.slice(begin, TOGETHER)
        for batch in read_requests(requests, expected.schema)
        for begin in range(0, len(batch), TOGETHER)
    )
    with ThreadPoolExecutor(threads) as pool:
        for rows in with_progress(asked, "replaying"):
            parts = [rows.slice(at, -(-len(rows) // threads)) for at in range(0, len(rows), -(-len(rows) // threads))]
            answers = list(itertools.chain.from_iterable(pool.map(answer, parts)))
            _compare(found, rows, answers, expected)
    if not found.requests:
        raise UserError(f"{requests} holds no request")
    return found


class InProcess:
    """A scorer as an answerer."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def __call__(self, rows: pa.RecordBatch) -> Sequence[Scores]:
        """As `Answerer`."""
        compact = rows.take(pa.array(np.arange(len(rows))))
        counts = compact.column(CANDIDATES).field("ts").value_lengths().to_numpy()
        return np.split(score_rows(self.scorer, compact), np.cumsum(counts)[:-1])


class OverHttp:
    """A server as an answerer.

    Args:
        url: of the server, without path.
        seconds: until an answer is given up.

    Raises:
        UserError: nobody answers there.
    """

    def __init__(self, url: str, seconds: float = 60.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"--server {url}: write http://HOST:PORT")
        self.url, self.seconds = url.rstrip("/"), seconds
        self.model = self._ask("/v1/model", None)

    def __call__(self, rows: pa.RecordBatch) -> Sequence[Scores]:
        """As `Answerer`."""
        sent = [name for name in rows.schema.names if name != "mask"]
        compact = rows.select(sent).take(pa.array(np.arange(len(rows))))
        content = self._ask("/v1/score", ('{"requests": [' + ",".join(to_json(compact)) + "]}").encode())
        tasks, results = self.model["tasks"], content["results"]
        assert isinstance(tasks, list) and isinstance(results, list)
        return [np.stack([np.array(each["scores"][task], np.float32) for task in tasks], 1) for each in results]

    def _ask(self, path: str, body: bytes | None) -> dict[str, object]:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.seconds) as answer:
                content: dict[str, object] = json.load(answer)
                return content
        except urllib.error.HTTPError as error:
            why = error.read(2_000).decode(errors="replace")
            raise UserError(f"{self.url}{path} answered {error.code}: {_message(why)}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.url}{path} gave no answer ({error}); is the server running there?") from None


def _message(body: str) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return (body.splitlines() or ["nothing"])[0]


# ---------------------------------------------------------------------- what is right


class _Expected:
    """Predictions and values of the stored samples that requests are of, a day at a time."""

    def __init__(self, run: Path, samples_root: Path, device: torch.device) -> None:
        loaded = load_model(run, device=device)
        require_ranking(loaded, run)
        self.model, self.schema, self.device = loaded.model, loaded.schema, device
        self.tasks = [label.name for label in self.schema.labels]
        self.samples_root = samples_root
        self._days: dict[tuple[str, RequestView], tuple[dict[str, Scores], dict[str, pa.RecordBatch]]] = {}

    def of(self, sample_id: str, window_start: int) -> tuple[Scores, pa.RecordBatch] | None:
        """(scores [candidates, tasks], the row) of a request's sample; None where the samples have none."""
        view: RequestView = "request" if "/" in sample_id else "user_day"
        dt = str(np.datetime64(self.schema.local_days.day(window_start), "D"))
        if (dt, view) not in self._days:
            self._days[dt, view] = self._read(self.schema, dt, view)
        scores, rows = self._days[dt, view]
        return (scores[sample_id], rows[sample_id]) if sample_id in rows else None

    def _read(self, schema: Schema, dt: str, view: RequestView) -> tuple[dict[str, Scores], dict[str, pa.RecordBatch]]:
        reader = SampleReader(self.samples_root, schema, [dt], view=view, shuffle=False)
        scores: dict[str, Scores] = {}
        for batch, found in predict(self.model, reader, schema, Ranks(0, 1, self.device)):
            stacked = torch.stack([found[task] for task in self.tasks], 1).float().cpu().numpy()
            ends = np.cumsum(batch.candidates.lengths.cpu().numpy())[:-1]
            scores |= dict(zip(batch.sample_id, np.split(stacked, ends), strict=True))
        rows = {}
        for stored in stored_requests(self.samples_root, schema, [dt], view):
            for at, sample_id in enumerate(stored.column("sample_id").to_pylist()):
                rows[sample_id] = stored.slice(at, 1)
        return scores, rows


def _compare(found: Replayed, rows: pa.RecordBatch, answers: Sequence[Scores], expected: _Expected) -> None:
    ids, starts = (rows.column(name).to_pylist() for name in ("sample_id", "window_start"))
    counts = rows.column(CANDIDATES).field("ts").value_lengths().to_pylist()
    if len(answers) != len(ids):
        raise UserError(f"{len(ids)} requests got {len(answers)} answers")
    for at, (sample_id, start, count, scores) in enumerate(zip(ids, starts, counts, answers, strict=True)):
        found.requests += 1
        found.candidates += count
        known = expected.of(sample_id, start)
        if known is None or known[0].shape[0] != count:
            found.absent.append(sample_id)
            continue
        wanted, sample = known
        if scores.shape != wanted.shape:
            raise UserError(f"{sample_id}: {scores.shape} scores for {wanted.shape} candidates and tasks")
        for name, what in differences(rows.slice(at, 1), sample):
            skew = found.skew.setdefault(name, Skew(first=f"{sample_id}: {what}"))
            skew.requests += 1
        gap = np.abs(scores.astype(np.float64) - wanted)
        gap[np.isnan(gap)] = np.inf
        candidate, task = np.unravel_index(int(gap.argmax()), gap.shape)
        if found.worst is None or gap[candidate, task] > found.worst.difference:
            own, right = float(scores[candidate, task]), float(wanted[candidate, task])
            name = expected.tasks[int(task)]
            found.worst = Worst(float(gap[candidate, task]), sample_id, int(candidate), name, own, right)


def differences(request: pa.RecordBatch, sample: pa.RecordBatch) -> Iterator[tuple[str, str]]:
    """(column, what is where) of every column in which a request differs from its sample.

    Args:
        request, sample: a row each.
    """
    stored = {name: _values(values) for name, values in leaves_of(sample)}
    for name, values in leaves_of(request):
        if name not in stored or name.startswith("mask.") or name == "sample_id":
            continue
        own, right = _values(values), stored[name]
        if len(own) != len(right):
            yield name, f"the request has {len(own)} values, the sample {len(right)}"
            continue
        for at, (one, other) in enumerate(zip(own, right, strict=True)):
            if one != other and not (one != one and other != other):
                where = f"[{at}]" if len(own) > 1 else ""
                yield name, f"{where} the request has {one}, the sample {other}".strip()
                break


def _values(values: pa.Array) -> list[object]:
    """Of a row's column: the list's values, or the one value."""
    plain: list[object] = values.to_pylist()
    one = plain[0]
    return one if isinstance(one, list) else plain


Report = Callable[[str], None]


def report(found: Replayed, tolerance: float, say: Report) -> None:
    """What was found, a line each."""
    say(f"{found.requests:,} requests with {found.candidates:,} candidates")
    if found.worst is not None:
        worst = found.worst
        verdict = "within" if worst.difference <= tolerance else "beyond"
        say(
            f"largest difference {worst.difference:.3g}, {verdict} {tolerance:g}: {worst.task} of candidate {worst.candidate} of "
            f"{worst.sample_id} is {worst.answered:.8g}, evaluation predicts {worst.expected:.8g}"
        )
    if found.absent:
        say(f"{len(found.absent):,} requests have no sample with their candidates, such as {found.absent[0]}")
    for name, skew in sorted(found.skew.items(), key=lambda item: -item[1].requests):
        say(f"{name} differs in {skew.requests:,} requests; {skew.first}")
    if not found.skew and found.requests > len(found.absent):
        say("every feature is as the builder stored it")
