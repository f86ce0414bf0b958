"""The reader hands out what is stored, sliced as declared, cut by budget, in an order that resumes; and names what is wrong."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_samples import demo_schema, publish, random_table, write_random_samples
from torch import Tensor

from genrank.schemas.errors import UserError
from genrank.tokenization.batch import Batch, Ragged
from genrank.tokenization.reader import SampleReader
from genrank.tokenization.views import cut_by_budget

DATES = ["2026-01-01", "2026-01-02"]
SCHEMA = demo_schema()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_samples(tmp_path_factory.mktemp("samples"), SCHEMA, DATES)


def stored(dates: list[str] = DATES) -> list[dict[str, Any]]:
    return [row for dt in dates for row in random_table(SCHEMA, dt, 40).to_pylist()]


def leaf_list(leaf: Tensor | Ragged, begin: int, end: int) -> list[Any]:
    if isinstance(leaf, Ragged):
        return [leaf.values[leaf.offsets[i] : leaf.offsets[i + 1]].tolist() for i in range(begin, end)]
    return leaf[begin:end].tolist()


def rows_of(batch: Batch) -> list[dict[str, Any]]:
    """A batch as the rows it was made of."""
    out = []
    for b in range(len(batch)):
        row: dict[str, Any] = {
            "sample_id": batch.sample_id[b],
            "user_id": int(batch.user[b]),
            "window_start": int(batch.window_start[b]),
        }
        for name, group in batch.groups.items():
            begin, end = int(group.offsets[b]), int(group.offsets[b + 1])
            own = {leaf: leaf_list(values, begin, end) for leaf, values in group.features.items()}
            if name == "user":
                row[name] = {leaf: values[0] for leaf, values in own.items()}
                continue
            row[name] = own | {"ts": group.ts[begin:end].tolist()}
            if name == "realtime":
                row[name]["available"] = batch.realtime_available[begin:end].tolist()
                row["mask"] = {"realtime_sees": batch.realtime_sees[begin:end].tolist()}
            if name == "candidates":
                row[name] |= {"request": batch.request[begin:end].tolist(), "item": batch.item[begin:end].tolist()}
                row["mask"]["candidate_sees"] = batch.candidate_sees[begin:end].tolist()
                row["labels"] = {task: v[begin:end].tolist() for task, v in batch.labels.items()}
                row["labels"] |= {f"{task}_weight": v[begin:end].tolist() for task, v in batch.weights.items()}
                row["labels"] |= {f"{task}_oracle": v[begin:end].tolist() for task, v in batch.oracles.items()}
        out.append(row)
    return out


def same(a: Any, b: Any) -> bool:
    """Equal, NaN to NaN."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b or (a != a and b != b))


