"""Rows of requests scored each by itself.

Samples of one user and day that follow one another are parts of one day to the reader, and features that compare candidates of a request
(`WithinRequest`, `RequestSize`) look across them. Two requests are not parts of one: a client may try one again, under its old id.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from genrank.schemas.schema import CANDIDATES
from genrank.serving.scorer import Scorer, Scores
from genrank.tokenization.feature_kinds import number_function


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


def _turns(rows: pa.RecordBatch) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """[R]: how many rows of the same user and window come before each."""
    seen: dict[tuple[object, object], int] = {}
    turns = []
    for key in zip(rows.column("user_id").to_pylist(), rows.column("window_start").to_pylist(), strict=True):
        turns.append(seen.get(key, 0))
        seen[key] = turns[-1] + 1
    return np.array(turns, np.int64)
