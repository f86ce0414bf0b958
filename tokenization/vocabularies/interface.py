"""What a vocabulary does on the tensor side, and the registry of those that do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from genrank.schemas.errors import UserError
from genrank.schemas.vocabularies import Vocabulary
from genrank.tokenization.registry import Registry
from genrank.tokenization.row_encoder import RowEncoder

if TYPE_CHECKING:
    from genrank.tokenization.id_statistics import ObservedIds

V = TypeVar("V", bound=Vocabulary)


class VocabularyRows(RowEncoder, Generic[V]):
    """Ids to rows, for F features with vocabularies of one kind: [F, N] int64 -> [F, N] int64.

    Args:
        vocabularies: the F declarations.
    """

    @abstractmethod
    def __init__(self, vocabularies: Sequence[V]) -> None:
        super().__init__()

    @staticmethod
    def id_names(vocabulary: V) -> dict[int, str]:
        """Stored ids that have a name for people."""
        return {}

    @staticmethod
    def size_warnings(table: str, vocabulary: V, ids: Mapping[str, ObservedIds], distinct: int) -> list[str]:
        """What is wrong with the vocabulary's size for the ids that samples hold: one line each, with the remedy.

        Args:
            table: the logical table's name.
            vocabulary: its vocabulary.
            ids: the ids of each feature (`<group>.<feature>`) that reads the table; none of them is empty.
            distinct: how many different ids they are together.
        """
        return []


_KINDS: Registry[type[VocabularyRows[Vocabulary]]] = Registry("vocabulary")


def register_vocabulary_rows(kind: str, rows: type[VocabularyRows[V]]) -> None:
    """Make `rows` what turns ids into rows for vocabularies whose `kind` is this.

    Raises:
        ValueError: the kind is another's.
    """
    _KINDS.add(kind, cast(type[VocabularyRows[Vocabulary]], rows))


def vocabulary_rows(vocabulary: Vocabulary) -> type[VocabularyRows[Vocabulary]]:
    """What turns ids into rows for a vocabulary.

    Raises:
        UserError: nothing is registered for its kind.
    """
    rows = _KINDS.get(vocabulary.kind)
    if rows is None:
        raise UserError(
            f"vocabulary kind {vocabulary.kind!r} turns no ids into rows; "
            "register it with genrank.tokenization.vocabularies.register_vocabulary_rows"
        )
    return rows
