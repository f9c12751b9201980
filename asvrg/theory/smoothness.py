"""An estimate of L of Assumption 3, for any objective, from Hessian-vector products."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asvrg import objectives
from asvrg.errors import InputError, check_count, check_kind, check_real, check_vector
from asvrg.types import Array, Data, Objective


class Smoothness(NamedTuple):
    """An estimate of L.

    Attributes:
      value: the estimate, from below.
      iterations: Hessian-vector products that it took.
      converged: whether the last of them changed it by less than the tolerance.
    """

    value: float
    iterations: int
    converged: bool


def estimate_smoothness(
    objective: Objective,
    x: Array,
    data: Data,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    seed: int = 0,
    chunk_size: int = objectives.CHUNK_SIZE,
) -> Smoothness:
    """The largest |eigenvalue| of f's Hessian at x, by power iteration on Hessian-vector products.

    The value is ||H v|| of a unit vector v, which rises from turn to turn towards ||H||, also where
    the largest eigenvalues are a and -a. What it is not:

    - L of Assumption 3, which is the largest ||H|| at all x between which the run moves. Take the
      largest estimate of several points of a run. Both stay below L, and a step of theirs above the
      theorems'.
    - L of every f_i, which the theorems want too, and which may be n times that of their mean. Give
      it one sample as data, for every sample or for some.
    - An upper bound: after few turns, or where the largest eigenvalues are close to each other, it
      falls short; `converged` says that it moves no longer, not that it has arrived.
    - A smoothness of what has none: with kinks, as of ReLU, the gradient jumps, there is no L, and
      the Hessian between the kinks does not know of them.

    Args:
      objective: the finite sum; its `grad` must be differentiable by jax in forward mode.
      x: float [d].
      data: a pytree of arrays [n, ...].
      tolerance: relative change of the value that ends it, above 0; float32 does not see below
        1e-6.
      max_iterations: of the power iteration, at least 1.
      seed: of the first v, at least 0.
      chunk_size: samples at once; bounds the memory.

    Returns:
      Smoothness of Python numbers.

    Raises:
      InputError: an argument is out of its range, x is no [d] of floating-point numbers, the data
        are malformed, or the Hessian is not finite at x.

    >>> objective = objectives.from_loss(lambda w, z: 0.5 * jnp.sum(z * w * w), jnp.zeros(2))
    >>> data = jnp.array([[1.0, 0.0], [3.0, -8.0]])  # the Hessian is diag(2, -4)
    >>> estimate = estimate_smoothness(objective, jnp.zeros(2), data)
    >>> round(estimate.value, 2), estimate.converged
    (4.0, True)

    Source: power iteration; the products with the Hessian as in Pearlmutter (1994), Fast exact
    multiplication by the Hessian.
    """
    check_kind("objective", objective, Objective)
    check_real("tolerance", tolerance, above=True)
    check_count("max_iterations", max_iterations)
    check_count("seed", seed, least=0)
    check_count("chunk_size", chunk_size)
    n = objectives.num_samples(data)
    x = jnp.asarray(check_vector("x", x, objective.dim, "objective"))
    data = jax.tree.map(jnp.asarray, data)
    chunks = [np.arange(a, min(a + chunk_size, n), dtype=np.int32) for a in range(0, n, chunk_size)]
    v = np.random.default_rng(seed).standard_normal(objective.dim)
    value = 0.0
    for iteration in range(1, max_iterations + 1):
        direction = jnp.asarray(v / np.linalg.norm(v), x.dtype)
        v, before = np.zeros(objective.dim), value
        for rows in chunks:
            v += np.float64(len(rows) / n) * np.asarray(
                _hessian_vector(objective, x, direction, data, rows), np.float64
            )
        value = float(np.linalg.norm(v))
        if not np.isfinite(value):
            raise InputError("x must be a point where the Hessian is finite, got one where not.")
        if value == 0 or abs(value - before) <= tolerance * value:
            return Smoothness(value, iteration, True)
    return Smoothness(value, max_iterations, False)


@functools.partial(jax.jit, static_argnames="objective")
def _hessian_vector(objective: Objective, x: Array, v: Array, data: Data, rows: Array) -> jax.Array:
    batch = objectives.take(data, rows)
    return jax.jvp(lambda point: objective.grad(point, batch, None), (x,), (v,))[1]
