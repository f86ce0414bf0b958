"""What a request holds: a row of the sample contract (`schemas.derive.sample_schema`) without labels and without `mask`.

A row is one user at one time: who they are, what they did, and the candidates to score. What each candidate may see follows from the
times in the row (`mask.candidate_sees`: realtime events with `available < ts`), so a sender can't state it wrongly. Rows are scored
independently: features that compare candidates within their request see the candidates of their own row alone.

`request_json` and `request_arrow` read the two encodings and end here, in `checked`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from genrank.schemas.derive.columns import SchemaScope
from genrank.schemas.derive.sample_schema import arrow_schema
from genrank.schemas.derive.tables import event_names
from genrank.schemas.errors import UserError
from genrank.schemas.ids import MISSING_ID
from genrank.schemas.schema import CANDIDATES, USER, Schema

Int = NDArray[np.int64]
LABELS, MASK = "labels", "mask"
MAX_CANDIDATES = 10_000


class RequestError(UserError):
    """A request that can't be scored: one line with the row, the feature, what is wrong, and what to send instead."""


def in_body(row: int) -> str:
    """What messages call a row of a body."""
    return f"requests[{row}]"


def in_file(what: str, first: int, row: int) -> str:
    """What messages call a row of a file's part that begins with line or row `first`."""
    return f"{what} {first + row}"


