"""`--compile`: from features' vectors to logits in two graphs, made once for batches of any size, that learn what the model learns without."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch

from genrank.kernels.launch import recording
from genrank.model.config import samples_folder
from genrank.model.losses import total_loss
from genrank.model.ranker import Ranker
from genrank.model.registry import choose_model
from genrank.model.tasks.ranking import Ranking
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan
from genrank.tokenization.reader import SampleReader

META = torch.device("meta")
counters = torch._dynamo.utils.counters


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def batches(schema, samples) -> list[Batch]:
    """Of several samples; of one; without realtime events; with one event, or one candidate; with groups of equal sizes."""
    reader = SampleReader(samples_folder(samples), schema, ["2026-01-01"], token_budget=40, shuffle=False, prefetch=0)
    found: dict[tuple[int, ...], Batch] = {}
    for batch in reader:
        sizes = [len(group.ts) for group in batch.groups.values()]
        found.setdefault((*(min(size, 2) for size in sizes), len(set(sizes))), batch)
    kinds = sorted(found, reverse=True)
    assert {0, 1} <= {size for kind in kinds for size in kind[:-1]} and min(kind[-1] for kind in kinds) < 4
    return [found[kind] for kind in kinds]


def make_ranker(schema, settings: dict[str, str], device: str | torch.device = "cpu") -> Ranker:
    from random_samples import BOUNDARIES

    torch.manual_seed(0)
    embeddings = Embeddings(make_plan(schema), backend="torch", device=device, boundaries=BOUNDARIES)
    model = choose_model("mtgr-tiny", {"layers": "1", **settings}).build(embeddings, ["click", "watch"])
    assert isinstance(model, Ranker)
    return model.to(device)


def learn(model: Ranker, batch: Batch, schema) -> torch.Tensor:
    task = Ranking(schema)
    loss = total_loss(task.loss_sums(model(batch), batch), task.weights(model, batch), task.objectives)
    loss.backward()
    return loss.detach()


def compare_gradients(model: Ranker, other: Ranker) -> None:
    wanted = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_by_cpp(schema, batches: list[Batch]) -> None:
    """The encoder and what follows; tokens, with every group's projection, would take g++ a minute."""
    eager, dense = (
        make_ranker(schema, {"dropout": "0", "tower": "[]", "candidate_numbers": "true", "encoder_loss": "0"})
        for _ in range(2)
    )
    dense._compile_encoder("inductor")
    for batch in batches[:2]:
        torch.testing.assert_close(learn(dense, batch, schema), learn(eager, batch, schema))
    compare_gradients(dense, eager)


def test_it_learns_the_same_from_batches_of_any_size(schema, batches: list[Batch]) -> None:
    eager, dense = (make_ranker(schema, {"dropout": "0"}) for _ in range(2))
    dense.compile_dense("eager")
    for number, batch in enumerate(batches):
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            torch.testing.assert_close(learn(dense, batch, schema), learn(eager, batch, schema))
        assert counters["stats"]["unique_graphs"] == 2
    compare_gradients(dense, eager)
    assert eager.state_dict().keys() == dense.state_dict().keys()


def test_nothing_on_a_gpu_breaks_the_graphs(schema, batches: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    """With what serves a GPU, which the meta device stands for, and with dropout, whose seed must not come from the host."""
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    settings = {"dropout": "0.1", "input_dropout": "0.1", "tower": "[8]", "encoder_loss": "0.5", "head.kind": "mmoe"}
    model = make_ranker(schema, settings, META)
    model.compile_dense("eager")
    with recording():
        learn(model, batches[0].to(META), schema)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 2
    assert all(parameter.grad is not None for parameter in model.heads.parameters())
