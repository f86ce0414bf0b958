"""A ranker's logits of a batch in two parts: what belongs to the user once, then the candidates in micro-batches against it.

    whole      model(batch)                                     user, events and candidates in one pass
    in parts   user_state of the sequence, score of the candidates so many at a time (M-FALCON: HSTU, arXiv:2402.17152, section 3.4)
    cached     the same, of a sequence whose keys and values are kept (`serving.user_cache`); realtime events are appended

A cached user's histories are neither looked up nor projected nor attended from: what a request costs is its new events and its candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genrank.model.encoders import Candidates, chosen_rows, split, split_known
from genrank.model.encoders.stack import StackState
from genrank.model.interface import Model
from genrank.model.ranker import Ranker
from genrank.schemas.errors import UserError
from genrank.schemas.schema import USER
from genrank.serving.stored_keys import rounded, store
from genrank.serving.user_cache import Entry, Key, Layers, UserCache
from genrank.tokenization.batch import Batch, Group, Ragged
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.plan import tokens_per_row


class Engine:
    """A model's logits.

    Args:
        model: in evaluation mode.
        checkpoint: which one it is, for the cache.
        micro_batch: candidates that are scored at once; 0: all of a batch.
        cache: keeps users' keys and values between batches.

    Raises:
        UserError: the model can't score candidates in parts, or keep users, and is asked to.
    """

    def __init__(self, model: Model, checkpoint: str, *, micro_batch: int = 0, cache: UserCache | None = None) -> None:
        self.model, self.checkpoint, self.micro_batch, self.cache = model, checkpoint, micro_batch, cache
        if micro_batch < 0:
            raise UserError(f"micro_batch is {micro_batch}; give a number of candidates, or 0 for all of them at once")
        if micro_batch or cache is not None:
            _require_parts(model, micro_batch, cache is not None)

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        """{label: logit [C]} of a batch on the model's device, in inference mode."""
        with torch.inference_mode():
            model = self.model
            if not isinstance(model, Ranker) or not (self.micro_batch or self.cache is not None):
                found: dict[str, Tensor] = model(batch)
                return found
            if self.cache is None:
                features = model.tokenizer.features(batch)
                sequence, candidates = split(model.tokenizer.tokens(batch, features))
                state: Any = model.encoder.user_state(sequence)
            else:
                state, candidates, features = self._cached(model, batch, self.cache)
            parts = [model.encoder.score(state, part) for part in _parts(candidates, self.micro_batch)]
            return model.logits(torch.cat(parts), batch, features)

    # ------------------------------------------------------------------ users that are kept

    def _cached(
        self, model: Ranker, batch: Batch, cache: UserCache
    ) -> tuple[StackState, Candidates, dict[str, Tensor]]:
        """The state of the batch's sequences, the candidates and the features that are read beside the encoder."""
        device = batch.user.device
        users, starts = batch.user.tolist(), batch.window_start.tolist()
        keys = [Key(self.checkpoint, user, start) for user, start in zip(users, starts, strict=True)]
        digests, events = _digests(model, batch)
        entries = [cache.get(key, device) for key in keys]
        kept = [
            entry if entry is not None and entry.digest == digest else None
            for entry, digest in zip(entries, digests, strict=True)
        ]
        hits = sum(entry is not None for entry in kept)
        cache.add(hits=hits, misses=len(kept) - hits)
        known = hits == len(kept)
        features = model.tokenizer.features(batch, known=not known)
        sequence, candidates = split(model.tokenizer.tokens(batch, features, known=not known))
        later = sequence
        if not known:
            before, later = split_known(sequence)
            kept = self._encoded(model, before, digests, kept, cache)
        found = [entry for entry in kept if entry is not None]
        state = self._extended(model, keys, found, later, events, cache)
        return state, candidates, features

    def _encoded(
        self,
        model: Ranker,
        before: Tokens,
        digests: Sequence[bytes],
        kept: Sequence[Entry | None],
        cache: UserCache,
    ) -> list[Entry | None]:
        """An entry for every sample, without realtime events where there was none."""
        missing = torch.tensor([entry is None for entry in kept], device=before.x.device)
        lacking = missing.repeat_interleave(before.offsets.diff(), output_size=len(before.x))
        made: StackState = model.encoder.user_state(chosen_rows(before, lacking))
        bounds = made.offsets.tolist()
        entries: list[Entry | None] = []
        for at, (digest, entry) in enumerate(zip(digests, kept, strict=True)):
            if entry is None:
                layers = _stored(made, bounds[at], bounds[at + 1], cache)
                entry = Entry(digest, layers, (), layers.first(0))
            entries.append(entry)
        return entries

    def _extended(
        self,
        model: Ranker,
        keys: Sequence[Key],
        entries: Sequence[Entry],
        later: Tokens,
        events: Sequence[Sequence[bytes]],
        cache: UserCache,
    ) -> StackState:
        """The state of whole sequences: what entries hold of them, and the realtime events that they lack, which they then hold too."""
        realtime = model.tokenizer.schema.realtime
        per_event = tokens_per_row(model.tokenizer.schema, realtime.name) if realtime else 1
        same = [_common(entry.events, own) for entry, own in zip(entries, events, strict=True)]
        held = [_Held(entry, entry.later.first(n * per_event)) for entry, n in zip(entries, same, strict=True)]
        state = _state_of(held, later.x.dtype)
        left = _without_first(later, [n * per_event for n in same])
        if len(left.x):
            state = model.encoder.extend(state, left, lambda x: rounded(x, cache.storage))
        bounds = state.offsets.tolist()
        for at, (key, own) in enumerate(zip(keys, events, strict=True)):
            known = len(held[at].entry.known.seconds)
            entry = held[at].entry
            if entry.events[: len(own)] != tuple(own):
                added = _stored(state, bounds[at] + known, bounds[at + 1], cache)
                entry = Entry(entry.digest, entry.known, tuple(own), added)
            cache.put(key, entry)
        cache.add(appended=len(left.x))
        return state


