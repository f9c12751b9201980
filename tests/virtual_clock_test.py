"""The virtual clock against times by hand, closed forms of queueing theory, and the simulator."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asvrg import delays, estimators, sampling, virtual_clock
from asvrg.drivers import simulate
from asvrg.durations import Duration, constant, exponential, log_normal, measured, stragglers
from asvrg.errors import InputError
from asvrg.types import Trace
from asvrg.virtual_clock import Cluster, Network, event_driven
from tests import problems


def shares(trace: Trace) -> np.ndarray:
    return np.bincount(trace.worker) / len(trace.worker)


def times(trace: Trace) -> list[list[float]]:
    assert trace.times is not None
    return [each.tolist() for each in trace.times]


def speed(cluster: Cluster, num_workers: int, num_updates: int = 40_000, seed: int = 5) -> float:
    return virtual_clock.updates_per_second(
        event_driven(num_updates, num_workers, cluster, seed=seed)
    )


# By hand.


def test_equal_constant_times_are_round_robin() -> None:
    trace = event_driven(11, 3, Cluster(constant(2.0), constant(0.0)), seed=0)
    robin = delays.round_robin(11, 3)
    np.testing.assert_array_equal(trace.worker, robin.worker)
    np.testing.assert_array_equal(trace.read_version, robin.read_version)
    assert times(trace)[2] == [2.0] * 3 + [4.0] * 3 + [6.0] * 3 + [8.0] * 2
    assert not trace.sees_own


def test_a_saturated_owner_by_hand() -> None:
    """Three workers, 1 s of computing, 2 s of service: the owner never idles."""
    trace = event_driven(7, 3, Cluster(constant(1.0), constant(2.0)), seed=0)
    assert trace.worker.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert trace.read_version.tolist() == [0, 0, 0, 1, 2, 3, 4]
    read, computed, landed = times(trace)
    assert landed == [3, 5, 7, 9, 11, 13, 15]
    assert computed == [1, 1, 1, 4, 6, 8, 10]
    assert read == [0, 0, 0, 3, 5, 7, 9]


def test_windows_by_hand() -> None:
    """Windows of 2, 5 updates: the third window has one, and takes half of the time."""
    trace = event_driven(5, 2, Cluster(constant(4.0), constant(2.0), updates_per_read=2), seed=0)
    assert trace.sees_own
    # Worker 0 lands at 6 and takes the short window: 2 s of computing, 1 s of service after 8.
    assert trace.worker.tolist() == [0, 0, 1, 1, 0]
    assert trace.read_version.tolist() == [0, 0, 0, 0, 2]
    read, computed, landed = times(trace)
    assert (read, computed) == ([0, 0, 0, 0, 6], [4, 4, 4, 4, 8])
    assert landed == [6, 6, 8, 8, 9]
    assert delays.staleness(trace).tolist() == [0, 0, 2, 3, 2]


def test_a_short_window_may_land_before_others() -> None:
    trace = event_driven(3, 2, Cluster(constant(4.0), constant(0.0), updates_per_read=2), seed=0)
    assert trace.worker.tolist() == [1, 0, 0]
    assert trace.read_version.tolist() == [0, 0, 0]
    assert times(trace)[2] == [2.0, 4.0, 4.0]


def test_messages_by_hand() -> None:
    """Every x takes 2 s of the server's link, then 1 s; an update 1 s, and 3 s of it."""
    network = Network(latency=1.0, bandwidth=10.0, bytes_up=30, bytes_down=20)
    cluster = Cluster(constant(5.0), constant(1.0), network)
    one = event_driven(2, 1, cluster, seed=0)
    assert times(one) == [[0, 13], [12, 25], [13, 26]]  # 2 + 1 + 5 + 1 + 3, then 1
    two = event_driven(3, 2, cluster, seed=0)
    # The second x leaves at 4, its update reaches the link at 11, waits until 12, is through at 15.
    assert times(two) == [[0, 0, 13], [12, 15, 25], [13, 16, 26]]
    own = event_driven(3, 2, cluster._replace(network=network._replace(shared=False)), seed=0)
    assert times(own) == [[0, 0, 13], [12, 12, 25], [13, 14, 26]]
    assert virtual_clock.cycle(cluster) == 13.0
    assert virtual_clock.saturation(cluster) == pytest.approx(13 / 3)


