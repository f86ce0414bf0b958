"""A drawn sample says what is stored, on the terminal and in the picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_samples import demo_schema, random_table, write_random_samples
from rich.console import Console

from genrank.schemas.errors import UserError
from genrank.tokenization.inspect_sample import coarse, interesting_sample, load_sample
from genrank.tokenization.present.colors import ends
from genrank.tokenization.present.sample import show_sample
from genrank.tokenization.present.sample_terminal import print_sample

DAYS = ["2026-01-01", "2026-01-02"]
SCHEMA = demo_schema()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_samples(tmp_path_factory.mktemp("samples"), SCHEMA, DAYS)


def test_finds_the_sample_and_its_visibility(root: Path) -> None:
    row = random_table(SCHEMA, DAYS[1], 40).to_pylist()[23]
    sample = load_sample(root, "23:2026-01-02:0", SCHEMA)
    lengths = [1, len(row["history"]["ts"]), len(row["realtime"]["ts"]), len(row["candidates"]["ts"])]
    assert np.bincount(sample.group, minlength=4).tolist() == lengths
    known = lengths[0] + lengths[1]
    wanted = [known + sees + 1 for sees in row["mask"]["candidate_sees"]]
    assert sample.mask[-lengths[3] :].sum(1).tolist() == wanted
    assert sample.batch.candidates.ts.tolist() == row["candidates"]["ts"]


def test_prints_values_as_people_read_them(root: Path) -> None:
    sample_id = interesting_sample(root, SCHEMA, DAYS[0])
    sample = load_sample(root, sample_id, SCHEMA)
    page = io.StringIO()
    print_sample(sample, Console(file=page, width=200))
    text = page.getvalue()
    assert text.startswith(f"{sample_id}: {len(sample.group)} tokens")
    for heading in ("user (1)", "history (", "realtime (", "candidates (", "clicks", "what each token sees"):
        assert heading in text
    picture = text.rstrip("\n").split("\n")[-len(coarse(sample, 64)) :]
    assert picture[-1].endswith("c") and picture[0].startswith("uh")


def test_chooses_the_same_interesting_sample(root: Path) -> None:
    sample_id = interesting_sample(root, SCHEMA, DAYS[0])
    assert sample_id == interesting_sample(root, SCHEMA, DAYS[0])
    row = next(r for r in random_table(SCHEMA, DAYS[0], 40).to_pylist() if r["sample_id"] == sample_id)
    assert 5 <= len(row["candidates"]["ts"]) <= 40 and row["history"]["ts"] and row["realtime"]["ts"]
    assert sum(row["labels"]["click"]) > 0


def test_draws_a_picture(root: Path, tmp_path: Path) -> None:
    png = tmp_path / "sample.png"
    show_sample(root, "3:2026-01-01:0", schema=SCHEMA, png=png)
    assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 20_000


def test_a_picture_ends_in_png(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"end it in \.png"):
        show_sample(root, "3:2026-01-01:0", schema=SCHEMA, png=tmp_path / "sample.jpg")


@given(st.integers(0, 40), st.integers(1, 20))
def test_the_ends_of_rows(n: int, most: int) -> None:
    rows = ends(n, most)
    kept = [row for row in rows if row is not None]
    assert len(kept) == min(n, most) and kept == sorted(set(kept)) and all(0 <= row < n for row in kept)
    assert (None in rows) == (n > most)


def test_names_the_sample_that_is_missing(root: Path) -> None:
    with pytest.raises(UserError, match=r"no sample '99:2026-01-01:0' \(days 2026-01-01 to 2026-01-02\)"):
        load_sample(root, "99:2026-01-01:0", SCHEMA)
    with pytest.raises(UserError, match="2030-01-01"):
        interesting_sample(root, SCHEMA, "2030-01-01")
