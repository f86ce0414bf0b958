"""What `genrank export --triton` writes is a model repository, and its backend answers Triton's requests one by one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from random_samples import random_table
from triton_stand_in import LoadedModel, TritonError, asked, read_config

from genrank.model.config import TrainConfig
from genrank.model.trainer import train
from genrank.schemas import Schema
from genrank.schemas.errors import UserError
from genrank.serving.config import ExportConfig
from genrank.serving.export import export
from genrank.serving.request_arrow import write_arrow
from genrank.serving.request_contract import RequestContract
from genrank.serving.request_json import parse_json, to_json
from genrank.serving.scorer import CheckpointScorer
from genrank.serving.stored_requests import requests_of
from genrank.serving.triton_server import backend


@pytest.fixture(scope="module")
def run(schema: Schema, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without programs, which is exported in no time."""
    out = tmp_path_factory.mktemp("runs") / "dlrm"
    train(
        TrainConfig(
            schema=schema, samples=samples, dates="2026-01-01", out=out, model="dlrm", token_budget=600, max_steps=2,
            device="cpu",
        )
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one version. Read only."""
    folder = tmp_path_factory.mktemp("models") / "ranker"
    export(ExportConfig(run=run, triton=folder, device="cpu"))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return LoadedModel(folder, 1, max_candidates="50", batch_tokens="60", max_body_mb="0.1")


@pytest.fixture(scope="module")
def rows(schema: Schema) -> pa.RecordBatch:
    """Requests of four users."""
    return requests_of(random_table(schema, "2026-01-01", users=4, seed=3), RequestContract(schema), "user_day").slice(
        0, 4
    )


def scores_of(response, task: str = "click") -> np.ndarray:
    assert not response.has_error(), response.error().message()
    return next(tensor.as_numpy() for tensor in response.output_tensors() if tensor.name() == task)


def compressed(row: pa.RecordBatch, size: int) -> bytes:
    """A row as a small stream that takes so many bytes to read."""
    at = row.schema.get_field_index("sample_id")
    long = row.set_column(at, "sample_id", pa.array(["0" * size]))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, long.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_batch(long)
    return bytes(sink.getvalue())


def test_every_request_gets_its_scores_or_its_error(model: LoadedModel, run: Path, schema: Schema, rows) -> None:
    contract, scorer = RequestContract(schema, 50), CheckpointScorer.load(run)
    texts = list(to_json(rows))
    lacking = json.loads(texts[0])
    del lacking["candidates"]["price"]
    none = json.loads(texts[0])
    none["candidates"] = {name: [] for name in none["candidates"]}
    requests = [
        asked(texts[0]),
        asked("{"),
        asked(texts[1]),
        asked(json.dumps(lacking)),
        asked(texts[2].replace(": 0.", ": NaN, ", 1) if ": 0." in texts[2] else '{"a": NaN}'),
        asked(json.dumps(none)),
        asked(texts[3], name="OTHER"),
        asked(texts[3], cancelled=True),
        asked(write_arrow([rows.slice(3, 1)], rows.schema)),
        asked(texts[3], texts[0]),
        asked(texts[3], "[]"),
        asked(write_arrow([rows.slice(0, 2)], rows.schema)),
        asked(" " * 100_001),
        asked(compressed(rows.slice(0, 1), 200_000)),
    ]
    wanted = [scorer.score(contract.checked(rows.slice(at, 1))) for at in range(4)]
    responses = model.execute(requests)
    for at, user in ((0, 0), (2, 1), (8, 3)):
        for task, column in zip(scorer.tasks, wanted[user].T, strict=True):
            np.testing.assert_allclose(scores_of(responses[at], task), column[None], rtol=2e-5, atol=2e-6)
    both = scores_of(responses[9])
    longest = max(len(wanted[3]), len(wanted[0]))
    assert both.shape == (2, longest)
    for of_row, user in zip(both, (3, 0), strict=True):
        count = len(wanted[user])
        np.testing.assert_allclose(of_row[:count], wanted[user][:, 0], rtol=2e-5, atol=2e-6)
        assert np.isnan(of_row[count:]).all()
    said = {
        1: "the body is no JSON",
        3: "requests[0].candidates has no price",
        4: "NaN is no JSON value; send null",
        5: "candidates is empty; send at least one",
        6: "the request has no input REQUEST",
        10: "requests[1] is a list",
        11: "requests[0] is a stream of 2 rows; send one row in each element of REQUEST",
        12: "REQUEST has 0.1 MB; at most 0.1 MB are read: send fewer rows at once",
        13: "MB once it is decompressed; at most 0.1 MB are read",
    }
    for at, message in said.items():
        error = responses[at].error()
        assert error is not None and message in error.message(), (at, error and error.message())
        assert error.code() == TritonError.INVALID_ARG and "\n" not in error.message()
    cancelled = responses[7].error()
    assert cancelled is not None and cancelled.code() == TritonError.CANCELLED


def test_a_request_that_the_model_fails_on_fails_alone(model: LoadedModel, rows, monkeypatch) -> None:
    scorer = model.model.backend.scorer
    bad, score = rows.column("sample_id")[2].as_py(), scorer.score

    def fails(given: pa.RecordBatch) -> np.ndarray:
        if bad in given.column("sample_id").to_pylist():
            raise RuntimeError("an index is out of range")
        return score(given)

    monkeypatch.setattr(scorer, "score", fails)
    responses = model.execute([asked(text) for text in to_json(rows)])
    assert [response.has_error() for response in responses] == [False, False, True, False]
    error = responses[2].error()
    assert error is not None and error.code() == TritonError.INTERNAL
    assert "log says why" in error.message() and "index" not in error.message()

    def unreadable(sent: bytes) -> object:
        if bad.encode() in sent:
            raise MemoryError("no room")
        return parse_json(sent)

    monkeypatch.setattr(backend, "parse_json", unreadable)
    responses = model.execute([asked(text) for text in to_json(rows)])
    assert [response.has_error() for response in responses] == [False, False, True, False]
    error = responses[2].error()
    assert error is not None and error.code() == TritonError.INTERNAL and "can't be read" in error.message()
    assert model.execute([]) == []


def test_each_export_is_a_version_beside_the_others(run: Path, folder: Path, tmp_path: Path) -> None:
    config = read_config((folder / "config.pbtxt").read_text())
    assert config["input"] == [{"name": "REQUEST", "data_type": "TYPE_STRING", "dims": [1]}]
    assert [output["name"] for output in config["output"]] == ["click", "watch"]
    assert config["instance_group"] == [{"kind": "KIND_CPU", "count": 1}]
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 2000}
    mine = tmp_path / "ranker"
    export(ExportConfig(run=run, triton=mine, device="cpu"))
    changed = (mine / "config.pbtxt").read_text().replace("count: 1", "count: 3")
    (mine / "config.pbtxt").write_text(changed)
    export(ExportConfig(run=run, triton=mine, device="cpu"))
    assert sorted(path.name for path in mine.iterdir()) == ["1", "2", "config.pbtxt"]
    assert (mine / "config.pbtxt").read_text() == changed
    assert sorted(path.name for path in (mine / "2").iterdir()) == ["export", "model.py"]
    second = LoadedModel(mine, 2)
    second.finalize()
    (mine / "config.pbtxt").write_text(changed.replace('"watch"', '"buy"'))
    with pytest.raises(UserError, match=r"config\.pbtxt has no output watch, which this run predicts; give another"):
        export(ExportConfig(run=run, triton=mine, device="cpu"))
    assert sorted(path.name for path in mine.iterdir()) == ["1", "2", "config.pbtxt"]
    with pytest.raises(UserError, match=r"config\.pbtxt has the outputs buy, click, the export predicts click, watch"):
        LoadedModel(mine, 2)


def test_what_cannot_be_served_is_refused(run: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give one folder to write: --out DIR, or --triton DIR"):
        ExportConfig(run=run)
    with pytest.raises(UserError, match=r"give one folder to write"):
        ExportConfig(run=run, out=tmp_path, triton=tmp_path)
    with pytest.raises(UserError, match="the folder's name becomes the model's"):
        export(ExportConfig(run=run, triton=tmp_path / "my model", device="cpu"))
    with pytest.raises(UserError, match=r"holds files and no config\.pbtxt"):
        export(ExportConfig(run=run, triton=run, device="cpu"))
    with pytest.raises(UserError, match=r"parameters of config\.pbtxt: .*micro_batches"):
        LoadedModel(folder, 1, micro_batches="8")
    with pytest.raises(UserError, match=r"parameters of config\.pbtxt: batch_tokens"):
        LoadedModel(folder, 1, batch_tokens="many")
    with pytest.raises(UserError, match="has no user state"):
        LoadedModel(folder, 1, micro_batch="8", EXECUTION_ENV_PATH="genrank.tar.gz")
