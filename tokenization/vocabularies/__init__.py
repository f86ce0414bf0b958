"""Vocabularies on the tensor side: how stored ids become rows of a logical table, one file a kind.

A kind from outside the package is a subclass of `VocabularyRows` and one call of `register_vocabulary_rows`.
"""

from genrank.tokenization.vocabularies.dynamic import DynamicRows
from genrank.tokenization.vocabularies.enumerated import EnumeratedRows
from genrank.tokenization.vocabularies.hashed import HashedRows
from genrank.tokenization.vocabularies.identity import IdentityRows
from genrank.tokenization.vocabularies.interface import VocabularyRows, register_vocabulary_rows, vocabulary_rows

register_vocabulary_rows("enumerated", EnumeratedRows)
register_vocabulary_rows("identity", IdentityRows)
register_vocabulary_rows("hashed", HashedRows)
register_vocabulary_rows("dynamic", DynamicRows)

__all__ = ["VocabularyRows", "register_vocabulary_rows", "vocabulary_rows"]