def request_builds(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What a build per request would have stored for one user's day, by brute force."""
    out = []
    for request in dict.fromkeys(row["candidates"]["request"]):
        mine = [i for i, r in enumerate(row["candidates"]["request"]) if r == request]
        newest = max(row["candidates"]["ts"][i] for i in mine)
        events = [i for i, a in enumerate(row["realtime"]["available"]) if a < newest]
        out.append(slice_of(row, f"{row['sample_id']}/{request}", mine, events))
    return out


def session_builds(row: dict[str, Any], gap: int) -> list[dict[str, Any]]:
    order = sorted(range(len(row["candidates"]["ts"])), key=lambda i: row["candidates"]["ts"][i])
    out: list[list[int]] = []
    for i in order:
        if not out or row["candidates"]["ts"][i] - row["candidates"]["ts"][out[-1][-1]] > gap:
            out.append([])
        out[-1].append(i)
    builds = []
    for mine in out:
        ts = [row["candidates"]["ts"][i] for i in mine]
        events = [i for i, a in enumerate(row["realtime"]["available"]) if a < ts[-1]]
        builds.append(slice_of(row, f"{row['sample_id']}/{ts[0]}", mine, events))
    return builds


def slice_of(row: dict[str, Any], sample_id: str, candidates: list[int], events: list[int]) -> dict[str, Any]:
    def pick(struct: dict[str, list[Any]], at: list[int]) -> dict[str, list[Any]]:
        return {name: [values[i] for i in at] for name, values in struct.items()}

    available, ts = row["realtime"]["available"], row["candidates"]["ts"]
    mask = {
        "candidate_sees": [sum(available[e] < ts[c] for e in events) for c in candidates],
        "realtime_sees": [sum(available[o] < available[e] for o in events) for e in events],
    }
    return row | {
        "sample_id": sample_id,
        "realtime": pick(row["realtime"], events),
        "candidates": pick(row["candidates"], candidates),
        "labels": pick(row["labels"], candidates),
        "mask": mask,
    }


def read(root: Path, **options: Any) -> list[dict[str, Any]]:
    reader = SampleReader(root, SCHEMA, DATES, **options)
    return [row for batch in reader for row in rows_of(batch)]


def assert_rows_equal(got: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        b = {k: v for k, v in b.items() if k != "window_end"}
        assert same(a, b), (a, b)


def test_user_days_are_what_is_stored(root: Path) -> None:
    assert_rows_equal(read(root, view="user_day", shuffle=False, token_budget=300), stored())


def test_request_view_equals_a_build_per_request(root: Path) -> None:
    wanted = [build for row in stored() for build in request_builds(row)]
    assert_rows_equal(read(root, view="request", shuffle=False), wanted)


def test_session_view_equals_a_build_per_session(root: Path) -> None:
    wanted = [build for row in stored() for build in session_builds(row, 30 * 60_000)]
    assert_rows_equal(read(root, view="session", shuffle=False), wanted)


@pytest.mark.parametrize("view", ["user_day", "request", "session"])
def test_shuffling_changes_the_order_only(root: Path, view: Any) -> None:
    def key(row: dict[str, Any]) -> str:
        return str(row["sample_id"])

    plain, shuffled = read(root, view=view, shuffle=False), read(root, view=view, shuffle=True, shuffle_buffer=40)
    assert list(map(key, plain)) != list(map(key, shuffled))
    assert_rows_equal(sorted(shuffled, key=key), sorted(plain, key=key))


def test_by_length_puts_similar_lengths_together(root: Path) -> None:
    def spread(by_length: bool) -> tuple[list[list[str]], float]:
        """Each batch's samples, and the mean over batches of its longest sample less its shortest."""
        reader = SampleReader(root, SCHEMA, DATES, token_budget=200, shuffle_buffer=40, by_length=by_length)
        ids, gaps = [], []
        for batch in reader:
            tokens = sum(group.lengths for group in batch.groups.values())
            assert isinstance(tokens, Tensor) and (int(tokens.sum()) <= 200 or len(batch) == 1)
            ids.append(batch.sample_id)
            gaps.append(int(tokens.max() - tokens.min()))
        return ids, float(np.mean(gaps))

    plain, wide = spread(False)
    sorted_, narrow = spread(True)
    assert narrow < 0.4 * wide
    assert sorted(i for ids in plain for i in ids) == sorted(i for ids in sorted_ for i in ids)
    assert spread(True) == (sorted_, narrow)
    # Which batch comes when is random: their mean lengths don't ascend.
    sizes = [len(ids) for ids in sorted_]
    assert sizes != sorted(sizes, reverse=True)


def test_batches_are_independent_of_how_many_are_gathered_together(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for view in ("user_day", "request", "session"):
        together = read(root, view=view, token_budget=150, shuffle_buffer=40)
        monkeypatch.setattr("genrank.tokenization.views.GATHERED_TOKENS", 400)
        monkeypatch.setattr("genrank.tokenization.batch.MANY", 1)
        assert_rows_equal(read(root, view=view, token_budget=150, shuffle_buffer=40), together)
        monkeypatch.undo()


def test_gathered_memory_is_used_again_only_when_free(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr("genrank.tokenization.batch.MANY", 1)
    monkeypatch.setattr("genrank.tokenization.buffer_pool.BLOCK_BYTES", 1 << 16)
    wanted = read(root, token_budget=150)
    kept = list(SampleReader(root, SCHEMA, DATES, token_budget=150))
    for _ in range(2):
        read(root, token_budget=150)
    assert_rows_equal([row for batch in kept for row in rows_of(batch)], wanted)


def test_days_stay_in_order(root: Path) -> None:
    starts = [row["window_start"] for row in read(root, shuffle=True, shuffle_buffer=16)]
    assert starts == sorted(starts)


def test_epochs_differ_and_repeat_with_the_seed(root: Path) -> None:
    def two_epochs(seed: int) -> list[list[str]]:
        reader = SampleReader(root, SCHEMA, DATES, seed=seed)
        return [[i for batch in reader for i in batch.sample_id] for _ in range(2)]

    first, second = two_epochs(1)
    assert first != second and sorted(first) == sorted(second)
    assert two_epochs(1) == [first, second]
    assert two_epochs(2)[0] != first


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 60))
def test_cut_by_budget(tokens: list[int], budget: int) -> None:
    cuts = cut_by_budget(np.array(tokens, np.int64), budget)
    batches = [tokens[a:b] for a, b in itertools.pairwise(cuts)]
    assert [t for batch in batches for t in batch] == tokens
    assert len(cuts) - 1 == len(batches)
    for batch, following in itertools.zip_longest(batches, batches[1:]):
        assert batch and (sum(batch) <= budget or len(batch) == 1)
        # Greedy: the next sample didn't fit any more.
        assert following is None or sum(batch) + following[0] > budget


@pytest.mark.parametrize(("prefetch", "by_length"), [(0, False), (2, False), (2, True)])
def test_resumes_exactly_at_any_batch(root: Path, prefetch: int, by_length: bool) -> None:
    def reader() -> SampleReader:
        return SampleReader(
            root, SCHEMA, DATES, token_budget=200, shuffle_buffer=30, prefetch=prefetch, by_length=by_length
        )

    def ids(batches: Any) -> list[list[str]]:
        return [batch.sample_id for batch in batches]

    whole = reader()
    everything = ids(whole) + ids(whole)
    for stop in range(0, len(everything), 3):
        first = reader()
        taken = ids(itertools.islice(itertools.chain(first, first), stop))
        state = first.state_dict()
        second = reader()
        second.load_state_dict(state)
        rest = ids(second)
        if second.position.epoch == 1:
            rest += ids(second)
        assert taken + rest == everything


def test_refuses_a_position_in_another_order(root: Path) -> None:
    state = SampleReader(root, SCHEMA, DATES, seed=1).state_dict()
    with pytest.raises(UserError, match="seed=1"):
        SampleReader(root, SCHEMA, DATES, seed=2).load_state_dict(state)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_out_every_sample_once(root: Path, world_size: int) -> None:
    parts = [read(root, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert all(parts)
    ids = [row["sample_id"] for part in parts for row in part]
    assert sorted(ids) == sorted(row["sample_id"] for row in stored())


def test_closing_early_ends_the_thread(root: Path) -> None:
    import threading

    batches = iter(SampleReader(root, SCHEMA, DATES, token_budget=100))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name == "genrank-reader"]


# ---------------------------------------------------------------------- what is wrong, and where


def damaged(tmp_path: Path, change: Any) -> SampleReader:
    rows = random_table(SCHEMA, DATES[0], 20).to_pylist()
    change(rows)
    nullable = pa.schema([_nullable(field) for field in random_table(SCHEMA, DATES[0], 1).schema])
    publish(tmp_path, SCHEMA, DATES[0], pa.Table.from_pylist(rows, nullable), files=2, row_group=4)
    return SampleReader(tmp_path, SCHEMA, DATES[:1], shuffle=False)


def _nullable(field: pa.Field) -> pa.Field:
    kind = field.type
    if pa.types.is_struct(kind):
        kind = pa.struct([_nullable(child) for child in kind])
    elif pa.types.is_list(kind):
        kind = pa.list_(pa.field("element", _nullable(kind.field(0)).type))
    return pa.field(field.name, kind)


def test_names_file_and_row_of_a_wrong_length(tmp_path: Path) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[16]["candidates"]["price"].append(1.0)

    with pytest.raises(
        UserError, match=r"part-00001.parquet row 6: column candidates.price has \d+ values and candidates.ts"
    ):
        list(damaged(tmp_path, change))


def test_names_file_and_row_of_a_null_list(tmp_path: Path) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[13]["history"]["item_id"] = None

    with pytest.raises(UserError, match=r"part-00001.parquet row 3: column history.item_id"):
        list(damaged(tmp_path, change))


def test_names_file_and_row_of_a_null_value(tmp_path: Path) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        n = len(rows[5]["candidates"]["ts"])
        rows[5]["candidates"]["price"] = [None] * n

    with pytest.raises(UserError, match=r"part-00000.parquet row 5: column candidates.price"):
        list(damaged(tmp_path, change))


def test_names_file_and_row_of_a_count_beyond_the_sequence(tmp_path: Path) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[7]["mask"]["candidate_sees"][0] = 10_000

    with pytest.raises(UserError, match=r"part-00000.parquet row 7: mask.candidate_sees"):
        list(damaged(tmp_path, change))


def test_names_the_column_that_is_missing_or_of_another_type(tmp_path: Path) -> None:
    table = random_table(SCHEMA, DATES[0], 5)
    publish(tmp_path / "a", SCHEMA, DATES[0], table.drop_columns(["labels"]))
    with pytest.raises(UserError, match=r"part-00000.parquet has no column labels"):
        SampleReader(tmp_path / "a", SCHEMA, DATES[:1])
    wrong = table.set_column(2, "window_start", table["window_start"].cast(pa.int32(), safe=False))
    publish(tmp_path / "b", SCHEMA, DATES[0], wrong)
    with pytest.raises(UserError, match="column window_start is int32"):
        SampleReader(tmp_path / "b", SCHEMA, DATES[:1])


def test_serves_a_schema_that_reads_fewer_features(root: Path) -> None:
    fewer = demo_schema(candidates=SCHEMA.candidates.replace(features=SCHEMA.candidates.features[:2]))
    batch = next(iter(SampleReader(root, fewer, DATES)))
    assert list(batch.candidates.features) == ["item_id", "price"]


def test_refuses_samples_that_mean_something_else(root: Path) -> None:
    features = tuple(f.replace(window="2h") if f.name == "clicks_1h" else f for f in SCHEMA.candidates.features)
    changed = demo_schema(candidates=SCHEMA.candidates.replace(features=features))
    with pytest.raises(UserError, match=r"samples of 2026-01-01 were built with a schema of other meaning"):
        SampleReader(root, changed, DATES)


def test_names_the_day_that_is_missing(root: Path) -> None:
    with pytest.raises(UserError, match="2025-12-31"):
        SampleReader(root, SCHEMA, ["2025-12-31"])


def test_long_lists_keep_their_first_values(tmp_path: Path) -> None:
    user = SCHEMA.user.model_copy(
        update={
            "features": tuple(
                f.model_copy(update={"max_values": 2}) if f.name == "tags" else f for f in SCHEMA.user.features
            )
        }
    )
    short = demo_schema(user=user)
    write_random_samples(tmp_path, short, DATES[:1])
    got = [
        row["user"]["tags"]
        for batch in SampleReader(tmp_path, short, DATES[:1], shuffle=False)
        for row in rows_of(batch)
    ]
    assert got == [row["user"]["tags"][:2] for row in stored(DATES[:1])]


def test_counting_reads_a_column_a_group(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()
    read_row_group = pq.ParquetFile.read_row_group

    def noting(self: Any, i: int, columns: list[str], **options: Any) -> pa.Table:
        read.update(columns)
        return read_row_group(self, i, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noting)

    def columns(view: Any) -> set[str]:
        read.clear()
        SampleReader(root, SCHEMA, DATES, view=view).count_batches(range(2))
        return set(read)

    by_day = columns("user_day")
    assert {name.partition(".")[0] for name in by_day} == {"labels", "history", "realtime"}
    assert {"history.type", "realtime.type"} < by_day and not any("ts" in name for name in by_day)
    assert columns("request") == {"candidates.request", "mask.candidate_sees", "history.type"}
    assert columns("session") == {"candidates.ts", "mask.candidate_sees", "history.type"}


def test_counting_names_a_null_as_reading_does(tmp_path: Path) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[13]["history"] = dict.fromkeys(rows[13]["history"])

    with pytest.raises(UserError, match=r"part-00001.parquet row 3: column history.type is null"):
        damaged(tmp_path, change).count_batches(range(1))


def test_batch_moves_as_a_whole(root: Path) -> None:
    batch = next(iter(SampleReader(root, SCHEMA, DATES)))
    assert rows_of(batch.to("cpu"))[:3] == rows_of(batch)[:3] or same(rows_of(batch.to("cpu")), rows_of(batch))
    assert batch.to(torch.device("meta")).candidates.ts.device.type == "meta"
