"""Shared-AsySVRG, Algorithm 1: Python threads that read and write one shared buffer.

A thread reads x, computes the deltas of `read_period` iterations in one jitted call (which runs
without the interpreter lock, on the thread's own copy of x, where it sees its own updates), adds
them to the shared buffer, and reads x again. What other threads add in the meantime it does not
see: that is the asynchrony, and the Trace records it.
"""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

import jax
import jax.numpy as jnp
import numpy as np

from asvrg import objectives, sampling, steps
from asvrg.errors import DriverError, InputError, check_choice, check_count
from asvrg.estimators import Estimator
from asvrg.sampling import Sampler, Stream
from asvrg.types import Array, Data, Delta, Draws, Driver, Snapshot, Trace

READS = ("consistent", "inconsistent", "view")
WRITES = ("locked", "lock_free")

_ALIGNMENT = 64  # bytes; XLA aliases a numpy buffer of this alignment, and copies any other


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

    Returns:
      A Driver whose x is a numpy array.

    Raises:
      InputError: a number out of its range, an unknown mode, consistent reads of what is written
        without a lock, or a sampler of other samples; in the driver's functions, an x that is not
        the sampler's [d], or more threads than the system can start.
      WorkerError: in the inner loop, a thread raised.
    """
    check_count("inner_steps", inner_steps)
    check_count("num_threads", num_threads)
    check_count("read_period", read_period)
    check_choice("read", read, READS)
    check_choice("write", write, WRITES)
    if read == "consistent" and write == "lock_free":
        raise InputError(
            "read must be inconsistent or view where write is lock_free, got consistent: without "
            "a lock nothing keeps a writer away while x is copied."
        )
    n = sampling.check_fits(sampler, objectives.num_samples(data))
    device_data = jax.tree.map(jnp.asarray, data)

    def prepare(x: Array) -> Snapshot:
        with ThreadPoolExecutor(num_threads, "asvrg-snapshot") as pool:
            return estimator.prepare(jnp.asarray(x), device_data, pool.map)

    def inner_loop(x: Array, snapshot: Snapshot, epoch: int, lr: float) -> tuple[Array, Trace]:
        sampling.check_dim(sampler, x)
        buffer = shared_buffer(x)
        streams = [Stream(sampler, epoch, worker) for worker in range(num_threads)]
        loop = _InnerLoop(estimator, buffer, snapshot, device_data, streams, lr)
        trace = loop.run(inner_steps, read, write, read_period)
        return buffer, trace

    def warm_up(x: Array) -> None:
        snapshot = prepare(x)
        stream = Stream(sampler, 0, 0)
        for count in {min(read_period, inner_steps), inner_steps % read_period} - {0}:
            loop = _InnerLoop(estimator, shared_buffer(x), snapshot, device_data, [stream], 0.0)
            loop.run(count, read, write, read_period)

    evals = estimator.grad_evals(n, sampler.batch_size, inner_steps)
    return Driver(prepare, inner_loop, warm_up, inner_steps, evals)


def shared_buffer(x: Array) -> np.ndarray:
    """A copy of x that numpy writes and XLA reads in place.

    Args:
      x: float [d].

    Returns:
      A writable numpy array [d] whose first byte lies at a multiple of 64, of the dtype that jax
      gives x: float64 becomes float32 unless jax_enable_x64 is set.

    >>> shared_buffer(np.arange(3.0)).ctypes.data % 64
    0
    """
    x = np.asarray(jnp.asarray(x))
    room = np.empty(x.nbytes + _ALIGNMENT, np.uint8)
    offset = -room.ctypes.data % _ALIGNMENT
    buffer = room[offset : offset + x.nbytes].view(x.dtype)
    np.copyto(buffer, x)
    return buffer


def live_view(buffer: np.ndarray) -> jax.Array:
    """The buffer as a jax array that always holds what the buffer holds now.

    Args:
      buffer: float [d], from `shared_buffer`.

    Returns:
      A jax array on the CPU, at the same address.

    Raises:
      InputError: XLA would copy the buffer: it is not aligned, or not on this device.

    >>> buffer = shared_buffer(np.zeros(2, np.float32))
    >>> view = live_view(buffer)
    >>> buffer[0] = 1
    >>> view
    Array([1., 0.], dtype=float32)
    """
    view = jnp.from_dlpack(buffer)
    if view.unsafe_buffer_pointer() != buffer.ctypes.data:
        raise InputError(
            "buffer must be aligned to 64 bytes on the CPU, as shared_buffer makes it, got one "
            "that XLA copies."
        )
    return view


def add(buffer: np.ndarray, delta: Delta) -> None:
    """Adds deltas [r, B] or [r, d] to the shared buffer in place, one after the other.

    Only the coordinates of the blocks are touched: a masked addition over all of x would undo what
    other threads write in the meantime, even to other coordinates.

    Args:
      buffer: float [d], changed.
      delta: of r iterations: block int [r, B] and values [r, B], or None and values [r, d].

    >>> buffer = np.zeros(3)
    >>> add(buffer, Delta(np.array([[0, 2], [1, 2]]), np.array([[1.0, 2.0], [3.0, 4.0]])))
    >>> buffer
    array([1., 3., 6.])
    """
    values = np.asarray(delta.values)
    if delta.block is None:
        for row in values:
            buffer += row
    else:
        np.add.at(buffer, delta.block.ravel(), values.ravel())


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
    ) -> None:
        self._estimator = estimator
        self._buffer = buffer
        self._snapshot = snapshot
        self._data = data
        self._streams = streams
        self._lr = np.asarray(lr, buffer.dtype)
        self._write_lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._stop = threading.Event()
        self._claimed = 0
        self._landed = 0

    def run(self, inner_steps: int, read: str, write: str, read_period: int) -> Trace:
        """Has the threads do `inner_steps` updates; returns when all of them have ended."""
        self._worker = np.zeros(inner_steps, np.int32)
        self._read_version = np.zeros(inner_steps, np.int32)
        workers = range(len(self._streams))
        with ThreadPoolExecutor(len(workers), "asvrg-worker") as pool:
            runs: list[Future[None]] = []
            try:
                for k in workers:
                    runs.append(pool.submit(self._work, k, read, write, read_period))
                wait(runs, return_when=FIRST_EXCEPTION)
            except RuntimeError as error:
                raise InputError(
                    f"num_threads must be a number of threads that the system can start, got "
                    f"{len(workers)} ({error})."
                ) from error
            finally:
                # Also on Ctrl-C: nobody writes to the buffer once this function has returned.
                self._stop.set()
                wait(runs)
        for worker, cause in enumerate(each.exception() for each in runs):
            if cause is not None:
                raise WorkerError(worker, self._buffer, cause) from cause
        return Trace(self._worker, self._read_version, sees_own=True)

    def _work(self, worker: int, read: str, write: str, read_period: int) -> None:
        # A diverging x overflows; training.run says so, with the cause.
        with np.errstate(over="ignore", invalid="ignore"):
            copy = shared_buffer(self._buffer)
            x = live_view(self._buffer if read == "view" else copy)
            while count := self._claim(read_period):
                draws = self._streams[worker].take(count)
                version = self._read(copy, read)
                delta = self._compute(x, draws)
                self._land(worker, version, delta, write)

    def _claim(self, read_period: int) -> int:
        """How many iterations the calling thread shall do next; 0 when there is nothing left."""
        with self._count_lock:
            count = min(read_period, len(self._worker) - self._claimed)
            if self._stop.is_set():
                count = 0
            self._claimed += count
            return count

    def _read(self, copy: np.ndarray, read: str) -> int:
        """Copies x unless it is read in place; returns how many updates had landed before."""
        if read == "consistent":
            with self._write_lock:
                np.copyto(copy, self._buffer)
                return self._landed
        version = self._landed
        if read == "inconsistent":
            np.copyto(copy, self._buffer)
        return version

    def _compute(self, x: jax.Array, draws: Draws) -> Delta:
        _, delta = steps.window(self._estimator, x, self._snapshot, self._data, draws, self._lr)
        # Waits for the call: until then it may still be reading x.
        return Delta(draws.block, np.asarray(delta.values))

    def _land(self, worker: int, version: int, delta: Delta, write: str) -> None:
        if write == "locked":
            with self._write_lock:
                add(self._buffer, delta)
                self._record(worker, version, len(delta.values))
        else:
            add(self._buffer, delta)
            self._record(worker, version, len(delta.values))

    def _record(self, worker: int, version: int, count: int) -> None:
        with self._count_lock:
            landed = slice(self._landed, self._landed + count)
            self._worker[landed] = worker
            self._read_version[landed] = version
            self._landed += count