def test_cores_by_hand() -> None:
    """Three workers on two cores, who leave them only to wait for their turn to land."""
    cluster = Cluster(constant(2.0), constant(1.0), cores=2, time_slice=100.0)
    trace = event_driven(4, 3, cluster, seed=0)
    # Core A: worker 0 computes 0-2, lands 2-3, computes 3-5; worker 2 lands 5-6.
    # Core B: worker 1 computes 0-2; worker 2 computes 2-4; worker 1 lands 4-5; worker 0 lands 6-7.
    assert trace.worker.tolist() == [0, 1, 2, 0]
    assert trace.read_version.tolist() == [0, 0, 0, 1]
    read, computed, landed = times(trace)
    assert (read, computed, landed) == ([0, 0, 0, 3], [2, 2, 4, 5], [3, 5, 6, 7])


def test_time_slices_by_hand() -> None:
    """Two workers take turns on a core, 2 s each, for windows of 3 s."""
    cluster = Cluster(constant(3.0), constant(0.0), cores=1, time_slice=2.0)
    trace = event_driven(4, 2, cluster, seed=0)
    # Worker 0 has 0-2, 4-6, 8-10 and worker 1 the rest.
    assert trace.worker.tolist() == [0, 1, 0, 1]
    assert times(trace)[2] == [5, 7, 10, 12]
    assert trace.read_version.tolist() == [0, 0, 1, 2]
    whole = event_driven(4, 2, cluster._replace(time_slice=7.0), seed=0)
    # Here worker 0 lands two windows, and 1 s of a third, before worker 1 begins.
    assert whole.worker.tolist() == [0, 0, 1, 0]


# Closed forms.


@pytest.mark.parametrize("num_workers", [1, 3, 4, 5, 30])
def test_constant_times_speed_up_until_the_owner_is_saturated(num_workers: int) -> None:
    cluster = Cluster(constant(3.0), constant(1.0))  # K* = 4
    trace = event_driven(400, num_workers, cluster, seed=0)
    assert virtual_clock.updates_per_second(trace) == pytest.approx(
        min(num_workers, 4) / 4, rel=0.01
    )
    tau = delays.staleness(trace)[num_workers:]
    assert set(tau.tolist()) == {num_workers - 1}


def repairman(num_workers: int, ratio: float) -> float:
    """The share of time in which the owner is busy, M/M/1//K, with ratio = service / compute."""
    weights = [math.perm(num_workers, n) * ratio**n for n in range(num_workers + 1)]
    return 1 - weights[0] / sum(weights)


@pytest.mark.parametrize("num_workers", [1, 2, 5, 20])
@pytest.mark.parametrize(
    "compute",
    [
        exponential(1.0),
        constant(1.0),
        log_normal(1.0, 1.5),
        stragglers(constant(0.5), 0.1, 11.0),
        measured([0.2, 0.4, 2.4]),
    ],
    ids=["exponential", "constant", "log_normal", "stragglers", "measured"],
)
def test_exponential_service_is_the_machine_repairman(num_workers: int, compute: Duration) -> None:
    """With exponential service nothing of the computing time matters but its mean."""
    found = speed(Cluster(compute, exponential(0.2)), num_workers, 100_000) * 0.2
    assert found == pytest.approx(repairman(num_workers, 0.2), rel=0.02)


@pytest.mark.parametrize("service", [0.2, 1.0])
def test_two_workers_with_constant_service(service: float) -> None:
    """M/D/1//2: after a landing, the other worker has arrived meanwhile, or both compute.

    A cycle between landings takes s, and where nobody waits (probability e^-s after a landing, by
    the memoryless computing of the other) also the time until the first of two arrives, 1/2.
    """
    found = speed(Cluster(exponential(1.0), constant(service)), 2, 100_000)
    assert found == pytest.approx(1 / (service + math.exp(-service) / 2), rel=0.02)


def test_speeds_of_one_to_three_give_shares_of_one_to_three() -> None:
    cluster = Cluster(constant(1.0), constant(0.0))
    trace = event_driven(4_000, 2, cluster, slowness=[1.0, 3.0], seed=0)
    np.testing.assert_allclose(shares(trace), [0.75, 0.25], atol=1e-3)
    varied = event_driven(
        40_000, 2, cluster._replace(compute=exponential(1.0)), slowness=[1, 3], seed=0
    )
    np.testing.assert_allclose(shares(varied), [0.75, 0.25], atol=0.01)
    # Little's law: gradients in the making, less one.
    assert delays.staleness(trace).mean() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("num_workers", "cores"), [(1, 2), (2, 2), (3, 2), (7, 4), (5, 1)])
def test_cores_bound_the_speed(num_workers: int, cores: int) -> None:
    for compute in (constant(1.0), log_normal(1.0, 1.0)):
        found = speed(Cluster(compute, constant(0.0), cores=cores, time_slice=0.7), num_workers)
        assert found == pytest.approx(min(num_workers, cores), rel=0.03)
    # One core does one thing at a time.
    one = Cluster(exponential(1.0), exponential(0.5), cores=1, time_slice=0.7)
    assert speed(one, num_workers) == pytest.approx(1 / 1.5, rel=0.03)