@dataclass(frozen=True)
class RequestContract:
    """The requests of a schema.

    Args:
        schema: what the model was trained with.
        max_candidates: of one row.
    """

    schema: Schema
    max_candidates: int = MAX_CANDIDATES

    @cached_property
    def rows(self) -> pa.Schema:
        """Arrow schema of what scorers take: samples without labels."""
        return pa.schema([field for field in arrow_schema(self.schema) if field.name != LABELS])

    @cached_property
    def sent(self) -> pa.Schema:
        """Arrow schema of what is sent: without `mask`, too."""
        return pa.schema([field for field in self.rows if field.name != MASK])

    @cached_property
    def text_ids(self) -> set[str]:
        """`group.leaf` of ids that stand for strings: JSON may hold the string, which is hashed as the builder does."""
        scope, exposures = SchemaScope(self.schema), self.schema.exposures
        found = {
            f"{group}.{feature.name}"
            for group, features in self.schema.groups()
            for feature in features
            if feature.stored in ("id", "ids") and feature.id_space(group, scope) == "strings"
        }
        for leaf, column in (("item", self.schema.candidates.item), ("request", self.schema.candidates.request)):
            if column and exposures.columns.get(column) == "string":
                found.add(f"{CANDIDATES}.{leaf}")
        return found

    # ------------------------------------------------------------------ values

    def checked(self, rows: pa.RecordBatch, at: Callable[[int], str] = in_body) -> pa.RecordBatch:
        """Rows of `sent`, held against the contract, as a scorer takes them.

        Args:
            rows: of type `sent`.
            at: what messages call a row.

        Returns:
            The rows of type `rows`: with `mask`.

        Raises:
            RequestError: a null, an infinite number, lists of unequal length, no or too many candidates, too many events, an
                event type or a time that can't be; for the first such row.
        """

        def wrong(row: int, what: str) -> RequestError:
            return RequestError(f"{at(row)}: {what}")

        for name, values in leaves_of(rows):
            if (row := _null_row(values)) is not None:
                raise wrong(row, f"{name} is null; a missing number is NaN in Arrow, a missing id {MISSING_ID}")
            numbers, owner = _flat(values)
            if pa.types.is_floating(numbers.type):
                infinite = np.flatnonzero(np.isinf(numbers.to_numpy()))
                if len(infinite):
                    raise wrong(
                        int(owner[infinite[0]]), f"{name} is infinite; send a finite number, or NaN where it is missing"
                    )
        for group in (*(sequence.name for sequence in self.schema.sequences), CANDIDATES):
            wanted = self._lengths(rows, group, "ts")
            for leaf in rows.schema.field(group).type:
                own = self._lengths(rows, group, leaf.name)
                if len(odd := np.flatnonzero(own != wanted)):
                    row = int(odd[0])
                    raise wrong(
                        row,
                        f"{group}.{leaf.name} has {own[row]} values and {group}.ts has {wanted[row]}; "
                        "the lists of one group must be of equal length",
                    )
        self._check_vectors(rows, wrong)
        self._check_candidates(rows, wrong)
        self._check_windows(rows, wrong)
        self._check_events(rows, wrong)
        return self._with_mask(rows)

    @cached_property
    def vectors(self) -> dict[str, int]:
        """`group.leaf` of vectors -> how many numbers each has."""
        of_groups = self.schema.groups()
        return {f"{group}.{f.name}": f.vector_length for group, own in of_groups for f in own if f.vector_length}

    def _check_vectors(self, rows: pa.RecordBatch, wrong: Callable[[int, str], RequestError]) -> None:
        for name, values in leaves_of(rows):
            if name not in self.vectors:
                continue
            length, owner = self.vectors[name], np.arange(len(values))
            if name.partition(".")[0] != USER:
                owner = np.repeat(owner, np.diff(values.offsets.to_numpy()))
                values = values.flatten()
            sizes = np.diff(values.offsets.to_numpy())
            if len(odd := np.flatnonzero((sizes != length) & (sizes != 0))):
                one = int(odd[0])
                raise wrong(
                    int(owner[one]),
                    f"{name} has a vector of {sizes[one]} numbers; send {length}, or an empty list where it is missing",
                )
            numbers = values.flatten().to_numpy()
            if len(holes := np.flatnonzero(np.isnan(numbers))):
                row = int(np.repeat(owner, sizes)[holes[0]])
                raise wrong(
                    row, f"{name} has a vector with a missing number; send an empty list where the vector is missing"
                )

    def _check_candidates(self, rows: pa.RecordBatch, wrong: Callable[[int, str], RequestError]) -> None:
        count = self._lengths(rows, CANDIDATES, "ts")
        if len(none := np.flatnonzero(count == 0)):
            raise wrong(int(none[0]), "candidates is empty; send at least one candidate")
        if len(many := np.flatnonzero(count > self.max_candidates)):
            row = int(many[0])
            raise wrong(row, f"{count[row]:,} candidates; at most {self.max_candidates:,} are scored in one request")
        owner = np.repeat(np.arange(len(count)), count)
        for leaf in ("item", "ts"):
            missing = np.flatnonzero(self._values(rows, CANDIDATES, leaf) == MISSING_ID)
            if len(missing):
                raise wrong(int(owner[missing[0]]), f"candidates.{leaf} is missing; every candidate has one")
        ts = self._values(rows, CANDIDATES, "ts")
        start, end = (_ints(rows.column(name))[owner] for name in ("window_start", "window_end"))
        if len(out := np.flatnonzero((ts < start) | (ts >= end))):
            one = int(out[0])
            raise wrong(
                int(owner[one]),
                f"candidates.ts {ts[one]} lies outside the window [{start[one]}, {end[one]}); send the window of the day "
                "in which the candidates are shown",
            )

    def _check_windows(self, rows: pa.RecordBatch, wrong: Callable[[int, str], RequestError]) -> None:
        days = self.schema.local_days
        start, end = (_ints(rows.column(name)) for name in ("window_start", "window_end"))
        day = days.days(start)
        odd = np.flatnonzero((days.starts(day) != start) | (days.starts(day + 1) != end))
        if len(odd):
            row = int(odd[0])
            at = int(day[row])
            raise wrong(
                row,
                f"window [{start[row]}, {end[row]}) is no day of {self.schema.utc_offset}; the day of its begin is "
                f"[{days.start(at)}, {days.start(at + 1)})",
            )

    def _check_events(self, rows: pa.RecordBatch, wrong: Callable[[int, str], RequestError]) -> None:
        start = _ints(rows.column("window_start"))
        for sequence in self.schema.sequences:
            name, types = sequence.name, len(event_names(sequence))
            count = self._lengths(rows, name, "ts")
            if len(many := np.flatnonzero(count > sequence.max_length)):
                row = int(many[0])
                raise wrong(
                    row, f"{name} has {count[row]} events; the schema keeps {sequence.max_length}: send the newest ones"
                )
            owner = np.repeat(np.arange(len(count)), count)
            kind = self._values(rows, name, "type")
            if len(odd := np.flatnonzero((kind < 0) | (kind >= types))):
                one = int(odd[0])
                named = ", ".join(f"{at} {text}" for at, text in enumerate(event_names(sequence)))
                raise wrong(int(owner[one]), f"{name}.type {kind[one]} is no event of the sequence; there is {named}")
            if sequence.scope != "realtime":
                continue
            available = self._values(rows, name, "available")
            same = owner[1:] == owner[:-1]
            if len(odd := np.flatnonzero((available[1:] < available[:-1]) & same)):
                raise wrong(
                    int(owner[odd[0]]),
                    f"{name}.available is not ascending; send events in the order they became available",
                )
            if len(odd := np.flatnonzero(available < start[owner])):
                raise wrong(
                    int(owner[odd[0]]), f"{name}.available lies before window_start; such events belong to the history"
                )

    # ------------------------------------------------------------------ what each sees

    def _with_mask(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        columns = {name: rows.column(name) for name in rows.schema.names}
        if self.schema.realtime:
            name = self.schema.realtime.name
            count, events = self._lengths(rows, CANDIDATES, "ts"), self._lengths(rows, name, "ts")
            available, ts = self._values(rows, name, "available"), self._values(rows, CANDIDATES, "ts")
            owner = np.repeat(np.arange(len(events)), events)
            seen = [
                _earlier(owner, available, np.repeat(np.arange(len(count)), count), ts),
                _earlier(owner, available, owner, available),
            ]
            field = self.rows.field(MASK)
            children = [
                pa.ListArray.from_arrays(offsets(lengths), pa.array(values.astype(np.int32)), type=child.type)
                for child, lengths, values in zip(field.type, (count, events), seen, strict=True)
            ]
            columns[MASK] = pa.StructArray.from_arrays(children, fields=list(field.type))
        return pa.RecordBatch.from_arrays([columns[name] for name in self.rows.names], schema=self.rows)

    @staticmethod
    def _lengths(rows: pa.RecordBatch, group: str, leaf: str) -> Int:
        lengths: Int = np.diff(rows.column(group).field(leaf).offsets.to_numpy()).astype(np.int64)
        return lengths

    @staticmethod
    def _values(rows: pa.RecordBatch, group: str, leaf: str) -> Int:
        return _ints(rows.column(group).field(leaf).flatten())


def _earlier(owner: Int, available: Int, asking: Int, at: Int) -> Int:
    """How many of its row's events, ascending in `available`, came strictly before each moment.

    Args:
        owner, available: [E] the row and time of each event.
        asking, at: [Q] the row and moment of each question.
    """
    first = np.searchsorted(owner, asking, "left")
    # (row, time) in one integer would overflow; the rank of a time among all keeps the order, ties included.
    times, rank = np.unique(np.concatenate([available, at]), return_inverse=True)
    span = len(times) + 1
    packed = owner * span + rank[: len(available)]
    found: Int = np.searchsorted(packed, asking * span + rank[len(available) :], "left") - first
    return found


def offsets(lengths: Int) -> pa.Array:
    """[n + 1] int32 offsets of lists of these lengths."""
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def leaves_of(rows: pa.RecordBatch) -> Iterator[tuple[str, pa.Array]]:
    """(name, values) of every column that is no struct: `user_id`, `candidates.price`."""
    for field in rows.schema:
        column = rows.column(field.name)
        if pa.types.is_struct(field.type):
            if column.null_count:  # what lies in a null struct counts for nothing
                yield field.name, column
            for child in field.type:
                yield f"{field.name}.{child.name}", column.field(child.name)
        else:
            yield field.name, column


def _flat(values: pa.Array) -> tuple[pa.Array, Int]:
    """The innermost values of an array, and the row of each."""
    owner = np.arange(len(values))
    while pa.types.is_list(values.type):
        owner = np.repeat(owner, np.diff(values.offsets.to_numpy()))
        values = values.flatten()
    return values, owner


def _null_row(values: pa.Array) -> int | None:
    """The first row that is null, or holds a null at any depth."""
    owner = np.arange(len(values))
    while True:
        if values.null_count:
            return int(owner[np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]])
        if not pa.types.is_list(values.type):
            return None
        owner = np.repeat(owner, np.diff(values.offsets.to_numpy()))
        values = values.flatten()


def _ints(values: pa.Array) -> Int:
    found: Int = pc.cast(values, pa.int64()).to_numpy(zero_copy_only=False)
    return found
