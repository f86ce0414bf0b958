"""Numbers of candidates that are computed when samples are read: from stored rows, before a view cuts them into samples.

So a number is the same whatever a training sample is, and adding a feature of this kind needs no rebuild.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from torch import Tensor

from genrank.schemas.features import Feature
from genrank.schemas.ids import MISSING_ID
from genrank.tokenization.batch import Group, Ints
from genrank.tokenization.feature_kinds import number_function
from genrank.tokenization.peers import Floats, Peers


class StoredNumbers:
    """The candidates of stored rows, each by itself and among those of its request (`feature_kinds.StoredCandidates`).

    Args:
        features: of the candidates, by name.
        group: the candidates as they are stored.
        day: [R] int64: a number of the user and day that each row is of, the same for rows that a long day is divided into.
        request: [C] int64.
    """

    def __init__(self, features: Mapping[str, Feature], group: Group, day: Ints, request: Tensor) -> None:
        self._features, self._group = features, group
        self._day, self._request = day, request
        self._known: dict[str, Floats] = {}

    def number(self, feature: str) -> Floats:
        """[C] float64, NaN where missing: a number that is stored, or computed when samples are read."""
        if feature not in self._known:
            self._known[feature] = self._number(self._features[feature])
        return self._known[feature]

    def _number(self, feature: Feature) -> Floats:
        if compute := number_function(feature):
            return compute(feature, self)
        stored = self._group.features[feature.name]
        assert isinstance(stored, Tensor), f"{feature.name} has a list of values"
        if feature.stored != "time":
            return stored.numpy().astype(np.float64)
        moment, ts = stored.numpy(), self._group.ts.numpy()
        return np.where(moment == MISSING_ID, np.nan, (ts - moment) / 1000)

    @cached_property
    def peers(self) -> Peers:
        """The candidates that each is compared with."""
        lengths = self._group.lengths.numpy()
        return Peers.of(np.repeat(self._day, lengths), self._request.numpy(), self._group.ts.numpy())


def user_days(user: Ints, window_start: Ints, parts: Ints) -> Ints:
    """[R] int64: rows of one user and day, which follow one another in a file, have one number.

    Args:
        user, window_start: [R] int64.
        parts: [R] int64: rows are numbered apart where this differs.
    """
    same = (user[1:] == user[:-1]) & (window_start[1:] == window_start[:-1]) & (parts[1:] == parts[:-1])
    return np.cumsum(np.r_[False, ~same][: len(user)])
