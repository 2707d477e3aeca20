"""Comparisons over seeds, as rliable makes them (arXiv 2108.13264), and what a number of seeds can show.

Scores are float64 [S], one for each seed. Intervals hold 95% and come from the percentile bootstrap over
seeds. They are too narrow for few seeds (`power` says by how much), so a claim needs an exact test besides.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from gigpo_mega.types import Float64

RESAMPLES = 10_000
LEVEL = 0.05  # of intervals and tests
_ENOUGH = 0.8  # probability with which a detectable difference is claimed
_LARGEST_EXACT = 16  # seeds: 2^16 sign patterns
_AT_ONCE = 64  # samples whose sums by all patterns are in memory: 32 MiB


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A variant minus the reference, seed by seed."""

    seeds: int
    mean: Interval
    deviation: float | None  # standard deviation (n - 1) of the differences; None for one seed
    p_value: float  # of the exact two-sided sign-flip test
    improvement: Interval  # probability that a run of the variant beats a run of the reference

    @property
    def clear(self) -> bool:
        """Whether it may be claimed: the interval is clear of 0 and the exact test agrees."""
        return (self.mean.low > 0 or self.mean.high < 0) and self.p_value <= LEVEL


@dataclass(frozen=True, slots=True)
class Power:
    """What a paired comparison can show if the differences of its seeds have the standard deviation."""

    seeds: int
    deviation: float
    detectable: float | None  # the least difference that is claimed with probability 0.8; None: none is
    false_claims: float  # share of claims, of either sign, if there is no difference
    interval_excludes_0: float  # the same by the bootstrap interval alone: 0.05 if it were exact


def mean_interval(scores: Float64) -> Interval:
    """The mean over seeds."""
    low, high = _mean_bounds(scores, RESAMPLES)
    return Interval(float(scores.mean()), float(low), float(high))


def compare(variant: Float64, reference: Float64) -> Difference:
    """Scores of `variant` and `reference` [S], aligned by seed.

    The mean difference is resampled by seed, both scores of a seed together (paired); for the probability
    of improvement the runs of each are resampled on their own, as rliable does.
    """
    differences = variant - reference
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else None
    return Difference(
        len(differences),
        mean_interval(differences),
        spread,
        sign_flip_test(differences),
        improvement_interval(variant, reference),
    )


def probability_of_improvement(variant: Float64, reference: Float64) -> float:
    """P(X > Y) = 1 / (N M) sum_i sum_j S(x_i, y_j); S is 1 if x > y, 1/2 if x = y, else 0 (Mann-Whitney)."""
    return float(_wins(variant[:, None], reference[None, :]).mean())


def improvement_interval(variant: Float64, reference: Float64) -> Interval:
    """The probability of improvement."""
    rng = np.random.default_rng(0)
    x = variant[rng.integers(len(variant), size=(RESAMPLES, len(variant)))]
    y = reference[rng.integers(len(reference), size=(RESAMPLES, len(reference)))]
    low, high = _bounds(_wins(x[:, :, None], y[:, None, :]).mean(axis=(1, 2)))
    return Interval(probability_of_improvement(variant, reference), float(low), float(high))


def sign_flip_test(differences: Float64) -> float:
    """The two-sided p-value of the exact paired permutation test.

    It is the share of all 2^S choices of signs for which the mean of `differences` [S] is at least as far
    from 0 as it is; above 16 seeds of 65,536 random choices.
    """
    return float(_sign_flips(differences[None, :], _signs(len(differences)))[0])


def power(deviation: float, seeds: int, simulations: int = 2000) -> Power:
    """Analyze simulated differences, normal with the standard deviation `deviation`, as those of runs."""
    noise = np.random.default_rng(1).normal(scale=deviation, size=(simulations, seeds))
    low, high = _mean_bounds(noise.T, 1000, seed=2)
    signs = _signs(seeds)

    def claims(shift: float) -> float:
        return float(np.mean((low + shift > 0) & (_sign_flips(noise + shift, signs) <= LEVEL)))

    grid = np.linspace(0, 6 * deviation, 121).tolist()
    enough = bisect_left(grid, _ENOUGH, key=claims)  # a larger difference is claimed more often
    excludes = (low > 0) | (high < 0)
    false_claims = np.mean(excludes & (_sign_flips(noise, signs) <= LEVEL))
    detectable = grid[enough] if enough < len(grid) else None
    return Power(seeds, deviation, detectable, float(false_claims), float(np.mean(excludes)))


def band(curves: Float64) -> tuple[Float64, Float64, Float64]:
    """Mean of `curves` [S, T] over seeds, and the ends of its interval, [T] each."""
    low, high = _mean_bounds(curves, RESAMPLES // 5)
    return curves.mean(axis=0), low, high


def _mean_bounds(scores: Float64, resamples: int, seed: int = 0) -> Float64:
    """The ends of the interval of the mean over seeds of `scores` [S, ...], [2, ...]."""
    picks = np.random.default_rng(seed).integers(len(scores), size=(resamples, len(scores)))
    return _bounds(scores[picks].mean(axis=1))


def _bounds(samples: Float64) -> Float64:
    """The ends of the interval of `samples` [R, ...] of a statistic, [2, ...]."""
    return np.percentile(samples, [100 * LEVEL / 2, 100 - 100 * LEVEL / 2], axis=0)


def _signs(seeds: int) -> Float64:
    if seeds <= _LARGEST_EXACT:
        return np.array(list(product((1.0, -1.0), repeat=seeds)))
    drawn = np.random.default_rng(0).choice((1.0, -1.0), size=(2**_LARGEST_EXACT, seeds))
    drawn[0] = 1.0  # what was observed is one of the choices
    return drawn


def _sign_flips(samples: Float64, signs: Float64) -> Float64:
    """The p-value of every row of `samples` [K, S], by all rows of `signs`."""
    observed = np.abs(samples.sum(axis=1)) - 1e-12 * np.abs(samples).sum(axis=1)
    some = range(0, len(samples), _AT_ONCE)
    parts = [np.abs(samples[i : i + _AT_ONCE] @ signs.T) >= observed[i : i + _AT_ONCE, None] for i in some]
    return np.concatenate([part.mean(axis=1) for part in parts])


def _wins(x: Float64, y: Float64) -> Float64:
    return (x > y) + 0.5 * (x == y)


def deviation(scores: Sequence[float]) -> float | None:
    """The standard deviation (n - 1), None of fewer than two."""
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else None
