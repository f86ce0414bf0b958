"""A training step beside Meta's `DlrmHSTU` (generative-recommenders) at one fixed shape, on CPU, in one run.

Two comparisons: the encoders alone, with Meta's weights copied into ours and the results compared first; and the whole models, which
share widths, layers, heads, lengths and candidates, and differ in their projections, postprocessors and heads as they do by default.
Both sides run forward and backward in float32 on one thread; Meta's on its `PYTORCH` kernels, the only ones it has for a CPU.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genrank.kernels.attention import local_positions
from genrank.model.encoders import Hstu, HstuConfig
from genrank.model.heads import HeadConfig
from genrank.model.losses import loss_sums
from genrank.model.ranker import Ranker
from genrank.schemas import (
    Candidates,
    Categorical,
    EventLog,
    Events,
    EventSequence,
    Identity,
    Label,
    Schema,
    Snapshot,
    Table,
    UserGroup,
)
from genrank.schemas.errors import UserError
from genrank.tokenization.batch import Batch, Group
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.plan import make_plan
from genrank.tokenization.tokens import Tokens

DIM, LAYERS, HEADS, HEAD_DIM = 256, 4, 4, 64
IDS = 1_000
SAMPLES, HISTORY, CANDIDATES, CONTEXT = 4, 512, 64, 2
SOURCE = "https://github.com/meta-recsys/generative-recommenders"


def compare(peer: Path, repeats: int) -> dict[str, object]:
    """Both comparisons.

    Raises:
        UserError: the folder is no checkout of generative-recommenders, or its CPU operators are missing.
    """
    if not (peer / "generative_recommenders" / "modules" / "dlrm_hstu.py").is_file():
        raise UserError(
            f"--peer {peer}: no generative_recommenders/modules/dlrm_hstu.py in it; git clone {SOURCE} {peer}"
        )
    sys.path.insert(0, str(peer))
    try:
        import fbgemm_gpu  # noqa: F401
        import generative_recommenders.modules.dlrm_hstu  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--peer {peer}: {error}; it needs torchrec, fbgemm-gpu (or fbgemm-gpu-cpu) and triton"
        ) from None
    torch.manual_seed(0)
    return {
        "shape": {
            "samples": SAMPLES, "history": HISTORY, "context": CONTEXT, "candidates": CANDIDATES,
            "dim": DIM, "layers": LAYERS, "heads": HEADS, "head_dim": HEAD_DIM,
        },
        "encoder": encoders(repeats, torch.full((SAMPLES,), HISTORY)),
        "encoder_ragged": encoders(repeats, (HISTORY * torch.rand(4 * SAMPLES) ** 2).long()),
        "model": models(repeats),
    }  # fmt: skip


def config() -> HstuConfig:
    """Meta's choices: gate alone activated, [U, O, norm(O) * U] projected, divided by the longest sequence, no relative bias."""
    return HstuConfig(
        dim=DIM, layers=LAYERS, heads=HEADS, qk_dim=HEAD_DIM, v_dim=HEAD_DIM, activation="u", concat_ua="raw",
        divisor=CONTEXT + HISTORY + CANDIDATES, position_reach=0, time_buckets=0, final_norm="none",
    )  # fmt: skip


# ---------------------------------------------------------------------- the encoders


