"""Launches for dynamic vocabularies: a step, a lookup, and new rows' initial weights; all vocabularies of a batch in each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from genrank.kernels.launch import Tuned, to_device
from genrank.kernels.vocabulary.layout import COUNT_BITS, VocabularyPlace
from genrank.kernels.vocabulary.triton_reset import reset_kernel
from genrank.kernels.vocabulary.triton_select import release_kernel, select_kernel
from genrank.kernels.vocabulary.triton_slots import clear_kernel, enter_kernel, look_up_kernel
from genrank.kernels.vocabulary.triton_update import (
    begin_kernel,
    count_kernel,
    free_rows_kernel,
    give_kernel,
    plan_kernel,
)

DIGIT = 11
"""Bits that a pass of the selection looks at."""
SELECTING = 128
"""Programs of a pass for each selection."""
RELEASED = 1024
"""Entries a program releases, and rows whose free ones are counted together."""
QUANTILE = (
    # sqrt(2 pi), exp(-2), then numerators and denominators of Cephes's three approximations (ndtri.c), highest power first.
    2.50662827463100050242, 0.13533528323661269189,
    -5.99633501014107895267e1, 9.80010754185999661536e1, -5.66762857469070293439e1, 1.39312609387279679503e1,
    -1.23916583867381258016,
    1.0, 1.95448858338141759834, 4.67627912898881538453, 8.63602421390890590575e1, -2.25462687854119370527e2,
    2.00260212380060660359e2, -8.20372256168333339912e1, 1.59056225126211695515e1, -1.18331621121330003142,
    4.05544892305962419923, 3.15251094599893866154e1, 5.71628192246421288162e1, 4.40805073893200834700e1,
    1.46849561928858024014e1, 2.18663306850790267539, -1.40256079171354495875e-1, -3.50424626827848203418e-2,
    -8.57456785154685413611e-4,
    1.0, 1.57799883256466749731e1, 4.53907635128879210584e1, 4.13172038254672030440e1, 1.50425385692907503408e1,
    2.50464946208309415979, -1.42182922854787788574e-1, -3.80806407691578277194e-2, -9.33259480895457427372e-4,
    3.23774891776946035970, 6.91522889068984211695, 3.93881025292474443415, 1.33303460815807542389,
    2.01485389549179081538e-1, 1.23716634817820021358e-2, 3.01581553508235416007e-4, 2.65806974686737550832e-6,
    6.23974539184983293730e-9,
    1.0, 6.02427039364742014255, 3.67983563856160859403, 1.37702099489081330271, 2.16236993594496635890e-1,
    1.34204006088543189037e-2, 3.28014464682127739104e-4, 2.89247864745380683936e-6, 6.79019408009981274425e-9,
)  # fmt: skip


def tuned(kernel: object, block: int | None, warps: int = 4) -> Tuned:
    """One configuration: they write to what they read, so that nothing can be timed. block: None where it is given with each launch."""
    blocks = {} if block is None else {"BLOCK": block}
    return Tuned(kernel, [triton.Config(blocks, num_warps=warps, num_stages=1)], [])


begin_tuned = tuned(begin_kernel, 1024)
clear_tuned = tuned(clear_kernel, 4096)
enter_tuned = tuned(enter_kernel, 256)
look_up_tuned = tuned(look_up_kernel, 256)
count_tuned = tuned(count_kernel, 256)
plan_tuned = tuned(plan_kernel, 1024)
select_tuned = tuned(select_kernel, 512, warps=8)
release_tuned = tuned(release_kernel, None, warps=8)
free_rows_tuned = tuned(free_rows_kernel, None)
give_tuned = tuned(give_kernel, 256)
reset_tuned = tuned(reset_kernel, 16)


def send(places: Sequence[VocabularyPlace], device: torch.device) -> Tensor:
    """[T * fields] int64 on the device."""
    return to_device([n for place in places for n in place], device)


def launch(kernel: Tuned, most: int, arguments: list[object], constants: dict[str, int], vocabularies: int) -> None:
    """Enough programs for `most` of every vocabulary, at least one each."""
    kernel(lambda chosen: (max(1, triton.cdiv(most, chosen["BLOCK"])), vocabularies), arguments, constants)


def look_up(places: Sequence[VocabularyPlace], sent: Tensor) -> None:
    """Rows of the ids that each vocabulary is asked for."""
    if most := max((place.asked_count for place in places), default=0):
        launch(look_up_tuned, most, [sent], {}, len(places))


def fill_slots(places: Sequence[VocabularyPlace], sent: Tensor) -> None:
    """Slots from entries, of the vocabularies whose counter says so."""
    launch(clear_tuned, max(place.mask + 1 for place in places), [sent], {}, len(places))
    launch(enter_tuned, max(place.entries for place in places), [sent], {}, len(places))


def observe(places: Sequence[VocabularyPlace], sent: Tensor, ordered: Tensor, evicted_share: int) -> Tensor:
    """A step of each vocabulary.

    Args:
        places: with the ids of the step; sent: the same on the device.
        ordered: [N] int64: each vocabulary's ids, ascending, one after another.
        evicted_share: a full vocabulary evicts at least one in so many of its rows.

    Returns:
        [N] int64: in each vocabulary's part the physical rows that got a new owner, ascending, then -1.
    """
    vocabularies, device = len(places), ordered.device
    most = max(place.brought for place in places)
    rows = max(place.capacity for place in places)
    waiting = torch.empty_like(ordered)
    due = torch.empty(len(ordered), dtype=torch.int32, device=device)
    given = torch.full_like(ordered, -1)
    expiring = max((place.capacity for place in places if place.max_age >= 0), default=0)
    launch(begin_tuned, expiring, [sent], {}, vocabularies)
    fill_slots(places, sent)
    launch(count_tuned, most, [sent, ordered, waiting, due, most.bit_length()], {}, vocabularies)
    ranks = due.cumsum(0)
    launch(plan_tuned, most, [sent, waiting, ranks], {"SHARE": evicted_share}, vocabularies)
    select = Selection(places, sent)
    blocks = triton.cdiv(rows, RELEASED)
    free = select.release(blocks)
    before = free.cumsum(1)
    free_rows_tuned(lambda _: (blocks, vocabularies), [sent, free, before, given, blocks], {"BLOCK": RELEASED})
    launch(give_tuned, most, [sent, ordered, waiting, ranks, given], {}, vocabularies)
    return given


class Selection:
    """The rows that are evicted and the ids that are forgotten in a step."""

    def __init__(self, places: Sequence[VocabularyPlace], sent: Tensor) -> None:
        self.places, self.sent = places, sent
        self.step_bits = max(place.step for place in places).bit_length()
        scores = range(0, COUNT_BITS + self.step_bits, DIGIT)
        passes = [(0, shift) for shift in reversed(scores)] + [(1, shift) for shift in reversed(range(0, 64, DIGIT))]
        self.last_shift, self.passes = passes[-1][1], len(passes)
        shape = (len(passes), 2 * len(places))
        self.counted = torch.zeros(*shape, 1 << DIGIT, dtype=torch.int32, device=sent.device)
        self.kept = torch.empty(*shape, 3, dtype=torch.int64, device=sent.device)
        self.constants = {"COUNT_BITS": COUNT_BITS, "BINS": 1 << DIGIT}
        programs = min(SELECTING, triton.cdiv(max(place.entries for place in places), 512))
        last = (0, 0)
        for number, (of_order, shift) in enumerate(passes):
            select_tuned(
                lambda _: (programs, 2 * len(places)),
                [sent, self.counted, self.kept, number, of_order, shift, *last, self.step_bits],
                self.constants,
            )
            last = (of_order, shift)

    def release(self, blocks: int) -> Tensor:
        """[T, blocks] int32: the rows that are free then, in each block of `RELEASED`, where a vocabulary gives any."""
        free = torch.empty(len(self.places), blocks, dtype=torch.int32, device=self.sent.device)
        beyond = max(place.entries - place.capacity for place in self.places)
        programs = blocks + triton.cdiv(beyond, RELEASED)
        release_tuned(
            lambda _: (programs, len(self.places)),
            [self.sent, self.counted, self.kept, free, self.passes, self.last_shift, self.step_bits, blocks],
            self.constants | {"BLOCK": RELEASED},
        )
        return free


def reset_rows(
    weight: Tensor,
    first: Tensor | None,
    second: Tensor | None,
    rows: Tensor,
    starts: Tensor,
    seeds: Tensor,
    numbers: Tensor,
    *,
    normal: bool,
) -> None:
    """Initial weights, and no optimizer state.

    Args:
        weight: float32 [R, D]; first: [R, D]; second: [R]; None: there is none, or elsewhere.
        rows: [K] int64, all below 0 after the last row.
        starts, seeds: [M] int64: first physical row of each logical table, and what its random numbers begin from.
        numbers: float64, as `reset_numbers`.
        normal: of the normal distribution; else uniform.
    """
    if len(rows):
        dim = weight.shape[1]
        width = min(64, max(16, triton.next_power_of_2(dim)))
        reset_tuned(
            lambda chosen: (triton.cdiv(len(rows), chosen["BLOCK"]), triton.cdiv(dim, width)),
            [weight, first, second, rows, starts, seeds, numbers, len(rows), dim, len(starts)],
            {"NORMAL": normal, "WIDTH": width},
        )


def reset_numbers(scale: float, device: torch.device) -> Tensor:
    """float64: what `reset_kernel` multiplies by, and the quantile's constants. (A kernel's own numbers would be float32.)"""
    return torch.tensor([scale, 2.0**-53, *QUANTILE], dtype=torch.float64).to(device)
