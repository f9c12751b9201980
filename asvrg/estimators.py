"""Estimates of grad f(x_hat): sgd() and svrg(). Equation (5) of the paper stands here only.

It has a coefficient alpha besides, v = (g - alpha g_s) + alpha mu, where g is the gradient of a
mini-batch, g_s that of the same mini-batch at the snapshot, and mu the full gradient there: alpha =
1 is the paper's, alpha = 0 is SGD, and v is unbiased for every alpha.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asvrg import objectives
from asvrg.errors import check_real
from asvrg.objectives import MapFn, on_block, take
from asvrg.schedules import Schedule
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
      alpha: epoch s -> the coefficient alpha_s; None if it is 1 in all of them.
    """

    prepare: Callable[[Array, Data, MapFn], Snapshot]
    estimate: Callable[[Array, Snapshot, Data, Draws], jax.Array]
    grad_evals: Callable[[int, int, int], int]
    grad_and_cache: Callable[[Array, Data], tuple[jax.Array, PyTree]] | None = None
    alpha: Schedule | None = None

    def in_epoch(self, snapshot: Snapshot, epoch: int) -> Snapshot:
        """The snapshot with the coefficient of an epoch, as every driver's inner loop uses it.

        Args:
          snapshot: from `prepare`.
          epoch: s.

        Returns:
          A Snapshot whose `alpha` is alpha_s, a scalar.

        Raises:
          InputError: `alpha` gave no finite number.
        """
        if self.alpha is None:
            return snapshot
        alpha = check_real("alpha", self.alpha(epoch), least=-np.inf)
        return snapshot._replace(alpha=np.asarray(alpha))


def sgd(objective: Objective) -> Estimator:
    """v_t = (1/b) sum_{i in I_t} grad f_i(x_hat_t), the mini-batch gradient.

    Args:
      objective: the finite sum f.

    Returns:
      An Estimator whose snapshot is empty; b m component gradients an epoch.

    >>> from asvrg import mlp
    >>> sgd(mlp.mlp((4, 3))).grad_evals(100, 10, 20)
    200

    Source: Robbins and Monro (1951), A stochastic approximation method; the method SGD of Huo and
    Huang (2016), section Experiments.
    """

    def prepare(x: Array, data: Data, map_fn: MapFn) -> Snapshot:
        del x, data, map_fn
        return Snapshot()

    def estimate(x_hat: Array, snapshot: Snapshot, data: Data, draw: Draws) -> jax.Array:
        del snapshot
        return _weighted(draw, objective.grad(x_hat, take(data, draw.batch), draw.block))

    return Estimator(prepare, estimate, lambda n, b, m: b * m)


def svrg(
    objective: Objective,
    *,
    alpha: float | Schedule = 1.0,
    chunk_size: int = objectives.CHUNK_SIZE,
) -> Estimator:
    """v_t = (1/b) sum_{i in I_t} (grad f_i(x_hat_t) - grad f_i(x_tilde) + grad f(x_tilde)), (5).

    Equation (16) is the same with x_hat_t = x_{t - tau}. With a coefficient alpha_s the last two of
    the three terms are multiplied by it.

    Args:
      objective: the finite sum f.
      alpha: a number, or a function of the epoch s, an optax schedule say. From 1 down to 0 over
        the epochs of the run it is alpha-SVRG.
      chunk_size: samples at once in the pass for grad f(x_tilde); bounds its memory.

    Returns:
      An Estimator with n + 2 b m component gradients an epoch. (Where the objective keeps a cache
      the b m gradients at x_tilde are not computed again; the theory counts them all the same.)

    Raises:
      InputError: `alpha` is neither a finite number nor a function.

    >>> from asvrg import mlp
    >>> svrg(mlp.mlp((4, 3))).grad_evals(100, 10, 20)
    500

    Source: Johnson and Zhang (2013), Accelerating stochastic gradient descent using predictive
    variance reduction; Huo and Huang (2016), Equations (5) and (16); for alpha, Yin et al. (2025),
    A coefficient makes SVRG effective.
    """
    if callable(alpha):
        schedule: Schedule | None = alpha
    else:
        fixed = check_real("alpha", alpha, least=-np.inf)
        schedule = None if fixed == 1 else lambda epoch: fixed

    def prepare(x: Array, data: Data, map_fn: MapFn) -> Snapshot:
        full_grad, cache = objectives.full_gradient(
            objective, x, data, chunk_size=chunk_size, map_fn=map_fn
        )
        return Snapshot(x, full_grad, cache)

    def estimate(x_hat: Array, snapshot: Snapshot, data: Data, draw: Draws) -> jax.Array:
        batch, cache = take((data, snapshot.cache), draw.batch)
        alpha_s = jnp.asarray(snapshot.alpha).astype(x_hat.dtype)
        difference = objective.grad_difference(
            x_hat, snapshot.params, cache, batch, draw.block, alpha_s
        )
        full_grad = on_block(snapshot.full_grad, draw.block)
        return direction(_weighted(draw, difference), full_grad, alpha_s)

    return Estimator(
        prepare, estimate, lambda n, b, m: n + 2 * b * m, objective.grad_and_cache, schedule
    )


def direction(difference: jax.Array, full_grad: jax.Array, alpha: jax.Array) -> jax.Array:
    """Equation (5) with a coefficient: v = (g - alpha g_s) + alpha mu.

    Args:
      difference: g - alpha g_s, float, of any shape.
      full_grad: mu, of the same shape and dtype.
      alpha: a scalar of their dtype.

    Returns:
      v, of their shape.

    >>> direction(jnp.array([1.0, 2.0]), jnp.array([4.0, 0.0]), jnp.array(0.5))
    Array([3., 2.], dtype=float32)

    Source: as for `svrg`.
    """
    return difference + alpha * full_grad


def _weighted(draw: Draws, gradient: jax.Array) -> jax.Array:
    if draw.weight is None:
        return gradient
    return jnp.asarray(draw.weight).astype(gradient.dtype) * gradient