def encoders(repeats: int, histories: Tensor) -> dict[str, object]:
    """STUStack and `Hstu` with the same weights on the same tokens; a history length per sample."""
    from generative_recommenders.modules.stu import STULayer, STULayerConfig, STUStack

    their_config = STULayerConfig(
        embedding_dim=DIM, num_heads=HEADS, hidden_dim=HEAD_DIM, attention_dim=HEAD_DIM, output_dropout_ratio=0.0
    )
    theirs = on_cpu(STUStack([STULayer(their_config) for _ in range(LAYERS)]))
    ours = Hstu(config())
    for block, layer in zip(ours.blocks, theirs._stu_layers, strict=True):
        torch.nn.init.normal_(layer._output_weight, std=0.05)
        with torch.no_grad():
            block.uvqk.weight.copy_(layer._uvqk_weight.T)
            block.out.weight.copy_(layer._output_weight.T)
    lengths = CONTEXT + histories + CANDIDATES
    length = CONTEXT + HISTORY + CANDIDATES
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    x = torch.randn(int(offsets[-1]), DIM)
    place = local_positions(offsets, len(x))
    first_candidate = torch.repeat_interleave(lengths - CANDIDATES, lengths).to(torch.int32)
    tokens = Tokens(
        x=x,
        offsets=offsets.to(torch.int32),
        group_ids=torch.where(place < first_candidate, 1, 3).to(torch.int32),
        begin=torch.zeros_like(place),
        end=torch.minimum(place + 1, first_candidate),
        timestamps=torch.zeros(len(x), dtype=torch.int64),
        candidate_rows=(place >= first_candidate).nonzero().squeeze(1),
        max_length=length,
        lengths=lengths,
        history_lengths=lengths - CANDIDATES,
    )
    targets = torch.full((len(lengths),), CANDIDATES)

    def run_theirs() -> Tensor:
        return theirs(x=x, x_lengths=lengths, x_offsets=offsets, max_seq_len=length, num_targets=targets)

    def run_ours() -> Tensor:
        # A step of training never sees its tokens again: neither may what the attention remembers of them.
        tokens.begin, tokens.end = tokens.begin.clone(), tokens.end.clone()
        return ours.encode(tokens)

    expected, got = run_theirs(), run_ours()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    probe = torch.randn_like(x)
    return {
        "largest_difference": float((got - expected).detach().abs().max()),
        **ratio(
            lambda: (run_theirs() * probe).sum().backward(), lambda: (run_ours() * probe).sum().backward(), repeats
        ),
    }


# ---------------------------------------------------------------------- the whole models


def models(repeats: int) -> dict[str, object]:
    """DlrmHSTU and our ranker, each with its own projections and heads, on the same number of ids, events and candidates."""
    theirs, their_batch = their_model()
    ours, batch = our_model()

    def run_theirs() -> None:
        losses = theirs(*their_batch)[2]
        sum(losses.values()).backward()

    def run_ours() -> None:
        sums = loss_sums(ours(batch), batch.labels, batch.weights, ours.embeddings.plan.schema.labels)
        (sums["click"] / len(batch.item)).backward()

    return {
        "dense_parameters_theirs": dense_parameters(theirs),
        "dense_parameters_ours": dense_parameters(ours),
        **ratio(run_theirs, run_ours, repeats),
    }


def their_model() -> tuple[torch.nn.Module, tuple[Any, Any]]:
    """DlrmHSTU with the features of its own `debug` configuration."""
    from generative_recommenders.dlrm_v3.configs import get_hstu_configs
    from generative_recommenders.modules.dlrm_hstu import DlrmHSTU
    from torchrec import KeyedJaggedTensor
    from torchrec.modules.embedding_configs import EmbeddingConfig
    from torchrec.modules.embedding_modules import EmbeddingCollection

    wanted = get_hstu_configs("debug")
    wanted.max_seq_len = HISTORY + CANDIDATES + CONTEXT
    wanted.max_num_candidates = CANDIDATES
    wanted.hstu_embedding_table_dim = wanted.hstu_transducer_embedding_dim = DIM
    wanted.hstu_num_heads, wanted.hstu_attn_num_layers = HEADS, LAYERS
    wanted.hstu_attn_linear_dim = wanted.hstu_attn_qk_dim = HEAD_DIM
    wanted.hstu_input_dropout_ratio = wanted.hstu_linear_dropout_rate = 0.0
    of = {"post_id": ["uih_post_id", "uih_owner_id", "item_post_id", "item_owner_id"]}
    of |= {name: [name] for name in wanted.contextual_feature_to_max_length}
    tables = {
        name: EmbeddingConfig(num_embeddings=IDS, embedding_dim=DIM, name=name, feature_names=features)
        for name, features in of.items()
    }
    model = DlrmHSTU(wanted, tables, is_inference=False, is_dense=True, bf16_training=False)
    model._embedding_collection = EmbeddingCollection(tables=list(tables.values()), device=torch.device("cpu"))
    contextual = set(wanted.contextual_feature_to_max_length)
    history = {name: 1 if name in contextual else HISTORY for name in wanted.hstu_uih_feature_names}
    candidates = dict.fromkeys(wanted.hstu_candidate_feature_names, CANDIDATES)
    batch = tuple(
        KeyedJaggedTensor.from_lengths_sync(
            keys=list(each),
            values=torch.randint(1, IDS, (sum(each.values()) * SAMPLES,)),
            lengths=torch.tensor([n for n in each.values() for _ in range(SAMPLES)]),
        )
        for each in (history, candidates)
    )
    return on_cpu(model).train(), batch  # type: ignore[return-value]


