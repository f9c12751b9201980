"""More workers than cores, and workers that stall: slower, and otherwise as ever."""

from __future__ import annotations

import csv
import pathlib
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from asvrg import delays, estimators, sampling
from asvrg.drivers import simulate, threads
from asvrg.types import Snapshot, Trace
from tests import mpi_jobs, problems
from tests.soak_test import SOAK
from tests.thread_runs import COUNTING, MODES, alive

pytestmark = pytest.mark.timeout(150)

SECONDS = 20  # to wait for other threads; nobody waits so long unless the test fails
THREADS = 32
MPI_WORKERS = 4  # each a process that starts jax: ten of them work too, and take a minute


@pytest.fixture(autouse=True)
def _no_thread_stays_behind() -> Iterator[None]:
    yield
    assert not alive()


@pytest.mark.parametrize("max_delay", [None, 40])
def test_32_threads_replay_bit_for_bit(
    max_delay: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are at work: each has its first window in the making before any lands."""
    problem, m, lr = problems.get("relu"), 500, 0.02
    spec = sampling.sampler(
        problems.NUM_SAMPLES, problem.objective.dim, batch_size=7, block_size=3, seed=6
    )
    estimator = estimators.svrg(problem.objective)
    driver = threads.driver(
        estimator,
        problem.data,
        spec,
        inner_steps=m,
        num_threads=THREADS,
        read_period=2,
        max_delay=max_delay,
    )
    driver.warm_up(problem.x0)
    snapshot = driver.prepare(problem.x0)
    take, meeting, thread = sampling.Stream.take, threading.Barrier(THREADS), threading.local()

    def take_together(stream: sampling.Stream, count: int):
        if not hasattr(thread, "has_met"):
            thread.has_met = meeting.wait(SECONDS)
        return take(stream, count)

    with monkeypatch.context() as patch:
        patch.setattr(sampling.Stream, "take", take_together)
        found, trace = driver.inner_loop(problem.x0, snapshot, 0, lr)
    delays.check(trace)
    assert len(trace.worker) == m
    assert len(np.unique(trace.worker)) == THREADS
    if max_delay is not None:
        assert delays.staleness(trace).max() <= max_delay
    replay = simulate.driver(
        estimator, problem.data, spec, inner_steps=m, trace=lambda epoch: trace
    )
    expected, _ = replay.inner_loop(problem.x0, snapshot, 0, lr)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("read", "write"), MODES)
def test_32_threads_do_all_updates_within_the_bound(read: str, write: str) -> None:
    m, spec = 1_000, sampling.sampler(4, 3, batch_size=1)
    options = {"num_threads": THREADS, "read": read, "write": write, "max_delay": THREADS - 1}
    driver = threads.driver(COUNTING, np.zeros(4), spec, inner_steps=m, **options)
    x, trace = driver.inner_loop(np.zeros(3), Snapshot(), 0, 1.0)
    assert len(trace.worker) == m
    assert delays.staleness(trace).max() < THREADS
    if write == "locked":
        np.testing.assert_array_equal(x, m)


class Stall:
    """Has a thread rest once, before or after it reads x: for some time, or till it is alone.

    Attributes:
      landed: how many updates had landed when it went on.
      worker: its number; it is the first that comes by.
    """

    def __init__(self, patch: pytest.MonkeyPatch, *, after_read: bool, seconds: float) -> None:
        self.landed = 0
        self.worker = -1
        self._seconds = seconds
        self._lock, self._thread = threading.Lock(), threading.local()
        self._loops: list[threads._InnerLoop] = []
        self._work, self._take = threads._InnerLoop._work, sampling.Stream.take
        self._compute = threads._InnerLoop._compute
        patch.setattr(threads._InnerLoop, "_work", lambda *args: self.work(*args))
        if after_read:
            patch.setattr(threads._InnerLoop, "_compute", lambda *args: self.compute(*args))
        else:
            patch.setattr(sampling.Stream, "take", lambda *args: self.take(*args))

    def work(self, loop: threads._InnerLoop, worker: int, *args) -> None:
        self._loops.append(loop)
        self._thread.worker = worker
        self._work(loop, worker, *args)

    def take(self, stream: sampling.Stream, count: int):
        self.rest(count)
        return self._take(stream, count)

    def compute(self, loop: threads._InnerLoop, x, draws):
        delta = self._compute(loop, x, draws)
        self.rest(len(draws.batch))
        return delta

    def rest(self, count: int) -> None:
        with self._lock:
            if self.worker >= 0:
                return
            self.worker = self._thread.worker
        landed = self._loops[0]._claims.landed
        until = time.monotonic() + self._seconds
        while landed.number < landed.num_updates - count and time.monotonic() < until:
            time.sleep(1e-3)
        self.landed = landed.number


def stalled_run(
    patch: pytest.MonkeyPatch, *, after_read: bool, seconds: float, max_delay: int | None = None
) -> tuple[Stall, np.ndarray, Trace]:
    """An epoch of 4 threads and 403 updates, in windows of 4."""
    spec = sampling.sampler(4, 3, batch_size=1)
    options = {"num_threads": 4, "read_period": 4, "max_delay": max_delay}
    driver = threads.driver(COUNTING, np.zeros(4), spec, inner_steps=403, **options)
    driver.warm_up(np.zeros(3))
    stall = Stall(patch, after_read=after_read, seconds=seconds)
    x, trace = driver.inner_loop(np.zeros(3), Snapshot(), 0, 1.0)
    np.testing.assert_array_equal(x, 403.0)
    assert len(trace.worker) == 403
    return stall, x, trace


@pytest.mark.parametrize("after_read", [False, True])
def test_the_others_go_on_while_a_thread_stalls(
    after_read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do all the rest; a delay is recorded where x was read before the stall, only there."""
    stall, _, trace = stalled_run(monkeypatch, after_read=after_read, seconds=SECONDS)
    assert stall.landed == 403 - 4
    last = slice(403 - 4, None)
    np.testing.assert_array_equal(trace.worker[last], stall.worker)
    assert np.all(trace.worker[:-4] != stall.worker)
    assert trace.times is not None
    landed_at = trace.times.landed[402 - 4]  # the last update of the others
    if after_read:
        np.testing.assert_array_equal(trace.read_version[last], 0)
        np.testing.assert_array_equal(delays.staleness(trace)[last], np.arange(399, 403))
        assert trace.times.read[-1] < trace.times.landed[0]
    else:
        np.testing.assert_array_equal(trace.read_version[last], 403 - 4)
        np.testing.assert_array_equal(delays.staleness(trace)[last], 0)
        assert trace.times.read[-1] > landed_at


@pytest.mark.parametrize("after_read", [False, True])
def test_with_max_delay_the_others_wait_for_a_thread_that_stalls(
    after_read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stall, _, trace = stalled_run(monkeypatch, after_read=after_read, seconds=0.3, max_delay=15)
    assert delays.staleness(trace).max() <= 15
    # Of the 16 that may be claimed before its window lands, 4 are that window.
    assert stall.landed <= 15 + 1 - 4


def test_more_mpi_workers_than_cores(tmp_path: pathlib.Path) -> None:
    """A small soak: nothing is lost, delays are bounded where asked, and all ranks end."""
    given = [f"--out_dir={tmp_path / 'soak'}", "--modes=in_turn", f"--max_delay={MPI_WORKERS + 1}"]
    program = ["-m", "benchmarks.soak", "--driver=mpi", *SOAK, *given]
    job = mpi_jobs.mpiexec(program, MPI_WORKERS + 1, fault_tolerant=True, timeout=120)
    assert job.returncode == 0, job.stderr
    with open(tmp_path / "soak" / "soak.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4
    for line in lines:
        assert line["workers"] == str(MPI_WORKERS)
        assert line["landed"] == line["asked"]
        assert line["lost"] == ("" if line["half"] == "training" else "0")
        # Memory of all ranks: each has an interpreter and jax.
        assert float(line["last_mb"]) > 100 * (MPI_WORKERS + 1)
    assert all(int(line["longest_delay"]) <= MPI_WORKERS + 1 for line in lines[2:])
