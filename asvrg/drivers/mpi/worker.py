"""Algorithm 3: a worker, a loop over what the server says. No MPI in here: see `transport`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from asvrg import objectives, sampling
from asvrg.drivers.mpi.protocol import GRANT, Packet, Plan, Tag, vector
from asvrg.estimators import Estimator
from asvrg.sampling import Stream
from asvrg.types import Array, Data, Draws, PyTree, Snapshot


class Units(NamedTuple):
    """Where units of one size start: the first `number` of `starts`, int32 [all units]."""

    starts: np.ndarray
    number: int


class Line(Protocol):
    """A worker's messages, as `transport.Line` documents them."""

    def receive(self) -> tuple[Tag, Packet]: ...  # noqa: D102

    def send(  # noqa: D102
        self, tag: Tag, header: Sequence[int] = (), payload: np.ndarray | None = None
    ) -> None: ...

    def receive_vector(self, x: np.ndarray) -> None: ...  # noqa: D102

    def send_vector(self, v: np.ndarray) -> None: ...  # noqa: D102


class Exchange(Protocol):
    """Messages inside of jitted functions, as `exchange.Exchange` documents them."""

    def loop(  # noqa: D102
        self,
        estimator: Estimator,
        x: Array,
        snapshot: Snapshot,
        data: Data,
        draws: Draws,
        count: int,
    ) -> None: ...

    def trace_snapshot(  # noqa: D102
        self, estimator: Estimator, x: Array, data: Data, cache: PyTree, units: Mapping[int, Units]
    ) -> None: ...

    def snapshot(  # noqa: D102
        self, estimator: Estimator, x: Array, data: Data, cache: PyTree, units: Mapping[int, Units]
    ) -> tuple[jax.Array, jax.Array, PyTree]: ...


@functools.partial(
    jax.jit, static_argnames=("estimator", "size"), donate_argnames=("total", "cache")
)
def sum_units(
    estimator: Estimator,
    x: Array,
    data: Data,
    total: Array,
    cache: PyTree,
    units: Units,
    *,
    size: int,
) -> tuple[jax.Array, PyTree]:
    """Adds the gradients of the units' samples at x_tilde to a sum, and keeps their cache.

    Args:
      estimator: with `grad_and_cache`.
      x: x_tilde, [d].
      data: of all n samples.
      total: the sum so far, [d].
      cache: of all n samples; entries of other samples stay as they are.
      units: where they start.
      size: samples of each of them.

    Returns:
      The sum and the cache.
    """
    assert estimator.grad_and_cache is not None
    grad_and_cache = estimator.grad_and_cache

    def add(i: jax.Array, carry: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
        total, cache = carry
        start = units.starts[i]
        rows = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), data)
        grad, new = grad_and_cache(x, rows)
        cache = jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0),
            cache,
            new,
        )
        return total + jnp.asarray(size, grad.dtype) * grad, cache

    return jax.lax.fori_loop(0, units.number, add, (total, cache))


def by_size(plan: Plan, units: Sequence[int]) -> dict[int, Units]:
    """Units in the order in which `sum_units` takes them, the largest ones first.

    Args:
      plan: of the job.
      units: their indices.

    Returns:
      Those of each size.
    """
    chosen = [plan.units[i] for i in units]
    groups = {}
    for size in sorted({unit.size for unit in chosen}, reverse=True):
        starts = [unit.start for unit in chosen if unit.size == size]
        padded = np.zeros(len(plan.units), np.int32)
        padded[: len(starts)] = starts
        groups[size] = Units(padded, len(starts))
    return groups


