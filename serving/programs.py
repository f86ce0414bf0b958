"""An encoder of HSTU's and MTGR's kind as programs of torch.export, which need no code of the encoder to run.

    known    user and history tokens                    -> keys and values of every layer     user_state
    extend   those, and realtime tokens                 -> keys and values of all of them     extend
    score    those, and candidates                      -> [C, dim]                           score

Tokens, samples and candidates are dynamic. Attention is genrank's own op (`kernels.attention`), opaque to the programs. They are exact: the
encoder's own operations in the encoder's own order. `serving.compiled` compiles them for one kind of machine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn

import genrank.kernels.attention  # noqa: F401  registers the op that the programs call
from genrank.model.encoders import Candidates, Encoder, EncoderConfig, split, split_known
from genrank.model.encoders.stack import Stack, StackState
from genrank.serving.compiled import Program, load_compiled
from genrank.tokenization.jagged_tokens import Tokens

NAMES = ("known", "extend", "score")
FILLERS, FILLER_ROWS = 2, 2
"""Samples of zeros, and their rows, behind every batch: torch.export takes no dimension of 0 or 1 for one of any size. They see themselves alone,
and nothing sees them."""
Arguments = tuple[Tensor, ...]
ON_HOST = torch.zeros(0, dtype=torch.int64)
"""In the place of lengths, which the programs don't read."""


def has_programs(encoder: nn.Module) -> TypeGuard[Stack]:
    """Whether an encoder can be exported so: one of stacked blocks whose candidates are independent."""
    return isinstance(encoder, Stack) and encoder.extends and encoder.independent


def save_programs(encoder: Stack, tokens: Tokens, folder: Path) -> None:
    """Export and write `<name>.pt2` for each of NAMES.

    Args:
        tokens: of some samples with every kind of row, several of each: what the export is traced with.
    """
    folder.mkdir(parents=True)
    sequence, candidates = split(tokens)
    before, later = split_known(sequence)
    with torch.no_grad():
        state = encoder.user_state(before)
        whole = encoder.extend(state, later)
        traced: dict[str, tuple[nn.Module, Arguments]] = {
            "known": (_Known(encoder), _of_tokens(before)),
            "extend": (_Extend(encoder), (*_of_state(state), *_of_tokens(later))),
            "score": (_Score(encoder), (*_of_state(whole), *_of_candidates(candidates))),
        }
        if not len(later.x):  # the schema has no realtime sequence
            del traced["extend"]
        for name, (module, arguments) in traced.items():
            # Keys and values: [layers, tokens, heads, dim].
            shapes = tuple({1 if each.dim() == 4 else 0: torch.export.Dim.DYNAMIC} for each in arguments)
            program = torch.export.export(module, arguments, dynamic_shapes=(shapes,), strict=False)
            torch.export.save(program, folder / f"{name}.pt2")


