"""Is it a scaling law? y = a x^b + c fitted to runs of several seeds, with an interval of b, and whether it holds.

Least squares in y. At a given b the equation is linear in a and c, so only b is searched (variable projection: Golub and Pereyra, SIAM J.
Numer. Anal. 10, 1973, equation 3.1). It is searched in the form y = m + s (u^b - 1) / b with u = x over the geometric mean of x (Box and
Cox, 1964), which goes through b = 0, a logarithm, without a pole: a x^b + c is the same with a = s / (b g^b), c = m - s / b.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DECADES = 1.5
"""Of x, that a law is claimed over at least."""
SEEDS = 3
"""Of every point, for an interval."""
POINTS = 4
"""With different x, for three parameters."""
STEEPEST = 4.0
"""|b| is searched up to it: an exponent that wants to be larger describes a step."""
CHANCE = 0.01
"""Of a fit as good among shuffled points, above which it is called no better than a constant."""
GRID = 161
REFINEMENTS = 40
"""Golden sections of two steps of the grid: b to 1e-9."""
GOLDEN = (math.sqrt(5) - 1) / 2


class PowerLaw(NamedTuple):
    """y = a x^b + c."""

    a: float
    b: float
    c: float
    squares: float
    """Sum of squared residuals."""

    def at(self, x: Floats) -> Floats:
        """[N] -> [N]."""
        found: Floats = self.a * x**self.b + self.c
        return found


@dataclass(frozen=True)
class Verdict:
    """A fit and what may be said of it."""

    law: PowerLaw | None
    """None: fewer points than parameters can be fitted to."""
    interval: tuple[float, float] | None
    """95 % of b; None with too few seeds or points."""
    decades: float
    """log10 of the largest x over the smallest."""
    reasons: tuple[str, ...]
    """Why it is no law, in words; empty: it is one."""

    @property
    def holds(self) -> bool:
        """Whether it may be called a law."""
        return not self.reasons


def fit(x: Floats, y: Floats) -> PowerLaw:
    """The least squares fit of y = a x^b + c, |b| <= STEEPEST.

    Args:
        x, y: [N] float64, x > 0, with at least three different x.

    Raises:
        ValueError: fewer.
    """
    if len(np.unique(x)) < 3:
        raise ValueError("a, b and c take at least three different x")
    middle = float(np.log(x).mean())
    b = float(exponents(x, y[None])[0][0]) or 1e-12  # an exponent of exactly 0 has no a and c
    basis = np.expm1(b * (np.log(x) - middle)) / b
    deviation = basis - basis.mean()
    s = float(deviation @ (y - y.mean()) / (deviation @ deviation))
    m = float(y.mean() - s * basis.mean())
    return PowerLaw(s / (b * math.exp(b * middle)), b, m - s / b, float(((y - m - s * basis) ** 2).sum()))


def exponents(x: Floats, ys: Floats) -> tuple[Floats, Floats]:
    """Of the least squares fit of each row: [R] the exponent, and [R] the sum of squares about the mean that it explains.

    Args:
        x: [N].
        ys: [R, N].
    """
    centred = np.log(x) - np.log(x).mean()
    y = ys - ys.mean(1, keepdims=True)

    def explained(b: Floats) -> Floats:
        """[K, N]: of each exponent what the fit's part beside m points to, as a unit vector."""
        exponent = np.where(b == 0, 1e-12, b)[:, None]
        basis = np.expm1(exponent * centred) / exponent
        basis -= basis.mean(1, keepdims=True)
        unit: Floats = basis / np.linalg.norm(basis, axis=1, keepdims=True)
        return unit

    grid = np.linspace(-STEEPEST, STEEPEST, GRID)
    at = np.argmax((y @ explained(grid).T) ** 2, 1)
    low, high = grid[np.maximum(at - 1, 0)], grid[np.minimum(at + 1, GRID - 1)]
    for _ in range(REFINEMENTS):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        left_better = (y * explained(left)).sum(1) ** 2 >= (y * explained(right)).sum(1) ** 2
        low, high = np.where(left_better, low, left), np.where(left_better, right, high)
    middle: Floats = (low + high) / 2
    return middle, (y * explained(middle)).sum(1) ** 2


