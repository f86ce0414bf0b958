"""Features of a row to its tokens: linear maps, with a weight per feature."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from genrank.schemas.derive.token_groups import token_groups
from genrank.schemas.errors import UserError
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.event_actions import known_before
from genrank.tokenization.wants import AutoSplit, Chunks, DeclaredGroups, Grouping, Groups, One, PerFeature

Layout = Mapping[str, slice]
"""Feature -> its columns of the group's matrix."""


class _SideBySide(torch.autograd.Function):
    """Matrices [D, width] of one height side by side. Backward is one launch, where that of `torch.cat` has a copy a matrix."""

    @staticmethod
    def forward(ctx: FunctionCtx, places: Tensor, *matrices: Tensor) -> Tensor:
        ctx.places, ctx.shapes = places, [matrix.shape for matrix in matrices]  # type: ignore[attr-defined]
        return torch.cat(matrices, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        shapes = ctx.shapes  # type: ignore[attr-defined]
        flat = grad.reshape(-1).index_select(0, ctx.places)  # type: ignore[attr-defined]
        parts = torch.split(flat, [shape.numel() for shape in shapes])
        return None, *(part.view(shape) for part, shape in zip(parts, shapes, strict=True))


class _Columns(torch.autograd.Function):
    """Some columns of [N, width], each at most once. Backward is two launches, where that of a slice a feature has some a feature."""

    @staticmethod
    def forward(ctx: FunctionCtx, matrix: Tensor, columns: Tensor) -> Tensor:
        ctx.columns, ctx.width = columns, matrix.shape[1]  # type: ignore[attr-defined]
        return matrix.index_select(1, columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        whole = grad.new_zeros(len(grad), ctx.width)  # type: ignore[attr-defined]
        return whole.index_copy_(1, ctx.columns, grad), None  # type: ignore[attr-defined]


def _places_of_columns(height: int, columns: Sequence[slice]) -> Tensor:
    """int32: where each element of matrices [height, width], one after another, lies when they are side by side."""
    widths = [each.stop - each.start for each in columns]
    whole = torch.arange(height * sum(widths), dtype=torch.int32).view(height, -1)
    return torch.cat([part.reshape(-1) for part in torch.split(whole, widths, 1)]) if widths else whole.view(-1)


class Projection(nn.Module):
    """Concatenated features to `tokens` tokens. A weight per feature: checkpoints survive any merge, and added or dropped features."""

    places: Tensor
    picked: Tensor

    def __init__(self, layout: Layout, d_model: int, tokens: int = 1) -> None:
        super().__init__()
        width = sum(columns.stop - columns.start for columns in layout.values())
        self.d_model = d_model
        self.columns = list(layout.values())
        bound = 1 / math.sqrt(max(width, 1))
        self.weights = nn.Module()
        for name, columns in layout.items():
            weight = torch.empty(tokens * d_model, columns.stop - columns.start).uniform_(-bound, bound)
            self.weights.register_parameter(f"of_{name}", nn.Parameter(weight))
        self.bias = nn.Parameter(torch.zeros(tokens * d_model))
        self.whole = _contiguous(self.columns)
        picked = [at for each in self.columns for at in range(each.start, each.stop)]
        self.register_buffer("picked", torch.tensor(picked, dtype=torch.int64), persistent=False)
        self.register_buffer("places", _places_of_columns(tokens * d_model, self.columns), persistent=False)

    def forward(self, matrix: Tensor) -> Tensor:
        """[N, width(group)] -> [N * tokens, d_model], a row's tokens one after another."""
        if not self.columns:
            return self.bias.expand(len(matrix), -1).reshape(-1, self.d_model)
        if self.whole == slice(0, matrix.shape[1]):
            x = matrix  # a slice of all columns has a backward that copies them
        elif self.whole:
            x = matrix[:, self.whole]
        else:
            x = _Columns.apply(matrix, self.picked)  # type: ignore[no-untyped-call]
        weight = _SideBySide.apply(self.places, *self.weights.parameters())  # type: ignore[no-untyped-call]
        return nn.functional.linear(x, weight, self.bias).view(-1, self.d_model)


class Several(nn.Module):
    """Several tokens a row, one after another: [N, width] -> [N * tokens, d_model]."""

    def __init__(self, projections: list[Projection]) -> None:
        super().__init__()
        self.projections = nn.ModuleList(projections)

    def forward(self, matrix: Tensor) -> Tensor:
        """As above."""
        return torch.stack([projection(matrix) for projection in self.projections], 1).flatten(0, 1)


def group_projection(
    embeddings: Embeddings,
    group: str,
    d_model: int,
    grouping: Grouping | None = None,
    *,
    event_actions: bool = False,
) -> nn.Module:
    """What makes the tokens of a group's rows.

    Args:
        grouping: of the user's or a candidate's features; None: as the schema declares it.
        event_actions: an event's tokens are what is known before its action, and the action.
    """
    schema, layout = embeddings.plan.schema, embeddings.layout[group]
    if group not in (USER, CANDIDATES) and event_actions:
        before = known_before(schema, group)
        parts = [{n: c for n, c in layout.items() if (n in before) == known} for known in (True, False)]
        return Several([Projection(part, d_model) for part in parts])
    if group not in (USER, CANDIDATES):
        interleaved = next(s.interleave for s in schema.sequences if s.name == group)
        side = {name: columns for name, columns in layout.items() if name not in interleaved}
        own = [Projection({name: layout[name]}, d_model) for name in interleaved]
        return Several([Projection(side, d_model), *own]) if own else Projection(side, d_model)
    grouping = declared_grouping(schema, group) if grouping is None else grouping
    if isinstance(grouping, One):
        numbers = {f.name for f in dict(schema.groups())[group] if f.number_transform and not grouping.numbers}
        return Projection({name: columns for name, columns in layout.items() if name not in numbers}, d_model)
    if isinstance(grouping, AutoSplit):
        return Projection(layout, d_model, grouping.tokens)
    if isinstance(grouping, Chunks):
        return Several(
            [Projection(part, d_model) for part in _chunks(layout, embeddings.width(group), grouping.tokens)]
        )
    sets = (
        feature_sets(schema, group, grouping) if not isinstance(grouping, PerFeature) else [(name,) for name in layout]
    )
    return Several([Projection({name: layout[name] for name in names}, d_model) for names in sets])


def tokens_of(schema: Schema, group: str, grouping: Grouping | None) -> int:
    """Tokens that a row of the user's or the candidates' features becomes.

    Raises:
        UserError: the grouping doesn't fit the schema's features.
    """
    grouping = declared_grouping(schema, group) if grouping is None else grouping
    features = len(dict(schema.groups())[group])
    if not features:
        return 0
    if isinstance(grouping, AutoSplit | Chunks):
        return grouping.tokens
    if isinstance(grouping, One):
        return 1
    return features if isinstance(grouping, PerFeature) else len(feature_sets(schema, group, grouping))


def declared_grouping(schema: Schema, group: str) -> Grouping:
    """What the schema says of the user's tokens (`User.tokens`); one token a candidate."""
    return PerFeature() if group == USER and schema.user.tokens == "feature" else One()


def feature_sets(schema: Schema, group: str, grouping: Groups | DeclaredGroups) -> list[tuple[str, ...]]:
    """Names of the features of each token.

    Raises:
        UserError: they are not the group's features, each once.
    """
    if isinstance(grouping, DeclaredGroups):
        return list(token_groups(schema, group).values())
    named = [name for names in grouping.features for name in names]
    have = [feature.name for feature in dict(schema.groups())[group]]
    for what, names in (
        ("the schema has no", sorted({*named} - {*have})),
        ("no group has", sorted({*have} - {*named})),
        ("several groups have", sorted({name for name in named if named.count(name) > 1})),
    ):
        if names:
            raise UserError(
                f"groups of {group} features: {what} {', '.join(names)}; put every feature of {group} in one group"
            )
    return list(grouping.features)


def equalize(embeddings: Embeddings, projections: nn.ModuleDict) -> None:
    """Features that read one logical table start with the weights of the first of them, where these have one shape."""
    tables = {
        (group, lookup.feature): lookup.table
        for group in embeddings.groups
        for lookup in embeddings.plan.lookups_of(group)
    }
    first: dict[tuple[str, torch.Size], Tensor] = {}
    for key, module in projections.items():
        for part in module.projections if isinstance(module, Several) else [module]:
            assert isinstance(part, Projection)
            for name, weight in part.weights.named_parameters():
                table = tables.get((key.removeprefix("of_"), name.removeprefix("of_")))
                if table is not None:
                    weight.data.copy_(first.setdefault((table, weight.shape), weight.data))


def _chunks(layout: Layout, width: int, tokens: int) -> list[dict[str, slice]]:
    """The columns of each of `tokens` pieces; a feature that lies across two has columns in both."""
    pieces = []
    for first, last in itertools.pairwise(width * i // tokens for i in range(tokens + 1)):
        cut = {name: slice(max(columns.start, first), min(columns.stop, last)) for name, columns in layout.items()}
        pieces.append({name: columns for name, columns in cut.items() if columns.stop > columns.start})
    return pieces


def _contiguous(columns: list[slice]) -> slice | None:
    """The one slice that the columns make up, if they do."""
    if not columns or any(a.stop != b.start for a, b in itertools.pairwise(columns)):
        return None
    return slice(columns[0].start, columns[-1].stop)
