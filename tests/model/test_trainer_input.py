"""What training refuses: bad flags, damaged samples and checkpoints, days without rows or with labels of one class; one line each."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from genrank.model.checkpoint import steps_of
from genrank.model.config import EvaluateConfig, TrainConfig
from genrank.model.evaluate import evaluate
from genrank.model.trainer import train
from genrank.schemas import Label, UserError

DAYS = ("2026-01-01", "2026-01-02", "2026-01-03")


def test_bad_input_is_one_clear_line(config: TrainConfig, samples, schema, tmp_path) -> None:
    def refused(match: str, **changes) -> None:
        with pytest.raises(UserError, match=match) as caught:
            train(dataclasses.replace(config, out=tmp_path / "refused", **changes))
        assert not (tmp_path / "refused").exists(), "a refused run leaves nothing behind"
        assert "\n" not in str(caught.value) or "schema" in changes  # which prints the difference below its line

    refused("2031-01-01.*no published samples", dates=("2031-01-01",))
    refused("no dt=YYYY-MM-DD folder", samples=tmp_path)
    other = schema.model_copy(update={"labels": (*schema.labels, Label(name="like", column="clicked"))})
    refused("label like: added", schema=other)
    refused("no complete checkpoint", from_checkpoint=tmp_path)
    if not torch.cuda.is_available():
        refused("no GPU", device="cuda")
    refused("--recompute is for models with an encoder", model="din", recompute=True)
    with pytest.raises(UserError, match="training day too"):
        dataclasses.replace(config, eval_dates=DAYS[:1])
    with pytest.raises(UserError, match="--epochs 0"):
        dataclasses.replace(config, epochs=0)


def test_a_corrupt_file_is_named(config: TrainConfig, samples, tmp_path) -> None:
    shutil.copytree(samples, tmp_path / "broken")
    file = next((tmp_path / "broken" / "samples" / f"dt={DAYS[0]}").rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(UserError, match=file.name) as caught:
        train(dataclasses.replace(config, samples=tmp_path / "broken", out=tmp_path / "b"))
    assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_is_refused_where_it_is_named_and_else_gives_way_to_an_older_one(
    config: TrainConfig,
) -> None:
    config = dataclasses.replace(config, checkpoint_every=2, keep_checkpoints=2)
    train(config)
    first, last = steps_of(config.out)[-2:]
    dense = config.out / "checkpoints" / f"step-{last}" / "dense.pt"
    dense.write_bytes(dense.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"dense\.pt is missing or damaged"):
        evaluate(EvaluateConfig(run=config.out, samples=config.samples, dates=DAYS[2:], bootstrap=0, checkpoint=last))
    unnamed = evaluate(EvaluateConfig(run=config.out, samples=config.samples, dates=DAYS[2:], bootstrap=0))
    named = evaluate(
        EvaluateConfig(run=config.out, samples=config.samples, dates=DAYS[2:], bootstrap=0, checkpoint=first)
    )
    assert unnamed.step == first and unnamed == named


def test_days_without_candidates_are_refused(config: TrainConfig, schema, tmp_path) -> None:
    from random_samples import publish, random_table

    for day in DAYS:
        table = random_table(schema, day, 4)
        rows = table.to_pylist()
        for row in rows:
            for group in ("candidates", "labels"):
                row[group] = {name: [] for name in row[group]}
            row["mask"]["candidate_sees"] = []
        publish(
            tmp_path / "samples",
            schema,
            day,
            table.schema.empty_table() if day == DAYS[1] else type(table).from_pylist(rows, table.schema),
        )
    for dates, message in ((DAYS[:1], "hold no candidate"), (DAYS[1:2], "are empty")):
        with pytest.raises(UserError, match=message):
            train(dataclasses.replace(config, samples=tmp_path, dates=dates, out=tmp_path / message[:4]))


def one_class(schema, root: Path) -> None:
    """Three days on which nobody clicks."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from random_samples import publish, random_table

    for day in DAYS:
        table = random_table(schema, day, 10)
        labels = table["labels"].combine_chunks()
        fields = {f.name: pc.struct_field(labels, f.name) for f in labels.type}
        fields["click"] = pa.ListArray.from_arrays(
            fields["click"].offsets, pa.array([0] * len(fields["click"].values), pa.int32()), fields["click"].type
        )
        struct = pa.StructArray.from_arrays(list(fields.values()), fields=list(labels.type))
        table = table.set_column(table.column_names.index("labels"), table.field("labels"), struct)
        publish(root / "samples", schema, day, table)


def test_labels_all_of_one_class_are_refused_unless_a_number_is_left_to_learn(
    config: TrainConfig, schema, tmp_path
) -> None:
    one_class(schema, tmp_path)
    train(dataclasses.replace(config, samples=tmp_path, epochs=1))
    result = evaluate(EvaluateConfig(run=config.out, samples=tmp_path, dates=DAYS[2:], bootstrap=3))
    assert result.tasks["click"]["model"]["gauc"].value is None
    assert result.tasks["click"]["model"]["logloss"].value > 0
    assert result.tasks["watch"]["model"]["rmse"].value > 0

    clicks = schema.replace(labels=schema.labels[:1])
    only = tmp_path / "only"
    one_class(clicks, only)
    with pytest.raises(UserError, match=r"all of one class .every click is 0.*nothing to learn"):
        train(dataclasses.replace(config, schema=clicks, samples=only, out=tmp_path / "r"))
    run = dataclasses.replace(config, schema=clicks, out=tmp_path / "clicks", max_steps=1)
    train(run)
    with pytest.raises(UserError, match="all of one class"):
        evaluate(EvaluateConfig(run=run.out, samples=only, dates=DAYS[2:]))
    assert not (run.out / "predictions").exists()
