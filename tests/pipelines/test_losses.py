"""What the lines about lost rows say."""

from __future__ import annotations

import random
import re

from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines.losses import losses
from genrank.schemas.manifest import Counts


def test_the_lines() -> None:
    first = Counts(
        rows_in={"clicks": 900, "views": 5}, out={}, duplicates={"clicks": 5}, quarantined={"clicks": {"ts is null": 2}}
    )
    second = Counts(
        rows_in={"clicks": 1100, "views": 5},
        out={},
        duplicates={},
        quarantined={"clicks": {"ts is null": 1, "late": 0}},
    )
    line = "clicks: 3 of 2,000 rows quarantined (ts is null: 3), 5 of 2,000 rows are duplicates"
    assert losses([first, second]) == [line]
    assert losses([]) == [] == losses([Counts(rows_in={"views": 5}, out={}, duplicates={}, quarantined={})])


@given(seed=st.integers(0, 10**6))
def test_lines_add_up_over_days(seed: int) -> None:
    draw = random.Random(seed)
    sources, reasons = ("a", "b", "c"), ("late", "null")
    days = [
        Counts(
            rows_in={source: draw.randrange(100, 2000) for source in sources},
            out={},
            duplicates={source: draw.randrange(3) for source in sources if draw.random() < 0.6},
            quarantined={source: {r: draw.randrange(3) for r in reasons} for source in sources if draw.random() < 0.6},
        )
        for _ in range(draw.randrange(4))
    ]
    lines = {line.split(":")[0]: line.replace(",", "") for line in losses(days)}
    for source in sources:
        lost = sum(sum(day.quarantined.get(source, {}).values()) for day in days)
        twice = sum(day.duplicates.get(source, 0) for day in days)
        assert (source in lines) == bool(lost or twice)
        if source in lines:
            numbers = {int(n) for n in re.findall(r"\d+", lines[source])}
            assert {n for n in (lost, twice) if n} <= numbers and sum(day.rows_in[source] for day in days) in numbers