def test_enough_cores_are_no_bound() -> None:
    cluster = Cluster(exponential(1.0), exponential(0.3), updates_per_read=3)
    on_cores = event_driven(1_000, 4, cluster._replace(cores=4), seed=1)
    for one, other in zip(event_driven(1_000, 4, cluster, seed=1), on_cores, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("num_workers", [2, 8, 64])
def test_delays_are_one_less_than_the_gradients_in_the_making(num_workers: int) -> None:
    for cluster in (
        Cluster(log_normal(1.0, 1.0), exponential(0.1)),
        Cluster(exponential(1.0), constant(0.05), cores=3, time_slice=0.7),
        Cluster(exponential(1.0), constant(0.0), Network(0.3, 1.0, 1, 1)),
    ):
        mean = delays.staleness(event_driven(60_000, num_workers, cluster, seed=2)).mean()
        assert mean == pytest.approx(num_workers - 1, rel=0.01)


@pytest.mark.parametrize("resource", ["service", "up", "down"])
def test_what_is_shared_bounds_the_speed(resource: str) -> None:
    """At 3 K* the speed is that of the bottleneck, and K* workers without waiting would have it."""
    network = Network(0.2, 10.0, 10 if resource == "up" else 1, 10 if resource == "down" else 1)
    cluster = Cluster(exponential(4.0), exponential(1.0 if resource == "service" else 0.1), network)
    limit = virtual_clock.saturation(cluster)
    assert limit == pytest.approx(virtual_clock.cycle(cluster) / 1.0)
    assert speed(cluster, 3 * round(limit)) == pytest.approx(1.0, rel=0.03)
    assert speed(cluster, 1) == pytest.approx(1 / virtual_clock.cycle(cluster), rel=0.03)


def test_nothing_shared_never_saturates() -> None:
    own = Network(0.2, 10.0, 10, 10, shared=False)
    cluster = Cluster(exponential(4.0), constant(0.0), own)
    assert virtual_clock.saturation(cluster) == math.inf
    assert speed(cluster, 50) == pytest.approx(50 / virtual_clock.cycle(cluster), rel=0.03)


def test_time_speedup_is_a_ratio_of_running_times() -> None:
    cluster = Cluster(constant(3.0), constant(1.0))
    serial, parallel = (event_driven(12, k, cluster, seed=0) for k in (1, 2))
    # 12 cycles of 4 s; two workers a second apart need 6 cycles and that second.
    assert virtual_clock.time_speedup(serial, parallel) == pytest.approx(48 / 25)


# Whatever the cluster, the trace is one that its own clock explains.

DURATIONS = st.sampled_from(
    [constant(0.0), constant(1.0), exponential(0.7), log_normal(0.5, 2.0), measured([0.1, 3.0])]
)


@st.composite
def clusters(draw) -> Cluster:
    cluster = Cluster(draw(DURATIONS), draw(DURATIONS), None, draw(st.integers(1, 4)))
    match draw(st.sampled_from(["plain", "network", "cores"])):
        case "network":
            way = Network(0.2, 3.0, draw(st.integers(0, 2)), draw(st.integers(0, 2)))
            return cluster._replace(network=way._replace(shared=draw(st.booleans())))
        case "cores":
            slice_ = draw(st.sampled_from([0.3, 1.0, 100.0]))
            return cluster._replace(cores=draw(st.integers(1, 4)), time_slice=slice_)
    return cluster


@settings(max_examples=200, deadline=None)
@given(clusters(), st.integers(1, 60), st.integers(1, 9), st.integers(0, 1_000))
def test_every_trace_agrees_with_its_clock(cluster, num_updates, num_workers, seed) -> None:
    slowness = np.random.default_rng(seed).uniform(0.5, 2.0, num_workers)
    trace = event_driven(num_updates, num_workers, cluster, seed=seed, slowness=slowness)
    delays.check(trace)
    assert len(trace.worker) == num_updates
    assert trace.times is not None
    read, computed, landed = trace.times
    assert np.all(read <= computed)
    assert np.all(computed <= landed)
    assert np.all(np.diff(landed) >= 0)
    # The version is what had landed at the moment of the read; ties may fall on either side.
    assert np.all(trace.read_version >= np.searchsorted(landed, read, side="left"))
    assert np.all(trace.read_version <= np.searchsorted(landed, read, side="right"))
    for k in range(num_workers):
        mine = np.flatnonzero(trace.worker == k)
        version = trace.read_version[mine]
        if len(mine):
            assert version[0] == 0
        # A window is read as soon as the one before it, and nothing of it earlier, has landed.
        for before, after in itertools.pairwise(mine):
            if trace.sees_own and trace.read_version[after] == trace.read_version[before]:
                assert after == before + 1  # of the same window
            else:
                assert trace.read_version[after] == before + 1
                assert read[after] == landed[before]
    again = event_driven(num_updates, num_workers, cluster, seed=seed, slowness=slowness)
    np.testing.assert_array_equal(again.worker, trace.worker)
    np.testing.assert_array_equal(again.times.landed, landed)


def test_seeds_differ() -> None:
    cluster = Cluster(exponential(1.0), constant(0.1))
    one, other = (event_driven(100, 3, cluster, seed=seed).times.landed for seed in (0, 1))
    assert np.all(one != other)


# The simulator takes these traces as any other.


def replayed(trace: Trace) -> np.ndarray:
    problem = problems.get("tanh_deep")
    estimator = estimators.svrg(problem.objective)
    sampler = sampling.sampler(
        problems.NUM_SAMPLES, problem.objective.dim, batch_size=2, block_size=7, seed=1
    )
    snapshot = estimator.prepare(problem.x0, problem.data, map)
    x = simulate.replay(
        estimator, problem.x0, snapshot, problem.data, sampler, trace, epoch=0, lr=0.05
    )
    return np.asarray(x)


def test_replays_as_the_trace_made_by_hand() -> None:
    trace = event_driven(12, 3, Cluster(constant(1.0), constant(0.0)), seed=0)
    np.testing.assert_array_equal(replayed(trace), replayed(delays.round_robin(12, 3)))
    windows = event_driven(5, 2, Cluster(constant(4.0), constant(2.0), updates_per_read=2), seed=0)
    by_hand = Trace(
        np.array([0, 0, 1, 1, 0], np.int32), np.array([0, 0, 0, 0, 2], np.int32), sees_own=True
    )
    np.testing.assert_array_equal(replayed(windows), replayed(by_hand))
    assert np.any(replayed(windows) != replayed(by_hand._replace(sees_own=False)))


def test_one_worker_is_serial_whatever_its_times() -> None:
    trace = event_driven(9, 1, Cluster(exponential(1.0), exponential(1.0)), seed=0)
    np.testing.assert_array_equal(replayed(trace), replayed(delays.none(9)))


# Arguments.

CLUSTER = Cluster(constant(1.0), constant(0.5))
NEGATIVE = Duration(1.0, lambda rng, count: rng.normal(size=count))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: event_driven(0, 1, CLUSTER, seed=0), "num_updates must be a whole number"),
        (lambda: event_driven(1, 0, CLUSTER, seed=0), "num_workers must be a whole number"),
        (lambda: event_driven(1, 1, CLUSTER, seed=-1), "seed must be a whole number"),
        (
            lambda: event_driven(1, 2, CLUSTER, seed=0, slowness=[1]),
            r"slowness must be an array \[2\]",
        ),
        (lambda: event_driven(1, 1, CLUSTER, seed=0, slowness=[0]), "a finite number above 0"),
        (
            lambda: event_driven(1, 1, CLUSTER._replace(compute=NEGATIVE), seed=0),
            "compute must draw finite numbers of at least 0",
        ),
        (
            lambda: event_driven(1, 1, CLUSTER._replace(updates_per_read=0), seed=0),
            "updates_per_read must be a whole number",
        ),
        (lambda: event_driven(1, 1, CLUSTER._replace(cores=0), seed=0), "cores must be a whole"),
        (
            lambda: event_driven(1, 1, CLUSTER._replace(time_slice=0.0), seed=0),
            "time_slice must be a finite number above 0",
        ),
        (
            lambda: event_driven(1, 1, CLUSTER._replace(cores=2, network=Network()), seed=0),
            "cores must be None with a network",
        ),
        (
            lambda: virtual_clock.cycle(CLUSTER._replace(network=Network(latency=-1.0))),
            "latency must be a finite number",
        ),
        (
            lambda: virtual_clock.cycle(CLUSTER._replace(network=Network(bandwidth=0.0))),
            "bandwidth must be a finite number above 0",
        ),
        (
            lambda: virtual_clock.saturation(CLUSTER._replace(network=Network(bytes_up=0.5))),
            "bytes_up must be a whole number",
        ),
        (lambda: virtual_clock.updates_per_second(delays.none(9)), "trace must have times"),
        (
            lambda: virtual_clock.updates_per_second(event_driven(7, 1, CLUSTER, seed=0)),
            "trace must hold at least 8 updates",
        ),
        (
            lambda: virtual_clock.time_speedup(
                event_driven(7, 1, CLUSTER, seed=0), event_driven(8, 1, CLUSTER, seed=0)
            ),
            "equally many updates, at least one, got 7 and 8",
        ),
    ],
)
def test_bad_arguments_are_refused(make, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make()
