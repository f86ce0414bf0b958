"""A few made-up samples of a schema: what an export is tried with, before it is published and whenever it is loaded."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from genrank.schemas.derive.tables import event_names, logical_tables
from genrank.schemas.ids import MISSING_ID, hash_string
from genrank.schemas.schema import CANDIDATES, USER, Schema
from genrank.schemas.vocabularies import Enumerated, Identity
from genrank.serving.sample_rows import request_schema

EVENTS, REALTIME, RANKED = 7, 3, 5
"""Of each sequence and row: events of a history, realtime events, candidates."""


def example_rows(schema: Schema, rows: int = 3, *, events: int = EVENTS, ranked: int = RANKED) -> pa.RecordBatch:
    """Samples of as many users; ids that the vocabularies know, others and missing ones; always the same.

    Args:
        schema: of the samples.
        rows: samples.
        events, ranked: of each sample, events of a history and candidates.
    """
    random = np.random.default_rng(0)
    wanted = request_schema(schema)
    known = {feature: table.vocabulary for table in logical_tables(schema) for feature in table.features}
    types = {sequence.name: len(event_names(sequence)) for sequence in schema.sequences}
    start = schema.local_days.start(20_000)
    end = schema.local_days.start(20_001)

    def ids(name: str, count: int) -> list[int]:
        vocabulary = known.get(name)
        found = random.integers(0, 1_000, count)
        if isinstance(vocabulary, Enumerated):
            values = [hash_string(v) if isinstance(v, str) else v for v in vocabulary.values]
            found = random.choice(np.array([*values, 7]), count)
        elif isinstance(vocabulary, Identity):
            found = random.integers(0, vocabulary.size + 1, count)
        return list(np.where(random.random(count) < 0.1, MISSING_ID, found).astype(np.int64).tolist())

    def values(group: str, field: pa.Field, type_: pa.DataType, count: int) -> list[object]:
        if pa.types.is_list(type_):
            return [ids(f"{group}.{field.name}", int(n)) for n in random.integers(0, 4, count)]
        if pa.types.is_floating(type_):
            return list(random.gamma(2.0, 20.0, count).astype(np.float32).tolist())
        return list(ids(f"{group}.{field.name}", count))

    made = []
    for row in range(rows):
        user = str(row) if pa.types.is_string(wanted.field("user_id").type) else row
        one: dict[str, object] = {
            "sample_id": f"{user}:example:0", "user_id": user, "window_start": start, "window_end": end,
        }  # fmt: skip
        for field in wanted:
            if not pa.types.is_struct(field.type):
                continue
            if field.name == USER:
                one[USER] = {child.name: values(USER, child, child.type, 1)[0] for child in field.type}
            elif field.name == "mask":
                one["mask"] = {
                    "candidate_sees": random.integers(0, REALTIME + 1, ranked).tolist(),
                    "realtime_sees": list(range(REALTIME)),
                }
            else:
                realtime = schema.realtime is not None and field.name == schema.realtime.name
                count = ranked if field.name == CANDIDATES else REALTIME if realtime else events
                low, high = (start, end) if realtime or field.name == CANDIDATES else (start - 10**9, start)
                moments = np.sort(random.integers(low, high, count)).tolist()
                own = {
                    "ts": moments,
                    "available": moments,
                    "request": [row] * count,
                    "item": list(range(count)),
                    "type": random.integers(0, types.get(field.name, 1), count).tolist(),
                }
                one[field.name] = {
                    child.name: own[child.name]
                    if child.name in own
                    else values(field.name, child, child.type.value_type, count)
                    for child in field.type
                }
        made.append(one)
    return pa.RecordBatch.from_pylist(made, schema=wanted)
