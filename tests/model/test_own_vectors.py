"""What holds of every encoder under every setting: a candidate's vector is its own, and nothing from after its exposure enters it.

A new setting that changes what is computed: a case in CASES.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from genrank.model.encoders import Candidates, split
from genrank.model.ranker import Ranker
from genrank.model.registry import choose_model
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.plan import make_plan
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.sample_columns import StoredRows
from genrank.tokenization.views import View, view_of

FIXED = ["", "tokens=feature", "tokens=split,sequence_tokens=1", "feature_norm=true"]
CASES: dict[str, list[str]] = {
    "mtgr-tiny": ["", "feature_norm=true,equal_start=true", "norm_groups=sequence,final_norm=gln", "output_norm=head"],
    "hstu-tiny": ["", "visibility=causal", "window=4,full_tail=2", "concat_ua=true,input_norm=rms"],
    "longer-tiny": ["merge=3,inner=2,recent=2", "recent=0,merge=1", "merge=1,recent=3,asking=evenly"],
    "onetrans-tiny": ["candidate_tokens=0,user_tokens=0,length=8,tail=3", "mixed=false,separators=false,length=0"],
    "grab-tiny": ["position_reach=0,time_buckets=0"],
    "ultra-hstu-tiny": ["channels=false,local=3,prefix=2,tail=4", "divisor=40,truncate_after=0"],
    "heteroatt-tiny": [*FIXED, "norm=pre", "readout=mean", "own_weights=false"],
    "hiformer-tiny": [*FIXED, "rank=0,norm=pre"],
    "hhft-tiny": [""],
    "rankmixer-tiny": ["", "tokens=split,norm=pre", "mixing=none,own_ffn=false", "experts=3,active=0.4"],
    "tokenmixer-tiny": ["", "residual_every=0,norm=post"],
}
"""Preset -> settings as `--set` takes them, joined by commas."""
EVERY = [pytest.param(name, text, id=f"{name} {text}".strip()) for name, texts in CASES.items() for text in texts]


def settings_of(text: str) -> dict[str, str]:
    return dict(part.split("=") for part in text.split(",") if part)


def make(name: str, text: str, schema) -> Ranker:
    """Its encoder in float64."""
    from random_samples import BOUNDARIES

    torch.manual_seed(0)
    embeddings = Embeddings(make_plan(schema), backend="torch", boundaries=BOUNDARIES)
    model = choose_model(name, settings_of(text)).build(embeddings)
    assert isinstance(model, Ranker)
    model.encoder.double()
    return model.eval()


def tokens_of(model: Ranker, batch: Batch) -> Tokens:
    """In float64."""
    tokens = model.tokenizer(batch)
    beside = tokens.candidates
    if beside is not None:
        beside = dataclasses.replace(beside, x=beside.x.double().detach())
    return dataclasses.replace(tokens, x=tokens.x.double().detach(), candidates=beside)


@pytest.fixture(scope="module")
def whole(schema, samples: Path) -> Batch:
    return next(iter(SampleReader(samples / "samples", schema, ["2026-01-01"], token_budget=250, shuffle=False)))


def stored(batch: Batch) -> StoredRows:
    """A batch as the stored rows it could have come from."""
    import pyarrow as pa

    labels = batch.labels | {f"{task}_weight": v for task, v in batch.weights.items()}
    labels |= {f"{task}_oracle": v for task, v in batch.oracles.items()}
    return StoredRows(
        groups=batch.groups, sample_id=pa.array(batch.sample_id), user=batch.user, window_start=batch.window_start,
        request=batch.request, item=batch.item, labels=labels, candidate_sees=batch.candidate_sees,
        realtime_sees=batch.realtime_sees, realtime_available=batch.realtime_available,
    )  # fmt: skip


def vectors(model: Ranker, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model.encoder(tokens_of(model, batch))


@pytest.mark.parametrize(("name", "text"), EVERY)
def test_a_vector_is_the_candidates_own(name: str, text: str, schema, whole: Batch) -> None:
    """Alone with its request's rivals and what had happened by then, or among its day's; in any batch, in any order; in two parts."""
    model = make(name, text, schema)
    wanted = vectors(model, whole)
    assert wanted.std(0).max() > 0.01  # or nothing would be tested
    rows = stored(whole)

    requests, exposures = view_of(rows, schema, "request"), view_of(rows, schema, "exposure")
    for view, order in (
        (requests, np.arange(len(requests))),
        (requests, np.arange(len(requests))[::-5]),
        (exposures, np.arange(len(exposures))),
        (view_of(rows, schema, "user_day"), np.arange(len(whole))[::-1]),
    ):
        same_vectors(model, view, order, wanted)

    tokens = tokens_of(model, whole)
    with torch.no_grad():
        sequence, candidates = split(tokens)
        shuffled = torch.randperm(len(candidates.owner), generator=torch.Generator().manual_seed(1))
        state = model.encoder.user_state(sequence, torch.bincount(candidates.owner, minlength=len(whole)))
        some = candidates.take(shuffled)
        parts = [model.encoder.score(state, _part(some, half)) for half in (slice(0, 3), slice(3, None))]
    torch.testing.assert_close(torch.cat(parts), model.encoder(tokens).detach()[shuffled])


def same_vectors(model: Ranker, view: View, order: np.ndarray, wanted: torch.Tensor) -> None:
    batch = view.batch(np.ascontiguousarray(order))
    ranked = np.concatenate([view.order[view.begin[v] : view.end[v]] for v in order])
    torch.testing.assert_close(vectors(model, batch), wanted[ranked], rtol=1e-4, atol=1e-5)


def _part(candidates: Candidates, rows: slice) -> Candidates:
    return candidates.take(rows)


@pytest.mark.parametrize(("name", "text"), EVERY)
def test_by_autograd_a_candidate_reads_what_it_sees(name: str, text: str, schema, whole: Batch) -> None:
    """The gradient of one candidate's scores: no row that it doesn't see, no other candidate's token; and something of its own history."""
    model = make(name, text, schema)
    tokens = tokens_of(model, whole)
    x = tokens.x.detach().requires_grad_()
    beside = tokens.candidates
    inputs = [x]
    if beside is not None:
        inputs.append(beside.x.detach().requires_grad_())
        beside = dataclasses.replace(beside, x=inputs[1])
    made = model.encoder(dataclasses.replace(tokens, x=x, candidates=beside))
    _, candidates = split(tokens)
    starts = tokens.offsets.long()[:-1]
    ahead = reached = 0
    for c in range(0, len(made), -(-len(made) // 5)):
        weight = torch.randn(made.shape[1], dtype=made.dtype, generator=torch.Generator().manual_seed(c))
        gradients = torch.autograd.grad((made[c] * weight).sum(), inputs, retain_graph=True)
        read = gradients[0].abs().sum(1) > 0
        start = int(starts[candidates.owner[c]])
        allowed = torch.zeros_like(read)
        allowed[start : start + int(candidates.end[c])] = True  # a window's tokens have read what lies before it
        if beside is None:
            allowed[tokens.candidate_rows[c]] = True
        else:
            own = gradients[1].abs().flatten(1).sum(1) > 0
            assert own.nonzero().flatten().tolist() == [c]
        assert not (read & ~allowed).any(), (c, (read & ~allowed).nonzero().flatten())
        ahead += int((~allowed).sum())
        reached += int((read & (tokens.group_ids == 1)).sum())
    assert ahead and reached
