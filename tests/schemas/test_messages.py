"""Words that messages share: lists, articles, repeated names, shares, and what is wrong with a condition."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.schemas.messages import and_, condition_mistakes, share, twice, with_article


@settings(deadline=None)
@given(st.lists(st.integers(0, 5)))
def test_what_stands_twice_is_named_once(numbers: list[int]) -> None:
    found = twice(numbers)
    assert sorted(found) == sorted({str(n) for n in numbers if numbers.count(n) > 1})


def test_lists_of_names() -> None:
    assert [and_([]), and_(["a"]), and_(["a", "b"]), and_("abc")] == ["", "a", "a and b", "a, b and c"]
    assert [with_article("AutoDis"), with_article("Numeric")] == ["an AutoDis", "a Numeric"]


@settings(deadline=None)
@given(st.floats(0, 1))
def test_what_was_found_is_never_a_share_of_nothing(rate: float) -> None:
    text = share(rate)
    assert (text == "0.0%") == (rate == 0)
    if text.endswith("%") and not text.startswith("less"):
        assert float(text[:-1]) == pytest.approx(100 * rate, abs=0.0501)


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("price > 0", None),
        ("price is not null and scene = 'home'", None),
        ("price", "x: 'price' gives float, not a condition; compare it with something"),
        ("prise > 0", "prise"),
        ("price >", "x: "),
    ],
)
def test_a_condition_reads_its_own_row(text: str, mistake: str | None) -> None:
    found = list(condition_mistakes("x", text, {"price": "float32", "scene": "string"}))
    assert (found == []) == (mistake is None)
    assert mistake is None or (len(found) == 1 and mistake in found[0])
