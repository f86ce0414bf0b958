"""Rows of requests scored each by itself, and those of several senders together.

Samples of one user and day that follow one another are parts of one day to the reader, and features that compare candidates of a request
(`WithinRequest`, `RequestSize`) look across them. Two requests are not parts of one: a client may try one again, under its old id.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from genrank.schemas.console import logger
from genrank.schemas.errors import UserError
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.serving.scorer import Scorer, Scores
from genrank.tokenization.feature_kinds import number_function
from genrank.tokenization.sample_columns import list_lengths
from genrank.tokenization.views import token_counts


class ScoringError(Exception):
    """The model gave no usable score; the sender is not to blame."""


def sizes(schema: Schema, rows: pa.RecordBatch) -> tuple[int, int]:
    """(tokens, candidates) of rows."""
    table = pa.table(rows)
    lengths = {name: list_lengths(table, f"{name}.ts") for name, _ in schema.groups() if name != USER}
    realtime = lengths[schema.realtime.name] if schema.realtime else np.zeros(len(rows), np.int64)
    tokens = token_counts(schema, lengths[CANDIDATES], realtime, np.arange(len(rows)), lengths)
    return int(tokens.sum()), int(lengths[CANDIDATES].sum())


def score_rows(scorer: Scorer, rows: pa.RecordBatch) -> Scores:
    """[candidates, tasks] float32 of the rows' candidates, in the rows' order; none depends on another row.

    Args:
        scorer: of samples.
        rows: as `Scorer.score`.
    """
    compares = any(number_function(feature) for feature in scorer.schema.candidates.features)
    if not compares or len(rows) < 2:
        return scorer.score(rows)
    turn = _turns(rows)
    counts = rows.column(CANDIDATES).field("ts").value_lengths().to_numpy()
    owner = np.repeat(turn, counts)
    scores = np.empty((len(owner), len(scorer.tasks)), np.float32)
    for number in range(int(turn.max()) + 1):
        scores[owner == number] = scorer.score(rows.take(pa.array(np.flatnonzero(turn == number))))
    return scores


def score_senders(scorer: Scorer, senders: Sequence[pa.RecordBatch]) -> list[Scores | UserError | ScoringError]:
    """Every sender's scores, computed together; where that fails, each sender's by themselves, so that the others still get theirs.

    Args:
        scorer: of samples.
        senders: rows of each, as `Scorer.score`.

    Returns:
        A sender's [candidates, tasks]; or why there are none: what is wrong with its rows, or that the model failed on them.
    """
    try:
        return list(_together(scorer, senders))
    except Exception as error:
        if len(senders) == 1:
            return [_reported(error)]
    return [answer for rows in senders for answer in score_senders(scorer, [rows])]


def _together(scorer: Scorer, senders: Sequence[pa.RecordBatch]) -> list[Scores]:
    rows = pa.Table.from_batches(senders).combine_chunks().to_batches()[0]
    scores = score_rows(scorer, rows)
    counts = [sizes(scorer.schema, own)[1] for own in senders]
    if scores.shape != (sum(counts), len(scorer.tasks)):
        raise ScoringError(f"the model gave {scores.shape} scores for {sum(counts)} candidates")
    if not np.isfinite(scores).all():
        raise ScoringError("the model gave a score that is no number")
    return np.split(scores, np.cumsum(counts)[:-1])


def _reported(error: Exception) -> UserError | ScoringError:
    """What the sender is given: its own mistake in words, anything else in the log."""
    if isinstance(error, UserError):
        return error
    logger.error("scoring failed", exc_info=error)
    return error if isinstance(error, ScoringError) else ScoringError("scoring failed; the server's log says why")


def _turns(rows: pa.RecordBatch) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """[R]: how many rows of the same user and window come before each."""
    seen: dict[tuple[object, object], int] = {}
    turns = []
    for key in zip(rows.column("user_id").to_pylist(), rows.column("window_start").to_pylist(), strict=True):
        turns.append(seen.get(key, 0))
        seen[key] = turns[-1] + 1
    return np.array(turns, np.int64)
