"""All lookups in three launches (in Triton's interpreter) give what the features one by one give, forward and backward."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import triton
from random_samples import BOUNDARIES, demo_schema, write_random_samples
from torch import Tensor

import genrank.schemas as s
from genrank.kernels.lookups import gpu
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.feature_norm import FeatureNorms
from genrank.tokenization.plan import make_plan
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.tokens import Tokenizer
from genrank.tokenization.visibility import hstu
from genrank.tokenization.wants import PerFeature, Wants

DAY = "2026-01-01"


def batch_of(root: Path, schema: s.Schema, users: int = 2) -> Batch:
    written = write_random_samples(root, schema, [DAY], users=users)
    return next(iter(SampleReader(written, schema, [DAY], shuffle=False, token_budget=10**9)))


def schemas() -> dict[str, s.Schema]:
    dynamic = s.Table(name="city", dim=8, vocabulary=s.Dynamic(capacity=20))
    plain = demo_schema()
    user = s.UserGroup(
        features=(
            *(feature for feature in plain.user.features if feature.name not in ("city", "tags")),
            s.Categorical(name="city", column="users.city", table=dynamic),
            s.MultiValued(name="tags", column="users.tags", vocabulary=s.Dynamic(capacity=30), dim=8, pooling="sum"),
        )
    )
    return {"plain": plain, "dynamic": demo_schema(user=user, utc_offset="Europe/Berlin")}


SCHEMAS = schemas()


def learned(
    schema: s.Schema, batch: Batch, norm: bool, backend: str, monkeypatch: pytest.MonkeyPatch, *, frozen: bool = False
) -> dict[str, Tensor]:
    """Matrices of a training step and of evaluation after it, and all that was learned."""
    monkeypatch.setenv("GENRANK_KERNELS", backend)
    for tuned in (
        gpu.vectors_tuned,
        gpu.vectors_backward_tuned,
    ):  # Few programs: the interpreter takes them one by one.
        monkeypatch.setattr(tuned, "configs", [triton.Config({"BLOCK": 128})])
    torch.manual_seed(0)
    embeddings = Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES, lr=0.1)
    assert (embeddings.merged is not None) == (backend == "triton")
    embeddings.frozen = frozen
    norms = FeatureNorms(embeddings) if norm else None
    if norms is not None:
        for name, buffer in norms.named_buffers():
            if "moments.of_" in name:
                buffer.copy_(torch.tensor([1.5, 2.0]))
    found: dict[str, Tensor] = {}
    matrices = embeddings(batch, norms=norms)
    upstream = [torch.linspace(-1, 1, matrix.numel()).view(matrix.shape) for matrix in matrices.values()]
    torch.autograd.backward(list(matrices.values()), upstream)
    found |= {f"trained.{name}": matrix.detach() for name, matrix in matrices.items()}
    embeddings.eval()
    with torch.no_grad():
        found |= {f"evaluated.{name}": matrix for name, matrix in embeddings(batch, norms=norms).items()}
    found |= {f"grad.{name}": p.grad for name, p in embeddings.named_parameters() if p.grad is not None}
    for table in embeddings.plan.tables:
        (shard,) = embeddings.tables.shards(table.name)
        found |= {f"{table.name}.weight": shard.weight, f"{table.name}.state": shard.state["second"]}
    return found


@pytest.mark.parametrize(("name", "norm"), [("plain", True), ("dynamic", False)])
def test_equals_one_feature_after_the_other(
    name: str, norm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(tmp_path, SCHEMAS[name])
    ours, wanted = (learned(SCHEMAS[name], batch, norm, which, monkeypatch) for which in ("triton", ""))
    assert ours.keys() == wanted.keys() and any(key.startswith("grad.") for key in ours)
    for key, value in wanted.items():
        torch.testing.assert_close(ours[key], value, rtol=2e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


INTERLEAVED = demo_schema(
    sequences=tuple(sequence.model_copy(update={"interleave": ("item_id",)}) for sequence in demo_schema().sequences)
)


@pytest.mark.parametrize(
    ("schema", "wants"),
    [
        (demo_schema(), Wants()),
        (demo_schema(), Wants(rule=hstu, separators=True, positions="oldest", candidate=PerFeature(), slots=True)),
        (INTERLEAVED, Wants(sequence_ids=True, newest=3)),
    ],
    ids=["plain", "separators", "interleaved"],
)
def test_tokens_lie_where_they_would(
    schema: s.Schema, wants: Wants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(tmp_path, schema, 6)
    embeddings = Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES)
    torch.manual_seed(0)
    tokenizer = Tokenizer(embeddings, 8, wants)
    matrices = embeddings(batch)
    wanted, ours = [], []
    for backend, found in (("", wanted), ("triton", ours)):
        monkeypatch.setenv("GENRANK_KERNELS", backend)
        found.append(tokenizer.tokens(batch, matrices))
        if not wants.newest:
            found.append(tokenizer.tokens(batch, matrices, known=False))
    for a, b in zip(ours, wanted, strict=True):
        for one, other in ((a, b), (a.candidates, b.candidates)):
            for field in dataclasses.fields(one) if one is not None else ():
                values = getattr(one, field.name), getattr(other, field.name)
                if field.name != "candidates":
                    assert torch.equal(*values) if isinstance(values[0], Tensor) else values[0] == values[1], field.name
