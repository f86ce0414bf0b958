"""Plans of random schemas: rows never overlap, merging is by class, and what a plan explains is true."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from random_samples import demo_schema, random_table, write_random_samples
from rich.console import Console
from strategies import schemas

import genrank.schemas as s
from genrank.schemas.derive.tables import logical_tables
from genrank.schemas.errors import UserError
from genrank.schemas.ids import MISSING_ID
from genrank.schemas.schema import Schema
from genrank.tokenization.explain import PlanExplanation, explain, plan_warnings
from genrank.tokenization.id_statistics import ObservedIds, observe_ids
from genrank.tokenization.plan import MAX_ROWS, make_plan, merge_key, tokens_per_row
from genrank.tokenization.present.plan import COLUMNS, render, table_rows

some = settings(
    max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], deadline=None
)


@some
@given(schemas(max_features=6))
def test_no_two_logical_rows_share_a_physical_one(schema: Schema) -> None:
    plan = make_plan(schema)
    tables = logical_tables(schema)
    assert sorted(plan.logical) == sorted(table.name for table in tables)
    for merged in plan.tables:
        end = 0
        for member, start in zip(merged.members, merged.starts, strict=True):
            assert merged.range_of(member.name) == (start, start + member.rows) and start == end
            end = start + member.rows
        assert merged.rows == end


@some
@given(schemas(max_features=6))
def test_merged_if_and_only_if_the_class_is_equal(schema: Schema) -> None:
    plan = make_plan(schema)
    for a, in_a in plan.logical.values():
        for b, in_b in plan.logical.values():
            assert (in_a is in_b) == (merge_key(a) == merge_key(b))
    apart = make_plan(schema, merge=False)
    assert len(apart.tables) == len(plan.logical) and {len(t.members) for t in apart.tables} <= {1}


@some
@given(schemas(max_features=6))
def test_every_reader_of_a_table_looks_up_there(schema: Schema) -> None:
    plan = make_plan(schema)
    found = {f"{l.group}.{l.feature}": (l.table, l.merged, l.start, l.dim) for l in plan.lookups}
    wanted = {
        feature: (table.name, plan.logical[table.name][1].name, plan.start_of(table.name), table.dim)
        for table in logical_tables(schema)
        for feature in table.features
    }
    assert found == wanted
    for group, _ in schema.groups():
        order = [(plan.tables.index(plan.by_name[l.merged]), l.feature) for l in plan.lookups_of(group)]
        assert order == sorted(order)


@some
@given(schemas(max_features=6))
def test_the_plan_does_not_depend_on_the_order_of_declaration(schema: Schema) -> None:
    turned = schema.replace(candidates=schema.candidates.replace(features=tuple(reversed(schema.candidates.features))))
    assert make_plan(turned).tables == make_plan(schema).tables


@some
@given(schemas(max_features=6))
def test_the_explanation_adds_up(schema: Schema) -> None:
    plan = make_plan(schema)
    found = explain(plan, world_size=3)
    assert PlanExplanation.model_validate_json(found.model_dump_json()) == found
    assert len(found.tables) == len(plan.tables) and all(len(row) == len(COLUMNS) for row in table_rows(found))
    assert len(found.not_merged) == len(plan.tables) * (len(plan.tables) - 1) // 2
    assert all(pair.why for pair in found.not_merged)
    size = sum(t.weight_bytes + t.optimizer_bytes for t in plan.tables)
    assert found.bytes.weights + found.bytes.optimizer == size
    assert abs(sum(found.bytes.ranks) - size) <= 3 * len(plan.tables)
    page = io.StringIO()
    Console(file=page, width=160).print(render(found))
    assert all(table.name in page.getvalue() for table in plan.tables)


def test_refusals_say_what_differs() -> None:
    items = s.Table(name="goods", dim=16, vocabulary=s.Dynamic(capacity=10))
    brand = s.Table(name="brand", dim=16, vocabulary=s.Hashed(size=10), optimizer=s.SparseOptimizer(lr_scale=2))
    schema = demo_schema(
        candidates=s.Candidates(
            features=(
                s.Categorical(name="item_id", table=items),
                s.Categorical(name="request_id", table=brand),
                s.HashedCross(name="x", of=("item_id", "request_id"), vocabulary=s.Hashed(size=5), dim=16),
            )
        )
    )
    found = {pair.tables: pair.why for pair in explain(make_plan(schema)).not_merged}
    assert found["d16", "d16_2"] in (
        "optimizer rowwise_adagrad and rowwise_adagrad x2",
        "optimizer rowwise_adagrad x2 and rowwise_adagrad",
    )
    assert "vocabulary static and dynamic" in found["d16", "d16_dynamic"]
    assert "dim 8 and 16" in found["d8", "d16"]


def ids(values: range) -> ObservedIds:
    return ObservedIds(np.array(values, np.int64))


def test_lints_ids_that_dont_belong_together() -> None:
    plan = make_plan(demo_schema())
    shared = {"history.item_id": ids(range(100, 150)), "realtime.item_id": ids(range(120, 170))}
    assert plan_warnings(plan, shared) == []
    found = plan_warnings(plan, {**shared, "candidates.last_item": ids(range(9_000, 9_100))})
    assert len(found) == 2 and found[0].startswith(
        "table item is read by history.item_id (ids 100..149) and candidates.last_item (ids 9,000..9,099), which have none in common"
    )
    assert plan_warnings(plan, {"user.tags": ids(range(40, 55))}) == [
        "table user.tags has rows for 0..49 and user.tags holds 40..54: 5 of 15 ids read the unknown row; "
        "raise the size, or use Hashed or Dynamic"
    ]


def test_observes_every_id_of_the_samples(tmp_path: Path) -> None:
    schema = demo_schema()
    write_random_samples(tmp_path, schema, ["2026-01-01", "2026-01-02"], users=12)
    found = observe_ids(tmp_path, schema, ["2026-01-01", "2026-01-02"])
    rows = [row for dt in ("2026-01-01", "2026-01-02") for row in random_table(schema, dt, 12).to_pylist()]
    wanted = {
        "history.item_id": {i for row in rows for i in row["history"]["item_id"]},
        "user.tags": {i for row in rows for i in row["user"]["tags"]},
        "user.city": {row["user"]["city"] for row in rows},
    }
    for name, values in wanted.items():
        assert found[name].ids.tolist() == sorted(values - {MISSING_ID}), name
    assert set(found) == {*wanted, "realtime.item_id", "candidates.item_id", "candidates.last_item"}


def test_warnings() -> None:
    schema = demo_schema(
        user=s.UserGroup(features=(s.Categorical(name="user_id", vocabulary=s.Dynamic(capacity=100), dim=8),)),
        candidates=s.Candidates(
            features=(
                s.Categorical(name="item_id", vocabulary=s.Hashed(size=100), dim=8),
                s.Categorical(name="same", column="item_id", vocabulary=s.Hashed(size=100), dim=8),
            )
        ),
    )
    observed = {"user.user_id": ids(range(101)), "candidates.item_id": ids(range(80))}
    found = plan_warnings(make_plan(schema), observed)
    assert any("user.user_id has capacity for 100 ids and 101 were seen" in each for each in found)
    assert any("candidates.item_id hashes 80 ids into 100 rows: 55%" in each for each in found)
    assert any(each.startswith("ids of item_id live in 3 tables") for each in found)
    assert plan_warnings(make_plan(demo_schema()), {}) == []


def test_refuses_more_rows_than_fit() -> None:
    large = s.Categorical(name="user_id", vocabulary=s.Hashed(size=MAX_ROWS), dim=8)
    user = demo_schema().user
    schema = demo_schema(user=user.replace(features=(*user.features, large)))
    with pytest.raises(UserError, match=r"tables of dim 8 have .* lower the size of user.user_id"):
        make_plan(schema)


def test_tokens_per_row() -> None:
    schema = demo_schema()
    assert [tokens_per_row(schema, name) for name, _ in schema.groups()] == [1, 1, 1, 1]
    per_feature = demo_schema(user=schema.user.replace(tokens="feature"))
    assert tokens_per_row(per_feature, "user") == 5
    without = demo_schema(
        user=s.UserGroup(), candidates=schema.candidates.replace(features=schema.candidates.features[:1])
    )
    assert tokens_per_row(without, "user") == 0
