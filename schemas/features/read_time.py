"""Numbers of a candidate that are computed from stored numbers when samples are read, before a day is cut into requests or sessions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from genrank.schemas.base import CANDIDATES
from genrank.schemas.expression import nearest
from genrank.schemas.features.base import Feature, Scope
from genrank.schemas.messages import with_article


class ReadTimeNumber(Feature):
    """A candidate's number that nothing stores: the reader computes it, so that adding one needs no rebuild.

    A kind says which numbers of the candidates it is `derived_from`, and has one entry in `tokenization.feature_kinds`.
    """

    @property
    def stored(self) -> None:
        """Computed when samples are read."""
        return None

    @property
    def comparable(self) -> bool:
        """It is a number."""
        return True

    @property
    def needs_request(self) -> bool:
        """Whether it reads the other candidates of the request."""
        return False

    def lineage(self, group: str, scope: Scope) -> Iterator[tuple[str, Collection[str]]]:
        """What the numbers it is computed from read."""
        for name in self.derived_from:
            yield from scope.features(group)[name].lineage(group, scope)

    def mistakes(self, at: str, group: str, scope: Scope) -> Iterator[str]:
        """Candidates' numbers, none of them computed from this one; a request, where it reads one."""
        if group != CANDIDATES:
            yield f"{at}: {with_article(type(self).__name__)} feature is of a candidate; declare it under candidates"
            return
        known = scope.features(group)
        numbers = [name for name, feature in known.items() if feature.comparable and name != self.name]
        for name in dict.fromkeys(self.derived_from):
            if name == self.name:
                yield f"{at}: it can't be computed from itself"
            elif name not in known:
                yield f"{at}: unknown feature {name!r} of the candidates{nearest(name, numbers)}"
            elif name not in numbers:
                kind = with_article(type(known[name]).__name__)
                yield (
                    f"{at}: {name!r} is {kind} feature without a number of its own; name a Numeric, a TimeGap with column=, a number "
                    "of Sql or CrossFeature, or one computed from those"
                )
            elif self._circle(name, known):
                yield f"{at}: {name!r} is itself computed from {self.name!r}; drop one of the two"
        if self.needs_request:
            yield from scope.request_mistakes(at)

    def _circle(self, name: str, known: Mapping[str, Feature]) -> bool:
        """Whether a feature is computed, through others, from this one."""
        left = [name]
        seen: set[str] = set()
        while left:
            at = left.pop()
            if at == self.name:
                return True
            if at not in seen and at in known:
                seen.add(at)
                left += [] if known[at].stored else known[at].derived_from
        return False
