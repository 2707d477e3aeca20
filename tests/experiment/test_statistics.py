"""The statistics of experiments against brute force: enumeration, loops, and simulated runs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from gigpo_mega.experiment.statistics import (
    band,
    compare,
    improvement_interval,
    mean_interval,
    power,
    probability_of_improvement,
    sign_flip_test,
)

ANY = np.array([0.61, 0.55, 0.58, 0.64, 0.49])
OTHER = np.array([0.57, 0.56, 0.51, 0.58, 0.49])


def test_the_interval_is_that_of_all_resamples():
    """With 5 seeds there are 3,125 resamples: their percentiles are the exact bootstrap interval."""
    every = np.sort([ANY[list(picks)].mean() for picks in product(range(5), repeat=5)])
    found = mean_interval(ANY)
    assert found.value == pytest.approx(ANY.mean())
    assert found.low == pytest.approx(np.quantile(every, 0.025), abs=2e-3)
    assert found.high == pytest.approx(np.quantile(every, 0.975), abs=2e-3)


def test_the_difference_is_paired():
    """A spread that both share, such as that of tasks and cold starts, does not widen the interval."""
    shared = np.array([0.0, 0.2, 0.4, 0.1, 0.3])
    apart, together = compare(ANY, OTHER), compare(ANY + shared, OTHER + shared)
    assert together.mean.value == pytest.approx(apart.mean.value)
    assert (together.mean.low, together.mean.high) == pytest.approx((apart.mean.low, apart.mean.high))
    assert together.deviation == pytest.approx(np.std(ANY - OTHER, ddof=1))
    assert together.improvement.value != apart.improvement.value  # it is of runs, not of pairs


def test_the_probability_of_improvement_counts_pairs_and_halves_ties():
    pairs = [(x > y) + 0.5 * (x == y) for x in ANY for y in OTHER]
    assert probability_of_improvement(ANY, OTHER) == pytest.approx(sum(pairs) / 25)
    assert probability_of_improvement(OTHER, ANY) == pytest.approx(1 - sum(pairs) / 25)
    assert probability_of_improvement(ANY, ANY) == 0.5
    assert improvement_interval(ANY + 1, OTHER).low == 1.0


def test_the_interval_of_improvement_is_that_of_all_resamples():
    x, y = ANY[:3], OTHER[:3]
    every = [
        np.mean([(a > b) + 0.5 * (a == b) for a in x[list(i)] for b in y[list(j)]])
        for i in product(range(3), repeat=3)
        for j in product(range(3), repeat=3)
    ]
    found = improvement_interval(x, y)
    assert found.low == pytest.approx(np.quantile(every, 0.025), abs=0.06)
    assert found.high == pytest.approx(np.quantile(every, 0.975), abs=0.06)


@pytest.mark.parametrize("shift", [0.0, 0.02, -0.04, 0.2])
def test_the_sign_flip_test_counts_all_choices(shift: float):
    differences = ANY - OTHER + shift
    choices = [np.mean(differences * np.array(signs)) for signs in product((1, -1), repeat=5)]
    expected = np.mean([abs(mean) >= abs(differences.mean()) - 1e-12 for mean in choices])
    assert sign_flip_test(differences) == pytest.approx(expected)


def test_five_seeds_cannot_be_claimed_and_six_can():
    """The least two-sided p-value of n seeds is 2 / 2^n."""
    for seeds, p_value, clear in ((5, 0.0625, False), (6, 0.03125, True)):
        found = compare(np.linspace(0.8, 0.9, seeds), np.linspace(0.1, 0.2, seeds))
        assert found.mean.low > 0
        assert found.p_value == pytest.approx(p_value)
        assert found.clear is clear


def test_an_interval_clear_of_0_is_not_enough():
    differences = np.array([0.06, 0.05, 0.04, 0.02, 0.001, -0.01])
    found = compare(differences, np.zeros(6))
    assert found.mean.low > 0
    assert found.p_value > 0.05
    assert not found.clear


def test_one_seed_has_no_spread_and_claims_nothing():
    found = compare(np.array([0.7]), np.array([0.5]))
    assert (found.seeds, found.deviation, found.clear) == (1, None, False)


def test_power_is_how_often_the_analysis_claims():
    told = power(3.0, 8)
    rng, claims, false = np.random.default_rng(7), 0, 0
    assert told.detectable is not None
    for _ in range(200):
        noise = rng.normal(scale=3.0, size=8)
        claims += compare(noise + told.detectable, np.zeros(8)).clear
        false += compare(noise, np.zeros(8)).clear
    assert claims / 200 == pytest.approx(0.8, abs=0.09)  # 3 standard errors
    assert false / 200 == pytest.approx(told.false_claims, abs=0.045)
    assert told.interval_excludes_0 > 2 * told.false_claims  # why the exact test is asked, too


@pytest.mark.parametrize(
    ("seeds", "detectable", "false", "bootstrap"), [(8, 1.2, 0.044, 0.117), (12, 0.95, 0.054, 0.098)]
)
def test_the_power_that_the_protocol_states(seeds: int, detectable: float, false: float, bootstrap: float):
    told = power(1.0, seeds)
    assert told.detectable == pytest.approx(detectable, abs=0.051)  # a step of the grid
    assert told.false_claims == pytest.approx(false, abs=0.005)
    assert told.interval_excludes_0 == pytest.approx(bootstrap, abs=0.005)


def test_power_grows_with_seeds_and_shrinks_with_spread():
    assert power(3.0, 5).detectable is None
    eight, ten, noisy = power(3.0, 8, 500), power(3.0, 10, 500), power(6.0, 8, 500)
    assert eight.detectable is not None
    assert ten.detectable is not None
    assert ten.detectable < eight.detectable
    assert noisy.detectable == pytest.approx(2 * eight.detectable)


def test_a_band_is_the_interval_of_every_iteration():
    curves = np.stack([ANY, OTHER], axis=1)
    mean, low, high = band(curves)
    assert mean == pytest.approx([ANY.mean(), OTHER.mean()])
    expected = mean_interval(ANY)
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=4e-3)
