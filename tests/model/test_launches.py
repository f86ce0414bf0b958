"""A training step starts few kernels outside the encoder: at the default budget their launches, not their work, are its time."""

from __future__ import annotations

import pytest

from benchmarks.launches import launches_of_a_step
from genrank.model.config import samples_folder
from genrank.schemas.schema import Schema
from genrank.tokenization.reader import SampleReader


def test_dynamic_vocabularies_share_their_launches(schema, samples, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tables of them, and no more launches than for one, but for the sort of each one's ids and the reset of its new rows."""
    reader = SampleReader(samples_folder(samples), schema, ["2026-01-01"], token_budget=1500, shuffle=False, prefetch=0)
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    batch, declared = next(iter(reader)), schema.model_dump_json()
    found = []
    for kinds in (
        (),
        ('{"kind":"hashed","size":997}',),
        ('{"kind":"hashed","size":997}', '{"kind":"identity","size":50}'),
    ):
        document = declared
        for kind in kinds:
            assert kind in document
            document = document.replace(kind, '{"kind":"dynamic","capacity":50}')
        count = launches_of_a_step(Schema.model_validate_json(document), batch, "mtgr-tiny")
        found.append(count.by_part()["features"])
        assert count.found["features", "give_kernel"] == bool(kinds)
    assert found[1] - found[0] <= 30 and found[2] - found[1] <= 4


def test_features_become_tokens_in_a_handful(schema, samples, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = SampleReader(samples_folder(samples), schema, ["2026-01-01"], token_budget=1500, shuffle=False, prefetch=0)
    monkeypatch.setenv("GENRANK_KERNELS", "triton")
    count = launches_of_a_step(schema, next(iter(reader)), "mtgr-tiny")
    found = count.by_part()
    for name in ("rows_kernel", "vectors_kernel"):
        assert count.found["features", name] == 1
    assert count.found["tokens", "arrange_kernel"] == 1
    for name in ("losses_kernel", "shared_forward_kernel"):
        assert count.found["heads and loss", name] == 1
    assert count.found["features, backward, and tables", "vectors_backward_kernel"] == 1
    limits = {"features": 25, "tokens": 30, "tokens, backward": 35, "features, backward, and tables": 30}
    limits |= {"heads and loss": 30, "heads and loss, backward": 35, "encoder": 60, "encoder, backward": 70}
    for name in ("summary_kernel", "units_kernel"):
        assert count.found["encoder", name] == 2, "all tokens' plan and the last layer's, whatever the layers"
        assert not count.found["encoder, backward", name]
    assert {part: found[part] for part in limits if found[part] > limits[part]} == {}
    assert sum(n for part, n in found.items() if not part.startswith("encoder")) < 180
