"""What every operation of a cross feature knows of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Protocol

from genrank.schemas.base import ColumnType
from genrank.schemas.transforms import Log1p, Transform


class Statistic(Protocol):
    """What an operation reads of the cross feature that names it: `features.CrossFeature`."""

    @property
    def source(self) -> str:
        """The log counted."""
        ...

    @property
    def per(self) -> str | None:
        """The log of all trials, for operations that take one."""
        ...

    @property
    def value(self) -> str | None:
        """What is summed, averaged, kept or counted distinct."""
        ...

    @property
    def where(self) -> str | None:
        """Which events count."""
        ...

    @property
    def prior(self) -> float:
        """What it tends to without events."""
        ...

    @property
    def strength(self) -> float:
        """Pseudo-count of the prior."""
        ...


class Operation(ABC):
    """A statistic of past events at one key: which arguments it takes, what it gives, and its words.

    How it is computed belongs to the pipelines: `pipelines/cross_feature_ops` has an evaluation under the same name.
    """

    name: ClassVar[str]
    value_types: ClassVar[tuple[ColumnType, ...]] = ()
    """Column types of the `value` it needs; empty: it takes none."""
    takes_per: ClassVar[bool] = False
    """Whether it may count trials in another log."""
    takes_prior: ClassVar[bool] = False
    """Whether `prior` and `strength` smooth it."""
    takes_half_life: ClassVar[bool] = False
    """Whether its events count less with time, by half every `half_life`."""
    id_types: ClassVar[tuple[ColumnType, ...]] = ()
    """Column types of a `value` that it can keep as an id of a table; empty: it gives a number, which takes no table."""
    long_tail: ClassVar[bool] = False
    """Whether most results are small and a few are huge."""
    missing: ClassVar[str]
    """What it gives without any event, in words: `0`, `missing`. What is `0` may be added up over a key that is a list."""

    @property
    def needs_value(self) -> bool:
        """Whether `value` must be given."""
        return bool(self.value_types)

    @property
    def default_transform(self) -> Transform:
        """How its number is encoded where the feature says nothing."""
        return Log1p()

    def mistakes(self, at: str, feature: Statistic) -> Iterator[str]:
        """Of arguments that only this operation takes, each a line that begins with the feature, `at`."""
        yield from ()

    def advice(self, feature: Statistic) -> Iterator[str]:
        """What the feature may say but had better not."""
        yield from ()

    @abstractmethod
    def in_words(self) -> str:
        """What it computes, in a sentence of the documentation."""
