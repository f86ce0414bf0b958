"""Advice, and sizes known before anything is built."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from schemas_shop import SHOP, candidates, sequence, source
from strategies import schemas

from genrank.schemas import (
    AutoDis,
    Categorical,
    ChangePoints,
    CrossFeature,
    Dense,
    Dynamic,
    Enumerated,
    Events,
    Hashed,
    Label,
    Numeric,
    Schema,
    Table,
)
from genrank.schemas.derive.lineage import lineage
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.derive.sizes import sizes
from genrank.schemas.review.lint import lint


def categorical(dim: int = 4, **vocabulary: object) -> Schema:
    return candidates(Categorical(name="x", column="request_id", dim=dim, **vocabulary))


ADVICE: dict[str, tuple[Callable[[], Schema], str]] = {
    "an oracle in the open": (
        lambda: SHOP,
        "label click: oracle 'p_click' is not among post_exposure of exposures; add it",
    ),
    "an outcome known too early": (
        lambda: source("exposures", delay="0ms").replace(
            candidates=SHOP.candidates.replace(
                features=(
                    *SHOP.candidates.features,
                    CrossFeature(name="x", op="rate", source="exposures", where="clicked = 1", window="1d", strength=9),
                )
            )
        ),
        "candidates.x: it reads 'clicked' of past exposures as if known at the exposure itself; give exposures the `arrival` column",
    ),
    "a source nobody reads": (lambda: SHOP, "source tags: nothing reads it; drop it"),
    "a column nobody reads": (
        lambda: source("items", columns={**SHOP.source("items").columns, "colour": "string"}),
        "source items: nothing reads vector, colour; fewer columns to keep make a faster build",
    ),
    "change points without their value": (
        lambda: SHOP.replace(
            sequences=(
                SHOP.sequences[0].replace(
                    events=(*SHOP.sequences[0].events, ChangePoints(source="users", column="age"))
                ),
                SHOP.sequences[1],
            )
        ),
        "sequence history: no feature reads 'age', so its change points say that it changed, not to what",
    ),
    "events without a feature": (
        lambda: SHOP.replace(
            sequences=(
                SHOP.sequences[0].replace(
                    events=(Events(source="visits"), Events(source="clicks")), features=(Numeric(name="dwell"),)
                ),
                SHOP.sequences[1],
            )
        ),
        "sequence history: no feature reads visits: its events are tokens of their type and time alone",
    ),
    "a stale statistic": (
        lambda: candidates(CrossFeature(name="x", op="count", source="clicks", window="1h", as_of="window_start")),
        "candidates.x: as of the day's start, a window of 1h is stale by up to a day",
    ),
    "a rate of one event": (
        lambda: candidates(CrossFeature(name="x", op="rate", source="clicks", per="exposures", window="1d")),
        "candidates.x: without strength, one event of one makes a rate of 1",
    ),
    "a long tail": (
        lambda: candidates(CrossFeature(name="x", op="count", source="clicks", window="1d", transform=Dense())),
        "candidates.x: count has a long tail, which Dense passes on; use Log1p or QuantileBuckets",
    ),
    "a frozen softmax": (
        lambda: candidates(Numeric(name="x", column="price", transform=AutoDis(temperature=0.001))),
        "candidates.x: AutoDis at temperature 0.001 is a hard choice without a gradient",
    ),
    "ids learned twice": (
        lambda: sequence(Categorical(name="category", column="items.category", vocabulary=Hashed(size=50), dim=8)),
        "items.category: the same ids are learned 2 times (history.category in history.category, candidates.category in "
        "candidates.category); share one table, or mean it",
    ),
    "a crooked dim": (
        lambda: categorical(dim=6, vocabulary=Hashed(size=100)),
        "table candidates.x: dim 6 is no multiple of 4, the width GPU lookups move at once; use 8",
    ),
    "more dimensions than values": (
        lambda: categorical(dim=64, vocabulary=Enumerated(values=(1, 2, 3))),
        "table candidates.x: 3 values in 64 dimensions; 4 are plenty",
    ),
    "rows for every passer-by": (
        lambda: categorical(vocabulary=Dynamic(capacity=1_000_000)),
        "table candidates.x: every id gets a row at first sight; admit_after=2 or more",
    ),
    "a handful of buckets": (
        lambda: categorical(vocabulary=Hashed(size=3)),
        "table candidates.x: 3 buckets mix most ids; use Enumerated or Identity",
    ),
    "tables too large": (
        lambda: categorical(dim=128, vocabulary=Hashed(size=200_000_000)),
        "tables take 96 GiB with their optimizer state, candidates.x most; shard them over several GPUs",
    ),
    "no sequence": (
        lambda: SHOP.replace(sequences=()),
        "no sequence: the model sees statistics, not what the user did",
    ),
    "no history": (
        lambda: SHOP.replace(sequences=SHOP.sequences[1:]),
        "no history: what happened before today is invisible",
    ),
    "no request": (
        lambda: SHOP.replace(candidates=SHOP.candidates.replace(request=None)),
        "candidates: without `request`, a user's exposures of a day are one request",
    ),
    "a label that ripens slowly": (
        lambda: SHOP.replace(labels=(SHOP.labels[0], Label(name="buy", source="purchases", window="30d"))),
        "label buy: days are trainable only once 30d have passed",
    ),
}


@pytest.mark.parametrize("case", ADVICE)
def test_advice_names_place_reason_and_remedy(case: str) -> None:
    make, report = ADVICE[case]
    advice = lint(make())
    assert any(line.startswith(report) for line in advice), advice
    assert all("\n" not in line for line in advice)


def test_a_careful_schema_is_left_in_peace() -> None:
    city = Table(name="city", dim=8, vocabulary=Hashed(size=100))

    def shared(features: tuple) -> tuple:
        return tuple(f.replace(table=city, vocabulary=None, dim=None) if f.name == "city" else f for f in features)

    read = lineage(SHOP)
    kept = []
    for each in SHOP.sources:
        own = {c: t for c, t in each.columns.items() if (each.name, c) in read or c in ("user_id", "ts", "p_click")}
        post = (*each.post_exposure, "p_click") if each.name == "exposures" else ()
        if each.name not in ("tags", "visits"):
            kept.append(
                each.replace(
                    columns=own | {"play_ms": "int64"} if post else own, **{"post_exposure": post} if post else {}
                )
            )
    careful = SHOP.replace(
        sources=tuple(kept),
        user=SHOP.user.replace(features=shared(SHOP.user.features)),
        sequences=tuple(s.replace(features=shared(s.features)) for s in SHOP.sequences),
    )
    assert lint(careful) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(schemas())
def test_sizes_count_what_the_contract_stores(schema: Schema) -> None:
    size = sizes(schema)
    stored = {field.name: field.type for field in arrow_schema(schema)}
    extra = {"user": 0, "candidates": 3} | {s.name: 3 if s.scope == "realtime" else 2 for s in schema.sequences}
    for group in size.groups:
        kept = stored[group.group].num_fields if group.group in stored else 0
        assert group.stored == kept - extra[group.group] if kept else group.stored == 0
        assert group.bytes >= 4 * group.stored * group.rows
    assert size.tokens >= schema.candidates.max_candidates + sum(s.max_length for s in schema.sequences)
    assert isinstance(lint(schema), list)
