"""How long something takes, as a distribution: what the virtual clock draws its seconds from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from asvrg.errors import INT32, InputError, check_count, check_kind, check_real, check_reals
from asvrg.types import Array

_MOST = 1e100  # whose square is a float


class Duration(NamedTuple):
    """A distribution of seconds; the functions below make them.

    Attributes:
      mean: in seconds.
      draw: (generator, count) -> float [count], independent draws, in seconds.
    """

    mean: float
    draw: Callable[[np.random.Generator, int], np.ndarray]


def constant(seconds: float) -> Duration:
    """Always the same.

    Args:
      seconds: at least 0.

    Returns:
      A Duration.

    Raises:
      InputError: it is negative, or no finite number.

    >>> constant(0.5).draw(np.random.default_rng(0), 2).tolist()
    [0.5, 0.5]
    """
    value = check_real("seconds", seconds)
    return Duration(value, lambda rng, count: np.full(count, value))


def exponential(mean: float) -> Duration:
    """Exponentially distributed: P(T > t) = exp(-t / mean).

    Args:
      mean: in seconds, at least 0.

    Returns:
      A Duration.

    Raises:
      InputError: it is negative, or no finite number.

    >>> wait = exponential(0.5)
    >>> wait.mean, wait.draw(np.random.default_rng(0), 3).shape
    (0.5, (3,))
    """
    scale = check_real("mean", mean)
    return Duration(scale, lambda rng, count: rng.exponential(scale, count))


def log_normal(mean: float, variation: float) -> Duration:
    """Log-normally distributed.

    Args:
      mean: in seconds, above 0.
      variation: standard deviation / mean, at least 0, at most 1e100.

    Returns:
      A Duration.

    Raises:
      InputError: an argument is out of its range.

    >>> seconds = log_normal(2.0, 0.5).draw(np.random.default_rng(0), 100_000)
    >>> round(float(seconds.mean()), 1), round(float(seconds.std() / seconds.mean()), 1)
    (2.0, 0.5)
    """
    check_real("mean", mean, above=True)
    sigma = math.sqrt(math.log1p(check_real("variation", variation, most=_MOST) ** 2))
    mu = math.log(mean) - sigma**2 / 2
    return Duration(float(mean), lambda rng, count: rng.lognormal(mu, sigma, count))


def measured(seconds: Array) -> Duration:
    """Draws with replacement from what was measured; how one followed another is forgotten.

    Args:
      seconds: float [j], j >= 1, at least 0 each; `trace.times.computed - trace.times.read`, say.

    Returns:
      A Duration.

    Raises:
      InputError: there are none, or one is negative or no finite number.

    >>> measured([1.0, 3.0]).mean
    2.0
    """
    values = check_reals("every entry of seconds", seconds)
    if values.ndim != 1 or not len(values):
        raise InputError(
            "seconds must be an array [j] of at least one finite number of at least 0, got shape "
            f"{values.shape}."
        )
    return Duration(float(values.mean()), lambda rng, count: rng.choice(values, count))


def scaled(usual: Duration, factor: float) -> Duration:
    """Always `factor` times as long.

    Args:
      usual: the Duration otherwise.
      factor: above 0.

    Returns:
      A Duration.

    Raises:
      InputError: the factor is out of its range.

    >>> scaled(constant(2.0), 1.5).mean
    3.0
    """
    check_kind("usual", usual, Duration)
    times = check_real("factor", factor, above=True)
    return Duration(usual.mean * times, lambda rng, count: times * usual.draw(rng, count))


def stragglers(usual: Duration, share: float, factor: float) -> Duration:
    """Now and then, whoever the worker is, it takes `factor` times as long.

    Args:
      usual: the Duration otherwise.
      share: the probability, in [0, 1].
      factor: at least 1.

    Returns:
      A Duration.

    Raises:
      InputError: an argument is out of its range.

    >>> round(stragglers(constant(1.0), 0.1, 11.0).mean, 9)
    2.0
    """
    check_kind("usual", usual, Duration)
    _check_straggling(share, factor)

    def draw(rng: np.random.Generator, count: int) -> np.ndarray:
        return usual.draw(rng, count) * np.where(rng.random(count) < share, factor, 1.0)

    return Duration(usual.mean * (1 + share * (factor - 1)), draw)


def slow_workers(num_workers: int, share: float, factor: float) -> np.ndarray:
    """The last ones of the workers are slow, all the time.

    Args:
      num_workers: K.
      share: of the workers that are slow, in [0, 1]; rounded to whole workers.
      factor: by which they are slower, at least 1.

    Returns:
      float64 [K], the `slowness` of `delays.event_driven`.

    Raises:
      InputError: an argument is out of its range.

    >>> slow_workers(4, 0.25, 10.0).tolist()
    [1.0, 1.0, 1.0, 10.0]
    """
    check_count("num_workers", num_workers, limit=INT32)
    _check_straggling(share, factor)
    slow = np.arange(num_workers) >= num_workers - round(share * num_workers)
    return np.where(slow, float(factor), 1.0)


def _check_straggling(share: float, factor: float) -> None:
    if check_real("share", share) > 1:
        raise InputError(f"share must be a number from 0 to 1, got {share!r}.")
    check_real("factor", factor, least=1.0)
