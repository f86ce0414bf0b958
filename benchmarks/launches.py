"""How many kernels a training step starts on a GPU, part by part, counted without one.

    python -m benchmarks.launches [--schema examples/marketplace/schema.py] [--model mtgr-small]

The step runs on PyTorch's meta device with the implementations that serve a GPU: every operation of PyTorch that isn't a view or an
allocation counts once, a Triton kernel once for each time it is started, and so does what an op of ours does inside: attention's plans of its
programs, too. It is a lower bound: a sort, the backward of an embedding or of a layer norm are several kernels of PyTorch's, and clipping and
AdamW, which take all parameters in about ten, are left out. Whatever waits for the device fails there, as it has no values.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genrank.kernels.launch import Launch, recording
from genrank.model.losses import total_loss
from genrank.model.ranker import Ranker
from genrank.model.registry import choose_model
from genrank.schemas.console import stdout
from genrank.schemas.load import load_schema
from genrank.schemas.schema import Schema
from genrank.tokenization.batch import Batch
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.features import fitted_features
from genrank.tokenization.plan import make_plan

META = torch.device("meta")
VIEWS = {
    *("view", "_unsafe_view", "t", "transpose", "slice", "select", "expand", "unsqueeze", "squeeze", "split", "alias"),
    *("split_with_sizes", "as_strided", "detach", "permute", "unbind", "unfold", "diagonal", "_reshape_alias"),
    *("lift_fresh", "chunk", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "view_as"),
}


class Launches(TorchDispatchMode):
    """Counts what would be started on the device, under the part that is named at the time."""

    def __init__(self) -> None:
        super().__init__()
        self.part = ""
        self.found: collections.Counter[tuple[str, str]] = collections.Counter()
        self._recorded: list[Launch] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "genrank":  # Not the op's fake: what a device would run.
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        leaves = (leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor))
        same = args and out is args[0] and not name.endswith("_")  # A cast to the dtype that it has.
        if name not in VIEWS and not same and any(leaf.is_meta for leaf in leaves):
            self.found[self.part, name] += 1
        return out

    @contextmanager
    def counting(self) -> Iterator[Launches]:
        """Inside, kernels aren't run but counted, too."""
        with recording() as self._recorded, self:
            yield self

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """A part of the step."""
        self.part, before = part, len(self._recorded)
        yield
        for launch in self._recorded[before:]:
            self.found[part, launch.kernel.__name__] += 1

    def by_part(self) -> dict[str, int]:
        """Part -> launches, in the order in which the parts ran."""
        sums: dict[str, int] = {}
        for (part, _), count in self.found.items():
            sums[part] = sums.get(part, 0) + count
        return sums


def leaf(values: Tensor) -> Tensor:
    """Where a part begins: its gradient is the end of the part's backward."""
    return values.detach().requires_grad_()


def launches_of_a_step(
    schema: Schema, batch: Batch, model_name: str, options: dict[str, str] | None = None
) -> Launches:
    """The launches of one step of `genrank train` up to clipping, backward by part.

    Args:
        batch: on the CPU.
        options: `--set` of the model, a ranker.
    """
    fitted = {f"{group}.{name}": [1.0, 2.0] for group, name, _ in fitted_features(schema)}
    embeddings = Embeddings(make_plan(schema), backend="torch", device=META, boundaries=fitted)
    chosen = choose_model(model_name, options or {})
    model, task = chosen.build(embeddings, [label.name for label in schema.labels]), chosen.task(schema)
    assert isinstance(model, Ranker)
    model = model.to(META)
    count, sent = Launches(), batch.to(META)
    with recording():
        model.tokenizer.features(sent)  # Dynamic vocabularies make room for a batch's ids once.
    with count.counting():
        with count.of("features"):
            matrices = model.tokenizer.features(sent)
        features = {name: leaf(matrix) for name, matrix in matrices.items()}
        with count.of("tokens"):
            tokens = model.encoder.shorten(model.tokenizer.tokens(sent, features))
        made, tokens.x = tokens.x, leaf(tokens.x)
        with count.of("encoder"):
            vectors = model.encoder(tokens)
        read = leaf(vectors)
        with count.of("heads and loss"):
            logits = model.logits(read, sent, features)
            loss = total_loss(task.loss_sums(logits, sent), task.weights(model, sent), task.objectives)
        with count.of("heads and loss, backward"):
            torch.autograd.backward(loss)
        with count.of("encoder, backward"):
            torch.autograd.backward(vectors, read.grad)
        with count.of("tokens, backward"):
            torch.autograd.backward(made, tokens.x.grad)
        with count.of("features, backward, and tables"):
            learning = [name for name, matrix in features.items() if matrix.grad is not None]
            torch.autograd.backward([matrices[n] for n in learning], [features[n].grad for n in learning])
    return count


def main() -> None:
    """The table of parts."""
    from benchmarks.reader import publish, random_day
    from genrank.tokenization.reader import SampleReader

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schema", default="examples/marketplace/schema.py")
    parser.add_argument("--model", default="mtgr-small")
    parser.add_argument("--operations", action="store_true", help="each part's operations, too")
    args = parser.parse_args()
    os.environ["GENRANK_KERNELS"] = "triton"
    schema = load_schema(args.schema)
    with tempfile.TemporaryDirectory() as folder:
        publish(Path(folder), schema, random_day(schema, 24, 0))
        reader = SampleReader(Path(folder), schema, ["2026-01-01"], token_budget=2048, shuffle=False, prefetch=0)
        count = launches_of_a_step(schema, next(iter(reader)), args.model)
    outside = 0
    for part, launches in count.by_part().items():
        stdout().print(f"{part:32} {launches:5}")
        outside += 0 if part.startswith("encoder") else launches
        if args.operations:
            own = {name: n for (of, name), n in count.found.most_common() if of == part}
            stdout().print("    " + ", ".join(f"{name} {n}" for name, n in own.items()))
    stdout().print(f"{'outside the encoder':32} {outside:5}")


if __name__ == "__main__":
    sys.exit(main())
