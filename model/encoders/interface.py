"""What every encoder is: tokens of a batch in, a vector a candidate out; and the same in two parts, for serving.

    forward(tokens)                   -> [C, out_dim]   training and evaluation
    user_state(sequence, candidates)  -> State          once a request: what belongs to the user alone
    score(state, candidates)          -> [C, out_dim]   as often as there are candidates to score (HSTU, arXiv:2402.17152, section 3.4)

`forward` equals `score(user_state(...), ...)` of the tokens taken apart by `split`, because no user, history or realtime token sees a
candidate. One file an encoder: its configuration, its class and its presets; one line in `model.encoders` names it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from genrank.model.validation import Checked, Positive, Scale
from genrank.tokenization.jagged_tokens import Candidates as Candidates
from genrank.tokenization.jagged_tokens import Tokens
from genrank.tokenization.visibility import CANDIDATE, HISTORY, REALTIME
from genrank.tokenization.wants import TokenShape, Wants

StateT = TypeVar("StateT")


@dataclass(frozen=True)
class Counts:
    """What an encoder's operations depend on, over some batches."""

    tokens: int
    """Rows of `Tokens.x`."""
    pairs: int
    """(query, key) pairs of these rows that the mask lets through, itself included."""
    candidates: int = 0
    seen: int = 0
    """(candidate, row it sees) pairs, the candidate itself aside."""
    samples: int = 0


@dataclass(frozen=True)
class EncoderConfig(Checked):
    """What the configuration of every encoder has."""

    dim: Positive
    """Width of a token."""
    initial_scale: Scale = field(default=1.0, kw_only=True)
    """The encoder's weight matrices begin as they are drawn, times this; vectors (biases, norms) as they are."""

    @property
    def out_dim(self) -> int:
        """Width of a candidate's vector."""
        return self.dim

    @property
    def tower(self) -> tuple[int, ...]:
        """Widths of an MLP over the features of a candidate and its user, beside the encoder; empty: none."""
        return ()

    @property
    def encoder_loss(self) -> float:
        """Weight of a second loss in training, of heads that read the encoder's vectors without the tower; 0: none."""
        return 0.0

    @property
    def shallow_loss(self) -> float:
        """Weight, in training, of a second loss of each shallower layer's vector."""
        return 0.0

    @property
    def shallow_outputs(self) -> int:
        """How many such vectors `forward` puts behind a candidate's in training: [C, (1 + n) * out_dim]."""
        return 0

    @property
    def event_weight(self) -> float:
        """Weight, in training, of an event's loss beside a candidate's; 0: candidates alone are learned from. Its encoder's `forward` takes
        the rows whose vectors are wanted, and no event's first token sees the event's second."""
        return 0.0

    @property
    def stream(self) -> Literal["float32", "bfloat16"]:
        """Dtype of the residual stream under autocast. Without autocast it is the weights'."""
        return "float32"

    @property
    def auxiliary_hidden(self) -> tuple[int, ...]:
        """Widths of the network that `--phase sparse` trains rows through; empty: there is none."""
        return ()

    def wants(self) -> Wants:
        """What the tokenizer makes for this encoder."""
        return Wants()

    def fit(self, shape: TokenShape) -> Self:
        """The configuration for samples of one schema, of which the tokenizer makes so many tokens; called before the encoder is made.

        Raises:
            ConfigError: the encoder can't take so many.
        """
        return self

    def flops(self, counts: Counts) -> int | None:
        """Floating point operations of one forward pass (a multiply-add is two); None where they aren't counted."""
        return None