class Worker:
    """What a worker remembers from one message to the next.

    It holds all samples, and draws from those of its units: then a takeover is a short message.
    """

    def __init__(
        self,
        line: Line,
        plan: Plan,
        estimators: Sequence[Estimator],
        data: Data,
        rank: int,
        exchange: Exchange | None,
    ) -> None:
        """Tells the server that it is there.

        Raises:
          InputError: the data are not the plan's.
        """
        sampling.check_fits(plan.sampler, objectives.num_samples(data))
        self._line = line
        self._plan = plan
        self._estimators = estimators
        self._data = jax.tree.map(jnp.asarray, data)
        self._exchange = exchange
        self._buffer = vector(plan)
        self._index: int | None = None  # of the estimator in use
        self._estimator = estimators[0]
        self._units = list(plan.shards[rank - 1])
        self._shard = plan.shard(self._units, plan.num_workers)
        self._drawing: tuple[int, int] | None = None  # the epoch and the stream in use
        self._x_tilde = jnp.zeros(plan.sampler.dim, plan.dtype)
        self._full_grad = self._x_tilde
        self._cache: PyTree = ()
        digest = np.frombuffer(plan.digest, np.uint8)
        line.send(Tag.READY, (exchange is not None,), digest)

    def run(self) -> None:
        """Answers the server until it says STOP."""
        while True:
            tag, packet = self._line.receive()
            number, second = (int(entry) for entry in packet.header[:2])
            match tag:
                case Tag.WARM:
                    self._use(number)
                    self._warm_up(collective=bool(second))
                    self._line.send(Tag.READY)
                case Tag.PREPARE:
                    self._use(number)
                    self._x_tilde = self._read(packet)
                    self._shard = self._plan.shard(self._units, second)
                    self._answer(self._units)
                case Tag.COLLECT:
                    self._use(number)
                    self._shard = self._plan.shard(self._units, second)
                    self._collect()
                case Tag.SHARD:
                    more = packet.payload[: 4 * number].view(np.int32).tolist()
                    self._units += more
                    self._shard = self._plan.shard(self._units, second)
                    self._answer(more)
                case Tag.FULL:
                    self._full_grad = self._read(packet)
                case Tag.GRANT:
                    stream, drawn = (int(entry) for entry in packet.header[2:4])
                    draws = self._draw(number, second, stream, drawn)
                    self._iterate(self._snapshot(number), draws, second)
                case Tag.STOP:
                    return
                case _:
                    raise AssertionError(f"a worker was sent {tag!r}.")

    def _use(self, index: int) -> None:
        """Takes another estimator, with room for its cache."""
        self._drawing = None
        if self._index == index:
            return
        self._index, self._estimator = index, self._estimators[index]
        self._cache = ()
        if self._estimator.grad_and_cache is not None:
            row = jax.tree.map(lambda leaf: leaf[:1], self._data)
            _, cache = jax.eval_shape(self._estimator.grad_and_cache, self._x_tilde, row)
            n = self._plan.sampler.num_samples
            self._cache = jax.tree.map(lambda one: jnp.zeros((n, *one.shape[1:]), one.dtype), cache)

    def _warm_up(self, *, collective: bool) -> None:
        """Compiles everything, as the server hears what fails here, and not in a collective."""
        groups = by_size(self._plan, self._units)
        if not collective:
            self._sum({size: units._replace(number=0) for size, units in groups.items()})
        draws = Stream(self._plan.sampler, 0, 0, self._shard).take(GRANT)
        if self._exchange is None:
            self._direction(self._snapshot(0), draws, 0)
            return
        self._iterate(self._snapshot(0), draws, 0)
        if collective:
            self._exchange.trace_snapshot(
                self._estimator, self._x_tilde, self._data, self._cache, groups
            )

    def _read(self, packet: Packet) -> jax.Array:
        d, dtype = self._plan.sampler.dim, self._plan.dtype
        return jnp.array(packet.payload[: d * dtype.itemsize].view(dtype))

    def _answer(self, units: Sequence[int]) -> None:
        total = self._sum(by_size(self._plan, units))
        self._line.send(Tag.GRAD, (), None if total is None else np.asarray(total))

    def _sum(self, groups: Mapping[int, Units]) -> jax.Array | None:
        """The sum of the gradients of the units' samples; None for SGD."""
        if self._estimator.grad_and_cache is None:
            return None
        total = jnp.zeros_like(self._x_tilde)
        for size, of_size in groups.items():
            total, self._cache = sum_units(
                self._estimator, self._x_tilde, self._data, total, self._cache, of_size, size=size
            )
        return total

    def _collect(self) -> None:
        assert self._exchange is not None
        self._x_tilde, self._full_grad, self._cache = self._exchange.snapshot(
            self._estimator,
            self._x_tilde,
            self._data,
            self._cache,
            by_size(self._plan, self._units),
        )

    def _snapshot(self, epoch: int) -> Snapshot:
        if self._estimator.grad_and_cache is None:
            return Snapshot()
        snapshot = Snapshot(self._x_tilde, self._full_grad, self._cache)
        return self._estimator.in_epoch(snapshot, epoch)

    def _draw(self, epoch: int, count: int, stream: int, drawn: int) -> Draws:
        """The next draws of a stream, of which so many are drawn, padded to GRANT of them."""
        if self._drawing != (epoch, stream):
            self._drawing = (epoch, stream)
            self._stream = Stream(self._plan.sampler, epoch, stream, self._shard, first=drawn)
        draws = self._stream.take(count)
        return jax.tree.map(
            lambda leaf: np.concatenate([leaf, leaf[:1].repeat(GRANT - count, 0)]), draws
        )

    def _iterate(self, snapshot: Snapshot, draws: Draws, count: int) -> None:
        """Receives x_hat and sends v, `count` times."""
        if self._exchange is not None:
            self._exchange.loop(self._estimator, self._x_tilde, snapshot, self._data, draws, count)
            return
        for i in range(count):
            self._line.receive_vector(self._buffer)
            self._line.send_vector(self._direction(snapshot, draws, i))

    def _direction(self, snapshot: Snapshot, draws: Draws, i: int) -> np.ndarray:
        draw = jax.tree.map(lambda leaf: leaf[i], draws)
        return np.asarray(_estimate(self._estimator, self._buffer, snapshot, self._data, draw))


@functools.partial(jax.jit, static_argnames="estimator")
def _estimate(
    estimator: Estimator, x_hat: Array, snapshot: Snapshot, data: Data, draw: Draws
) -> jax.Array:
    return estimator.estimate(x_hat, snapshot, data, draw)
