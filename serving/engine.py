"""A ranker's logits of a batch in two parts: what belongs to the user once, then the candidates in micro-batches against it.

    whole      model(batch)                                     user, events and candidates in one pass
    in parts   user_state of the sequence, score of the candidates so many at a time (M-FALCON: HSTU, arXiv:2402.17152, section 3.4)
    cached     the same, of a sequence whose keys and values are kept (`serving.user_cache`); realtime events are appended, and further events
               of a history where the model can promise that nothing before them changes (`serving.history_append`)

A cached user's histories are neither looked up nor projected nor attended from: what a request costs is its new events and its candidates.
Where a history goes on, all of it is looked up and projected, and its new events alone pass through the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genrank.model.encoders import Candidates, chosen_rows, split, split_known
from genrank.model.encoders.stack import StackState
from genrank.model.interface import Model
from genrank.model.ranker import Ranker
from genrank.schemas.errors import UserError
from genrank.serving.history_append import (
    UserRows,
    known_sizes,
    known_tokens,
    obstacles,
    rows_in_common,
    rows_of,
    tokens_in_common,
)
from genrank.serving.stored_keys import rounded, store
from genrank.serving.user_cache import Entry, Key, Layers, UserCache
from genrank.tokenization.batch import Batch
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.visibility import REALTIME


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
        self.append_obstacles: list[str] = []
        """Why kept users' histories aren't appended to; none where they are, or no users are kept."""
        self.appends = False
        """Whether a kept user's histories may go on with further events."""
        self._realtime: str | None = None
        self._per_event = 1
        if cache is not None:
            assert isinstance(model, Ranker)
            self.append_obstacles = obstacles(model)
            self.appends = not self.append_obstacles
            events = next((part for part in model.tokenizer.parts if part.kind == REALTIME), None)
            if events is not None:
                self._realtime, self._per_event = events.name, events.per_row

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
        sizes = known_sizes(model.tokenizer.parts)
        asked = rows_of(batch, sizes, self._realtime)
        starts = [None] * len(batch) if self.appends else batch.window_start.tolist()
        keys = [Key(self.checkpoint, *of) for of in zip(batch.user.tolist(), starts, strict=True)]
        entries = [cache.get(key, batch.user.device) for key in keys]
        kept = [self._kept(entry, own, sizes) for entry, own in zip(entries, asked, strict=True)]
        known = [known_tokens(own, sizes) for own in asked]
        _count(cache, entries, kept, known)
        lacking = any(held is None or len(held.known.seconds) < n for held, n in zip(kept, known, strict=True))
        features = model.tokenizer.features(batch, known=lacking)
        sequence, candidates = split(model.tokenizer.tokens(batch, features, known=lacking))
        if any(held is None for held in kept):
            kept = self._encoded(model, split_known(sequence)[0], kept, cache)
        held = [each for each in kept if each is not None]
        # The rows at hand begin with the user's where anything of user and histories is lacking, or else with the realtime ones.
        first = [len(each) if lacking else len(each.later.seconds) for each in held]
        state = _state_of(held, sequence.x.dtype)
        left = _without_first(sequence, first)
        if len(left.x):
            state = model.encoder.extend(state, left, lambda x: rounded(x, cache.storage))
        cache.add(appended=len(left.x))
        self._keep(keys, held, asked, known, state, cache)
        return state, candidates, features

    def _kept(self, entry: Entry | None, asked: UserRows, sizes: Mapping[str, int]) -> _Held | None:
        """What of an entry holds for a request; None: nothing."""
        if entry is None:
            return None
        same = tokens_in_common(entry.rows, asked, sizes)
        whole = same == len(entry.known.seconds) == known_tokens(asked, sizes)
        if whole:
            events = rows_in_common(entry.rows.realtime, asked.realtime)
            return _Held(entry.known, entry.later.first(events * self._per_event), entry)
        if not (self.appends and same):
            return None
        # Realtime events read the history, which has changed.
        return _Held(entry.known.first(same), entry.later.first(0), entry)

    def _encoded(
        self, model: Ranker, before: Tokens, kept: Sequence[_Held | None], cache: UserCache
    ) -> list[_Held | None]:
        """What is held of every sample: where it was nothing, user and histories."""
        missing = torch.tensor([held is None for held in kept], device=before.x.device)
        lacking = missing.repeat_interleave(before.offsets.diff(), output_size=len(before.x))
        made: StackState = model.encoder.user_state(chosen_rows(before, lacking))
        bounds = made.offsets.tolist()
        found: list[_Held | None] = []
        for at, held in enumerate(kept):
            if held is None:
                layers = _stored(made, bounds[at], bounds[at + 1], cache)
                held = _Held(layers, layers.first(0))
            found.append(held)
        return found

    def _keep(
        self,
        keys: Sequence[Key],
        held: Sequence[_Held],
        asked: Sequence[UserRows],
        known: Sequence[int],
        state: StackState,
        cache: UserCache,
    ) -> None:
        """Entries of the whole sequences; one that has more events than its request stays."""
        bounds = state.offsets.tolist()
        for at, (key, own) in enumerate(zip(keys, asked, strict=True)):
            begin, end, first = bounds[at], bounds[at + 1], held[at]
            middle = begin + known[at]
            if first.entry is not None and _holds(first.entry, first, known[at], end - begin):
                cache.put(key, first.entry)
                continue
            history = first.known.then(_stored(state, begin + len(first.known.seconds), middle, cache))
            events = first.later.then(_stored(state, middle + len(first.later.seconds), end, cache))
            cache.put(key, Entry(own.copied(), history, events))


class _Held(NamedTuple):
    """The first rows of a sequence, as they are stored."""

    known: Layers
    """Of user and histories."""
    later: Layers
    """Of realtime events; none where the histories aren't an entry's."""
    entry: Entry | None = None
    """Whose rows they are."""

    def __len__(self) -> int:
        return len(self.known.seconds) + len(self.later.seconds)


def _holds(entry: Entry, held: _Held, known: int, rows: int) -> bool:
    """Whether an entry has all of a request, whose sequence has so many rows, `known` of them of user and histories; or has a longer history."""
    return len(held.known.seconds) == known and (len(held) == rows or known < len(entry.known.seconds))


def _count(
    cache: UserCache, entries: Sequence[Entry | None], kept: Sequence[_Held | None], known: Sequence[int]
) -> None:
    misses = sum(held is None for held in kept)
    hits = sum(held is not None and len(held.known.seconds) == n for held, n in zip(kept, known, strict=True))
    rebuilt = sum(held is None and entry is not None for held, entry in zip(kept, entries, strict=True))
    cache.add(hits=hits, extended=len(kept) - hits - misses, misses=misses, rebuilt=rebuilt)


def _parts(candidates: Candidates, size: int) -> Sequence[Candidates]:
    count = len(candidates.owner)
    if not size or count <= size:
        return [candidates]
    return [candidates.take(slice(at, at + size)) for at in range(0, count, size)]


def _state_of(held: Sequence[_Held], dtype: torch.dtype) -> StackState:
    """One state of several users'."""
    parts = [layers for each in held for layers in (each.known, each.later)]
    lengths = [len(each) for each in held]
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