def our_model() -> tuple[Ranker, Batch]:
    """The same features by our declaration: two ids an event and a candidate, one shared table, two tokens of the user's."""
    posts = Table(name="post", dim=DIM, vocabulary=Identity(size=IDS))
    ids = (Categorical(name="post_id", table=posts), Categorical(name="owner_id", table=posts))
    of_user = tuple(
        Categorical(name=name, column=f"users.{name}", vocabulary=Identity(size=IDS), dim=DIM)
        for name in ("viewer_id", "context_id")
    )
    event = dict.fromkeys(("user_id", "item_id", "ts", "post_id", "owner_id"), "int64")
    schema = Schema(
        name="fixed_shape",
        sources=(
            EventLog(
                name="exposures",
                path="exposures/dt={dt}",
                columns={**event, "clicked": "bool"},
                post_exposure=("clicked",),
            ),
            EventLog(name="seen", path="seen/dt={dt}", columns=event),
            Snapshot(
                name="users",
                path="users/dt={dt}",
                key="user_id",
                columns={"user_id": "int64", "viewer_id": "int64", "context_id": "int64"},
            ),
        ),
        user=UserGroup(features=of_user, tokens="feature"),
        sequences=(EventSequence(name="history", events=(Events(source="seen"),), features=ids, max_length=HISTORY),),
        candidates=Candidates(features=ids),
        labels=(Label(name="click", column="clicked"),),
    )
    embeddings = Embeddings(make_plan(schema), backend="torch")
    ranker = Ranker(embeddings, ["click"], config(), HeadConfig(hidden=(512,)))

    def drawn(count: int) -> Tensor:
        return torch.randint(1, IDS, (count,))

    def offsets(each: int) -> Tensor:
        return torch.arange(SAMPLES + 1) * each

    events, shows = SAMPLES * HISTORY, SAMPLES * CANDIDATES
    start = torch.full((SAMPLES,), 1_767_225_600_000)
    groups = {
        "user": Group(offsets(1), start, {f.name: drawn(SAMPLES) for f in of_user}),
        "history": Group(
            offsets(HISTORY),
            1_767_225_600_000 - torch.arange(events, 0, -1) * 1_000,
            {**{f.name: drawn(events) for f in ids}, "type": torch.zeros(events, dtype=torch.int64)},
        ),
        "candidates": Group(
            offsets(CANDIDATES), 1_767_225_600_000 + torch.arange(shows) * 1_000, {f.name: drawn(shows) for f in ids}
        ),
    }
    none = torch.zeros(0, dtype=torch.int64)
    return ranker.train(), Batch(
        groups=groups,
        sample_id=[str(i) for i in range(SAMPLES)],
        user=torch.arange(SAMPLES),
        window_start=start,
        request=torch.zeros(shows, dtype=torch.int64),
        item=drawn(shows),
        labels={"click": torch.randint(2, (shows,)).float()},
        weights={"click": torch.ones(shows)},
        oracles={},
        candidate_sees=torch.zeros(shows, dtype=torch.int32),
        realtime_sees=none.to(torch.int32),
        realtime_available=none,
    )


# ---------------------------------------------------------------------- measuring


def on_cpu(module: Any) -> Any:
    """The module, and all of its own kind in it, on Meta's PyTorch kernels."""
    from generative_recommenders.common import HammerKernel, HammerModule

    for each in module.modules():
        if isinstance(each, HammerModule):
            each._hammer_kernel = HammerKernel.PYTORCH
    return module


def dense_parameters(model: torch.nn.Module) -> int:
    """Parameters that are no embedding table's."""
    return sum(p.numel() for n, p in model.named_parameters() if "_embedding_collection" not in n)


def ratio(theirs: Callable[[], object], ours: Callable[[], object], repeats: int) -> dict[str, object]:
    """CPU seconds of both, in turns, and the median of their ratios."""
    theirs(), ours()
    pairs = [(cpu_seconds(theirs), cpu_seconds(ours)) for _ in range(repeats)]
    return {
        "seconds_theirs": round(statistics.median(a for a, _ in pairs), 4),
        "seconds_ours": round(statistics.median(b for _, b in pairs), 4),
        "theirs_over_ours": round(statistics.median(a / b for a, b in pairs), 2),
    }


def cpu_seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began
