"""Threads on a shared buffer: nothing is lost, everything is recorded, nobody stays behind."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from asvrg import delays, estimators, objectives, sampling, schedules, training
from asvrg.drivers import simulate, threads
from asvrg.estimators import Estimator
from asvrg.schedules import Schedule
from asvrg.types import Delta, Driver, Objective, Snapshot
from tests import problems
from tests.problems import Problem
from tests.thread_runs import COUNTING, MODES, alive, eager_switching

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _no_thread_stays_behind() -> Iterator[None]:
    yield
    assert not alive()


@pytest.fixture
def _eager_switching() -> Iterator[None]:
    with eager_switching():
        yield


@pytest.fixture
def _slow_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows who lacks a lock: a writer then loses another's update, a reader sees half of one.

    Threads that have drawn, and are about to read, wait until somebody is in the midst of writing.
    """
    add, take = threads.add, sampling.Stream.take

    def in_two_halves(buffer: np.ndarray, delta: Delta) -> None:
        after, half = buffer.copy(), len(buffer) // 2
        add(after, delta)
        buffer[:half] = after[:half]
        time.sleep(2e-3)
        buffer[half:] = after[half:]

    def slow_take(stream: sampling.Stream, count: int):
        time.sleep(1e-3)
        return take(stream, count)

    monkeypatch.setattr(threads, "add", in_two_halves)
    monkeypatch.setattr(sampling.Stream, "take", slow_take)


@functools.cache
def svrg_of(objective: Objective) -> Estimator:
    """The same estimator every time, so that compilations are shared."""
    return estimators.svrg(objective)


def svrg_driver(
    module, problem: Problem, block_size: int | None, *, alpha: Schedule | None = None, **options
) -> Driver:
    n, d = problems.NUM_SAMPLES, problem.objective.dim
    spec = sampling.sampler(n, d, batch_size=7, block_size=block_size, seed=6)
    estimator = svrg_of(problem.objective)._replace(alpha=alpha)
    return module.driver(estimator, problem.data, spec, **options)


def epochs(driver: Driver, x0: np.ndarray, lr: float, num_epochs: int) -> list:
    schedule = schedules.constant(lr)
    return list(training.run(driver, training.start(x0), schedule=schedule, num_epochs=num_epochs))


@pytest.mark.parametrize(
    ("name", "dtype", "block_size", "alpha"),
    [
        ("relu", "float32", None, None),
        ("tanh_by_autodiff", "float64", None, None),
        ("relu", "float32", 3, None),
        ("relu", "float32", 3, lambda epoch: 0.7 - 0.3 * epoch),
    ],
)
def test_one_thread_is_the_serial_simulation_bit_for_bit(name, dtype, block_size, alpha) -> None:
    """Whatever the windows: of 1, of 12 with 1 left over, and one for all 37."""
    problem = problems.get(name, dtype)
    serial = svrg_driver(simulate, problem, block_size, alpha=alpha, inner_steps=37)
    expected = [result.x for result in epochs(serial, problem.x0, 0.1, 2)]
    for read_period in (1, 12, 50):
        options = {"inner_steps": 37, "num_threads": 1, "read_period": read_period}
        driver = svrg_driver(threads, problem, block_size, alpha=alpha, **options)
        found = [result.x for result in epochs(driver, problem.x0, 0.1, 2)]
        np.testing.assert_array_equal(found, expected, f"read_period = {read_period}")


