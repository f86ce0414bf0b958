"""Kinds from outside the package, from a declaration to a trained vector: what a user writes to add a feature kind, a transform or a
vocabulary.

Each is a class that the schema's family registers (`register_feature_kind`, ...) and one entry on the tensor side. A package of one's own
does both when it is imported, and names its modules in the entry points `genrank.kinds` (declarations) and `genrank.tensor_kinds`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import Field
from random_samples import demo_schema, random_table, write_random_samples
from torch import Tensor

import genrank.schemas as s
from genrank.schemas.errors import UserError
from genrank.schemas.features import Feature
from genrank.schemas.ids import MISSING_ID, SPECIAL_ROWS
from genrank.schemas.transforms import Transform
from genrank.schemas.vocabularies import Vocabulary
from genrank.tokenization.checkpoint import load_tables, save_tables
from genrank.tokenization.embedding import Embeddings
from genrank.tokenization.explain import explain
from genrank.tokenization.feature_kinds import GroupView, register_values
from genrank.tokenization.plan import make_plan
from genrank.tokenization.quantiles import fit_boundaries
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.registry import Registry
from genrank.tokenization.row_encoder import or_missing
from genrank.tokenization.tokens import Tokenizer
from genrank.tokenization.transforms import BucketTransform, InputEncoder, register_buckets, register_input
from genrank.tokenization.vocabularies import VocabularyRows, register_vocabulary_rows

DAY = "2026-01-01"

# ---------------------------------------------------------------------- declarations: no torch


class Ratio(Feature):
    """One stored number divided by another of the same group. Derived: takes no space in samples."""

    kind: Literal["test_ratio"] = "test_ratio"
    of: str
    to: str
    transform: Transform = s.Log1p()

    @property
    def stored(self) -> None:
        """Derived."""
        return None

    @property
    def derived_from(self) -> tuple[str, ...]:
        """The two numbers."""
        return self.of, self.to

    @property
    def number_transform(self) -> Transform:
        """`transform`."""
        return self.transform


class Modulo(Vocabulary):
    """An id's row is its remainder."""

    kind: Literal["test_modulo"] = "test_modulo"
    size: int = Field(gt=0)


class Root(Transform):
    """scale * sign(x) * sqrt(|x|), the scale learned, in `dim` columns."""

    kind: Literal["test_root"] = "test_root"
    dim: int = 3


class Halves(Transform):
    """Two buckets that the training days' median divides."""

    kind: Literal["test_halves"] = "test_halves"
    dim: int = 8

    @property
    def table_shape(self) -> tuple[int, int]:
        """(buckets, dim)."""
        return 2, self.dim


# ---------------------------------------------------------------------- the tensor side


def ratio_values(feature: Ratio, view: GroupView) -> Tensor:
    """[N] float32; NaN where either is missing."""
    return view.stored(feature.of) / view.stored(feature.to)


class ModuloRows(VocabularyRows[Modulo]):
    """Row `id mod size + SPECIAL_ROWS`."""

    def __init__(self, vocabularies: Sequence[Modulo]) -> None:
        super().__init__(vocabularies)
        self.constant("sizes", [[each.size] for each in vocabularies], torch.int64)

    def forward(self, values: Tensor) -> Tensor:
        """[F, N] ids -> [F, N] rows."""
        return or_missing(values % self.get_buffer("sizes") + SPECIAL_ROWS, values)


class RootInputs(InputEncoder[Root]):
    """All of a group's roots at once."""

    STATE_NAME = "test_roots"

    def __init__(self, features: Sequence[tuple[str, Root]]) -> None:
        super().__init__(features)
        self.scales = torch.nn.ParameterDict({name: torch.ones(each.dim) for name, each in features})

    def prepare(self, numbers: Tensor) -> Tensor:
        """[F, N] numbers -> [F, N] roots, 0 where missing."""
        x = numbers.nan_to_num(0.0)
        return x.sign() * x.abs().sqrt()

    def forward(self, prepared: Tensor) -> Tensor:
        """[F, N] -> [N, sum of dims]."""
        columns = [x[:, None] * scale for x, scale in zip(prepared, self.scales.values(), strict=True)]
        return torch.cat(columns, 1)


class HalvesEdges(BucketTransform[Halves]):
    """The median."""

    fitted = True

    def edges(self, transform: Halves, fitted: Sequence[float] | None) -> list[float]:
        """As fitted."""
        assert fitted is not None
        return list(fitted)

    def fit(self, transform: Halves, values: Any) -> list[float]:
        """One edge."""
        return torch.tensor(values).quantile(0.5)[None].tolist()  # type: ignore[no-any-return]


register_values("test_ratio", ratio_values)
register_vocabulary_rows("test_modulo", ModuloRows)
register_input("test_root", RootInputs)
register_buckets("test_halves", HalvesEdges())

# ---------------------------------------------------------------------- from samples to vectors


