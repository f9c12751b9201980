"""Estimates of grad f(x_hat): sgd() and svrg(). Equation (5) of the paper stands here only."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from asvrg import objectives
from asvrg.objectives import MapFn, on_block, take
from asvrg.types import Array, Data, Draws, Objective, PyTree, Snapshot


class Estimator(NamedTuple):
    """How a descent direction is estimated.

    Attributes:
      prepare: (x [d], data, map_fn) -> Snapshot; once an epoch, at x_tilde = x.
      estimate: (x_hat [d], snapshot, data, draw of one iteration) -> v, [d], or [B] on the draw's
        block. Pure, and meant to be jitted.
      grad_evals: (n, b, m) -> component gradients that an epoch computes, as the theory counts.
      grad_and_cache: (x_tilde [d], samples) -> their mean gradient [d] and their cache, for drivers
        whose workers prepare a part of the samples each; None if the snapshot is empty.
    """

    prepare: Callable[[Array, Data, MapFn], Snapshot]
    estimate: Callable[[Array, Snapshot, Data, Draws], jax.Array]
    grad_evals: Callable[[int, int, int], int]
    grad_and_cache: Callable[[Array, Data], tuple[jax.Array, PyTree]] | None = None


def sgd(objective: Objective) -> Estimator:
    """v_t = (1/b) sum_{i in I_t} grad f_i(x_hat_t), the mini-batch gradient.

    Args:
      objective: the finite sum f.

    Returns:
      An Estimator whose snapshot is empty; b m component gradients an epoch.

    >>> from asvrg import mlp
    >>> sgd(mlp.mlp((4, 3))).grad_evals(100, 10, 20)
    200
    """

    def prepare(x: Array, data: Data, map_fn: MapFn) -> Snapshot:
        del x, data, map_fn
        return Snapshot()

    def estimate(x_hat: Array, snapshot: Snapshot, data: Data, draw: Draws) -> jax.Array:
        del snapshot
        return _weighted(draw, objective.grad(x_hat, take(data, draw.batch), draw.block))

    return Estimator(prepare, estimate, lambda n, b, m: b * m)


def svrg(objective: Objective, *, chunk_size: int = objectives.CHUNK_SIZE) -> Estimator:
    """v_t = (1/b) sum_{i in I_t} (grad f_i(x_hat_t) - grad f_i(x_tilde) + grad f(x_tilde)), (5).

    Equation (16) is the same with x_hat_t = x_{t - tau}.

    Args:
      objective: the finite sum f.
      chunk_size: samples at once in the pass for grad f(x_tilde); bounds its memory.

    Returns:
      An Estimator with n + 2 b m component gradients an epoch. (Where the objective keeps a cache
      the b m gradients at x_tilde are not computed again; the theory counts them all the same.)

    >>> from asvrg import mlp
    >>> svrg(mlp.mlp((4, 3))).grad_evals(100, 10, 20)
    500

    Source: Johnson and Zhang (2013), Accelerating stochastic gradient descent using predictive
    variance reduction; Huo and Huang (2016), Equations (5) and (16).
    """

    def prepare(x: Array, data: Data, map_fn: MapFn) -> Snapshot:
        full_grad, cache = objectives.full_gradient(
            objective, x, data, chunk_size=chunk_size, map_fn=map_fn
        )
        return Snapshot(x, full_grad, cache)

    def estimate(x_hat: Array, snapshot: Snapshot, data: Data, draw: Draws) -> jax.Array:
        batch, cache = take((data, snapshot.cache), draw.batch)
        difference = objective.grad_difference(x_hat, snapshot.params, cache, batch, draw.block)
        return _weighted(draw, difference) + on_block(snapshot.full_grad, draw.block)

    return Estimator(prepare, estimate, lambda n, b, m: n + 2 * b * m, objective.grad_and_cache)


def _weighted(draw: Draws, gradient: jax.Array) -> jax.Array:
    if draw.weight is None:
        return gradient
    return jnp.asarray(draw.weight).astype(gradient.dtype) * gradient