def judge(x: Sequence[float], runs: Sequence[Sequence[float]], *, replicates: int = 1_000, seed: int = 0) -> Verdict:
    """Fit the means over seeds, and say whether that is a law.

    It is none under 1.5 decades of x, where the interval of b includes 0 or b runs into its bound, or where more than a hundredth of
    permutations of each seed's runs among the points are fitted as well, as they are where y is a constant but for noise; nor with fewer
    than four points or three seeds.

    Args:
        x: of each point, positive.
        runs: of each point, y of each seed, in the order of seeds, finite.
        replicates: permutations, and replicates of the bootstrap over seeds. A point's seeds differ from its mean by draws from all points' deviations together (three
            of a point alone would be too few to draw from), stretched by sqrt(S / (S - 1)), which a mean of S seeds takes from them.

    Raises:
        ValueError: points have different numbers of seeds.
    """
    order = np.argsort(np.asarray(x, np.float64), kind="stable")
    points = np.asarray(x, np.float64)[order]
    own = [np.asarray(runs[i], np.float64) for i in order]
    decades = float(np.log10(points[-1] / points[0])) if len(points) else 0.0
    reasons = []
    if len(np.unique(points)) < POINTS:
        reasons.append(f"{len(np.unique(points))} points, three parameters; give at least {POINTS}")
    if decades < DECADES:
        reasons.append(f"x spans {decades:.2f} decades, a law takes {DECADES}")
    if len({len(each) for each in own}) > 1:
        raise ValueError("every point takes as many seeds")
    seeds = min(map(len, own), default=0)
    if seeds < SEEDS:
        reasons.append(f"{seeds} {'seed' if seeds == 1 else 'seeds'} a point, an interval takes {SEEDS}")
    if len(np.unique(points)) < 3:
        return Verdict(None, None, decades, tuple(reasons))
    means = np.array([each.mean() for each in own])
    law = fit(points, means)
    interval = None
    if seeds >= SEEDS and len(np.unique(points)) >= POINTS:
        interval = _interval(points, own, replicates, seed)
        if interval[0] <= 0 <= interval[1]:
            reasons.append(f"the interval of b, [{interval[0]:.2f}, {interval[1]:.2f}], includes 0")
    if abs(law.b) > 0.999 * STEEPEST:
        reasons.append(f"b runs into its bound of {math.copysign(STEEPEST, law.b):g}: a step, no power")
    if (chance := _chance(points, np.stack(own), replicates, seed)) > CHANCE:
        reasons.append(f"the fit is no better than a constant (p = {chance:.2g} by permutation)")
    return Verdict(law, interval, decades, tuple(reasons))


def _interval(x: Floats, runs: Sequence[Floats], replicates: int, seed: int) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    means = np.array([own.mean() for own in runs])
    pool = np.concatenate([math.sqrt(len(own) / (len(own) - 1)) * (own - own.mean()) for own in runs])
    noise = np.stack([pool[generator.integers(0, len(pool), (replicates, len(own)))].mean(1) for own in runs], 1)
    low, high = np.quantile(exponents(x, means + noise)[0], [0.025, 0.975])
    return float(low), float(high)


def _chance(x: Floats, runs: Floats, permutations: int, seed: int) -> float:
    """Share of permutations, the order as it is among them, whose means are fitted as well. Seeds are permuted each by itself: what a seed
    does to all of its runs alike stays with them.

    Args:
        runs: [N, S].
    """
    generator = np.random.default_rng(seed)
    shuffled = generator.permuted(np.broadcast_to(runs.T, (permutations, *runs.T.shape)), axis=2).mean(1)
    ys = np.concatenate([runs.mean(1)[None], shuffled])
    explained = exponents(x, ys)[1]
    left = ((ys - ys.mean(1, keepdims=True)) ** 2).sum(1) - explained
    # An exactly constant y leaves nothing to explain: its fit is as good as any.
    ratio = explained / np.maximum(left, np.finfo(float).tiny + 1e-12 * float((runs**2).sum()))
    return float((ratio >= ratio[0] * (1 - 1e-9)).mean())
