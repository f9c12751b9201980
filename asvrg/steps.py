"""One iteration of Algorithm 1 or 3: what to add to x, and where."""

from __future__ import annotations

import functools
from typing import Any

import chex
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

    Raises:
      AssertionError: the shapes do not fit, or v has another dtype than x.
    """
    chex.assert_rank([x_hat, draw.batch, lr], [1, 1, 0])
    v = estimator.estimate(x_hat, snapshot, data, draw)
    chex.assert_equal_shape([v, x_hat if draw.block is None else draw.block])
    chex.assert_equal(v.dtype, x_hat.dtype)
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

    # A delta is added at the start of the next turn. Across the loop's edge it is a number in
    # memory; within a turn the compiler fuses the product -eta v into the addition (one rounding
    # instead of two), and x would differ in its last bit from that of a driver that adds the delta
    # to its buffer.
    def iterate(carry: tuple[jax.Array, Delta], draw: Draws) -> tuple[Any, jax.Array]:
        x_hat = apply(*carry)
        delta = step(estimator, x_hat, snapshot, data, draw, lr)
        return (x_hat, delta), delta.values

    x = jnp.asarray(x)
    width = x.shape[0] if draws.block is None else draws.block.shape[1]
    block = None if draws.block is None else jnp.arange(width, dtype=draws.block.dtype)
    nothing = Delta(block, jnp.full(width, -0.0, x.dtype))  # x + -0.0 is x, for x = -0.0 as well
    carry, values = jax.lax.scan(iterate, (x, nothing), draws)
    return apply(*carry), Delta(draws.block, values)
