"""One id from several."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal

from pydantic import Field

from genrank.schemas.base import USER
from genrank.schemas.expression import nearest
from genrank.schemas.features.base import Feature, Scope
from genrank.schemas.features.embedded import EmbeddedFeature
from genrank.schemas.messages import twice, with_article
from genrank.schemas.source_meaning import Meaning
from genrank.schemas.vocabularies import Hashed


class HashedCross(EmbeddedFeature):
    """One id from the combination of other features' ids, hashed. Derived.

    `of` names categorical features of the same group, or of the user group as `"user.<feature>"`.
    """

    kind: Literal["crossed"] = "crossed"
    of: tuple[str, ...] = Field(min_length=2)
    vocabulary: Hashed | None = None

    @property
    def stored(self) -> None:
        """Derived from the ids it is made of."""
        return None

    @property
    def derived_from(self) -> tuple[str, ...]:
        """`of`."""
        return self.of

    def lineage(self, group: str, scope: Scope) -> Iterator[tuple[str, Collection[str]]]:
        """What the features it is made of read."""
        for name in self.of:
            owner, _, short = name.rpartition(".")
            home = owner or group
            yield from scope.features(home)[short].lineage(home, scope)

    def model_meaning(self) -> Meaning:
        """What it is made of, in order."""
        return {"of": self.of}

    def mistakes(self, at: str, group: str, scope: Scope) -> Iterator[str]:
        """Ids, each once, and a vocabulary that holds hashes."""
        known: dict[str, Feature] = dict(scope.features(group))
        if group != USER:
            known |= {f"{USER}.{name}": feature for name, feature in scope.features(USER).items()}
        ids = [name for name, feature in known.items() if feature.is_id and name != self.name]
        for name in self.of:
            if name == self.name:
                yield f"{at}: a crossed feature can't be made of itself"
            elif name in ids:
                continue
            elif name in known:
                kind = type(known[name]).__name__
                yield f"{at}: {name!r} is {with_article(kind)} feature; only ids cross: Categorical, or Sql with a vocabulary"
            else:
                yield f"{at}: of names unknown feature {name!r}{nearest(name, ids)}"
        for name in twice(self.of):
            yield f"{at}: of names {name!r} twice"
        if self.table and not self.table.vocabulary.holds_hashes:
            yield f"{at}: crossed ids are hashes; the vocabulary of table {self.table.name!r} must be Hashed or Dynamic"

    def id_space(self, group: str, scope: Scope) -> str:
        """Hashes of their own."""
        return "crossed ids"

    def value_in_words(self) -> str:
        """`user.age × category`."""
        return " × ".join(self.of)
