"""Messages by mpi4jax, inside of jitted functions: nothing of Python between two iterations.

Importing this module starts MPI.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import mpi4jax
from mpi4py import MPI

from asvrg.drivers.mpi.protocol import SERVER, Tag
from asvrg.drivers.mpi.transport import World
from asvrg.drivers.mpi.worker import Units, sum_units
from asvrg.estimators import Estimator
from asvrg.types import Array, Data, Draws, PyTree, Snapshot

# x, data, cache, units by size -> x_tilde, grad f(x_tilde), cache
_Pass = Callable[[Array, Data, PyTree, Any], tuple[jax.Array, jax.Array, PyTree]]


class Exchange:
    """The compiled functions of a rank that send and receive."""

    def __init__(self, world: World, num_samples: int) -> None:
        """Compiles nothing yet."""
        self._world = world
        self._num_samples = num_samples
        self._loops: dict[Estimator, Callable[..., jax.Array]] = {}
        self._passes: dict[tuple[Estimator, tuple[int, ...]], _Pass] = {}

    def loop(
        self,
        estimator: Estimator,
        x: Array,
        snapshot: Snapshot,
        data: Data,
        draws: Draws,
        count: int,
    ) -> None:
        """Receives an x_hat and sends v, `count` times.

        Args:
          estimator: gives v.
          x: any array of x's shape and dtype.
          snapshot: of the epoch.
          data: of all n samples.
          draws: of at least `count` iterations.
          count: the number of iterations; one compilation serves them all.
        """
        if estimator not in self._loops:
            self._loops[estimator] = jax.jit(
                functools.partial(_loop, self._world.vectors, estimator)
            )
        jax.block_until_ready(self._loops[estimator](x, snapshot, data, draws, count))

    def trace_snapshot(
        self, estimator: Estimator, x: Array, data: Data, cache: PyTree, units: Mapping[int, Units]
    ) -> None:
        """Makes `snapshot` ready for arguments like these, without a message.

        What it would raise in the middle of a collective, it raises here. (Compiled ahead of time,
        a function with ordered effects can be called only once, in jax 0.10.2.)
        """
        function = functools.partial(
            _snapshot, self._world.collectives, estimator, tuple(units), self._num_samples
        )
        compiled = jax.jit(function, donate_argnums=2)
        compiled.lower(x, data, cache, tuple(units.values()))
        self._passes[estimator, tuple(units)] = compiled

    def snapshot(
        self, estimator: Estimator, x: Array, data: Data, cache: PyTree, units: Mapping[int, Units]
    ) -> tuple[jax.Array, jax.Array, PyTree]:
        """x_tilde from the server, and grad f(x_tilde) as the sum of all ranks' sums over n.

        Args:
          estimator: with `grad_and_cache`.
          x: at the server x_tilde; at a worker any array of its shape and dtype.
          data: of all n samples; () at the server.
          cache: of all n samples; () at the server.
          units: of this rank, by size; none at the server.

        Returns:
          x_tilde [d], grad f(x_tilde) [d], and the cache.
        """
        if (estimator, tuple(units)) not in self._passes:
            self.trace_snapshot(estimator, x, data, cache, units)
        compiled = self._passes[estimator, tuple(units)]
        return jax.block_until_ready(compiled(x, data, cache, tuple(units.values())))


def _loop(
    comm: MPI.Intracomm,
    estimator: Estimator,
    x: Array,
    snapshot: Snapshot,
    data: Data,
    draws: Draws,
    count: Array,
) -> jax.Array:
    def iterate(i: jax.Array, done: jax.Array) -> jax.Array:
        x_hat = mpi4jax.recv(x, SERVER, tag=int(Tag.WORK), comm=comm)
        draw = jax.tree.map(lambda leaf: leaf[i], draws)
        v = estimator.estimate(x_hat, snapshot, data, draw)
        mpi4jax.send(v, SERVER, tag=int(Tag.RESULT), comm=comm)
        return done + 1

    return jax.lax.fori_loop(0, count, iterate, jnp.int32(0))


def _snapshot(
    comm: MPI.Intracomm,
    estimator: Estimator,
    sizes: tuple[int, ...],
    num_samples: int,
    x: Array,
    data: Data,
    cache: PyTree,
    units: tuple[Units, ...],
) -> tuple[jax.Array, jax.Array, PyTree]:
    x = mpi4jax.bcast(x, SERVER, comm=comm)
    total = jnp.zeros_like(x)
    for size, of_size in zip(sizes, units, strict=True):
        total, cache = sum_units(estimator, x, data, total, cache, of_size, size=size)
    total = mpi4jax.allreduce(total, MPI.SUM, comm=comm)
    return x, total / jnp.asarray(num_samples, total.dtype), cache