@pytest.mark.usefixtures("_slow_add")
@pytest.mark.parametrize(
    ("read_period", "block_size", "dtype"),
    [(1, None, "float64"), (8, 3, "float64"), (8, None, "float32"), (1, 3, "float32")],
)
def test_replay_of_a_locked_run_is_that_run_bit_for_bit(
    read_period: int,
    block_size: int | None,
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With delays: every thread reads x before any of the four writes for the first time."""
    problem, lr = problems.get("relu", dtype), 0.05
    options = {"inner_steps": 64, "num_threads": 4, "read_period": read_period}
    driver = svrg_driver(threads, problem, block_size, **options)
    driver.warm_up(problem.x0)
    window, meeting, thread = threads.steps.window, threading.Barrier(4), threading.local()

    def window_of_all(*args, **options):
        if not hasattr(thread, "has_met"):
            thread.has_met = meeting.wait(timeout=30)
        return window(*args, **options)

    x = problem.x0
    for epoch in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(threads.steps, "window", window_of_all)
            found, trace = driver.inner_loop(x, driver.prepare(x), epoch, lr)
        assert delays.staleness(trace).max() >= 3 * read_period
        replay = svrg_driver(
            simulate, problem, block_size, inner_steps=64, trace=lambda epoch, trace=trace: trace
        )
        expected, _ = replay.inner_loop(x, replay.prepare(x), epoch, lr)
        np.testing.assert_array_equal(found, expected)
        x = found


@pytest.mark.usefixtures("_slow_add")
@pytest.mark.parametrize("read", threads.READS)
@pytest.mark.parametrize("block_size", [None, 7])
def test_locked_writes_lose_no_update(read: str, block_size: int | None) -> None:
    dim, m = 50, 103
    spec = sampling.sampler(4, dim, batch_size=1, block_size=block_size)
    options = {"num_threads": 4, "read": read, "read_period": 2}
    driver = threads.driver(COUNTING, np.zeros(4), spec, inner_steps=m, **options)
    found, trace = driver.inner_loop(np.zeros(dim), Snapshot(), 0, 1.0)
    assert len(trace.worker) == m
    if block_size is None:
        expected = np.full(dim, m)
    else:
        streams = {k: sampling.Stream(spec, 0, k) for k in range(4)}
        draws = sampling.in_order(streams, trace.worker)
        expected = np.bincount(draws.block.ravel(), minlength=dim)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("_eager_switching")
@pytest.mark.parametrize(("read", "write"), MODES)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_traces_are_such_as_the_run_must_leave(read: str, write: str, num_threads: int) -> None:
    """Exactly m iterations; a worker reads later and later, never before its own last update."""
    m, read_period = 203, 4
    spec = sampling.sampler(4, 50, batch_size=1)
    driver = threads.driver(
        COUNTING,
        np.zeros(4),
        spec,
        inner_steps=m,
        num_threads=num_threads,
        read=read,
        write=write,
        read_period=read_period,
    )
    x, trace = driver.inner_loop(np.zeros(50), Snapshot(), 0, 1.0)
    delays.check(trace)
    assert trace.sees_own
    assert len(trace.worker) == m
    assert trace.worker.max() < num_threads
    for worker in range(num_threads):
        landed = np.flatnonzero(trace.worker == worker)
        version = trace.read_version[landed]
        assert np.all(np.diff(version) >= 0)
        reads = np.flatnonzero(np.diff(version)) + 1
        assert np.all(version[reads] > landed[reads - 1])
        assert np.all(np.bincount(version) <= read_period)
    if num_threads == 1 or write == "locked":
        np.testing.assert_array_equal(x, m)
    else:  # lost ones are possible there, invented ones are not
        assert x.max() <= m


@pytest.mark.parametrize(("num_threads", "block_size"), [(2, None), (4, None), (4, 3)])
@pytest.mark.parametrize(("read", "write"), MODES)
def test_svrg_converges_in_every_mode(
    read: str, write: str, num_threads: int, block_size: int | None
) -> None:
    """To ||grad f|| <= 1e-8, strongly convex, with a constant step."""
    problem = problems.get("logistic")
    options = {"num_threads": num_threads, "read": read, "write": write, "read_period": 4}
    driver = svrg_driver(threads, problem, block_size, inner_steps=200, **options)
    num_epochs = 25 if block_size is None else 60  # an iteration moves a part of x only
    last = epochs(driver, problem.x0, 0.05, num_epochs)[-1]
    found = objectives.evaluate(problem.objective, last.x, problem.data, with_grad=True)
    assert found.grad_norm_sq <= 1e-16


@pytest.mark.parametrize("num_threads", [1, 3])
def test_epochs_do_not_recompile(num_threads: int, caplog: pytest.LogCaptureFixture) -> None:
    """The first one does not compile either: that is what `warm_up` is for."""
    problem = problems.get("least_squares")
    estimator = estimators.svrg(problem.objective)  # compiled by nobody yet
    spec = sampling.sampler(problems.NUM_SAMPLES, problem.objective.dim, batch_size=2, block_size=2)
    options = {"inner_steps": 37, "num_threads": num_threads, "read_period": 8}
    driver = threads.driver(estimator, problem.data, spec, **options)
    schedule = schedules.polynomial(0.1, 0.5)  # another step in every epoch
    jax.config.update("jax_log_compiles", True)  # in all threads, unlike jax.log_compiles
    try:
        driver.warm_up(problem.x0)
        assert "Compiling" in caplog.text
        caplog.clear()
        *_, last = training.run(driver, training.start(problem.x0), schedule=schedule, num_epochs=4)
        assert last.epoch == 4
        assert "Compiling" not in caplog.text
    finally:
        jax.config.update("jax_log_compiles", False)


def test_the_given_x_is_left_alone() -> None:
    problem = problems.get("relu")
    driver = svrg_driver(threads, problem, 3, inner_steps=20, num_threads=2)
    x = threads.shared_buffer(problem.x0)
    found, _ = driver.inner_loop(x, driver.prepare(x), 0, 0.1)
    assert np.any(found != x)
    np.testing.assert_array_equal(x, problem.x0)


def hold_one_back(patch: pytest.MonkeyPatch, num_updates: int, seconds: float) -> None:
    """Has thread 0 wait with its first window until so many updates have landed, or so long.

    The others wait until it has read x.
    """
    compute, held, seen = threads._InnerLoop._compute, threading.Event(), threading.local()

    def slow_compute(loop: threads._InnerLoop, *args):
        is_first = threading.current_thread().name.endswith("_0")
        if not is_first and not hasattr(seen, "waited"):
            seen.waited = held.wait(seconds)  # no longer: thread 0 may wait for these to land
        delta = compute(loop, *args)
        if is_first and not held.is_set():
            held.set()
            until = time.monotonic() + seconds
            while loop._claims.landed.number < num_updates and time.monotonic() < until:
                time.sleep(1e-3)
        return delta

    patch.setattr(threads._InnerLoop, "_compute", slow_compute)


@pytest.mark.parametrize("read_period", [1, 5])
@pytest.mark.parametrize(("read", "write"), MODES)
def test_max_delay_bounds_all_delays(
    read_period: int, read: str, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four threads, one of which the others would leave far behind."""
    spec = sampling.sampler(4, 3, batch_size=1)
    options = {"num_threads": 4, "read": read, "write": write, "read_period": read_period}
    longest = {}
    for max_delay in (0, 2, 9, None):
        driver = threads.driver(
            COUNTING, np.zeros(4), spec, inner_steps=203, max_delay=max_delay, **options
        )
        driver.warm_up(np.zeros(3))
        with monkeypatch.context() as patch:
            hold_one_back(patch, 30, seconds=20 if max_delay is None else 0.2)
            x, trace = driver.inner_loop(np.zeros(3), Snapshot(), 0, 1.0)
        if write == "locked":
            np.testing.assert_array_equal(x, 203.0)
        longest[max_delay] = delays.staleness(trace).max()
    assert all(found <= asked for asked, found in longest.items() if asked is not None)
    assert longest[9] > 0  # they do run at once
    assert longest[None] > 9


@pytest.mark.parametrize("read_period", [1, 4])
def test_delay_adaptive_steps_are_those_of_the_trace(
    read_period: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale is that of the recorded delays, and the run replays to the bit."""
    problem = problems.get("relu", "float64")
    options = {"inner_steps": 90, "num_threads": 3, "read_period": read_period}
    driver = svrg_driver(threads, problem, 3, delay_adaptive=True, **options)
    driver.warm_up(problem.x0)
    snapshot = driver.prepare(problem.x0)
    hold_one_back(monkeypatch, 40, seconds=20)
    found, trace = driver.inner_loop(problem.x0, snapshot, 0, 0.05)
    scale = delays.adaptive_scale(delays.staleness(trace), 3 * read_period)
    np.testing.assert_array_equal(trace.scale, scale)
    assert scale.min() < 0.4
    replay = svrg_driver(simulate, problem, 3, inner_steps=90, trace=lambda _: trace)
    again, _ = replay.inner_loop(problem.x0, snapshot, 0, 0.05)
    np.testing.assert_array_equal(again, found)
    unscaled = trace._replace(scale=None)
    replay = svrg_driver(simulate, problem, 3, inner_steps=90, trace=lambda _: unscaled)
    assert np.any(replay.inner_loop(problem.x0, snapshot, 0, 0.05)[0] != found)


def test_times_are_in_the_order_of_what_happened() -> None:
    problem = problems.get("relu", "float64")
    options = {"inner_steps": 90, "num_threads": 3, "read_period": 4}
    driver = svrg_driver(threads, problem, 3, **options)
    begin = time.perf_counter()
    _, trace = driver.inner_loop(problem.x0, driver.prepare(problem.x0), 0, 0.05)
    seconds = time.perf_counter() - begin
    read, computed, landed = trace.times
    assert np.all((read > 0) & (read < computed) & (computed < landed) & (landed < seconds))
    assert np.all(np.diff(landed) >= 0)
    # Update t saw all that had landed before it was read.
    assert np.all(np.searchsorted(landed, read) <= trace.read_version)
