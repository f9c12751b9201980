"""Threads that raise, that are interrupted, or that never should have started."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from asvrg import sampling
from asvrg.drivers import simulate, threads
from asvrg.errors import InputError
from asvrg.types import Snapshot
from tests.thread_runs import COUNTING, MODES, alive

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _no_thread_stays_behind() -> Iterator[None]:
    yield
    assert not alive()


ENDLESS = 10_000_000  # iterations: an epoch that only the tests below end


def test_an_estimator_that_raises_ends_the_run() -> None:
    def estimate(x_hat, snapshot, data, draw):
        raise ZeroDivisionError("no such estimate")

    spec = sampling.sampler(4, 3, batch_size=1)
    failing = COUNTING._replace(estimate=estimate)
    driver = threads.driver(failing, np.zeros(4), spec, inner_steps=ENDLESS, num_threads=3)
    with pytest.raises(
        threads.WorkerError, match="failed with ZeroDivisionError: no such"
    ) as error:
        driver.inner_loop(np.arange(3.0), Snapshot(), 0, 1.0)
    assert not alive()
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    np.testing.assert_array_equal(error.value.x, np.arange(3.0))


@pytest.mark.parametrize(("read", "write"), MODES)
def test_a_thread_that_raises_midway_ends_the_run(
    read: str, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written stays readable, and is whole: the same number in every coordinate."""
    take = sampling.Stream.take

    def failing_take(stream: sampling.Stream, count: int):
        if threading.current_thread().name.endswith("1") and next(calls) == 9:
            raise OSError("no more draws")
        return take(stream, count)

    spec = sampling.sampler(4, 3, batch_size=1)
    options = {"num_threads": 3, "read": read, "write": write, "read_period": 2}
    driver = threads.driver(COUNTING, np.zeros(4), spec, inner_steps=ENDLESS, **options)
    calls = itertools.count()
    monkeypatch.setattr(sampling.Stream, "take", failing_take)
    with pytest.raises(
        threads.WorkerError, match=r"^Thread 1 failed with OSError: no more"
    ) as error:
        driver.inner_loop(np.zeros(3), Snapshot(), 0, 1.0)
    assert not alive()
    assert error.value.worker == 1
    assert error.value.x.min() >= (18 if write == "locked" else 1)
    if write == "locked":
        assert np.ptp(error.value.x) == 0
    before = error.value.x.copy()
    time.sleep(0.05)
    np.testing.assert_array_equal(error.value.x, before)


def test_ctrl_c_stops_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the one that `run` happens to wait for, and that is busy for a quarter of a second."""
    take, calls, buffers = sampling.Stream.take, itertools.count(), []
    shared_buffer = threads.shared_buffer

    def interrupted_take(stream: sampling.Stream, count: int):
        if threading.current_thread().name.endswith("0") and next(calls) == 5:
            time.sleep(0.1)  # by now the caller waits
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.25)
        return take(stream, count)

    def kept_buffer(x: np.ndarray) -> np.ndarray:
        buffers.append(shared_buffer(x))
        return buffers[-1]

    spec = sampling.sampler(4, 3, batch_size=1)
    driver = threads.driver(COUNTING, np.zeros(4), spec, inner_steps=ENDLESS, num_threads=3)
    driver.warm_up(np.zeros(3))
    monkeypatch.setattr(sampling.Stream, "take", interrupted_take)
    monkeypatch.setattr(threads, "shared_buffer", kept_buffer)
    with pytest.raises(KeyboardInterrupt):
        driver.inner_loop(np.zeros(3), Snapshot(), 0, 1.0)
    assert not alive()
    before = buffers[0].copy()
    assert before.min() > 0
    time.sleep(0.3)
    np.testing.assert_array_equal(buffers[0], before)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"inner_steps": 0}, "inner_steps must be a whole number of at least 1, got 0"),
        ({"num_threads": 0}, "num_threads must be a whole number of at least 1, got 0"),
        ({"num_threads": 1.5}, "num_threads must be a whole number of at least 1, got 1.5"),
        ({"read_period": 0}, "read_period must be a whole number of at least 1, got 0"),
        ({"max_delay": -1}, "max_delay must be a whole number of at least 0, got -1"),
        ({"read": "dirty"}, "read must be one of consistent, inconsistent, view, got 'dirty'"),
        ({"write": "free"}, "write must be one of locked, lock_free, got 'free'"),
        ({"write": "lock_free"}, "read must be inconsistent or view where write is lock_free"),
    ],
)
def test_bad_arguments_are_refused(changed: dict, sentence: str) -> None:
    arguments = {"inner_steps": 5, "num_threads": 2} | changed
    spec = sampling.sampler(4, 3, batch_size=1)
    with pytest.raises(InputError, match=sentence):
        threads.driver(COUNTING, np.zeros(4), spec, **arguments)


def test_threads_that_cannot_start_are_refused_and_the_others_stop(monkeypatch) -> None:
    start, calls = threading.Thread.start, itertools.count()

    def start_two(thread: threading.Thread) -> None:
        if next(calls) >= 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    spec = sampling.sampler(4, 3, batch_size=1)
    driver = threads.driver(COUNTING, np.zeros(4), spec, inner_steps=ENDLESS, num_threads=5)
    driver.warm_up(np.zeros(3))
    monkeypatch.setattr(threading.Thread, "start", start_two)
    with pytest.raises(InputError, match="num_threads must be a number of threads that the system"):
        driver.inner_loop(np.zeros(3), Snapshot(), 0, 1.0)


@pytest.mark.parametrize("module", [threads, simulate])
def test_sampler_of_other_samples_or_coordinates_is_refused(module) -> None:
    options = {"inner_steps": 4} | ({"num_threads": 1} if module is threads else {})
    with pytest.raises(InputError, match="sampler must draw from the 4 samples of the data, got"):
        module.driver(COUNTING, np.zeros(4), sampling.sampler(5, 3, batch_size=1), **options)
    driver = module.driver(COUNTING, np.zeros(4), sampling.sampler(4, 3, batch_size=1), **options)
    for x in (np.zeros(4), np.zeros((3, 1)), np.zeros(3, int), [0.0, 0.0, 0.0]):
        with pytest.raises(InputError, match=r"x must be an array \[3\] of floating-point numbers"):
            driver.inner_loop(x, Snapshot(), 0, 1.0)
