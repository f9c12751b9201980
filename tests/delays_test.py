"""Traces, and what they say about staleness, against the definition of `Trace`, word by word."""

from __future__ import annotations

import numpy as np
import pytest

from asvrg import delays
from asvrg.errors import InputError
from asvrg.types import Shard, Times, Trace


def lacking(trace: Trace, t: int, group: int) -> set[int]:
    """J(t): the landed updates that x_hat_t lacks in a group of coordinates."""
    version = np.asarray(trace.read_version).reshape(len(trace.worker), -1)[t, group]
    return {
        j for j in range(version, t) if not (trace.sees_own and trace.worker[j] == trace.worker[t])
    }


def random_trace(seed: int, *, num_groups: int, sees_own: bool) -> Trace:
    """Any trace that `check` accepts; runs of one worker are likely, as windows make them."""
    rng = np.random.default_rng(seed)
    num_updates = int(rng.integers(1, 40))
    worker = np.repeat(rng.integers(3, size=num_updates), rng.integers(1, 4))[:num_updates]
    version = rng.integers(0, np.arange(num_updates)[:, None] + 1, (num_updates, num_groups))
    if rng.random() < 0.5:
        version = np.maximum(version, np.arange(num_updates)[:, None] - 4)
    return Trace(
        worker.astype(np.int32),
        (version if num_groups > 1 else version[:, 0]).astype(np.int32),
        sees_own,
    )


@pytest.mark.parametrize("sees_own", [False, True])
@pytest.mark.parametrize("num_groups", [1, 3])
def test_staleness_and_missing_are_the_definition(num_groups: int, sees_own: bool) -> None:
    for seed in range(100):
        trace = random_trace(seed, num_groups=num_groups, sees_own=sees_own)
        delays.check(trace)
        m = len(trace.worker)
        lacks = [[lacking(trace, t, g) for g in range(num_groups)] for t in range(m)]
        expected = [max(t - min(j, default=t) for j in lacks[t]) for t in range(m)]
        staleness = delays.staleness(trace)
        np.testing.assert_array_equal(staleness, expected)
        depth, start = int(staleness.max()) + seed % 2, seed % m
        mask = delays.missing(trace, start, m, depth)
        assert mask.shape == (m - start, depth, num_groups)
        for t in range(start, m):
            for g in range(num_groups):
                found = {t - 1 - i for i in range(depth) if mask[t - start, i, g]}
                assert found == lacks[t][g], (seed, t, g)


def test_staleness_by_hand() -> None:
    """Two workers, windows of 2: update 2 lacks 0 and 1, update 4 lacks 2 and 3."""
    trace = Trace(np.array([0, 0, 1, 1, 0, 0]), np.array([0, 0, 0, 0, 2, 2]), sees_own=True)
    assert delays.staleness(trace).tolist() == [0, 0, 2, 3, 2, 3]
    assert delays.staleness(trace._replace(sees_own=False)).tolist() == [0, 1, 2, 3, 2, 3]


def test_an_empty_trace_has_no_staleness() -> None:
    assert len(delays.staleness(Trace(np.zeros(0, np.int32), np.zeros(0, np.int32), True))) == 0


def test_makers_of_traces() -> None:
    assert delays.staleness(delays.none(6)).tolist() == [0] * 6
    assert delays.staleness(delays.constant(6, 2)).tolist() == [0, 1, 2, 2, 2, 2]
    robin = delays.round_robin(7, 3)
    assert robin.worker.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert delays.staleness(robin).tolist() == [0, 1, 2, 2, 2, 2, 2]
    for trace in (delays.none(6), delays.constant(6, 2), robin):
        delays.check(trace)
        assert trace.worker.dtype == trace.read_version.dtype == np.int32


@pytest.mark.parametrize("num_groups", [1, 4])
def test_uniform_delays_take_every_value_up_to_the_largest(num_groups: int) -> None:
    trace = delays.uniform(4_000, 3, seed=0, num_groups=num_groups)
    delays.check(trace)
    version = trace.read_version.reshape(4_000, num_groups)
    delay = np.arange(4_000)[:, None] - version
    shares = np.bincount(delay[3:].ravel(), minlength=4) / delay[3:].size
    np.testing.assert_allclose(shares, 0.25, atol=0.03)
    assert trace.read_version.ndim == (1 if num_groups == 1 else 2)
    assert num_groups == 1 or np.any(version[:, 0] != version[:, 1])
    again = delays.uniform(4_000, 3, seed=0, num_groups=num_groups)
    other = delays.uniform(4_000, 3, seed=1, num_groups=num_groups)
    np.testing.assert_array_equal(trace.read_version, again.read_version)
    assert np.any(trace.read_version != other.read_version)


