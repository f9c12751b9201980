"""Shared-AsySVRG, Algorithm 1: Python threads that read and write one shared buffer.

A thread reads x, computes the deltas of `read_period` iterations in one jitted call (which runs
without the interpreter lock, on the thread's own copy of x, where it sees its own updates, or all
of them at the x that it read), adds them to the shared buffer, and reads x again. What other
threads add in the meantime it does not see: that is the asynchrony, and the Trace records it.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

import jax
import jax.numpy as jnp
import numpy as np

from asvrg import delays, objectives, sampling, steps
from asvrg.drivers import arguments, pausing
from asvrg.drivers.threads.buffer import add, live_view, shared_buffer
from asvrg.drivers.threads.claims import Claims
from asvrg.errors import (
    INT32,
    DriverError,
    InputError,
    check_choice,
    check_count,
    check_switch,
    diverged,
)
from asvrg.estimators import Estimator
from asvrg.sampling import Sampler, Stream
from asvrg.types import Array, Data, Delta, Draws, Driver, Halfway, Pause, Snapshot, Trace

__all__ = ["READS", "WRITES", "WorkerError", "add", "driver", "live_view", "shared_buffer"]

READS = ("consistent", "inconsistent", "view")
WRITES = ("locked", "lock_free")
MOST_THREADS = 1 << 14  # more than any machine has cores for


class WorkerError(DriverError):
    """A thread raised; `__cause__` is what it raised.

    Attributes:
      worker: the thread's number, from 0.
      x: the shared buffer as the threads left it, float [d].
    """

    def __init__(self, worker: int, x: np.ndarray, cause: BaseException) -> None:
        super().__init__(f"Thread {worker} failed with {type(cause).__name__}: {cause}")
        self.worker = worker
        self.x = x


def driver(
    estimator: Estimator,
    data: Data,
    sampler: Sampler,
    *,
    inner_steps: int,
    num_threads: int,
    read: str = "consistent",
    write: str = "locked",
    read_period: int = 16,
    sees_own: bool = True,
    max_delay: int | None = None,
    delay_adaptive: bool = False,
) -> Driver:
    """Algorithm 1 on K threads; also its full gradient is computed by them, in chunks.

    Keep XLA to one thread (NPROC=1 in the environment before jax computes anything, and its
    asynchronous dispatch off; the binaries set both), else the K threads compete for the cores with
    the threads of each other's matrix products.

    Args:
      estimator: gives v_t.
      data: a pytree of arrays [n, ...].
      sampler: of the draws; every thread has a stream of its own.
      inner_steps: m, the iterations of all threads together; exactly so many updates land.
      num_threads: K.
      read: how a thread reads x. `consistent`: a copy under the write lock; `inconsistent`: a copy
        without it, which may mix states of x; `view`: the jitted call reads the shared buffer
        itself, without a copy in between, and may mix states of x as well.
      write: how it adds its deltas. `locked`: one thread at a time, so that no update is lost;
        `lock_free`: without a lock; two threads that add to a coordinate at the same moment may
        lose one of the two additions.
      read_period: r, a thread's iterations from one read of x to the next.
      sees_own: whether a thread sees its own updates before it reads x again. Without them its r
        iterations are computed at one x, in larger products, and have delays of 0 to r - 1 from
        each other alone.
      max_delay: Delta of Assumption 4, the largest delay of an update: a thread that is too far
        ahead waits, and r is at most (Delta + 1) / K, so that all threads have room. None for no
        limit.
      delay_adaptive: whether the steps of late updates are scaled down as they land, by
        `delays.adaptive_scale` with the concurrency K r, r as it is with `max_delay`.

    Returns:
      A Driver whose x is a numpy array.

    Raises:
      InputError: a number out of its range, an unknown mode, consistent reads of what is written
        without a lock, or a sampler of other samples; in the driver's functions, an x that is not
        the sampler's [d], or more threads than the system can start.
      WorkerError: in the inner loop, a thread raised.
      DivergedError: in the inner loop, an update was not finite; all threads stop then.

    >>> from asvrg import estimators, objectives, schedules, training
    >>> objective = objectives.from_loss(lambda w, z: 0.5 * (w - z) ** 2, jnp.zeros(()))
    >>> threads = driver(
    ...     estimators.svrg(objective),
    ...     np.arange(4, dtype=np.float32),
    ...     sampling.sampler(4, 1, batch_size=2),
    ...     inner_steps=64,
    ...     num_threads=2,
    ... )
    >>> state, schedule = training.start(np.zeros(1, np.float32)), schedules.constant(0.05)
    >>> *_, last = training.run(threads, state, schedule=schedule, num_epochs=4)
    >>> bool(abs(last.x[0] - 1.5) < 0.1)  # the minimum is at 1.5
    True

    Source: Huo and Huang (2016), Algorithm 1; the delay-adaptive steps as for
    `delays.adaptive_scale`.
    """
    arguments.check(estimator, inner_steps, max_delay)
    check_count("num_threads", num_threads, limit=MOST_THREADS)
    check_count("read_period", read_period, limit=INT32)
    check_switch("sees_own", sees_own)
    check_switch("delay_adaptive", delay_adaptive)
    if max_delay is not None:
        read_period = min(read_period, max(1, (max_delay + 1) // num_threads))
    check_choice("read", read, READS)
    check_choice("write", write, WRITES)
    if read == "consistent" and write == "lock_free":
        raise InputError(
            "read must be inconsistent or view where write is lock_free, got consistent: without "
            "a lock nothing keeps a writer away while x is copied."
        )
    n = sampling.check_fits(sampler, objectives.num_samples(data))
    device_data = jax.tree.map(jnp.asarray, data)
    concurrency = num_threads * read_period if delay_adaptive else None

    def prepare(x: Array) -> Snapshot:
        with ThreadPoolExecutor(num_threads, "asvrg-snapshot") as pool:
            return estimator.prepare(jnp.asarray(x), device_data, pool.map)

    def advance(
        reached: Array | Halfway, snapshot: Snapshot, epoch: int, lr: float, pause: Pause | None
    ) -> Halfway:
        x, before = pausing.begin(reached)
        sampling.check_dim(sampler, x)
        buffer = shared_buffer(x)
        drawn = np.bincount([] if before is None else before.worker, minlength=num_threads)
        streams = [Stream(sampler, epoch, k, first=int(drawn[k])) for k in range(num_threads)]
        claims = Claims(
            inner_steps,
            read_period,
            max_delay=max_delay,
            scaled=delay_adaptive,
            before=before,
            pause=pause,
        )
        snapshot = estimator.in_epoch(snapshot, epoch)
        loop = _InnerLoop(
            estimator, buffer, snapshot, device_data, streams, lr, claims, sees_own=sees_own
        )
        trace = loop.run(read, write, concurrency)
        if loop.not_finite:
            raise diverged("v", epoch + 1, lr, update=min(loop.not_finite))
        return Halfway(buffer, trace)

    def warm_up(x: Array) -> None:
        snapshot = estimator.in_epoch(prepare(x), 0)
        stream = Stream(sampler, 0, 0)
        for count in {min(read_period, inner_steps), inner_steps % read_period} - {0}:
            claims = Claims(count, read_period)
            buffer = shared_buffer(x)
            loop = _InnerLoop(
                estimator, buffer, snapshot, device_data, [stream], 0.0, claims, sees_own=sees_own
            )
            loop.run(read, write, None)

    evals = estimator.grad_evals(n, sampler.batch_size, inner_steps)
    return Driver(prepare, pausing.inner_loop(advance), warm_up, inner_steps, evals, advance)


class _InnerLoop:
    """The iterations of one epoch: what the threads share, and what each of them does."""

    def __init__(
        self,
        estimator: Estimator,
        buffer: np.ndarray,
        snapshot: Snapshot,
        data: Data,
        streams: list[Stream],
        lr: float,
        claims: Claims,
        *,
        sees_own: bool,
    ) -> None:
        self._estimator = estimator
        self._buffer = buffer
        self._snapshot = snapshot
        self._data = data
        self._streams = streams
        self._lr = np.asarray(lr, buffer.dtype)
        self._claims = claims
        self._sees_own = sees_own
        self._write_lock = threading.Lock()
        self.not_finite: list[int] = []  # updates; there may be others between them

    def run(self, read: str, write: str, concurrency: int | None) -> Trace:
        """Has the threads do all updates; returns when all of them have ended."""
        workers = range(len(self._streams))
        with ThreadPoolExecutor(len(workers), "asvrg-worker") as pool:
            runs: list[Future[None]] = []
            try:
                for k in workers:
                    runs.append(pool.submit(self._work, k, read, write, concurrency))
                wait(runs, return_when=FIRST_EXCEPTION)
            except RuntimeError as error:
                raise InputError(
                    f"num_threads must be a number of threads that the system can start, got "
                    f"{len(workers)} ({error})."
                ) from error
            finally:
                # Also on Ctrl-C: nobody writes to the buffer once this function has returned.
                self._claims.stop()
                wait(runs)
        for worker, cause in enumerate(each.exception() for each in runs):
            if cause is not None:
                raise WorkerError(worker, self._buffer, cause) from cause
        return self._claims.landed.trace(sees_own=self._sees_own)

    def _work(self, worker: int, read: str, write: str, concurrency: int | None) -> None:
        # A diverging x overflows; training.run says so, with the cause.
        with np.errstate(over="ignore", invalid="ignore"):
            copy = shared_buffer(self._buffer)
            x = live_view(self._buffer if read == "view" else copy)
            lock = self._write_lock if write == "locked" else contextlib.nullcontext()
            while count := self._claims.claim(worker):
                draws = self._streams[worker].take(count)
                begin = self._claims.landed.now()
                version = self._read(copy, read)
                delta = self._compute(x, draws)
                computed = self._claims.landed.now()
                with lock:
                    scale = self._scale(version, count, concurrency)
                    add(
                        self._buffer,
                        delta if scale is None else steps.scaled(delta, scale[:, None]),
                    )
                    first = self._claims.land(worker, version, count, begin, computed, scale)
                row = _first_not_finite(delta.values)
                if row is not None:
                    self.not_finite.append(first + row)
                    self._claims.stop()

    def _read(self, copy: np.ndarray, read: str) -> int:
        """Copies x unless it is read in place; returns how many updates had landed before."""
        if read == "consistent":
            with self._write_lock:
                np.copyto(copy, self._buffer)
                return self._claims.landed.number
        version = self._claims.landed.number
        if read == "inconsistent":
            np.copyto(copy, self._buffer)
        return version

    def _compute(self, x: jax.Array, draws: Draws) -> Delta:
        delta = steps.window(
            self._estimator, x, self._snapshot, self._data, draws, self._lr, sees_own=self._sees_own
        )
        # Waits for the call: until then it may still be reading x.
        return Delta(draws.block, np.asarray(delta.values))

    def _scale(self, version: int, count: int, concurrency: int | None) -> np.ndarray | None:
        """By which to multiply the updates of a window that lands now."""
        if concurrency is None:
            return None
        landed = self._claims.landed.number  # without a lock others may land in between
        # The rule of `delays.staleness`: where nobody else has landed since, a window lacks no
        # update, unless it does not see its own ones.
        alone = self._sees_own and landed == version
        late = np.zeros(count) if alone else np.arange(landed, landed + count) - version
        return delays.adaptive_scale(late, concurrency)


def _first_not_finite(values: np.ndarray) -> int | None:
    """The first row with an entry that is not finite; None if there is none."""
    finite = np.isfinite(values)
    return None if finite.all() else int(np.flatnonzero(~finite.all(axis=1))[0])
