"""The protocol of the shared buffer: what may tear, what may be lost, and what never does."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asvrg import delays, sampling
from asvrg.drivers import threads
from asvrg.types import Delta, Snapshot
from tests.thread_runs import COUNTING, MODES, alive, eager_switching

pytestmark = pytest.mark.timeout(60)

SECONDS = 20  # to wait for another thread; nobody waits so long unless the test fails
DIM = 6_007  # numpy lets go of the interpreter above 500 coordinates; odd, for the ends of vectors
# Numbers of which any two differ in each of their bytes, so that no mixture of two is a third; and
# whole ones, so that the steps from one to the next are exact.
VALUES = {
    "float32": np.array([7_762_080, -2_719_195, 17_750], np.float32),
    "float64": np.array([2_344_063_987_250_799, -106_422_641_825_094, 14_512_512_895_649.0]),
}


@pytest.fixture(autouse=True)
def _no_thread_stays_behind() -> Iterator[None]:
    yield
    assert not alive()


@pytest.fixture
def _eager_switching() -> Iterator[None]:
    with eager_switching():
        yield


def bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32 if values.itemsize == 4 else np.uint64)


def torn(seen: np.ndarray, values: np.ndarray) -> int:
    """How many coordinates hold what nobody has written."""
    return int(np.sum(~np.isin(bits(seen), bits(values))))


@pytest.mark.parametrize("dtype", VALUES)
def test_a_coordinate_that_is_torn_would_be_found(dtype: str) -> None:
    values = VALUES[dtype]
    steps = np.diff(values, append=values[:1])
    np.testing.assert_array_equal(values + steps, np.roll(values, -1))
    for one, other in itertools.permutations(values, 2):
        parts = one.tobytes(), other.tobytes()
        for cut in range(1, values.itemsize):
            mixture = np.frombuffer(parts[0][:cut] + parts[1][cut:], dtype)
            assert torn(mixture, values) == 1
            assert torn(np.array([one, other]), values) == 0


def copies() -> Callable[[np.ndarray], np.ndarray]:
    """How a thread reads where `read` is inconsistent."""
    copy: np.ndarray | None = None

    def read(buffer: np.ndarray) -> np.ndarray:
        nonlocal copy
        copy = threads.shared_buffer(buffer) if copy is None else copy
        np.copyto(copy, buffer)
        return copy

    return read


def views() -> Callable[[np.ndarray], np.ndarray]:
    """How it reads where `read` is view: compiled loops over the buffer itself."""
    negated = jax.jit(jnp.negative)
    view: jax.Array | None = None

    def read(buffer: np.ndarray) -> np.ndarray:
        nonlocal view
        view = threads.live_view(buffer) if view is None else view
        return -np.asarray(negated(view))

    return read


@pytest.mark.usefixtures("_eager_switching")
@pytest.mark.parametrize("dtype", VALUES)
@pytest.mark.parametrize("in_blocks", [False, True], ids=["all of x", "blocks"])
def test_coordinates_never_tear(dtype: str, in_blocks: bool) -> None:
    """A thread that writes, or two to coordinates side by side, without a lock; two that read.

    Nobody stops to write before each reader has read a hundred times.
    """
    values = VALUES[dtype]
    buffer = threads.shared_buffer(np.full(DIM, values[0]))
    reading = threading.Event()
    reading.set()

    def write(of_block: slice | None) -> int:
        own = itertools.cycle(np.diff(values, append=values[:1]))
        block = None if of_block is None else np.arange(DIM)[None, of_block]
        width = DIM if block is None else block.shape[1]
        number = 0
        while reading.is_set() or number % len(values):
            threads.add(buffer, Delta(block, np.full((1, width), next(own))))
            number += 1
        return number

    def look(read: Callable[[np.ndarray], np.ndarray]) -> int:
        return sum(torn(read(buffer), values) for _ in range(100))

    slices = [slice(0, None, 2), slice(1, None, 2)] if in_blocks else [None]
    with ThreadPoolExecutor(4, "asvrg-test") as pool:
        writers = [pool.submit(write, each) for each in slices]
        readers = [pool.submit(look, each) for each in (copies(), views())]
        try:
            assert [each.result(SECONDS) for each in readers] == [0, 0]
        finally:
            reading.clear()
        assert all(each.result(SECONDS) >= len(values) for each in writers)
    # Nobody's writes have undone those of a neighbour.
    np.testing.assert_array_equal(buffer, values[0])


class InTheMidst:
    """An `add` that rests half way, once, until somebody has seen x so, and who reads waits for it.

    Attributes:
      seen: the x that threads computed with.
    """

    def __init__(self, patch: pytest.MonkeyPatch, patience: float) -> None:
        self.seen: list[np.ndarray] = []
        self._patience = patience
        self._half_done, self._was_read = threading.Event(), threading.Event()
        self._add, self._take = threads.add, sampling.Stream.take
        self._compute = threads._InnerLoop._compute
        patch.setattr(threads, "add", self.add)
        patch.setattr(sampling.Stream, "take", lambda *args: self.take(*args))
        patch.setattr(threads._InnerLoop, "_compute", lambda *args: self.compute(*args))

    def add(self, buffer: np.ndarray, delta: Delta) -> None:
        if self._half_done.is_set():
            self._add(buffer, delta)
            return
        half, everything = len(buffer) // 2, np.asarray(delta.values)
        buffer[:half] += everything[0, :half]
        self._half_done.set()
        self._was_read.wait(self._patience)
        buffer[half:] += everything[0, half:]

    def take(self, stream: sampling.Stream, count: int):
        if threading.current_thread().name.endswith("_1"):
            assert self._half_done.wait(SECONDS)
        return self._take(stream, count)

    def compute(self, loop: threads._InnerLoop, x: jax.Array, draws):
        self.seen.append(np.array(x))
        if np.ptp(self.seen[-1]):
            self._was_read.set()
        return self._compute(loop, x, draws)


@pytest.mark.parametrize(("read", "write"), MODES)
def test_consistent_reads_alone_are_whole(
    read: str, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others may see an update in a part of the coordinates, and here they do."""
    options = {"num_threads": 2, "read": read, "write": write, "read_period": 1}
    spec = sampling.sampler(4, DIM, batch_size=1)
    driver = threads.driver(COUNTING, np.zeros(4), spec, inner_steps=6, **options)
    driver.warm_up(np.zeros(DIM))
    # Where readers wait for the lock nobody will see x half done.
    midst = InTheMidst(monkeypatch, 0.2 if read == "consistent" else SECONDS)
    x, trace = driver.inner_loop(np.zeros(DIM), Snapshot(), 0, 1.0)
    assert len(midst.seen) == len(trace.worker) == 6
    mixed = [seen for seen in midst.seen if np.ptp(seen)]
    assert all(set(np.unique(seen)) <= set(range(7)) for seen in midst.seen)
    if read == "consistent":
        assert not mixed
        np.testing.assert_array_equal(x, 6.0)
    else:
        assert mixed
        np.testing.assert_array_equal(np.unique(mixed[0]), [0.0, 1.0])


