"""How ids become rows of an embedding table, one vocabulary a module.

| kind | ids | row |
|---|---|---|
| `Enumerated` | a closed list | its place in the list |
| `Identity` | 0 .. size-1 | the id |
| `Hashed` | any | its hash modulo size |
| `Dynamic` | any | given as training meets it, with admission and eviction |
"""

from genrank.schemas.vocabularies.base import Vocabulary
from genrank.schemas.vocabularies.dynamic import Dynamic
from genrank.schemas.vocabularies.enumerated import Enumerated
from genrank.schemas.vocabularies.hashed import Hashed
from genrank.schemas.vocabularies.identity import Identity

__all__ = ["Dynamic", "Enumerated", "Hashed", "Identity", "Vocabulary"]

for _member in (Enumerated, Identity, Hashed, Dynamic):
    Vocabulary.register(_member)
