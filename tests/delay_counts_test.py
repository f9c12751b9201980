"""Delays counted by worker."""

from __future__ import annotations

import numpy as np

from asvrg import delays
from asvrg.types import Trace
from experiments import delay_counts


def test_counts_are_those_of_all_epochs_whatever_the_shapes():
    rng = np.random.default_rng(0)
    traces = [
        delays.uniform(50, 3, seed=1)._replace(worker=rng.integers(4, size=50)),
        delays.uniform(80, 9, seed=2)._replace(worker=rng.integers(2, size=80)),
        delays.none(20)._replace(worker=rng.integers(5, size=20)),
    ]
    counts = delay_counts.none()
    for trace in traces:
        counts = delay_counts.add(counts, trace)
    assert counts.shape == (5, 10)
    for worker in range(5):
        for tau in range(10):
            expected = sum(
                int(np.sum((trace.worker == worker) & (delays.staleness(trace) == tau)))
                for trace in traces
            )
            assert counts[worker, tau] == expected
    assert sum(updates for _, _, updates in delay_counts.lines(counts)) == 150


def test_who_took_over_samples_is_counted_under_the_first_number():
    trace = Trace(np.array([0, 1, 2, 4, 3, 7]), np.array([0, 0, 1, 1, 4, 5]))
    counts = delay_counts.add(delay_counts.none(), trace, num_workers=3)
    assert counts.tolist() == [[2, 0, 0], [1, 1, 1], [0, 1, 0]]


def test_a_distribution_is_that_of_the_delays_one_by_one():
    tau = np.random.default_rng(3).geometric(0.2, size=501)
    counts = np.bincount(tau, minlength=tau.max() + 9)
    found = delay_counts.describe(counts)
    assert found.updates == 501
    assert np.isclose(found.mean, tau.mean())
    assert found.median == np.quantile(tau, 0.5, method="inverted_cdf")
    assert found.percentile_95 == np.quantile(tau, 0.95, method="inverted_cdf")
    assert found.largest == tau.max()