@pytest.mark.usefixtures("_eager_switching")
@pytest.mark.parametrize("read", threads.READS)
@pytest.mark.parametrize("block_size", [None, 2_000])
def test_locked_writes_lose_nothing_under_contention(read: str, block_size: int | None) -> None:
    m, spec = 1_001, sampling.sampler(4, DIM, batch_size=1, block_size=block_size)
    driver = threads.driver(
        COUNTING, np.zeros(4), spec, inner_steps=m, num_threads=8, read=read, read_period=1
    )
    x, trace = driver.inner_loop(np.zeros(DIM, np.float32), Snapshot(), 0, 1.0)
    assert len(trace.worker) == m
    assert x.sum(dtype=np.float64) == m * (block_size or DIM)


@pytest.mark.parametrize(("read", "write"), MODES)
def test_an_addition_is_lost_without_the_lock_alone(
    read: str, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads that both read a coordinate before either writes it: one of two is lost.

    The updates have landed all the same, both of them, and the trace says so.
    """
    add, both_have_read = threads.add, threading.Barrier(2)

    def slow_add(buffer: np.ndarray, delta: Delta) -> None:
        after = buffer.copy()
        add(after, delta)
        with contextlib.suppress(threading.BrokenBarrierError):
            both_have_read.wait(0.2 if write == "locked" else SECONDS)
        np.copyto(buffer, after)

    options = {"num_threads": 2, "read": read, "write": write, "read_period": 1}
    spec = sampling.sampler(4, 3, batch_size=1)
    driver = threads.driver(COUNTING, np.zeros(4), spec, inner_steps=2, **options)
    driver.warm_up(np.zeros(3))
    monkeypatch.setattr(threads, "add", slow_add)
    meeting, take = threading.Barrier(2), sampling.Stream.take

    def take_one(stream: sampling.Stream, count: int):
        meeting.wait(SECONDS)  # each of them makes one of the two updates
        return take(stream, count)

    monkeypatch.setattr(sampling.Stream, "take", take_one)
    x, trace = driver.inner_loop(np.zeros(3), Snapshot(), 0, 1.0)
    assert sorted(trace.worker) == [0, 1]
    np.testing.assert_array_equal(x, 2.0 if write == "locked" else 1.0)


@pytest.mark.usefixtures("_eager_switching")
@pytest.mark.parametrize("read", ["inconsistent", "view"])
@pytest.mark.parametrize("block_size", [None, 2_000])
def test_lock_free_writes_invent_nothing(read: str, block_size: int | None) -> None:
    """How many are lost is for benchmarks.soak to measure; some may be, but never those of all."""
    m, spec = 1_001, sampling.sampler(4, DIM, batch_size=1, block_size=block_size)
    options = {"num_threads": 8, "read": read, "write": "lock_free", "read_period": 1}
    driver = threads.driver(COUNTING, np.zeros(4), spec, inner_steps=m, **options)
    x, trace = driver.inner_loop(np.zeros(DIM, np.float32), Snapshot(), 0, 1.0)
    delays.check(trace)
    assert len(trace.worker) == m
    if block_size is None:
        added = np.full(DIM, m)
    else:
        streams = {k: sampling.Stream(spec, 0, k) for k in range(8)}
        draws = sampling.in_order(streams, trace.worker)
        added = np.bincount(draws.block.ravel(), minlength=DIM)
    assert np.all(x <= added)
    assert np.all(x >= np.minimum(added, 1))
    np.testing.assert_array_equal(x, np.round(x))
