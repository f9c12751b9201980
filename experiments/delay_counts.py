"""How stale the gradients of a run were: its updates counted by worker and delay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from asvrg import delays
from asvrg.types import Trace


class Distribution(NamedTuple):
    """Of the delays of some updates, in updates."""

    updates: int
    mean: float
    median: int
    percentile_95: int
    largest: int


def none() -> np.ndarray:
    """The counts before the first update."""
    return np.zeros((0, 0), np.int64)


def add(counts: np.ndarray, trace: Trace, num_workers: int | None = None) -> np.ndarray:
    """The counts with the updates of one more epoch.

    Args:
      counts: int64 [K, T], how many updates of worker k had delay tau.
      trace: of the epoch.
      num_workers: K: worker k goes by the numbers k + K, k + 2 K, ... after it took over samples of
        a dead one, and is counted as k; None for workers that keep their numbers.

    Returns:
      int64 [K', T'] of at least the shape of `counts`.

    >>> trace = Trace(np.array([0, 1, 2]), np.array([0, 0, 1]))
    >>> add(none(), trace).tolist()
    [[1, 0], [0, 1], [0, 1]]
    >>> add(none(), trace, num_workers=2).tolist()
    [[1, 1], [0, 1]]
    """
    tau = delays.staleness(trace)
    worker = np.asarray(trace.worker)
    if num_workers is not None:
        worker = worker % num_workers
    rows = max(len(counts), num_workers or 0, 1 + int(worker.max(initial=-1)))
    columns = max(counts.shape[1], 1 + int(tau.max(initial=-1)))
    total = np.zeros((rows, columns), np.int64)
    total[: counts.shape[0], : counts.shape[1]] = counts
    np.add.at(total, (worker, tau), 1)
    return total


def describe(counts: np.ndarray) -> Distribution:
    """What is said about the delays of one worker, or of all.

    Args:
      counts: int64 [T], how many updates had delay tau; at least one had one.

    Returns:
      A Distribution; its quantiles are the smallest delays that so many updates do not exceed.

    >>> describe(np.array([4, 0, 15, 1]))
    Distribution(updates=20, mean=1.65, median=2, percentile_95=2, largest=3)
    """
    updates = int(counts.sum())
    median, most = np.searchsorted(counts.cumsum(), [0.5 * updates, 0.95 * updates])
    mean = float(counts @ np.arange(counts.size)) / updates
    return Distribution(updates, mean, int(median), int(most), int(np.flatnonzero(counts)[-1]))


def lines(counts: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """What is not 0 among the counts [K, T], as (worker, delay, updates).

    >>> list(lines(np.array([[3, 0], [0, 2]])))
    [(0, 0, 3), (1, 1, 2)]
    """
    for worker, delay in zip(*np.nonzero(counts), strict=True):
        yield int(worker), int(delay), int(counts[worker, delay])
