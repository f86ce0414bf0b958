"""Names of the release before are importable, with a warning that says the new one."""

from __future__ import annotations

import pytest

from genrank import schemas


@pytest.mark.parametrize(
    ("old", "new"),
    [("Sequence", "EventSequence"), ("Crossed", "HashedCross"), ("Log", "Log1p"), ("Changes", "ChangePoints")],
)
def test_an_old_name_is_the_new_one(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old} is called {new} now"):
        assert getattr(schemas, old) is getattr(schemas, new)


def test_other_names_are_missing_as_ever() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Sequences'"):
        schemas.Sequences  # noqa: B018
