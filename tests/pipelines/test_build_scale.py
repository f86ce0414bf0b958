"""The page of days too large to be run follows from the committed runs."""

from __future__ import annotations

import pytest

from benchmarks import build_scale
from genrank.pipelines.plan import bucket_count


def run(rows: int, cpu: float, smallest: int = 0, buckets: int | None = None) -> dict[str, object]:
    stored = {"moved_mib": rows / 1000, "partials_mib": rows / 5000, "samples_mib": rows / 10_000}
    made = buckets or bucket_count(rows)
    asked = {"rows": rows, "per_user": 100, "smallest": smallest, "buckets": made, "cpu_s": cpu}
    return asked | stored | {"peak_mib": 300, "statistics_mib": 0.1 * made}


def test_slopes_and_a_buckets_own_cost_are_found_again() -> None:
    """Of runs that take 2 s, 10 us an exposure and 0.5 s a bucket."""
    runs = [run(rows, 2 + 1e-5 * rows + 0.5 * bucket_count(rows)) for rows in (100_000, 300_000, 900_000)]
    runs += [run(100_000, 2 + 1 + 0.5 * 64, smallest=1, buckets=64), run(2_000_000, 1000.0)]
    (paper,) = build_scale.papers(runs)
    assert paper.bucket == pytest.approx(0.5) and paper.cpu == pytest.approx((2, 1e-5))
    assert paper.seconds(10_000_000) == pytest.approx(2 + 100 + 0.5 * 64)
    assert paper.samples.at(1e9) == pytest.approx(1e5)
    found = build_scale.limits(runs, paper, 1.0)
    assert [limit.exposures for limit in found] == sorted(limit.exposures for limit in found)
    assert build_scale.pieces(2e9) / build_scale.pieces(1e9) < 5  # Messages don't grow with the square of a day.


def test_the_page_is_what_the_command_makes() -> None:
    page = build_scale.page(build_scale.read_runs(build_scale.GROWTH), 0.04, 0.023)
    assert page == (build_scale.FOLDER / "build_scale.md").read_text()
