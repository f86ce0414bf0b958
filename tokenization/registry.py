"""Entries by the schema's tag `kind`: what the kinds of features, vocabularies and transforms do on the tensor side.

A tag that nobody registered is looked for once in the installed packages' entry points of group `genrank.tensor_kinds`: modules that
register entries when they are imported. Beside the group `genrank.kinds` of the schema's side, so that reading a schema needs no torch.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from functools import cache
from typing import Generic, TypeVar

ENTRY_POINTS = "genrank.tensor_kinds"
Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries by kind, in the order of registration.

    Args:
        what: what the kinds are kinds of, for messages.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, Entry] = {}

    def add(self, kind: str, entry: Entry) -> None:
        """Register a kind's entry.

        Raises:
            ValueError: the kind has another one.
        """
        known = self._entries.get(kind)
        # The same definition run again, such as a notebook's cell, registers anew.
        if known is not None and _definition(known) != _definition(entry):
            raise ValueError(
                f"{self.what} kind {kind!r} is {_definition(known)}'s already; give {_definition(entry)} another"
            )
        self._entries[kind] = entry

    def get(self, kind: str) -> Entry | None:
        """A kind's entry, of this process or of an installed package."""
        if kind not in self._entries:
            _load_entry_points()
        return self._entries.get(kind)

    def __contains__(self, kind: str) -> bool:
        return kind in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)


def _definition(entry: object) -> str:
    """Module and name of a function, of a class, or of an instance's class."""
    named = entry if hasattr(entry, "__qualname__") else type(entry)
    return f"{named.__module__}.{named.__qualname__}"


@cache
def _load_entry_points() -> None:
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        entry_point.load()
