"""Tables survive other merges, backends, features and sizes; what doesn't fit is refused by name; a torn folder is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from random_samples import BOUNDARIES, demo_schema, write_random_samples
from test_embedding import train, with_items

import genrank.schemas as s
from genrank.schemas.errors import UserError
from genrank.tokenization.batch import Batch
from genrank.tokenization.checkpoint import load_tables, save_tables
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan
from genrank.tokenization.reader import SampleReader

DAY = "2026-01-01"
SCHEMA = demo_schema()


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[Batch]:
    root = write_random_samples(tmp_path_factory.mktemp("samples"), SCHEMA, [DAY])
    return list(SampleReader(root, SCHEMA, [DAY], token_budget=500))


def make(schema: s.Schema, **options: Any) -> Embeddings:
    merge = options.pop("merge", True)
    return Embeddings(make_plan(schema, merge=merge), **({"backend": "torch", "boundaries": BOUNDARIES} | options))


def rows(embeddings: Embeddings) -> dict[str, torch.Tensor]:
    """`<logical table>/<what>` -> all rows; of a dynamic table those that ids have had."""
    out = {}
    for name, (table, merged) in embeddings.plan.logical.items():
        shard = embeddings.tables.shards(merged.name)[0]
        start = embeddings.plan.start_of(name)
        end = start + (embeddings.vocabularies[name].next_row if table.dynamic else table.rows)
        out[f"{name}/weight"] = shard.weight[start:end].clone()
        out[f"{name}/second"] = shard.state["second"][start:end].clone()
    return out


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("before", ["torch", "torchrec", "unmerged"])
@pytest.mark.parametrize("after", ["torch", "torchrec", "unmerged"])
def test_restores_exactly_over_merges_and_backends(
    tmp_path: Path, batches: list[Batch], before: str, after: str
) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "torch": {},
        "torchrec": {"backend": "torchrec"},
        "unmerged": {"merge": False},
    }
    schema = with_items(s.Dynamic(capacity=60))
    first = make(schema, **kinds[before])
    train(first, batches)
    save_tables(first, tmp_path)
    second = make(schema, seed=1, **kinds[after])
    done = load_tables(second, tmp_path)
    assert sorted(done.restored) == sorted(second.plan.logical) and not done.fresh + done.dropped + done.grown
    assert_same(rows(second), rows(first))
    a, b = first.vocabularies["item"].state(), second.vocabularies["item"].state()
    assert a[0] == b[0] and all(
        torch.equal(x, y) for x, y in zip(vars(a[1]).values(), vars(b[1]).values(), strict=True)
    )


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "rowwise_adam"])
def test_killed_at_any_step_a_run_goes_on_as_if_it_had_not_been(
    tmp_path: Path, batches: list[Batch], optimizer: Any
) -> None:
    schema = with_items(s.Dynamic(capacity=40, admit_after=2), optimizer=s.SparseOptimizer(kind=optimizer))

    def step(embeddings: Embeddings, batch: Batch) -> None:
        sum((m.square().sum() + m.sum() for m in embeddings(batch).values()), torch.zeros(())).backward()

    torch.manual_seed(0)
    whole = make(schema)
    for done, batch in enumerate(batches):
        save_tables(whole, tmp_path / str(done))
        step(whole, batch)
    assert len(batches) > 2
    for done in range(len(batches)):
        resumed = make(schema, seed=5)
        resumed.soft.load_state_dict(whole.soft.state_dict())
        load_tables(resumed, tmp_path / str(done))
        for batch in batches[done:]:
            step(resumed, batch)
        assert_same(rows(resumed), rows(whole))


def test_features_added_and_dropped(tmp_path: Path, batches: list[Batch]) -> None:
    first = make(SCHEMA)
    train(first, batches)
    save_tables(first, tmp_path)
    features = tuple(f for f in SCHEMA.candidates.features if f.name != "city_item")
    added = s.TimePart(name="month", part="month")
    candidates = SCHEMA.candidates.model_copy(update={"features": (*features, added)})
    second = make(demo_schema(candidates=candidates))
    done = load_tables(second, tmp_path)
    assert done.fresh == ["candidates.month"] and done.dropped == ["candidates.city_item"]
    before, after = rows(first), rows(second)
    for name in set(before) & set(after):
        assert torch.equal(before[name], after[name]), name
    untouched = rows(make(demo_schema(candidates=candidates)))
    assert torch.equal(after["candidates.month/weight"], untouched["candidates.month/weight"])


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (s.Identity(size=100), s.Identity(size=150)),
        (s.Dynamic(capacity=50), s.Dynamic(capacity=80, admit_after=3)),
        (s.Enumerated(values=(1, 2, 3)), s.Enumerated(values=(1, 2, 3, 9))),
    ],
)
def test_grown_tables_keep_their_rows(tmp_path: Path, batches: list[Batch], small: Any, large: Any) -> None:
    first = make(with_items(small))
    train(first, batches)
    save_tables(first, tmp_path)
    second = make(with_items(large))
    assert load_tables(second, tmp_path).grown == ["item"]
    before, after = rows(first), rows(second)
    n = len(before["item/weight"])
    assert torch.equal(after["item/weight"][:n], before["item/weight"])
    assert torch.equal(after["item/second"][:n], before["item/second"]) and not after["item/second"][n:].any()
    if isinstance(small, s.Dynamic):
        ids = first.vocabularies["item"].entries.ids
        assert torch.equal(second.vocabularies["item"].rows_of(ids), first.vocabularies["item"].rows_of(ids))


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (s.Hashed(size=50), s.Hashed(size=60), "table item: its hashed vocabulary had size 50 and has 60"),
        (s.Identity(size=60), s.Identity(size=50), "table item: its identity vocabulary had size 60 and has 50"),
        (s.Identity(size=60), s.Hashed(size=60), "table item: vocabulary was identity and is hashed"),
        (
            s.Enumerated(values=(1, 2)),
            s.Enumerated(values=(2, 1)),
            "table item: the values of its enumerated vocabulary changed",
        ),
    ],
)
def test_refuses_a_changed_vocabulary_by_name(tmp_path: Path, before: Any, after: Any, why: str) -> None:
    save_tables(make(with_items(before)), tmp_path)
    second = make(with_items(after), seed=3)
    untouched = rows(second)
    with pytest.raises(UserError, match=f"{why}.*--reset-table item"):
        load_tables(second, tmp_path)
    assert_same(rows(second), untouched)
    done = load_tables(second, tmp_path, reset=["item"])
    assert done.fresh == ["item"]
    assert torch.equal(rows(second)["item/weight"], untouched["item/weight"])


def test_refuses_changed_dims_optimizers_and_boundaries(tmp_path: Path) -> None:
    save_tables(make(SCHEMA), tmp_path)
    adam = with_items(s.Hashed(size=997), optimizer=s.SparseOptimizer(kind="rowwise_adam"))
    with pytest.raises(UserError, match="table item: optimizer was rowwise_adagrad and is rowwise_adam"):
        load_tables(make(adam), tmp_path)
    with pytest.raises(UserError, match=r"table candidates.price: the boundaries of its buckets changed"):
        load_tables(make(SCHEMA, boundaries={"candidates.price": [10.0, 40.0, 71.0]}), tmp_path)
    sequences = (SCHEMA.sequences[0].model_copy(update={"type_dim": 4}), SCHEMA.sequences[1])
    with pytest.raises(UserError, match=r"table history.type: dim was 8 and is 4. .*--reset-table history.type"):
        load_tables(make(demo_schema(sequences=sequences)), tmp_path)
    with pytest.raises(UserError, match="--reset-table nothing: the schema has no such table"):
        load_tables(make(SCHEMA), tmp_path, reset=["nothing"])


def test_notices_a_torn_or_foreign_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no complete tables"):
        load_tables(make(SCHEMA), tmp_path)
    save_tables(make(SCHEMA), tmp_path)
    manifest = (tmp_path / "tables.json").read_text()
    data = next(tmp_path.glob("*.distcp"))
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=rf"{data.name} is torn"):
        load_tables(make(SCHEMA), tmp_path)
    data.unlink()
    with pytest.raises(UserError, match=rf"{data.name} is torn: missing"):
        load_tables(make(SCHEMA), tmp_path)
    data.write_bytes(whole)
    load_tables(make(SCHEMA), tmp_path)
    (tmp_path / "tables.json").write_text(manifest[: len(manifest) // 2])
    with pytest.raises(UserError, match="is torn or not ours"):
        load_tables(make(SCHEMA), tmp_path)
    (tmp_path / "tables.json").write_text(manifest.replace('"format": 1', '"format": 99'))
    with pytest.raises(UserError, match="is of format 99"):
        load_tables(make(SCHEMA), tmp_path)
