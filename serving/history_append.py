"""How much of a kept user state still holds for a request: the first rows whose stored values are the request's.

Where histories append, a token of the user or of a history depends on its own row and on earlier ones alone: it holds as long as these rows' raw
values are the same, whatever follows and in whatever window. `obstacles` says what of a model or its schema stands against that:

    a token that reads later ones          any mask but the causal one; `full_tail`
    a place that moves                     positions counted from the newest event; `history`, the newest so many events
    a value that moves with the window     `ages`; time parts and gaps of the user; relative times between events and user tokens

When the oldest event drops out (`max_length`, the look-back), every later one moves a place: the first rows differ, and the state is computed anew.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from genrank.model.encoders.block import BlockConfig
from genrank.model.ranker import Ranker
from genrank.schemas.features import Feature, HashedCross, TimeGap, TimePart
from genrank.schemas.schema import USER
from genrank.tokenization.arrangement import Part
from genrank.tokenization.batch import Batch, Group, Ragged
from genrank.tokenization.visibility import HISTORY
from genrank.tokenization.visibility import USER as USER_GROUP

Bytes = NDArray[np.uint8]


class UserRows(NamedTuple):
    """The stored values of one sample's rows."""

    known: Mapping[str, Bytes]
    """Of the user (one row) and of each history, in token order: [rows, bytes of a row]."""
    realtime: Bytes
    """Of the realtime events, and what they see."""

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(rows.nbytes for rows in self.known.values()) + self.realtime.nbytes

    def copied(self) -> UserRows:
        """In memory of their own, apart from the batch's."""
        return UserRows({name: rows.copy() for name, rows in self.known.items()}, self.realtime.copy())


def known_sizes(parts: Sequence[Part]) -> dict[str, int]:
    """Tokens of each row of the user and of each history, in token order."""
    users = sum(part.per_row for part in parts if part.kind == USER_GROUP)
    return {USER: users} | {part.name: part.per_row for part in parts if part.kind == HISTORY and not part.separator}


def rows_of(batch: Batch, known: Iterable[str], realtime: str | None) -> list[UserRows]:
    """Of each sample. The user's own time is the window's start, which is left out: a cache's key has it, where it matters.

    Args:
        known: names of the groups of user and histories, in token order.
        realtime: of the realtime sequence, if there is one.
    """
    tables = {name: _rows(group, [] if name == USER else [group.ts]) for name, group in _groups(batch, known)}
    bounds = {name: batch.groups[name].offsets.tolist() for name in tables}
    events, ends = np.zeros((0, 0), np.uint8), [0] * (len(batch) + 1)
    if realtime is not None:
        group = batch.groups[realtime]
        events = _rows(group, [group.ts, batch.realtime_sees, batch.realtime_available])
        ends = group.offsets.tolist()
    return [
        UserRows(
            {name: table[bounds[name][at] : bounds[name][at + 1]] for name, table in tables.items()},
            events[ends[at] : ends[at + 1]],
        )
        for at in range(len(batch))
    ]


def tokens_in_common(kept: UserRows, asked: UserRows, sizes: Mapping[str, int]) -> int:
    """How many of the first tokens of user and histories are the same in both; 0 where what was kept has events and none of them is asked for.

    Args:
        sizes: as of `known_sizes`.
    """
    tokens = events = 0
    for name, one in kept.known.items():
        same, other = rows_in_common(one, asked.known[name]), asked.known[name]
        tokens += same * sizes[name]
        events += same if name != USER else 0
        if not same == len(one) == len(other):
            break
    else:
        return tokens
    had_events = any(len(rows) for name, rows in kept.known.items() if name != USER)
    return tokens if events or not had_events else 0


def known_tokens(rows: UserRows, sizes: Mapping[str, int]) -> int:
    """Tokens of user and histories that rows become."""
    return sum(len(own) * sizes[name] for name, own in rows.known.items())


def rows_in_common(one: Bytes, other: Bytes) -> int:
    """How many of the first rows are the same."""
    count = min(len(one), len(other))
    different = np.flatnonzero((one[:count] != other[:count]).any(1))
    return int(different[0]) if len(different) else count


def _groups(batch: Batch, names: Iterable[str]) -> Iterator[tuple[str, Group]]:
    return ((name, batch.groups[name]) for name in names if name in batch.groups)


def _rows(group: Group, beside: Sequence[Tensor]) -> Bytes:
    """[rows, bytes of a row]: the stored values of a group's rows, whatever device they are on; of a list of ids its digest."""
    count = len(group.ts)
    columns = [tensor.cpu().numpy().reshape(count, 1).view(np.uint8) for tensor in beside]
    for _, leaf in sorted(group.features.items()):
        if isinstance(leaf, Ragged):
            columns.append(_digests(leaf))
        else:
            columns.append(leaf.cpu().numpy().reshape(count, 1).view(np.uint8))
    return np.concatenate(columns, 1) if columns else np.zeros((count, 0), np.uint8)


def _digests(leaf: Ragged) -> Bytes:
    values, offsets = leaf.values.cpu().numpy(), leaf.offsets.tolist()
    lists = (values[first:last].tobytes() for first, last in itertools.pairwise(offsets))
    whole = b"".join(hashlib.blake2b(each, digest_size=16).digest() for each in lists)
    return np.frombuffer(bytearray(whole), np.uint8).reshape(len(offsets) - 1, 16)


# ---------------------------------------------------------------------- whether histories append


def obstacles(model: Ranker) -> list[str]:
    """Why a user's state can't go on with further events of a history, each with its remedy; none: it can."""
    config, schema = model.encoder.config, model.tokenizer.schema
    if not isinstance(config, BlockConfig):
        return [f"{type(model.encoder).__name__} keeps no state that goes on"]
    found = config.append_obstacles()
    if not model.encoder.appends:
        found = found or ["its programs were exported without realtime events"]
    found += [
        f"user.{f.name} moves with the window (declare it with the candidates)"
        for f in _derived(schema.user.features, (HashedCross,))
    ]
    found += [
        f"{sequence.name}.{f.name} is of a kind that may read later events"
        for sequence in schema.histories
        for f in _derived(sequence.features, (HashedCross, TimeGap, TimePart))
    ]
    has_users = any(part.kind == USER_GROUP for part in model.tokenizer.parts)
    if config.time_buckets and has_users:
        found.append("user tokens bear the window's time (train with --set time_buckets=0)")
    return found


def _derived(features: Iterable[Feature], known: tuple[type[Feature], ...]) -> Iterator[Feature]:
    """Features of kinds, but for the known ones, whose value isn't the stored one."""
    return (f for f in features if (f.stored is None or isinstance(f, TimeGap)) and not isinstance(f, known))
