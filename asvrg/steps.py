"""One iteration of Algorithm 1 or 3: what to add to x, and where."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from asvrg import objectives
from asvrg.estimators import Estimator
from asvrg.types import Array, Data, Delta, Draws, Snapshot

# Iterations in one product where all of them have one x: more gain nothing, and take memory.
AT_ONCE = 32


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

    >>> from asvrg import estimators, objectives
    >>> objective = objectives.from_loss(lambda w, z: 0.5 * jnp.sum((w - z) ** 2), jnp.zeros(2))
    >>> sgd, data = estimators.sgd(objective), jnp.array([[0.0, 0.0], [2.0, 4.0]])
    >>> draw = Draws(batch=jnp.array([1]), block=jnp.array([1]))
    >>> step(sgd, jnp.zeros(2), Snapshot(), data, draw, jnp.array(0.5))
    Delta(block=Array([1], dtype=int32), values=Array([2.], dtype=float32))

    Source: Huo and Huang (2016), Equations (4) and (15).
    """
    chex.assert_rank([x_hat, draw.batch, lr], [1, 1, 0])
    v = estimator.estimate(x_hat, snapshot, data, draw)
    chex.assert_equal_shape([v, x_hat if draw.block is None else draw.block])
    chex.assert_equal(v.dtype, x_hat.dtype)
    return Delta(draw.block, -lr * v)


def apply(x: Array, delta: Delta) -> jax.Array:
    """The x with a delta added; coordinates outside of its block keep their bits.

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
        delta.values,
        unique_indices=True,
        indices_are_sorted=True,
        mode="promise_in_bounds",
        wrap_negative_indices=False,
    )


def padded(estimator: Estimator, x: Array, block: Array | None) -> jax.Array:
    """The x that a loop of iterations carries: with the estimator's padding if they have blocks.

    Every driver's loop carries this form, as the products of two forms differ in their rounding.

    Args:
      estimator: gives v_t.
      x: float [d].
      block: of the draws; None if every iteration updates all of x.

    Returns:
      float [d] or [d + padding], with zeros behind.

    >>> from asvrg import estimators, mlp
    >>> sgd = estimators.sgd(mlp.mlp((4, 5, 3)))  # 25 coordinates in one layer, 18 in the other
    >>> padded(sgd, jnp.ones(43), jnp.zeros(1, jnp.int32)).size
    45
    """
    x = jnp.asarray(x)
    return x if block is None else jnp.pad(x, (0, estimator.padding))


def scaled(delta: Delta, scale: Array) -> Delta:
    """A delta as it lands where its step is scaled, by the rounding that all drivers share.

    Args:
      delta: of one iteration, or of many with a leading axis.
      scale: float, a scalar, or [r, 1] for r iterations.

    Returns:
      A Delta with its values times the scale in their dtype.

    >>> scaled(Delta(None, np.ones(2, np.float32)), np.float64(0.5)).values
    array([0.5, 0.5], dtype=float32)

    Source: as for `delays.adaptive_scale`.
    """
    return delta._replace(values=delta.values * scale.astype(delta.values.dtype))


def window(
    estimator: Estimator,
    x: Array,
    snapshot: Snapshot,
    data: Data,
    draws: Draws,
    lr: Array,
    *,
    sees_own: bool = True,
) -> Delta:
    """A worker's iterations between two reads of x: it sees its own updates, or none at all.

    With its own updates the result is the same to the bit however the iterations are grouped into
    windows, and the same as that of numpy, adding the deltas one by one. Without them all
    iterations have one x, so that those of a group are one matrix product, with other rounding than
    the products of single iterations.

    Args:
      estimator: gives v_t; one compilation for each estimator and each number of iterations.
      x: float [d], as the worker read it.
      snapshot: of this epoch.
      data: a pytree of arrays [n, ...].
      draws: of r iterations, batch int32 [r, b] and block int32 [r, B] or None.
      lr: eta, a scalar of x's dtype.
      sees_own: whether an iteration sees the updates of those before it.

    Returns:
      The deltas of its r iterations, values [r, B] or [r, d].

    >>> from asvrg import estimators, objectives
    >>> objective = objectives.from_loss(lambda w, z: 0.5 * jnp.sum((w - z) ** 2), jnp.zeros(1))
    >>> sgd, data = estimators.sgd(objective), np.array([[8.0]], np.float32)
    >>> draws = Draws(batch=np.zeros((3, 1), np.int32), block=None)
    >>> delta = window(sgd, np.zeros(1, np.float32), Snapshot(), data, draws, np.float32(0.5))
    >>> delta.values[:, 0].tolist()
    [4.0, 2.0, 1.0]
    >>> delta = window(
    ...     sgd, np.zeros(1, np.float32), Snapshot(), data, draws, np.float32(0.5), sees_own=False
    ... )
    >>> delta.values[:, 0].tolist()
    [4.0, 4.0, 4.0]
    """
    if not sees_own:
        return _window_at_one_x(estimator, x, snapshot, data, draws, lr)
    # The number of turns is an argument, else the compiler dissolves a loop of one turn, and
    # makes other operations of the turn.
    count = np.int32(len(draws.batch))
    return _window(estimator, x, snapshot, data, draws, lr, count)


@functools.partial(jax.jit, static_argnames="estimator")
def _window(
    estimator: Estimator,
    x: Array,
    snapshot: Snapshot,
    data: Data,
    draws: Draws,
    lr: Array,
    count: Array,
) -> Delta:
    num_rows = len(draws.batch)
    # For the same reason an index into one row, which is always 0, must not be known to be 0.
    rows = draws if num_rows > 1 else jax.tree.map(lambda row: jnp.repeat(row, 2, 0), draws)

    def draw_at(t: Array) -> Draws:
        return objectives.take(rows, t)

    def iterate(
        t: jax.Array, carry: tuple[jax.Array, Delta, jax.Array]
    ) -> tuple[jax.Array, Delta, jax.Array]:
        x_hat, last, values = carry
        # A delta is added in the turn after the one that computed it, so that the compiler cannot
        # make one multiply-add of -eta v + x, which rounds once where numpy rounds twice.
        x_hat = apply(x_hat, last)
        delta = step(estimator, x_hat, snapshot, data, draw_at(t), lr)
        return x_hat, delta, jax.lax.dynamic_update_index_in_dim(values, delta.values, t, 0)

    width = x.size if rows.block is None else rows.block.shape[1]
    nothing = Delta(draw_at(0).block, jnp.full((width,), -0.0, x.dtype))
    values = jnp.zeros((len(rows.batch), width), x.dtype)
    carry = padded(estimator, x, rows.block), nothing, values
    *_, values = jax.lax.fori_loop(0, count, iterate, carry)
    return Delta(draws.block, values[:num_rows])


@functools.partial(jax.jit, static_argnames="estimator")
def _window_at_one_x(
    estimator: Estimator, x: Array, snapshot: Snapshot, data: Data, draws: Draws, lr: Array
) -> Delta:
    x_hat = padded(estimator, x, draws.block)

    def values(draw: Draws) -> jax.Array:
        return step(estimator, x_hat, snapshot, data, draw, lr).values

    return Delta(draws.block, jax.lax.map(values, draws, batch_size=AT_ONCE))
