"""Which compacted folders `genrank clean` may remove, against the definition."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from genrank.pipelines.compaction.cleanup import unused
from genrank.pipelines.compaction.records import RECORD, USES, Compacted, KnownUse, Uses
from genrank.schemas.checked_json import with_checksum


@given(seed=st.integers(0, 10**6))
def test_what_no_build_reads_again_is_found_and_nothing_else(seed: int) -> None:
    draw = random.Random(seed)
    # A use is kept by the schema built last, or not; tiles stay for ever, of histories the newest two.
    uses = {"tiles": False, "history": True, "dropped": draw.random() < 0.5}
    used = {("clicks", f"2024-10-0{day}", key) for day in range(1, 7) for key in "ab" if draw.random() < 0.8}
    with TemporaryDirectory() as name:
        root, want = Path(name), set()
        Uses({use: KnownUse(source="clicks", snapshots=uses[use]) for use in ("tiles", "history")}).write(root / USES)
        for use in uses:
            kept = []
            for day in range(1, 7):
                for key in "ab":
                    if draw.random() < 0.5:
                        continue
                    dt = f"2024-10-0{day}"
                    folder = root / use / f"dt={dt}" / key
                    folder.mkdir(parents=True)
                    whole = draw.random() < 0.8
                    if whole:
                        record = Compacted(use=use, first=dt, last=dt, covers={dt: key}, files={}, rows=0)
                        (folder / RECORD).write_text(with_checksum(record.model_dump_json()))
                    if whole and ("clicks", dt, key) in used:
                        kept.append(folder)
                    elif use != "dropped":
                        want.add(folder)
            if use == "history":
                want |= set(kept[:-2])
        if (root / "dropped").exists():
            want.add(root / "dropped")
        found = unused(root, used)
        assert len(found) == len(set(found)) and set(found) == want