class _Held(NamedTuple):
    entry: Entry
    later: Layers
    """Rows of the realtime events that a request shares with it."""


def _parts(candidates: Candidates, size: int) -> Sequence[Candidates]:
    count = len(candidates.owner)
    if not size or count <= size:
        return [candidates]
    return [candidates.take(slice(at, at + size)) for at in range(0, count, size)]


def _state_of(held: Sequence[_Held], dtype: torch.dtype) -> StackState:
    """One state of several users'."""
    parts = [layers for each in held for layers in (each.entry.known, each.later)]
    lengths = [len(each.entry.known.seconds) + len(each.later.seconds) for each in held]
    seconds = torch.cat([layers.seconds for layers in parts])
    offsets = torch.tensor([0, *lengths], device=seconds.device).cumsum(0)
    depth = range(len(parts[0].keys))
    keys = [torch.cat([layers.keys[at].read(dtype) for layers in parts]) for at in depth]
    values = [torch.cat([layers.values[at].read(dtype) for layers in parts]) for at in depth]
    return StackState(offsets, keys, values, seconds, None)


def _stored(state: StackState, first: int, last: int, cache: UserCache) -> Layers:
    keys = [store(k[first:last], cache.storage) for k in state.keys]
    values = [store(v[first:last], cache.storage) for v in state.values]
    return Layers(keys, values, state.seconds[first:last].clone())


def _without_first(later: Tokens, counts: Sequence[int]) -> Tokens:
    """Rows without the first so many of each sample."""
    offsets = later.offsets.long()
    first = offsets[:-1] + torch.tensor(counts, device=offsets.device)
    place = torch.arange(len(later.x), device=offsets.device)
    return chosen_rows(later, place >= first.repeat_interleave(offsets.diff(), output_size=len(place)))


def _common(before: Sequence[bytes], now: Sequence[bytes]) -> int:
    """How many of the first events are the same."""
    count = 0
    for one, other in zip(before, now, strict=False):
        if one != other:
            break
        count += 1
    return count


# ---------------------------------------------------------------------- what entries were made of


def _digests(model: Ranker, batch: Batch) -> tuple[list[bytes], list[tuple[bytes, ...]]]:
    """Of each sample, a digest of its user's features and histories, and one of each of its realtime events."""
    schema = model.tokenizer.schema
    realtime = schema.realtime.name if schema.realtime else None
    known = [batch.groups[name] for name in (USER, *(s.name for s in schema.histories)) if name in batch.groups]
    leaves = [_Leaves(group) for group in known]
    of_users = []
    for at in range(len(batch)):
        found = hashlib.blake2b(digest_size=16)
        for group in leaves:
            group.add(found, at)
        of_users.append(found.digest())
    if realtime is None:
        return of_users, [()] * len(batch)
    events = _Leaves(batch.groups[realtime], [batch.realtime_sees, batch.realtime_available])
    return of_users, [events.rows(at) for at in range(len(batch))]


class _Leaves:
    """The stored values of a group's rows, as bytes; whatever device they are on, its host reads them."""

    def __init__(self, group: Group, beside: Sequence[Tensor] = ()) -> None:
        self.offsets = group.offsets.tolist()
        leaves = [leaf for _, leaf in sorted(group.features.items())]
        self.plain = [t.cpu().numpy() for t in (group.ts, *beside, *(x for x in leaves if isinstance(x, Tensor)))]
        self.ragged = [(x.values.cpu().numpy(), x.offsets.tolist()) for x in leaves if isinstance(x, Ragged)]

    def add(self, found: hashlib.blake2b, sample: int) -> None:
        """All rows of a sample."""
        self._add(found, self.offsets[sample], self.offsets[sample + 1])

    def rows(self, sample: int) -> tuple[bytes, ...]:
        """A digest of each row of a sample."""
        digests = []
        for row in range(self.offsets[sample], self.offsets[sample + 1]):
            found = hashlib.blake2b(digest_size=16)
            self._add(found, row, row + 1)
            digests.append(found.digest())
        return tuple(digests)

    def _add(self, found: hashlib.blake2b, first: int, last: int) -> None:
        found.update((last - first).to_bytes(8, "little"))
        for plain in self.plain:
            found.update(plain[first:last].tobytes())
        for values, offsets in self.ragged:
            for row in range(first, last):
                found.update((offsets[row + 1] - offsets[row]).to_bytes(8, "little"))
            found.update(values[offsets[first] : offsets[last]].tobytes())


def _require_parts(model: Model, micro_batch: int, cached: bool) -> None:
    what = "a user cache" if cached else "micro-batches"
    if not isinstance(model, Ranker):
        raise UserError(f"{what}: {type(model).__name__} has no user state; score its samples whole (micro_batch=0)")
    encoder = model.encoder
    # Users that are kept need only that their state goes on; their candidates may be scored together.
    if not encoder.independent and (micro_batch or not encoder.extends):
        what = "micro-batches" if encoder.extends else what
        why = (
            encoder.dependence
            or f"a score of {type(encoder).__name__} depends on the candidates scored beside it; take another model"
        )
        raise UserError(f"{what}: {why}, or score its samples whole (micro_batch=0)")
    if cached and not encoder.extends:
        raise UserError(
            f"a user cache: {type(encoder).__name__} keeps no state that goes on with further events; mtgr and hstu do. Use micro-batches"
        )