@pytest.mark.parametrize(("dim", "num_groups"), [(10, 3), (7, 7), (5, 1), (1_000, 64)])
def test_groups_are_contiguous_and_of_nearly_equal_size(dim: int, num_groups: int) -> None:
    groups = delays.contiguous_groups(dim, num_groups)
    sizes = np.bincount(groups, minlength=num_groups)
    assert np.all(np.diff(groups) >= 0)
    assert len(sizes) == num_groups
    assert sizes.min() >= 1
    assert np.ptp(sizes) <= 1


@pytest.mark.parametrize(
    ("worker", "version", "sentence"),
    [
        ([0, 0], [0], r"shapes \(2,\) and \(1,\)"),
        ([[0, 0]], [0], "trace must have worker"),
        ([0], [[[0]]], "trace must have worker"),
        ([0, -1], [0, 0], "worker must hold numbers of at least 0"),
        ([0, 0], [0, 2], "between 0 and the update's own index, got 2"),
        ([0, 0], [0, -1], "between 0 and the update's own index, got -1"),
        ([0, 0], [[0, 0], [1, 2]], "between 0 and the update's own index, got 2"),
    ],
)
def test_malformed_traces_are_refused(worker, version, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        delays.check(Trace(np.array(worker), np.array(version)))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"worker": np.zeros(3)}, "must hold whole numbers, got dtypes float64"),
        ({"read_version": np.array([0, 0.5, 1])}, "must hold whole numbers"),
        (
            {"scale": np.ones(2)},
            r"trace.scale must have a number for each of the 3 .* shape \(2,\)",
        ),
        ({"scale": np.ones((3, 1))}, r"trace.scale must have .* shape \(3, 1\)"),
        ({"scale": np.array([1, np.nan, 1])}, "trace.scale must hold finite numbers"),
        ({"scale": np.array([1, -1.0, 1])}, "trace.scale must hold finite numbers of at least 0"),
        (
            {"times": Times(np.zeros(3), np.zeros(4), np.zeros(3))},
            r"trace.times.computed must have a number for each of the 3 .* shape \(4,\)",
        ),
        ({"shards": (Shard(np.arange(2), 1.0),)}, "one for every worker, got 1 and worker 1"),
    ],
)
def test_traces_with_fields_that_do_not_fit_are_refused(changed: dict, sentence: str) -> None:
    trace = delays.round_robin(3, 2)
    delays.check(trace)
    with pytest.raises(InputError, match=sentence):
        delays.check(trace._replace(**changed))


def test_a_prefix_has_the_first_of_everything() -> None:
    times = Times(np.arange(5.0), np.arange(5.0) + 1, np.arange(5.0) + 2)
    trace = delays.adaptive(delays.constant(5, 3), 1)._replace(times=times)
    part = delays.prefix(trace, 3)
    delays.check(part)
    assert part.read_version.tolist() == [0, 0, 0]
    assert part.scale is not None
    assert part.scale.tolist() == [1, 1, 0.5]
    assert part.times is not None
    assert part.times.landed.tolist() == [2, 3, 4]
    delays.check(delays.prefix(trace, 0))
    with pytest.raises(InputError, match="count must be a whole number from 0 to 5, got 6"):
        delays.prefix(trace, 6)


def test_adaptive_steps_are_whole_up_to_the_concurrency() -> None:
    """Eta C / tau from there on: 3 / 4, 3 / 6 and 3 / 9."""
    scale = delays.adaptive_scale(np.array([0, 2, 3, 4, 6, 9]), 3)
    np.testing.assert_allclose(scale, [1, 1, 1, 0.75, 0.5, 1 / 3], rtol=1e-15)
    with pytest.raises(InputError, match="concurrency must be a whole number of at least 1, got 0"):
        delays.adaptive(delays.none(3), 0)


def test_lag_counts_a_workers_own_updates_too() -> None:
    trace = Trace(np.array([0, 0, 1, 0]), np.array([0, 0, 1, 3]), sees_own=True)
    assert delays.lag(trace).tolist() == [0, 1, 1, 0]
    assert delays.staleness(trace).tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: delays.none(0), "num_updates must be a whole number of at least 1"),
        (lambda: delays.constant(5, -1), "delay must be a whole number of at least 0"),
        (lambda: delays.uniform(5, 1.5, seed=0), "max_delay must be a whole number"),
        (lambda: delays.uniform(5, 1, seed=-1), "seed must be a whole number of at least 0"),
        (lambda: delays.uniform(5, 1, seed=0, num_groups=0), "num_groups must be a whole number"),
        (lambda: delays.round_robin(5, 0), "num_workers must be a whole number of at least 1"),
        (lambda: delays.contiguous_groups(5, 6), "num_groups must be a whole number from 1 to 5"),
    ],
)
def test_bad_arguments_are_refused(make, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make()
