"""What an encoder asks of the tokenizer. Torch only: a GPU image without the schemas' libraries runs the encoders, too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from genrank.tokenization import visibility


@dataclass(frozen=True)
class One:
    """One token a row: all of its features, projected together."""

    numbers: bool = True
    """Whether its numbers, in buckets or not, are among them."""


@dataclass(frozen=True)
class PerFeature:
    """A token a feature."""


@dataclass(frozen=True)
class DeclaredGroups:
    """A token a group of features that the schema declares (`token_groups`); by default the features of one source together."""


@dataclass(frozen=True)
class Groups:
    """A token a named group of features."""

    features: tuple[tuple[str, ...], ...]
    """Names of the features of each token; every feature in one of them."""


@dataclass(frozen=True)
class AutoSplit:
    """All features projected together and cut into `tokens` tokens (OneTrans, arXiv:2510.26104, section 3.2)."""

    tokens: int


@dataclass(frozen=True)
class Chunks:
    """All features' columns side by side, cut into `tokens` pieces of equal width (to a column), each projected by itself (RankMixer,
    arXiv:2507.15551, equation 2)."""

    tokens: int


Grouping = One | PerFeature | DeclaredGroups | Groups | AutoSplit | Chunks
"""How a row of features becomes tokens."""


@dataclass(frozen=True)
class Wants:
    """What an encoder asks of the tokenizer."""

    rule: visibility.Rule = visibility.mtgr
    """Who sees whom."""
    user: Grouping | None = None
    """The user's tokens; None: as the schema declares them (`User.tokens`)."""
    candidate: Grouping = field(default_factory=One)
    """A candidate's tokens. `One`: a row of `Tokens.x`; anything else: `Tokens.candidates`, beside the rows."""
    sequence: bool = True
    """Whether events become tokens."""
    newest: int = 0
    """Events of each history that become tokens: the newest so many; 0: all."""
    separators: bool = False
    """Whether a learned token stands after every sequence but the last."""
    slots: bool = False
    """Whether `Tokens.slots` is made: which weights of its own a token has."""
    sequence_ids: bool = False
    """Whether `Tokens.sequence_ids` is made: which sequence a token is of."""
    feature_norm: bool = False
    """Every feature at one scale before the projection (`tokenization.feature_norm`)."""
    equal_start: bool = False
    """Projections of features that read one table begin equal."""
    positions: Literal["newest", "oldest"] = "newest"
    """Where a history's positions count from. From the oldest event, no later event changes a token, and the last position of a long
    history has a next event to learn from; a realtime sequence's always do."""
    ages: bool = True
    """Whether an event's token has an encoding of how long before (or after) the window's start it happened."""
    requests: bool = False
    """Whether `Tokens.requests` is made: of which request each candidate is."""
    event_actions: bool = False
    """Every event as two tokens, whatever the schema interleaves: what is known before its action, then the action
    (`tokenization.event_actions`); and `Tokens.event_types`."""


@dataclass(frozen=True)
class TokenShape:
    """How many tokens of each sort the tokenizer makes of a schema's samples: what decides how many weights of its own each may have."""

    user: int = 1
    """Tokens of a user."""
    candidate: int = 1
    """Tokens of a candidate."""
    sequences: int = 1
    """Sequences of events, the realtime one included; 0 where the encoder wants none."""
    event_tokens: int = 1
    """Tokens that an event of a history makes; 0 where histories differ in it."""
