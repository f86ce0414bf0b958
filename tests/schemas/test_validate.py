"""Validation that teaches: distinct mistakes, each said in one line that names the place and the remedy."""

from __future__ import annotations

import pytest
from schemas_shop import SHOP

from genrank.schemas import (
    Categorical,
    CrossFeature,
    EventLog,
    EventSequence,
    HashedCross,
    Label,
    MultiValued,
    Numeric,
    Snapshot,
    Sql,
    TimeGap,
    TimePart,
)
from genrank.schemas.errors import SchemaError, UserError
from tests.schemas.mistakes import cross_features, features, groups, labels, sources, tables

KINDS = (sources, groups, features, tables, cross_features, labels)
MISTAKES = {name: mistake for kind in KINDS for name, mistake in kind.MISTAKES.items()}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_place_and_remedy(mistake: str) -> None:
    make, message = MISTAKES[mistake]
    with pytest.raises(SchemaError) as raised:
        make()
    assert any(report.startswith(message) or message in report for report in raised.value.mistakes), (
        raised.value.mistakes
    )
    for report in raised.value.mistakes:
        assert "\n" not in report and len(report) < 400


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_mistake_is_reported_once(mistake: str) -> None:
    """One slip may break several features, but a reader shouldn't wade through echoes of it in other words."""
    with pytest.raises(SchemaError) as raised:
        MISTAKES[mistake][0]()
    places = [report.split(":")[0] for report in raised.value.mistakes]
    assert len(raised.value.mistakes) <= len(set(places)) + 1, raised.value.mistakes


def test_no_two_mistakes_share_a_name() -> None:
    assert len(MISTAKES) == sum(len(kind.MISTAKES) for kind in KINDS)


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(UserError) as raised:
        SHOP.replace(
            sources=tuple(s.replace(path="nowhere") if s.name == "visits" else s for s in SHOP.sources),
            candidates=SHOP.candidates.replace(
                features=(
                    *SHOP.candidates.features,
                    Numeric(name="a", column="prise"),
                    Numeric(name="b", column="clicked"),
                )
            ),
            labels=(*SHOP.labels, Label(name="x")),
        )
    first, *lines = str(raised.value).splitlines()
    assert first == "schema 'shop': 4 mistakes:"
    assert [line.split(":")[0].strip() for line in lines] == ["visits", "candidates.a", "candidates.b", "label x"]


def test_the_shop_itself_has_no_mistake_and_uses_every_kind() -> None:
    kinds = {type(feature) for _, features in SHOP.groups() for feature in features}
    assert kinds == {Categorical, MultiValued, Numeric, TimePart, TimeGap, HashedCross, CrossFeature, Sql}
    assert {type(s) for s in SHOP.sources} == {EventLog, Snapshot}
    assert isinstance(SHOP.sequences[0], EventSequence)


def test_a_changed_copy_is_checked_and_has_its_own_fingerprint() -> None:
    before = SHOP.fingerprint
    copy = SHOP.model_copy(update={"utc_offset": "+08:00"})
    assert copy.fingerprint != before == SHOP.fingerprint
    with pytest.raises(SchemaError):
        SHOP.model_copy(update={"labels": (Label(name="x"),)})
