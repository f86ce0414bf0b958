"""An export scores as its run's checkpoint does, without what training needs, and refuses to score otherwise."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from genrank.model.config import TrainConfig
from genrank.model.trainer import train
from genrank.schemas.errors import UserError
from genrank.serving.config import ExportConfig
from genrank.serving.example_rows import example_rows
from genrank.serving.export import export
from genrank.serving.exported import ExportedScorer
from genrank.serving.model_folder import open_model
from genrank.serving.sample_rows import request_schema
from genrank.serving.scorer import CheckpointScorer
from genrank.serving.tensor_file import read_tensors, write_tensors
from genrank.serving.user_cache import UserCache

ROOT = Path(__file__).resolve().parents[2]


def run_of(schema, samples: Path, out: Path, model: str, **settings: str) -> Path:
    train(
        TrainConfig(
            schema=schema,
            samples=samples,
            dates="2026-01-01",
            out=out,
            model=model,
            settings=settings,
            token_budget=600,
            max_steps=2,
            device="cpu",
        )
    )
    return out


@pytest.fixture(scope="module")
def run(small_run) -> Path:
    return small_run


def assert_same(got: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-6)


def test_it_scores_as_the_checkpoint_whatever_a_request_holds(run, exported, schema) -> None:
    """Programs are traced with three samples of a few rows; any number of samples, events and candidates is right."""
    mine, theirs = CheckpointScorer.load(run), ExportedScorer.load(exported)
    assert (theirs.tasks, theirs.fingerprint) == (mine.tasks, mine.fingerprint)
    rows = example_rows(schema, 5)
    assert_same(theirs.score(rows), mine.score(rows))
    assert_same(theirs.score(rows.slice(2, 1)), mine.score(rows.slice(2, 1)))
    sparse = {name: values[:1] for name, values in rows.slice(0, 1).to_pydict().items()}
    for name in ("candidates", "mask"):
        sparse[name] = [{k: v if k == "realtime_sees" else v[:1] for k, v in sparse[name][0].items()}]
    one = pa.RecordBatch.from_pydict(sparse, schema=request_schema(schema))
    assert_same(theirs.score(one), mine.score(one))  # one candidate
    for name in ("history", "realtime"):
        sparse[name] = [{k: [] for k in sparse[name][0]}]
    sparse["mask"] = [{"candidate_sees": [0], "realtime_sees": []}]
    none = pa.RecordBatch.from_pydict(sparse, schema=request_schema(schema))
    assert_same(theirs.score(none), mine.score(none))  # no event
    cached = ExportedScorer.load(exported, micro_batch=2, cache=UserCache(1 << 20, storage="float32"))
    for _ in range(2):
        assert_same(cached.score(rows), mine.score(rows))
    assert cached.engine.cache is not None and cached.engine.cache.counts.hits == 5


def test_loading_imports_nothing_of_training(exported) -> None:
    code = (
        "import sys; from pathlib import Path; from genrank.serving.exported import ExportedScorer\n"
        f"ExportedScorer.load(Path({str(exported)!r}))\n"
        "heavy = {'torchrec', 'fbgemm_gpu', 'pyspark', 'polars', 'matplotlib', 'tensorboard', 'lightgbm'}\n"
        "print(sorted(heavy & set(sys.modules)), 'genrank.model.trainer' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "[] False", done.stdout + done.stderr


def test_what_is_damaged_or_scores_otherwise_is_refused(exported, tmp_path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    table = next((copy / "tables").iterdir())
    whole = table.read_bytes()
    table.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"{table.name} is missing or damaged; export the run again"):
        ExportedScorer.load(copy)
    table.write_bytes(whole)
    with pytest.raises(UserError, match="give the --out folder of `genrank export`"):
        ExportedScorer.load(tmp_path)
    with pytest.raises(UserError, match="was exported for cpu and is loaded on cuda"):
        ExportedScorer.load(copy, "cuda")
    scorer = ExportedScorer.load(copy)
    with torch.no_grad():
        next(iter(scorer.model.heads.parameters())).add_(1.0)
    with pytest.raises(UserError, match="scores its example otherwise than the run did"):
        scorer._try(copy)


@pytest.mark.parametrize(
    ("model", "settings"), [("dlrm", {}), ("mtgr-tiny", {"layers": "1", "tower": "[16]", "listwise": "true"})]
)
def test_a_model_without_programs_is_exported_by_its_weights(schema, samples, tmp_path, model, settings) -> None:
    run = run_of(schema, samples, tmp_path / "run", model, **settings)
    manifest = export(ExportConfig(run=run, out=tmp_path / "out", device="cpu"))
    assert not manifest.programs and not (tmp_path / "out" / "encoder").exists()
    rows = example_rows(schema, 4)
    assert_same(ExportedScorer.load(tmp_path / "out").score(rows), CheckpointScorer.load(run).score(rows))
    again = export(ExportConfig(run=run, out=tmp_path / "out", device="cpu"))
    assert again.files.keys() == manifest.files.keys()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    with pytest.raises(
        UserError, match=rf"--compiled: {model} has no exported programs to compile \(mtgr and hstu have"
    ):
        export(ExportConfig(run=run, out=tmp_path / "out", compiled=True, device="cpu"))
    with pytest.raises(UserError, match=r"holds files and no export\.json"):
        export(ExportConfig(run=run, out=run, device="cpu"))


def test_a_server_and_a_replay_open_an_export_as_they_open_a_run(run, exported, schema) -> None:
    (own, name), (theirs, other) = open_model(exported), open_model(run)
    assert isinstance(own, ExportedScorer) and isinstance(theirs, CheckpointScorer)
    assert name.startswith("small-") and other.startswith("step-")
    assert own.checkpoint != theirs.checkpoint
    served = pytest.importorskip("genrank.serving.server.models")
    slot = served.load_served(exported, "cpu", 100)
    rows = example_rows(schema, 3)
    assert_same(slot.score(rows), theirs.score(rows))
    counted = [list(each.ids.count(rows)) for each in (slot, served.load_served(run, "cpu", 100))]
    assert counted[0] and counted[0] == counted[1]
    assert [Path(path).name for path, _, _ in served.stamp(exported)] == ["export.json"]


def test_tensors_of_every_type_are_read_as_they_were_written(tmp_path) -> None:
    written = {
        "rows": torch.cat([torch.zeros(70_000, 3), torch.randn(5, 3)]),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(3.5, dtype=torch.float64),
        "ids": torch.arange(7),
        "half": torch.randn(4, 2).bfloat16(),
        "flags": torch.tensor([True, False]),
    }
    write_tensors(tmp_path / "t.safetensors", written)
    read = read_tensors(tmp_path / "t.safetensors")
    assert set(read) == set(written)
    for name, tensor in written.items():
        assert torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype
    (tmp_path / "t.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError, match="is no safetensors file"):
        read_tensors(tmp_path / "t.safetensors")
