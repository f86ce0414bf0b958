"""Digests: equal data, equal name; any change, another name."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from genrank.schemas.digest import digest

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
PLAIN = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


@settings(deadline=None)
@given(st.dictionaries(st.text(), PLAIN, max_size=5))
def test_the_order_of_keys_does_not_matter(data: dict[str, object]) -> None:
    assert digest(dict(reversed(data.items()))) == digest(data)
    assert re.fullmatch(r"[0-9a-f]{16}", digest(data))


@settings(deadline=None)
@given(st.lists(st.integers(), min_size=1, unique=True))
def test_other_data_has_another_name(data: list[int]) -> None:
    names = {digest(data), digest(data[:-1]), digest([*data, None]), digest([data]), digest([str(x) for x in data])}
    assert len(names) == 5
    assert len(data) == 1 or digest(data[::-1]) != digest(data)


def test_names_stay_between_releases() -> None:
    """They name folders and fingerprints on disk."""
    assert digest({"b": [1, 2.5, None], "a": "x"}) == "ce74053d7a9997b7"