class ExportedEncoder(Encoder[StackState]):
    """The programs in the place of the encoder that they were made of.

    Args:
        config: the encoder's.
        folder: with the programs.
        compiled_for: the device that they were compiled for, if the folder holds compiled ones.
    """

    def __init__(self, config: EncoderConfig, folder: Path, compiled_for: torch.device | None = None) -> None:
        super().__init__(config)
        paths = {name: path for name in NAMES if (path := folder / f"{name}.pt2").is_file()}
        self._programs: dict[str, Program] = {
            name: torch.export.load(path).module() if compiled_for is None else load_compiled(path, compiled_for)
            for name, path in paths.items()
        }

    @property
    def extends(self) -> bool:
        """Yes."""
        return True

    @property
    def appends(self) -> bool:
        """Where the schema has realtime events, which `extend` is made for."""
        return "extend" in self._programs

    def user_state(self, sequence: Tokens, beside: Tensor | None = None) -> StackState:
        """Keys and values of user and history rows by `known`, of realtime rows by `extend`."""
        before, later = split_known(sequence)
        keys, values = self._run("known", *_filled_tokens(_of_tokens(before)))
        rows = len(before.x)
        state = _state(keys[:, :rows], values[:, :rows], before.offsets.long(), before.timestamps // 1000)
        return self.extend(state, later) if len(later.x) else state

    def extend(self, state: StackState, later: Tokens, rounded: Callable[[Tensor], Tensor] | None = None) -> StackState:
        """Of one batch of rows, which read one another before they are rounded."""
        arguments = (*_filled_state(_of_state(state)), *_filled_tokens(_of_tokens(later)))
        keys, values, offsets, seconds = self._run("extend", *arguments)
        rows = len(state.seconds) + len(later.x)
        made = _state(keys[:, :rows], values[:, :rows], offsets[:-FILLERS], seconds[:rows])
        if rounded is not None:
            made.keys, made.values = [rounded(k) for k in made.keys], [rounded(v) for v in made.values]
        return made

    def score(self, state: StackState, candidates: Candidates) -> Tensor:
        """[C, dim]."""
        owner = torch.arange(FILLERS, device=state.offsets.device) + len(state.offsets) - 1
        x, owners, *rest = _of_candidates(candidates)
        filled = (_filled(x, FILLERS), torch.cat([owners, owner]), *(_filled(each, FILLERS) for each in rest))
        (vectors,) = self._run("score", *_filled_state(_of_state(state)), *filled)
        return vectors[: len(x)]

    def _run(self, name: str, *arguments: Tensor) -> tuple[Tensor, ...]:
        found = self._programs[name](*arguments)
        assert isinstance(found, tuple)
        return found


class _Known(nn.Module):
    def __init__(self, encoder: Stack) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *arguments: Tensor) -> Arguments:
        state = self.encoder.user_state(_tokens(*arguments))
        return torch.stack(state.keys), torch.stack(state.values)


class _Extend(_Known):
    def forward(self, *arguments: Tensor) -> Arguments:
        state = self.encoder.extend(_state(*arguments[:4]), _tokens(*arguments[4:]))
        return _of_state(state)


class _Score(_Known):
    def forward(self, *arguments: Tensor) -> Arguments:
        return (self.encoder.score(_state(*arguments[:4]), Candidates(*arguments[4:])),)


def _filled(values: Tensor, rows: int, dim: int = 0) -> Tensor:
    """With so many zeros behind."""
    shape = [*values.shape]
    shape[dim] = rows
    return torch.cat([values, values.new_zeros(shape)], dim)


def _filled_offsets(offsets: Tensor) -> Tensor:
    more = FILLER_ROWS * torch.arange(1, FILLERS + 1, device=offsets.device)
    return torch.cat([offsets, (offsets[-1] + more).to(offsets.dtype)])


def _filled_tokens(tokens: Arguments) -> Arguments:
    x, offsets, *rest = tokens
    rows = FILLERS * FILLER_ROWS
    return _filled(x, rows), _filled_offsets(offsets), *(_filled(each, rows) for each in rest)


def _filled_state(state: Arguments) -> Arguments:
    keys, values, offsets, seconds = state
    rows = FILLERS * FILLER_ROWS
    return _filled(keys, rows, 1), _filled(values, rows, 1), _filled_offsets(offsets), _filled(seconds, rows)


def _of_tokens(t: Tokens) -> Arguments:
    sequence_ids = t.group_ids if t.sequence_ids is None else t.sequence_ids
    return t.x, t.offsets, t.group_ids, t.begin, t.end, t.timestamps, sequence_ids


def _tokens(
    x: Tensor, offsets: Tensor, group_ids: Tensor, begin: Tensor, end: Tensor, timestamps: Tensor, sequence_ids: Tensor
) -> Tokens:
    # -1: attention isn't given the longest sample's length, which would become a constant.
    return Tokens(
        x, offsets, group_ids, begin, end, timestamps, ON_HOST, -1, ON_HOST, ON_HOST, sequence_ids=sequence_ids
    )


def _of_state(state: StackState) -> Arguments:
    return torch.stack(state.keys), torch.stack(state.values), state.offsets, state.seconds


def _state(keys: Tensor, values: Tensor, offsets: Tensor, seconds: Tensor) -> StackState:
    return StackState(offsets, list(keys.unbind(0)), list(values.unbind(0)), seconds, None)


def _of_candidates(c: Candidates) -> Arguments:
    return c.x, c.owner, c.begin, c.end, c.timestamps