class SequenceEncoder(nn.Module, ABC):
    """Jagged tokens in, vectors out: what trainer and retrieval ask of any encoder.

    Args:
        config: `config.dim` is the tokens' width, `config.out_dim` that of what comes out.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        """Set by the trainer: drop activations and compute them again in backward, where the encoder can."""

    def shardable_layers(self) -> Sequence[nn.Module]:
        """The layers, for what treats them one by one (FSDP); none where the encoder is one piece."""
        return ()

    def shorten(self, tokens: Tokens) -> Tokens:
        """The tokens that this step reads: all of them, unless the encoder trains on fewer."""
        return tokens


class Encoder(SequenceEncoder, Generic[StateT]):
    """Jagged tokens in, a vector a candidate out; and the same in two parts."""

    @property
    def independent(self) -> bool:
        """Whether a candidate's vector depends on nothing of the others, their number included: then they can be scored in any parts."""
        return self.dependence is None

    @property
    def dependence(self) -> str | None:
        """On what of the others a candidate's vector depends, and how it wouldn't, as the end of a message; None: on nothing."""
        return None

    @property
    def extends(self) -> bool:
        """Whether there is `extend`, so that a user's state can be kept and go on as events become available."""
        return False

    @property
    def appends(self) -> bool:
        """Whether `extend` takes rows of histories, too, where the configuration's `append_obstacles` are none."""
        return self.extends

    def extend(self, state: StateT, later: Tokens, rounded: Callable[[Tensor], Tensor] | None = None) -> StateT:
        """The state of sequences that go on with further rows, none of which an earlier row sees.

        Args:
            state: of the rows before.
            later: the further rows; what they see counts the whole sequence's.
            rounded: what becomes of keys and values that are stored in fewer bits; they are read as they will be stored.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no state that goes on")

    @abstractmethod
    def user_state(self, sequence: Tokens, beside: Tensor | None = None) -> StateT:
        """What the candidates of a request share.

        Args:
            sequence: user, history and realtime tokens; no candidates.
            beside: [B] int64, how many candidates each sample has in all; for encoders whose scores depend on it.
        """

    @abstractmethod
    def score(self, state: StateT, candidates: Candidates) -> Tensor:
        """[C, out_dim], in the order of `candidates`; no candidate's vector depends on another."""

    def forward(self, tokens: Tokens) -> Tensor:
        """[C, out_dim] in the batch's order of candidates."""
        sequence, candidates = split(tokens)
        owner = candidates.owner
        beside = owner.new_zeros(len(sequence.lengths)).index_add_(0, owner, torch.ones_like(owner))
        return self.score(self.user_state(sequence, beside), candidates)


def split_known(sequence: Tokens) -> tuple[Tokens, Tokens]:
    """Sequences without candidates, taken apart: the rows known before the window (user and history), and the realtime rows, whose
    intervals still count the whole sequence's. Waits for the device."""
    return chosen_rows(sequence, sequence.group_ids <= HISTORY), chosen_rows(sequence, sequence.group_ids == REALTIME)


def chosen_rows(tokens: Tokens, chosen: Tensor) -> Tokens:
    """Some rows ([T] bool) of sequences without candidates; as many samples, and intervals as they were. Waits for the device."""
    rows = chosen.nonzero().squeeze(1)
    offsets = torch.nn.functional.pad(chosen.cumsum(0), (1, 0))[tokens.offsets.long()]
    lengths = offsets.diff().cpu()
    return dataclasses.replace(
        tokens,
        x=tokens.x.index_select(0, rows),
        offsets=offsets.to(tokens.offsets.dtype),
        group_ids=tokens.group_ids[rows],
        begin=tokens.begin[rows],
        end=tokens.end[rows],
        timestamps=tokens.timestamps[rows],
        max_length=int(lengths.max()) if len(lengths) else 0,
        lengths=lengths,
        slots=None if tokens.slots is None else tokens.slots[rows],
        sequence_ids=None if tokens.sequence_ids is None else tokens.sequence_ids[rows],
    )


def split(tokens: Tokens) -> tuple[Tokens, Candidates]:
    """A batch's tokens, taken apart: the sequences without candidates, and the candidates.

    Waits for the device, to count candidates, unless they lie beside the rows (`Wants.candidate`). Differentiable.
    """
    if tokens.candidates is not None:
        return tokens, tokens.candidates
    rows = tokens.candidate_rows
    own = tokens.group_ids != CANDIDATE
    owner = torch.searchsorted(tokens.offsets.long(), rows, right=True) - 1
    counts = torch.bincount(owner, minlength=len(tokens.lengths))
    kept = own.nonzero().squeeze(1)
    lengths = tokens.lengths - counts.to(tokens.lengths.device)
    before = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    sequence = dataclasses.replace(
        tokens,
        x=tokens.x.index_select(0, kept),
        offsets=(tokens.offsets - before).to(tokens.offsets.dtype),
        group_ids=tokens.group_ids[kept],
        begin=tokens.begin[kept],
        end=tokens.end[kept],
        timestamps=tokens.timestamps[kept],
        candidate_rows=rows[:0],
        requests=None,
        max_length=int(lengths.max()) if len(lengths) else 0,
        lengths=lengths,
        slots=None if tokens.slots is None else tokens.slots[kept],
        sequence_ids=None if tokens.sequence_ids is None else tokens.sequence_ids[kept],
        event_types=None if tokens.event_types is None else tokens.event_types[kept],
    )
    return sequence, Candidates(
        tokens.x[rows].unsqueeze(1),
        owner,
        tokens.begin[rows],
        tokens.end[rows],
        tokens.timestamps[rows],
        tokens.requests,
    )
