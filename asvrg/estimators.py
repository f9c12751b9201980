"""Estimates of grad f(x_hat): sgd() and svrg(). Equation (5) of the paper stands here only.

It has a coefficient alpha besides, v = (g - alpha g_s) + alpha mu, where g is the gradient of a
mini-batch, g_s that of the same mini-batch at the snapshot, and mu the full gradient there: alpha =
1 is the paper's, alpha = 0 is SGD, and v is unbiased for every alpha.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asvrg import objectives
from asvrg.errors import INT32, check_count, check_kind, check_real, check_vector
from asvrg.objectives import MapFn, on_block, take
from asvrg.schedules import Schedule
from asvrg.types import Array, Data, Draws, Objective, PyTree, Snapshot

# Samples whose gradients [d] are in memory at once where single ones are looked at.
SINGLES = 32


class Variances(NamedTuple):
    """Variances of mini-batch estimates at some x, sums over all coordinates.

    Attributes:
      g: E ||g - grad f(x)||^2, of the mini-batch gradient.
      v: E ||v - grad f(x)||^2, of what svrg() makes of it: below that of g where the correction
        pays.
      best_alpha: the coefficient with which that of v is smallest, cov(g, g_s) / var(g_s); nan if
        g_s has no variance.
    """

    g: float
    v: float
    best_alpha: float


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
      padding: of the objective: zeros that x_hat may have behind its d coordinates in `estimate`
        with a block.
    """

    prepare: Callable[[Array, Data, MapFn], Snapshot]
    estimate: Callable[[Array, Snapshot, Data, Draws], jax.Array]
    grad_evals: Callable[[int, int, int], int]
    grad_and_cache: Callable[[Array, Data], tuple[jax.Array, PyTree]] | None = None
    alpha: Schedule | None = None
    padding: int = 0

    def in_epoch(self, snapshot: Snapshot, epoch: int) -> Snapshot:
        """The snapshot with the coefficient of an epoch, as every driver's inner loop uses it.

        Args:
          snapshot: from `prepare`.
          epoch: s.

        Returns:
          A Snapshot whose `alpha` is alpha_s, a scalar, or None if it is 1 in all epochs.

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
    check_kind("objective", objective, Objective)

    def prepare(x: Array, data: Data, map_fn: MapFn) -> Snapshot:
        del x, data, map_fn
        return Snapshot()

    def estimate(x_hat: Array, snapshot: Snapshot, data: Data, draw: Draws) -> jax.Array:
        del snapshot
        return _weighted(draw, objective.grad(x_hat, take(data, draw.batch), draw.block))

    return Estimator(prepare, estimate, lambda n, b, m: b * m, padding=objective.padding)


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
      InputError: `alpha` is neither a finite number nor a function, or `chunk_size` is no whole
        number of at least 1.

    >>> from asvrg import mlp
    >>> svrg(mlp.mlp((4, 3))).grad_evals(100, 10, 20)
    500

    Source: Johnson and Zhang (2013), Accelerating stochastic gradient descent using predictive
    variance reduction; Huo and Huang (2016), Equations (5) and (16); for alpha, Yin et al. (2025),
    A coefficient makes SVRG effective.
    """
    check_kind("objective", objective, Objective)
    check_count("chunk_size", chunk_size)
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
        alpha_s = jnp.asarray(1 if snapshot.alpha is None else snapshot.alpha).astype(x_hat.dtype)
        difference = objective.grad_difference(
            x_hat, snapshot.params, cache, batch, draw.block, alpha_s
        )
        full_grad = on_block(snapshot.full_grad, draw.block)
        return direction(_weighted(draw, difference), full_grad, alpha_s)

    return Estimator(
        prepare,
        estimate,
        lambda n, b, m: n + 2 * b * m,
        objective.grad_and_cache,
        schedule,
        objective.padding,
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


def variances(
    objective: Objective,
    x: Array,
    x_tilde: Array,
    data: Data,
    *,
    batch_size: int,
    alpha: float = 1.0,
    chunk_size: int = objectives.CHUNK_SIZE,
) -> Variances:
    """E ||v - grad f(x)||^2 for a mini-batch of b samples, (1/b) (1/n) sum_i ||v_i - grad f(x)||^2.

    Exact over the samples that are given, not estimated; an epoch of SVRG begins with x = x_tilde,
    where v has no variance, and the end of it is where x is farthest away. It costs four component
    gradients a sample.

    Args:
      objective: the finite sum f.
      x: float [d].
      x_tilde: float [d], the snapshot's parameters.
      data: a pytree of arrays [n, ...].
      batch_size: b, drawn with replacement.
      alpha: the coefficient.
      chunk_size: samples at once in the passes for the means; bounds their memory. Of single ones
        32 gradients [d] are held at once, or `chunk_size` if that is less.

    Returns:
      Variances.

    Raises:
      InputError: a number out of its range, or malformed data.

    >>> objective = objectives.from_loss(lambda w, z: 0.5 * jnp.sum((w - z) ** 2), jnp.zeros(1))
    >>> data = jnp.array([[0.0], [2.0]])
    >>> variances(objective, jnp.ones(1), jnp.zeros(1), data, batch_size=1, alpha=0.5)
    Variances(g=1.0, v=0.25, best_alpha=1.0)

    Source: Yin et al. (2025), A coefficient makes SVRG effective, for the best coefficient.
    """
    check_kind("objective", objective, Objective)
    check_vector("x", x, objective.dim, "objective")
    check_vector("x_tilde", x_tilde, objective.dim, "objective")
    b = check_count("batch_size", batch_size, limit=INT32)
    coefficient = check_real("alpha", alpha, least=-np.inf)
    n = objectives.num_samples(data)
    means = [
        objectives.full_gradient(objective, at, data, chunk_size=chunk_size)[0]
        for at in (x, x_tilde)
    ]
    total = np.zeros(4)
    size = min(SINGLES, chunk_size)
    for start in range(0, n, size):
        rows = np.arange(start, min(start + size, n))
        centred = _centred(objective, (x, x_tilde), means, data, rows, np.asarray(coefficient))
        total += np.asarray(centred, np.float64)
    of_g, of_v, of_s, covariance = (total / n / b).tolist()
    return Variances(of_g, of_v, covariance / of_s if of_s else float("nan"))


@functools.partial(jax.jit, static_argnames="objective")
def _centred(
    objective: Objective,
    xs: tuple[Array, Array],
    means: list[jax.Array],
    data: Data,
    rows: Array,
    alpha: Array,
) -> jax.Array:
    """Sums over samples of ||g||^2, ||g - alpha g_s||^2, ||g_s||^2, <g, g_s>, less their means."""
    batch = take(data, rows)
    g, g_s = (
        objective.per_sample_grads(x, batch) - mean[None] for x, mean in zip(xs, means, strict=True)
    )
    v = g - alpha.astype(g.dtype) * g_s
    return jnp.stack([jnp.vdot(g, g), jnp.vdot(v, v), jnp.vdot(g_s, g_s), jnp.vdot(g, g_s)])


def _weighted(draw: Draws, gradient: jax.Array) -> jax.Array:
    if draw.weight is None:
        return gradient
    return jnp.asarray(draw.weight).astype(gradient.dtype) * gradient
