"""The world through the builder: every planted row is accounted for, and the labels are the clicks and purchases."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrank.examples.marketplace.defects import KINDS, Defects
from genrank.examples.marketplace.world import EVENT_LOGS, generate, read_summary
from genrank.pipelines.build import BuildConfig, BuildResult, build
from genrank.schemas import Schema, load_schema
from genrank.schemas.manifest import sample_files

ROOT = Path(__file__).parents[2]
DAYS = tuple(f"2026-01-0{day}" for day in range(1, 7))  # long enough for rows too late to arrive


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, BuildResult]:
    folder = tmp_path_factory.mktemp("build")
    often = Defects(**{kind: 0.003 for kind in KINDS if kind not in ("clean", "late", "duplicate")})
    generate(folder / "log", users=80, days=len(DAYS), seed=2, items=400, defects=often)
    schema = load_schema(str(ROOT / "examples/marketplace/schema.py"))
    # So few rows a day pass the gate's rate by chance.
    lenient = schema.model_dump()
    lenient["sources"] = [source | {"max_quarantine_rate": 1.0} for source in lenient["sources"]]
    schema = Schema.model_validate(lenient)
    result = build(BuildConfig(schema, folder / "log", folder / "out", DAYS[0], DAYS[-1], recompute_users=2))
    return folder / "log", folder / "out", result


def samples(out: Path) -> pa.Table:
    return pa.concat_tables(
        pq.read_table(f, partitioning=None) for dt in DAYS for f in sample_files(out / "samples", dt)
    )


def test_every_planted_row_is_accounted_for(built: tuple[Path, Path, BuildResult]) -> None:
    log, _, result = built
    summary = read_summary(log)
    for source in EVENT_LOGS:
        planted = Counter[str]()
        for counts in summary["planted"][source].values():
            planted.update(counts)
        quarantined, duplicates, rows = Counter[str](), 0, 0
        for manifest in result.manifests.values():
            quarantined.update(manifest.counts.quarantined[source])
            duplicates += manifest.counts.duplicates[source]
            rows += manifest.counts.rows_in[source]
        assert rows == sum(planted.values())
        assert quarantined["user_id is null"] == planted["null_user"]
        assert quarantined["ts is null"] == planted["null_ts"]
        assert quarantined["ts is after its partition's day"] == planted["absurd_ts"]
        assert quarantined["later than 3d"] == planted["negative_ts"] + planted["too_late"]
        assert sum(n for why, n in quarantined.items() if "item_id" in why) == planted["null_item"]
        assert duplicates == planted["duplicate"]
        if source == "exposures":
            # Nothing reconciles for want of rows.
            assert all(planted[kind] for kind in KINDS)


def test_labels_are_the_clicks_and_purchases_of_the_exposure(built: tuple[Path, Path, BuildResult]) -> None:
    log, out, _ = built
    table = samples(out)
    candidates, labels = table["candidates"].combine_chunks(), table["labels"].combine_chunks()
    request, item = (candidates.field(name).flatten().to_pylist() for name in ("request", "item"))
    for task, source in (("click", "clicks"), ("purchase", "purchases")):
        happened = pq.read_table(log / source, partitioning=None, columns=["request_id", "item_id", "ts"]).to_pylist()
        pairs = {(row["request_id"], row["item_id"]) for row in happened if row["ts"] and 0 < row["ts"] < 4e12}
        label, weight = labels.field(task).flatten().to_pylist(), labels.field(f"{task}_weight").flatten().to_pylist()
        mature = [(y, (r, i)) for y, w, r, i in zip(label, weight, request, item, strict=True) if w > 0]
        assert len(mature) > 1000
        # A click that was too late for its log is no label.
        differ = sum(y != (pair in pairs) for y, pair in mature)
        assert differ <= 0.01 * sum(y for y, _ in mature) + 1
        assert sum(y for y, _ in mature) > 10


def test_the_oracle_travels_with_the_candidates(built: tuple[Path, Path, BuildResult]) -> None:
    _, out, _ = built
    labels = samples(out)["labels"].combine_chunks()
    truth, click = labels.field("click_oracle").flatten().to_numpy(), labels.field("click").flatten().to_numpy()
    assert abs(truth.mean() - click.mean()) < 0.01
    assert truth[click == 1].mean() > 1.5 * truth[click == 0].mean()
