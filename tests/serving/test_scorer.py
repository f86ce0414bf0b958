"""A checkpoint behind the `Scorer` interface: the samples' scores, and what it says of rows that aren't samples."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from genrank.model.evaluate import load_model
from genrank.model.predict import predict
from genrank.model.ranks import Ranks
from genrank.schemas.errors import UserError
from genrank.schemas.manifest import sample_files
from genrank.serving.sample_rows import request_schema
from genrank.serving.scorer import CheckpointScorer
from genrank.tokenization.reader import SampleReader


@pytest.fixture(scope="module")
def scorer(run) -> CheckpointScorer:
    return CheckpointScorer.load(run, "cpu")


@pytest.fixture(scope="module")
def rows(samples, schema) -> pa.RecordBatch:
    """Rows of a day, as a client would send them: without labels."""
    file = sample_files(samples / "samples", "2026-01-02")[0]
    return pq.read_table(file).select(request_schema(schema).names).combine_chunks().to_batches()[0]


def test_scores_are_predictions_of_stored_samples(scorer, rows, samples, schema, run) -> None:
    reader = SampleReader(samples / "samples", schema, ["2026-01-02"], view="user_day", shuffle=False)
    model = load_model(run).model
    wanted = [scores for _, scores in predict(model, reader, schema, Ranks(0, 1, torch.device("cpu")))]
    got = scorer.score(rows)
    assert scorer.tasks == ("click", "watch") and scorer.fingerprint == schema.fingerprint
    assert got.dtype == np.float32 and len(got)
    for at, task in enumerate(scorer.tasks):
        stored = torch.cat([scores[task] for scores in wanted]).numpy()[: len(got)]
        np.testing.assert_allclose(got[:, at], stored, rtol=1e-5, atol=1e-6)


def test_a_slice_is_scored_by_itself(scorer, rows) -> None:
    whole = scorer.score(rows)
    first = scorer.score(rows.slice(0, 3))
    rest = scorer.score(rows.slice(3))
    np.testing.assert_allclose(np.concatenate([first, rest]), whole, rtol=1e-5, atol=1e-6)
    assert scorer.score(rows.slice(0, 0)).shape == (0, 2)


def test_what_is_no_sample_is_refused_by_name(scorer, rows) -> None:
    with pytest.raises(UserError, match="no column window_start"):
        scorer.score(rows.drop_columns(["window_start"]))
    at = rows.schema.get_field_index("user_id")
    with pytest.raises(UserError, match="user_id is string, give int64"):
        scorer.score(rows.set_column(at, "user_id", rows.column(at).cast("string")))
    candidates = rows.column(rows.schema.get_field_index("candidates"))
    fewer = {f.name: candidates.field(f.name) for f in candidates.type if f.name != "price"}
    without = pa.StructArray.from_arrays(list(fewer.values()), list(fewer))
    with pytest.raises(UserError, match=r"no column candidates\.price"):
        scorer.score(rows.set_column(rows.schema.get_field_index("candidates"), "candidates", without))