def extended_schema() -> s.Schema:
    """The demo's, with a candidate feature of each kind."""
    plain = demo_schema()
    own = (
        Ratio(name="price_ratio", of="cents", to="clicks_1h"),
        Ratio(name="root_ratio", of="clicks_1h", to="cents", transform=Root()),
        Ratio(name="half_ratio", of="ctr", to="cents", transform=Halves()),
        s.Categorical(name="shop", column="item_id", vocabulary=Modulo(size=7), dim=16),
    )
    return demo_schema(candidates=plain.candidates.replace(features=(*plain.candidates.features, *own)))


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    """For this module alone, where a package would write `@register_feature_kind` above its class."""
    s.register_feature_kind(Ratio)
    s.register_vocabulary(Modulo)
    s.register_transform(Root)
    s.register_transform(Halves)
    yield
    del Feature.members_by_tag[Ratio.model_fields["kind"].default]
    del Vocabulary.members_by_tag[Modulo.model_fields["kind"].default]
    del Transform.members_by_tag[Root.model_fields["kind"].default]
    del Transform.members_by_tag[Halves.model_fields["kind"].default]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_samples(tmp_path_factory.mktemp("samples"), extended_schema(), [DAY])


def test_reaches_tables_tokens_and_gradients(root: Path, tmp_path: Path) -> None:
    schema = extended_schema()
    boundaries = fit_boundaries(root, schema, [DAY])
    batch = next(iter(SampleReader(root, schema, [DAY], token_budget=10**9, shuffle=False)))
    plan = make_plan(schema)
    embeddings = Embeddings(plan, backend="torch", boundaries=boundaries)
    matrix, columns = embeddings(batch)["candidates"], embeddings.layout["candidates"]
    stored = [c for row in random_table(schema, DAY, 40).to_pylist() for c in candidates_of(row)]

    ratios = [c["cents"] / c["clicks_1h"] for c in stored]
    wanted = [[0.0, 1.0] if math.isnan(x) else [math.log1p(x), 0.0] for x in ratios]
    torch.testing.assert_close(matrix[:, columns["price_ratio"]], torch.tensor(wanted))
    roots = torch.tensor(
        [0.0 if math.isnan(x) else math.sqrt(x) for x in (c["clicks_1h"] / c["cents"] for c in stored)]
    )
    torch.testing.assert_close(matrix[:, columns["root_ratio"]], roots[:, None].expand(-1, 3))

    def rows_are(feature: str, logical: list[int]) -> None:
        lookup = next(each for each in plan.lookups if each.feature == feature)
        weight = embeddings.tables.shards(lookup.merged)[0].weight
        assert torch.equal(matrix[:, columns[feature]], weight[torch.tensor(logical) + lookup.start])

    rows_are("shop", [0 if c["shop"] == MISSING_ID else c["shop"] % 7 + 2 for c in stored])
    (edge,) = boundaries["candidates.half_ratio"]
    halves = [float(torch.tensor(c["ctr"]) / torch.tensor(c["cents"])) for c in stored]
    rows_are("half_ratio", [0 if math.isnan(x) else 2 + (x >= edge) for x in halves])

    tokens = Tokenizer(embeddings, 8)(batch)
    tokens.x.square().sum().backward()
    (scale,) = embeddings.soft[embeddings.groups.index("candidates")].get_submodule("test_roots").parameters()
    assert tokens.x.isfinite().all() and scale.grad is not None and scale.grad.abs().sum() > 0
    save_tables(embeddings, tmp_path)
    assert "candidates.shop" in load_tables(embeddings, tmp_path).restored
    assert "candidates.shop" in explain(plan).model_dump_json()


def candidates_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A stored sample's candidates, one by one."""
    lists = row["candidates"]
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


# ---------------------------------------------------------------------- what is missing is said


def test_names_the_registry_that_lacks_a_kind(root: Path) -> None:
    @s.register_feature_kind
    class Unknown(Ratio):
        kind: Literal["test_unknown"] = "test_unknown"  # type: ignore[assignment]

    plain = demo_schema()
    own = Unknown(name="x", of="cents", to="ctr")
    schema = demo_schema(candidates=plain.candidates.replace(features=(*plain.candidates.features, own)))
    write_random_samples(root / "unknown", schema, [DAY], users=4)
    batch = next(iter(SampleReader(root / "unknown", schema, [DAY])))
    embeddings = Embeddings(make_plan(schema), backend="torch", boundaries={"candidates.price": [1.0]})
    with pytest.raises(
        UserError, match=r"candidates.x of kind 'test_unknown' is not stored and nothing derives it; register"
    ):
        embeddings(batch)


def test_a_kind_is_one_definitions() -> None:
    registry: Registry[type] = Registry("test")
    registry.add("a", Ratio)
    registry.add("a", Ratio)  # a notebook's cell, run again
    assert list(registry) == ["a"] and "a" in registry and registry.get("b") is None
    with pytest.raises(ValueError, match=r"test kind 'a' is .*Ratio's already; give .*Modulo another"):
        registry.add("a", Modulo)
