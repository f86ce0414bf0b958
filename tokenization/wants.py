"""What an encoder asks of the tokenizer. Torch only: a GPU image without the schemas' libraries runs the encoders, too."""

from __future__ import annotations

from dataclasses import dataclass, field

from genrank.tokenization import visibility


@dataclass(frozen=True)
class One:
    """One token a row: all of its features, projected together."""


@dataclass(frozen=True)
class PerFeature:
    """A token a feature."""


@dataclass(frozen=True)
class Groups:
    """A token a named group of features."""

    features: tuple[tuple[str, ...], ...]
    """Names of the features of each token."""


@dataclass(frozen=True)
class AutoSplit:
    """All features projected together and cut into `tokens` tokens of equal width."""

    tokens: int


Grouping = One | PerFeature | Groups | AutoSplit
"""How a row of features becomes tokens."""


@dataclass(frozen=True)
class Wants:
    """What an encoder asks of the tokenizer."""

    rule: visibility.Rule = visibility.mtgr
    """Who sees whom."""
    user: Grouping | None = None
    """The user's tokens; None: as the schema declares them (`User.tokens`)."""
    candidate: Grouping = field(default_factory=One)
    """A candidate's tokens."""
    sequence: bool = True
    """Whether events become tokens."""
    separators: bool = False
    """Whether a learned token stands between two sequences."""
    feature_norm: bool = False
    """Every feature at one scale before the projection (`tokenization.feature_norm`)."""
    candidate_numbers: bool = True
    """Whether a candidate's token holds its numbers, in buckets or not."""
    equal_start: bool = False
    """Projections of features that read one table begin equal."""
