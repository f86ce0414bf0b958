"""Vocabularies on the tensor side: rows for many features at once, names of ids, and warnings of sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import genrank.schemas as s
from genrank.schemas.ids import MISSING_ID, hash_string
from genrank.schemas.vocabularies import Vocabulary
from genrank.tokenization.features import row_encoder
from genrank.tokenization.id_statistics import ObservedIds
from genrank.tokenization.vocabularies import vocabulary_rows
from genrank.tokenization.vocabularies.dynamic import DynamicRows
from genrank.tokenization.vocabularies.enumerated import EnumeratedRows, stored_id
from genrank.tokenization.vocabularies.hashed import HashedRows
from genrank.tokenization.vocabularies.identity import IdentityRows

M64 = 2**64 - 1
IDS = st.integers(-(2**63), 2**63 - 1)
VOCABULARIES = {
    "identity": st.builds(s.Identity, size=st.integers(1, 20)),
    "hashed": st.builds(s.Hashed, size=st.integers(1, 2**40)),
    "enumerated": st.lists(IDS.filter(lambda v: v != MISSING_ID), min_size=1, max_size=5, unique=True).map(
        lambda values: s.Enumerated(values=tuple(values))
    ),
    "dynamic": st.builds(s.Dynamic, capacity=st.just(5)),
}


def splitmix64(x: int) -> int:
    """Of arbitrary integers, the low 63 bits."""
    x = (x + 0x9E3779B97F4A7C15) & M64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & M64
    return (x ^ (x >> 31)) & (2**63 - 1)


def one_row(vocabulary: Vocabulary, value: int) -> int:
    """The row of one id, written out."""
    if vocabulary.kind == "dynamic":
        return value
    if value == MISSING_ID:
        return 0
    if vocabulary.kind == "hashed":
        return 2 + splitmix64(value & M64) % vocabulary.size
    if vocabulary.kind == "identity":
        return 2 + value if 0 <= value < vocabulary.size else 1
    assert isinstance(vocabulary, s.Enumerated)
    return 2 + vocabulary.values.index(value) if value in vocabulary.values else 1


@pytest.mark.parametrize("kind", VOCABULARIES)
@given(data=st.data())
def test_rows_of_many_features(kind: str, data: st.DataObject) -> None:
    vocabularies = data.draw(st.lists(VOCABULARIES[kind], min_size=1, max_size=6))
    n = data.draw(st.integers(0, 8))
    some = st.one_of(st.integers(-2, 22), IDS, st.just(MISSING_ID))
    table = [data.draw(st.lists(some, min_size=n, max_size=n)) for _ in vocabularies]
    encoder = vocabulary_rows(vocabularies[0])(vocabularies)
    rows = encoder(torch.tensor(table, dtype=torch.int64).view(len(vocabularies), n)).tolist()
    assert rows == [[one_row(each, v) for v in values] for each, values in zip(vocabularies, table, strict=True)]


def test_listed_strings() -> None:
    oslo, rome = hash_string("oslo"), hash_string("rome")
    vocabulary = s.Enumerated(values=("oslo", "rome"))
    assert row_encoder(vocabulary)(torch.tensor([[rome, oslo, 5, MISSING_ID]])).tolist() == [[3, 2, 1, 0]]
    assert EnumeratedRows.id_names(vocabulary) == {oslo: "oslo", rome: "rome"}
    assert stored_id(7) == 7 and EnumeratedRows.id_names(s.Enumerated(values=(7,))) == {7: "7"}
    assert HashedRows.id_names(s.Hashed(size=3)) == {}


def observed(*ids: int) -> dict[str, ObservedIds]:
    """Of one feature."""
    return {"user.x": ObservedIds(np.array(ids, np.int64))}


def test_warnings_of_sizes() -> None:
    assert IdentityRows.size_warnings("t", s.Identity(size=3), observed(0, 1, 2), 3) == []
    (warning,) = IdentityRows.size_warnings("t", s.Identity(size=3), observed(-1, 2, 3), 3)
    assert "user.x holds -1..3: 2 of 3 ids read the unknown row" in warning
    assert HashedRows.size_warnings("t", s.Hashed(size=100), {}, 50) == []
    (warning,) = HashedRows.size_warnings("t", s.Hashed(size=100), {}, 51)
    assert "hashes 51 ids into 100 rows: 39% of them share a row" in warning
    assert DynamicRows.size_warnings("t", s.Dynamic(capacity=5), {}, 5) == []
    (warning,) = DynamicRows.size_warnings("t", s.Dynamic(capacity=5), {}, 6)
    assert "capacity for 5 ids and 6 were seen" in warning
