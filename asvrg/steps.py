"""One iteration of Algorithm 1 or 3: what to add to x, and where."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from asvrg.estimators import Estimator
from asvrg.types import Array, Data, Delta, Draws, Snapshot


def step(
    estimator: Estimator, x_hat: Array, snapshot: Snapshot, data: Data, draw: Draws, lr: Array
) -> Delta:
    """(x_{t+1})_k - (x_t)_k = -eta (v_t)_k for the block k_t, Equation (4); all of x in (15).

    Args:
      estimator: gives v_t.
      x_hat: float [d], the x that the worker sees.
      snapshot: of this epoch, from the estimator's `prepare`.
      data: a pytree of arrays [n, ...].
      draw: batch int32 [b] and block int32 [B] or None, of one iteration.
      lr: eta, a scalar of x's dtype.

    Returns:
      The Delta of the draw's block.
    """
    v = estimator.estimate(x_hat, snapshot, data, draw)
    return Delta(draw.block, -lr * v)


def apply(x: Array, delta: Delta) -> jax.Array:
    """X with a delta added; coordinates outside of its block keep their bits.

    Args:
      x: float [d].
      delta: of one iteration; its block has distinct coordinates in rising order.

    Returns:
      float [d].

    >>> apply(jnp.zeros(3), Delta(jnp.array([0, 2]), jnp.array([1.0, 2.0])))
    Array([1., 0., 2.], dtype=float32)
    """
    if delta.block is None:
        return x + delta.values
    return x.at[delta.block].add(
        delta.values, unique_indices=True, indices_are_sorted=True, mode="promise_in_bounds"
    )


@functools.partial(jax.jit, static_argnames="estimator")
def window(
    estimator: Estimator, x: Array, snapshot: Snapshot, data: Data, draws: Draws, lr: Array
) -> tuple[jax.Array, Delta]:
    """A worker's iterations between two reads of x: it sees its own updates and no others.

    Args:
      estimator: gives v_t; one compilation for each estimator and each number of iterations.
      x: float [d], as the worker read it.
      snapshot: of this epoch.
      data: a pytree of arrays [n, ...].
      draws: of r iterations, batch int32 [r, b] and block int32 [r, B] or None.
      lr: eta, a scalar of x's dtype.

    Returns:
      The worker's x after its r iterations, [d], and their deltas, values [r, B] or [r, d].
    """

    def iterate(x_hat: jax.Array, draw: Draws) -> tuple[jax.Array, jax.Array]:
        delta = step(estimator, x_hat, snapshot, data, draw, lr)
        return apply(x_hat, delta), delta.values

    x, values = jax.lax.scan(iterate, jnp.asarray(x), draws)
    return x, Delta(draws.block, values)
