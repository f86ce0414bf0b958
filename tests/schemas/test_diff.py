"""What a change costs, and that costs agree with the fingerprints."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemas_shop import ITEMS, SHOP, candidates, label, sequence, source
from strategies import schemas

from genrank.schemas import (
    Categorical,
    CrossFeature,
    Dense,
    Dynamic,
    Enumerated,
    Events,
    FixedBuckets,
    Hashed,
    Identity,
    Numeric,
    Schema,
    SparseOptimizer,
    Table,
    Training,
)
from genrank.schemas.derive.fingerprints import model_meaning, samples_meaning
from genrank.schemas.errors import UserError
from genrank.schemas.review.diff import carried_rows, compatible_samples, diff, require_samples
from genrank.schemas.table import LogicalTable


def feature(group: str, name: str, **changes: object) -> Schema:
    """The shop with one feature changed."""

    def changed(features: tuple) -> tuple:
        return tuple(f.replace(**changes) if f.name == name else f for f in features)

    if group == "user":
        return SHOP.replace(user=SHOP.user.replace(features=changed(SHOP.user.features)))
    if group == "candidates":
        return SHOP.replace(candidates=SHOP.candidates.replace(features=changed(SHOP.candidates.features)))
    return SHOP.replace(
        sequences=tuple(s.replace(features=changed(s.features)) if s.name == group else s for s in SHOP.sequences)
    )


def every_item_table(**changes: object) -> Schema:
    """The shop with its shared table changed everywhere."""
    table = ITEMS.replace(**changes)

    def changed(features: tuple) -> tuple:
        return tuple(f.replace(table=table) if getattr(f, "table", None) else f for f in features)

    return SHOP.replace(
        sequences=tuple(s.replace(features=changed(s.features)) for s in SHOP.sequences),
        candidates=SHOP.candidates.replace(features=changed(SHOP.candidates.features)),
    )


def history(**changes: object) -> Schema:
    return SHOP.replace(sequences=(SHOP.sequences[0].replace(**changes), SHOP.sequences[1]))


def without(name: str) -> Schema:
    kept = tuple(f for f in SHOP.candidates.features if f.name != name)
    return SHOP.replace(candidates=SHOP.candidates.replace(features=kept))


ONE_CHANGE: dict[str, tuple[Callable[[], Schema], str]] = {
    # ------------------------------------------------------------------ nothing
    "a path": (
        lambda: source("clicks", path="lake/clicks/{dt}"),
        "source clicks: path clicks/dt={dt} -> lake/clicks/{dt} | nothing: where rows lie, not what they mean; the next build "
        "compares the files themselves",
    ),
    "a column nobody reads": (
        lambda: source("visits", columns={"user_id": "int64", "ts": "int64", "city": "string", "page": "string"}),
        "source visits: columns: page none -> string | nothing: no feature reads the columns that changed",
    ),
    "a loss weight": (
        lambda: SHOP.replace(labels=(SHOP.labels[0].replace(weight=2), SHOP.labels[1])),
        "label click: weight 1.0 -> 2.0 | nothing: the loss of the next training step uses it",
    ),
    "a training view": (
        lambda: SHOP.replace(training=Training(view="request")),
        "training: view user_day -> request | nothing: a view the reader makes of the same samples",
    ),
    "admission": (
        lambda: every_item_table(vocabulary=Dynamic(capacity=1000, admit_after=3)),
        "table items: admit_after 1 -> 3 | nothing: decides about rows that are still to come",
    ),
    "a learning rate": (
        lambda: every_item_table(optimizer=SparseOptimizer(lr_scale=0.5)),
        "table items: lr_scale 1.0 -> 0.5 | nothing: the next training step uses it",
    ),
    # ------------------------------------------------------------------ retrain
    "a table grown": (
        lambda: every_item_table(vocabulary=Dynamic(capacity=2000)),
        "table items: capacity 1000 -> 2000 | retrain: 1,002 rows carry over, 1,000 new ones start fresh",
    ),
    "a table widened": (
        lambda: every_item_table(dim=32),
        "table items: dim 16 -> 32 | retrain: it starts afresh: --reset-table items",
    ),
    "another optimizer": (
        lambda: every_item_table(optimizer=SparseOptimizer(kind="rowwise_adam")),
        "table items: optimizer rowwise_adagrad -> rowwise_adam | retrain: it starts afresh: --reset-table items",
    ),
    "another vocabulary": (
        lambda: feature("candidates", "category", vocabulary=Hashed(size=60)),
        "table candidates.category: size 50 -> 60 | retrain: it starts afresh: --reset-table candidates.category",
    ),
    "a value enumerated at the end": (
        lambda: feature("candidates", "tab", vocabulary=Enumerated(values=("home", "search", "cart"))),
        "table candidates.tab: values [home, search] -> [home, search, cart] | retrain: 4 rows carry over, 1 new ones start fresh",
    ),
    "another transform": (
        lambda: feature("candidates", "discount", transform=Dense(scale=2)),
        "candidates.discount: scale 1.0 -> 2.0 | retrain: its inputs start fresh, every other weight carries over",
    ),
    "other boundaries": (
        lambda: feature("user", "age", transform=FixedBuckets(boundaries=(18, 35, 50), dim=4)),
        "user.age: boundaries [18.0, 30.0, 50.0] -> [18.0, 35.0, 50.0] | retrain: its table starts afresh: --reset-table user.age",
    ),
    "tokens of the user": (
        lambda: SHOP.replace(user=SHOP.user.replace(tokens="group")),
        "user: tokens feature -> group | retrain: the dense layers of user start fresh; every table carries over",
    ),
    "no interleaving": (
        lambda: history(interleave=()),
        "sequence history: interleave [dwell] -> [] | retrain: the dense layers of history start fresh; every table carries over",
    ),
    "a feature less": (
        lambda: without("discount"),
        "candidates.discount: removed | retrain: samples may keep it; its inputs are dropped, every other weight carries over",
    ),
    "a label less": (
        lambda: SHOP.replace(labels=SHOP.labels[:1]),
        "label buy: removed | retrain: samples may keep it; its head is dropped, every other weight carries over",
    ),
    # ------------------------------------------------------------------ rebuild
    "a longer window": (
        lambda: feature("candidates", "clicks_7d", window="30d"),
        "candidates.clicks_7d: window 7d -> 30d | rebuild: candidates.clicks_7d of every day",
    ),
    "a new feature": (
        lambda: candidates(Numeric(name="list_price", column="items.price")),
        "candidates.list_price: added | rebuild: candidates.list_price of every day; its inputs start fresh, every other weight "
        "carries over",
    ),
    "a longer history": (
        lambda: history(max_length=400),
        "sequence history: max_length 200 -> 400 | rebuild: every column of history of every day",
    ),
    "another filter of events": (
        lambda: history(events=(Events(source="clicks", where="dwell > 1"), SHOP.sequences[0].events[1])),
        "rebuild: every column of history of every day",
    ),
    "another midnight": (
        lambda: SHOP.replace(utc_offset="+08:00"),
        "schema: utc_offset +00:00 -> +08:00 | rebuild: every day, whole: days begin at another moment",
    ),
    "another sampling": (
        lambda: SHOP.replace(candidates=SHOP.candidates.replace(negative_keep_rate=0.1)),
        "candidates: negative_keep_rate 1.0 -> 0.1 | rebuild: every column of candidates of every day",
    ),
    "a condition on rows": (
        lambda: source("purchases", valid=("price > 0",)),
        "source purchases: valid [] -> [price > 0] | rebuild: candidates.last_item, labels.buy of every day",
    ),
    "a joined column from elsewhere": (
        lambda: source("items", rename={"category": "category_v2"}),
        "source items: rename: category none -> category_v2 | rebuild: candidates.category, candidates.clicks_7d of every day",
    ),
    "a longer label window": (
        lambda: SHOP.replace(labels=(SHOP.labels[0], SHOP.labels[1].replace(window="2d"))),
        "label buy: window 1d -> 2d | rebuild: labels.buy of every day",
    ),
    "a new label": (
        lambda: label(name="play", kind="value", column="play_ms"),
        "label play: added | rebuild: labels.play of every day; its head starts fresh",
    ),
}


@pytest.mark.parametrize("change", ONE_CHANGE)
def test_one_change_is_reported_with_its_cost(change: str) -> None:
    make, report = ONE_CHANGE[change]
    new = make()
    changes = [str(c) for c in diff(SHOP, new)]
    assert any(report in line for line in changes), changes
    dearest = report.split(" | ")[-1].split(":")[0] if " | " in report else report.split(":")[0]
    assert diff(SHOP, new)[0].cost == dearest
    assert bool(compatible_samples(SHOP, new)) == (dearest == "rebuild")


def test_what_has_no_meaning_is_no_change() -> None:
    again = SHOP.replace(
        description="other words",
        sources=tuple(reversed(SHOP.sources)),
        labels=tuple(reversed(SHOP.labels)),
        sequences=tuple(reversed(SHOP.sequences)),
        candidates=SHOP.candidates.replace(
            features=tuple(f.replace(owner="ranking", description="x") for f in reversed(SHOP.candidates.features))
        ),
    )
    again = again.replace(
        candidates=again.candidates.replace(
            features=tuple(
                f.replace(keys=tuple(reversed(f.keys))) if isinstance(f, CrossFeature) else f
                for f in again.candidates.features
            )
        )
    )
    assert again.fingerprint == SHOP.fingerprint
    assert again.samples_fingerprint == SHOP.samples_fingerprint
    assert again.model_fingerprint == SHOP.model_fingerprint
    assert diff(SHOP, again) == []


def test_a_label_rests_on_the_one_it_is_given() -> None:
    clicks = SHOP.labels[0].replace(column=None, source="clicks", window="10m")
    assert {c.where for c in diff(SHOP, SHOP.replace(labels=(clicks, SHOP.labels[1]))) if c.cost == "rebuild"} == {
        "label click",
        "labels.buy",
    }


def test_fewer_values_of_a_list_are_read_from_samples_with_more() -> None:
    fewer, more = (feature("history", "tags", max_values=n) for n in (5, 50))
    assert compatible_samples(SHOP, fewer) == []
    assert compatible_samples(SHOP, more) == ["history.tags means something else in the samples"]


def test_incompatible_samples_are_refused_with_what_changed() -> None:
    with pytest.raises(UserError) as raised:
        require_samples(SHOP, feature("candidates", "clicks_7d", window="30d"), "samples of 2026-01-01")
    assert str(raised.value) == (
        "samples of 2026-01-01 were built with a schema of other meaning (candidates.clicks_7d: window 7d -> 30d); build them "
        "again, or train with that one"
    )
    require_samples(SHOP, without("clicks_7d"), "samples of 2026-01-01")


def table(vocabulary: object, dim: int = 8) -> LogicalTable:
    return LogicalTable("t", ("g.f",), dim, vocabulary)


@pytest.mark.parametrize(
    ("old", "new", "rows"),
    [
        (table(Identity(size=5)), table(Identity(size=9)), 7),
        (table(Identity(size=9)), table(Identity(size=5)), None),
        (table(Dynamic(capacity=5)), table(Dynamic(capacity=9, evict="frequency")), 7),
        (table(Hashed(size=5)), table(Hashed(size=5)), 7),
        (table(Hashed(size=5)), table(Hashed(size=9)), None),
        (table(Identity(size=5)), table(Hashed(size=5)), None),
        (table(Enumerated(values=(1, 2))), table(Enumerated(values=(1, 2, 3))), 4),
        (table(Enumerated(values=(1, 2))), table(Enumerated(values=(2, 1))), None),
        (table(Identity(size=5)), table(Identity(size=5), dim=16), None),
    ],
)
def test_rows_that_carry_over(old: LogicalTable, new: LogicalTable, rows: int | None) -> None:
    assert carried_rows(old, new) == rows


# ---------------------------------------------------------------------- properties

drawn = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def shuffled(schema: Schema, seed: int) -> Schema:
    order = random.Random(seed)

    def any_order(items: tuple) -> tuple:
        return tuple(order.sample(items, len(items)))

    histories = tuple(s.replace(features=any_order(s.features)) for s in schema.histories)
    realtime = (schema.realtime,) if schema.realtime else ()
    return schema.replace(
        sources=any_order(schema.sources),
        user=schema.user.replace(features=any_order(schema.user.features)),
        sequences=order.choice([(*histories, *realtime), (*realtime, *histories)]),
        candidates=schema.candidates.replace(features=any_order(schema.candidates.features)),
        labels=any_order(schema.labels),
        description="shuffled",
    )


@drawn
@given(schemas(), st.integers(0, 2**32))
def test_fingerprints_ignore_order_and_words(schema: Schema, seed: int) -> None:
    other = shuffled(schema, seed)
    assert (other.fingerprint, other.samples_fingerprint, other.model_fingerprint) == (
        schema.fingerprint,
        schema.samples_fingerprint,
        schema.model_fingerprint,
    )
    assert diff(schema, other) == []


@drawn
@given(schemas(max_features=4), schemas(max_features=4))
def test_costs_agree_with_the_fingerprints(old: Schema, new: Schema) -> None:
    """Two unrelated schemas differ in many ways at once: no difference of meaning may go unreported, and none be made up."""
    changes = diff(old, new)
    costs = {change.cost for change in changes}
    assert bool(changes) == (old.fingerprint != new.fingerprint)
    assert ("rebuild" in costs) == bool(compatible_samples(old, new))
    if old.model_fingerprint == new.model_fingerprint:
        assert "retrain" not in costs
    else:
        assert costs & {"retrain", "rebuild"}
    if old.samples_fingerprint == new.samples_fingerprint:
        assert "rebuild" not in costs


@drawn
@given(schemas(), st.data())
def test_dropping_features_never_needs_a_rebuild(schema: Schema, data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(schema.candidates.features), min_size=1, unique_by=lambda f: f.name))
    crossed = {name for f in kept for name in getattr(f, "of", ())}
    kept += [f for f in schema.candidates.features if f.name in crossed and f not in kept]
    smaller = schema.replace(candidates=schema.candidates.replace(features=tuple(kept)))
    assert compatible_samples(schema, smaller) == []
    assert set(samples_meaning(smaller)) <= set(samples_meaning(schema))
    assert set(compatible_samples(smaller, schema)) == {
        f"{part} is not in the samples" for part in set(samples_meaning(schema)) - set(samples_meaning(smaller))
    }


def test_encodings_are_the_models_alone() -> None:
    bucketed = feature("candidates", "price", transform=FixedBuckets(boundaries=(1, 2)))
    assert bucketed.samples_fingerprint == SHOP.samples_fingerprint
    assert bucketed.model_fingerprint != SHOP.model_fingerprint
    initial = every_item_table(optimizer=SparseOptimizer(weight_decay=0.1))
    assert model_meaning(initial) == model_meaning(SHOP) and initial.fingerprint != SHOP.fingerprint
    shared = Table(name="city", dim=8, vocabulary=Hashed(size=100))
    moved = feature("user", "city", vocabulary=None, dim=None, table=shared)
    assert [str(c) for c in diff(SHOP, moved)] == [
        "user.city: table none -> city | retrain: its inputs start fresh, every other weight carries over",
        "table city: added | retrain: its 102 rows start fresh",
        "table user.city: removed | retrain: its 102 rows are dropped",
    ]


def test_new_cross_feature_and_side_information_are_one_declaration() -> None:
    cross = CrossFeature(
        name="buys_30d", op="count", source="purchases", keys=("user_id", "items.category"), window="30d"
    )
    listed = cross.replace(keys=("user_id", "items.tags"))
    side = Categorical(name="category", column="items.category", vocabulary=Hashed(size=50), dim=8)
    assert {c.where for c in diff(SHOP, candidates(cross)) if c.cost == "rebuild"} == {"candidates.buys_30d"}
    assert {c.where for c in diff(SHOP, sequence(side)) if c.cost == "rebuild"} == {"history.category"}
    assert [str(c) for c in diff(candidates(listed), candidates(listed.replace(reduce="max")))] == [
        "candidates.buys_30d: reduce none -> max | rebuild: candidates.buys_30d of every day"
    ]
    assert [c.cost for c in diff(candidates(listed), candidates(listed.replace(reduce="mean")))] == ["nothing"]
