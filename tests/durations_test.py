"""Distributions of seconds, against their moments and their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from asvrg import durations
from asvrg.errors import InputError

COUNT = 100_000


def draw(duration: durations.Duration) -> np.ndarray:
    return duration.draw(np.random.default_rng(3), COUNT)


@pytest.mark.parametrize(
    ("duration", "mean", "deviation"),
    [
        (durations.constant(0.3), 0.3, 0.0),
        (durations.exponential(0.3), 0.3, 0.3),
        (durations.log_normal(0.3, 0.5), 0.3, 0.15),
        (durations.measured([0.1, 0.1, 0.4]), 0.2, math.sqrt(0.02)),
        (durations.scaled(durations.exponential(0.3), 2.0), 0.6, 0.6),
        # Half of the square of 1, half of that of 3, less the mean's square.
        (durations.stragglers(durations.constant(1.0), 0.5, 3.0), 2.0, 1.0),
        (durations.stragglers(durations.exponential(0.3), 0.1, 11.0), 0.6, None),
    ],
)
def test_moments(duration, mean, deviation) -> None:
    seconds = draw(duration)
    assert duration.mean == pytest.approx(mean)
    error = seconds.std() / math.sqrt(COUNT)
    assert seconds.mean() == pytest.approx(mean, abs=5 * error + 1e-12)
    if deviation is not None:
        assert seconds.std() == pytest.approx(deviation, rel=0.03, abs=1e-12)


@pytest.mark.parametrize(
    ("duration", "reference"),
    [
        (durations.exponential(0.3), scipy.stats.expon(scale=0.3)),
        (
            durations.log_normal(0.3, 0.5),
            scipy.stats.lognorm(s=math.sqrt(math.log(1.25)), scale=0.3 / math.sqrt(1.25)),
        ),
    ],
)
def test_the_whole_distribution(duration, reference) -> None:
    assert scipy.stats.kstest(draw(duration), reference.cdf).pvalue > 0.01


def test_measured_times_are_drawn_equally_often() -> None:
    values, counts = np.unique(draw(durations.measured([0.1, 0.2, 0.7, 0.7])), return_counts=True)
    assert values.tolist() == [0.1, 0.2, 0.7]
    np.testing.assert_allclose(counts / COUNT, [0.25, 0.25, 0.5], atol=0.01)


def test_slow_workers() -> None:
    assert durations.slow_workers(5, 0.4, 3.0).tolist() == [1, 1, 1, 3, 3]
    assert durations.slow_workers(5, 0.0, 3.0).tolist() == [1] * 5
    assert durations.slow_workers(5, 1.0, 3.0).tolist() == [3] * 5


USUAL = durations.constant(1.0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: durations.constant(-1.0), "seconds must be a finite number of at least 0"),
        (lambda: durations.exponential(math.inf), "mean must be a finite number"),
        (lambda: durations.log_normal(0.0, 1.0), "mean must be a finite number above 0"),
        (lambda: durations.log_normal(1.0, -1.0), "variation must be a finite number"),
        (lambda: durations.measured([]), "seconds must be an array"),
        (lambda: durations.measured([[1.0]]), "seconds must be an array"),
        (lambda: durations.measured([1.0, -1.0]), "of seconds must be a finite number of at"),
        (lambda: durations.measured([1.0, math.nan]), "of seconds must be a finite number"),
        (lambda: durations.measured([1.0, math.inf]), "of seconds must be a finite number"),
        (lambda: durations.stragglers(USUAL, 1.5, 2.0), "share must be a number from 0 to 1"),
        (lambda: durations.stragglers(USUAL, -0.5, 2.0), "share must be a finite number"),
        (lambda: durations.stragglers(USUAL, 0.5, 0.5), "factor must be a finite number of at"),
        (lambda: durations.scaled(USUAL, 0.0), "factor must be a finite number above 0"),
        (lambda: durations.slow_workers(0, 0.5, 2.0), "num_workers must be a whole number"),
        (lambda: durations.slow_workers(3, 2.0, 2.0), "share must be a number from 0 to 1"),
    ],
)
def test_bad_arguments_are_refused(make, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make()
