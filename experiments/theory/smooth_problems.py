"""The smooth non-convex problems on which the theorems are held against runs."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asvrg import objectives, theory
from asvrg.errors import check_count, check_real
from asvrg.types import Array, Data, Objective, Observe

DESCENT = 300  # steps of 1 / L


class Smooth(NamedTuple):
    """A problem with an L.

    Attributes:
      name: of the problem.
      objective: f over x in R^d, nowhere below 0.
      x0: float [d].
      data: inputs of length 1 and labels, n of each.
      smoothness: L; an upper bound if `proven`, else an estimate from below.
      proven: whether L is known rather than estimated.
      gap: f(x0), at least f(x0) - f(x*).
      curvature: the smallest and the largest eigenvalue of f's Hessian at x0.
      observe: x -> ||grad f(x)||^2, for the simulator.
    """

    name: str
    objective: Objective
    x0: Array
    data: Data
    smoothness: float
    proven: bool
    gap: float
    curvature: tuple[float, float]
    observe: Observe


def grad_norm_sq(objective: Objective) -> Observe:
    """An observer for `simulate.replay` and `sweep`; make one for an objective, and keep it.

    Args:
      objective: f.

    Returns:
      (x [d], data) -> ||grad f(x)||^2 over all of the data, a scalar.

    >>> objective = objectives.from_loss(lambda w, z: 0.5 * (w - z) ** 2, jnp.zeros(()))
    >>> float(grad_norm_sq(objective)(jnp.zeros(1), jnp.array([1.0, 3.0])))
    4.0
    """

    def observe(x: Array, data: Data) -> jax.Array:
        gradient = objective.grad(x, data, None)
        return jnp.vdot(gradient, gradient)

    return observe


def of_length_1(inputs: Array) -> jax.Array:
    """The inputs [n, p], each divided by its length; one of zeros stays.

    >>> of_length_1(jnp.array([[3.0, 4.0], [0.0, 0.0]])).round(1).tolist()[1]
    [0.0, 0.0]
    """
    length = jnp.linalg.norm(inputs, axis=1, keepdims=True)
    return inputs / jnp.where(length > 0, length, jnp.ones_like(length))


def logistic(inputs: Array, signs: Array, *, weight: float, seed: int) -> Smooth:
    """log(1 + exp(-y w^T a)) + weight sum_j w_j^2 / (1 + w_j^2), with inputs a of length 1.

    The second derivative of the logistic loss is at most ||a||^2 / 4, that of w^2 / (1 + w^2) lies
    between -1/2 and 2. So L = 1/4 + 2 weight serves every f_i.

    Args:
      inputs: float [n, p], of length at most 1.
      signs: float [n], y: -1 or 1.
      weight: of the regulariser, which is concave where |w_j| > 1 / sqrt(3).
      seed: of x0, normal with a standard deviation of 2: with coordinates on both sides of that.

    Returns:
      A Smooth with a proven L.

    Raises:
      InputError: `weight` is no finite number above 0.
    """
    check_real("weight", weight, above=True)
    dtype = inputs.dtype

    def loss(w: Array, sample: Data) -> jax.Array:
        a, y = sample
        squares = w * w
        penalty = jnp.sum(squares / (1 + squares))
        return (
            jnp.logaddexp(jnp.zeros((), dtype), -y * (a @ w)) + jnp.asarray(weight, dtype) * penalty
        )

    objective = objectives.from_loss(loss, jnp.zeros(inputs.shape[1], dtype))
    x0 = 2 * np.random.default_rng(seed).standard_normal(inputs.shape[1])
    return _smooth(
        "logistic", objective, jnp.asarray(x0, dtype), (inputs, signs), 0.25 + 2 * weight, True
    )


def network(
    objective: Objective, x0: Array, inputs: Array, labels: Array, *, num_singles: int
) -> Smooth:
    """A network's objective, with the largest estimate of L among single samples at two points.

    They are x0, and where DESCENT steps of gradient descent lead from there.

    Args:
      objective: of a network with tanh.
      x0: float [d].
      inputs: float [n, p].
      labels: int [n].
      num_singles: how many f_i, the first ones, are looked at.

    Returns:
      A Smooth with an estimated L.

    Raises:
      InputError: `num_singles` is no whole number from 1 to n.
    """
    check_count("num_singles", num_singles, most=len(labels))
    data, rows = (inputs, labels), np.arange(num_singles)
    at_start = largest_of_singles(objective, x0, data, rows)
    step = jnp.asarray(1 / at_start, x0.dtype)

    @jax.jit
    def descend(x: Array) -> jax.Array:
        return jax.lax.fori_loop(
            0, DESCENT, lambda _, x: x - step * objective.grad(x, data, None), x
        )

    later = largest_of_singles(objective, descend(x0), data, rows)
    return _smooth("tanh network", objective, x0, data, max(at_start, later), False)


def largest_of_singles(objective: Objective, x: Array, data: Data, rows: np.ndarray) -> float:
    """The largest estimate of L among some f_i at x, which is L of Assumption 3 from below.

    Args:
      objective: f.
      x: float [d].
      data: a pytree of arrays [n, ...].
      rows: int, the samples to look at, at least one.

    Returns:
      L.
    """
    return max(
        theory.estimate_smoothness(
            objective,
            x,
            objectives.take(data, np.array([row])),
            tolerance=1e-2,
            max_iterations=30,
        ).value
        for row in rows
    )


def _smooth(
    name: str, objective: Objective, x0: Array, data: Data, smoothness: float, proven: bool
) -> Smooth:
    data = jax.tree.map(jnp.asarray, data)
    hessian = jax.jit(jax.jacfwd(lambda x: objective.grad(x, data, None)))(x0)
    eigenvalues = np.linalg.eigvalsh(np.asarray(hessian, np.float64))
    return Smooth(
        name,
        objective,
        x0,
        data,
        smoothness,
        proven,
        objectives.evaluate(objective, x0, data).loss,
        (float(eigenvalues[0]), float(eigenvalues[-1])),
        grad_norm_sq(objective),
    )
