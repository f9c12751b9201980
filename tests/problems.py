"""The problems that the tests are crossed with, each beside a reference that uses nothing of asvrg.

The references are formulas for one sample, in numpy (to be right in float64) or in jax.numpy (to be
differentiated).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asvrg import mlp, objectives
from asvrg.types import Objective

NUM_SAMPLES, NUM_INPUTS, NUM_CLASSES, L2 = 12, 4, 3, 0.1
# (numpy or jax.numpy, x [d], (inputs [p], target)) -> scalar
Formula = Callable[[ModuleType, Any, Any], Any]


class Problem(NamedTuple):
    """A small finite sum, a generic point of it, and its formulas."""

    objective: Objective
    data: tuple[np.ndarray, np.ndarray]
    x0: np.ndarray
    loss: Formula
    error: Formula | None


def get(name: str, dtype: str = "float64") -> Problem:
    """The problem of this name; the same object every time, so that compilations are shared."""
    return _get(name, dtype)


@functools.cache
def _get(name: str, dtype: str) -> Problem:
    objective, loss, error, kind = _BUILDERS[name](dtype)
    rng = np.random.default_rng(7)
    inputs = rng.normal(size=(NUM_SAMPLES, NUM_INPUTS)).astype(dtype)
    target = {
        "number": rng.normal(size=NUM_SAMPLES).astype(dtype),
        "sign": rng.choice([-1.0, 1.0], NUM_SAMPLES).astype(dtype),
        "class": rng.integers(NUM_CLASSES, size=NUM_SAMPLES).astype(np.int32),
    }[kind]
    x0 = (0.5 * rng.normal(size=objective.dim)).astype(dtype)
    return Problem(objective, (inputs, target), x0, loss, error)


def full_loss(problem: Problem, x: np.ndarray) -> float:
    """f(x) by numpy."""
    return float(
        np.mean([problem.loss(np, x, sample) for sample in zip(*problem.data, strict=True)])
    )


def sample_grads(problem: Problem, x: np.ndarray) -> np.ndarray:
    """The grad f_i(x) of every sample, [n, d], by differentiating the formula."""
    return np.asarray(_sample_grads(problem.loss, x, problem.data))


@functools.partial(jax.jit, static_argnums=0)
def _sample_grads(loss: Formula, x: jax.Array, data: Any) -> jax.Array:
    grad = jax.grad(lambda x, sample: loss(jnp, x, sample))
    return jax.vmap(grad, in_axes=(None, 0))(x, data)


def other_point(problem: Problem, distance: float = 0.3) -> np.ndarray:
    """A point at this distance from x0, always in the same direction."""
    direction = np.random.default_rng(11).normal(size=problem.x0.shape)
    return (problem.x0 + distance * direction / np.linalg.norm(direction)).astype(problem.x0.dtype)


def _least_squares(dtype: str) -> tuple:
    def predict(params: Any, sample: Any) -> Any:
        return 0.5 * (sample[0] @ params["weights"] + params["bias"] - sample[1]) ** 2

    def loss(xp: ModuleType, x: Any, sample: Any) -> Any:
        return 0.5 * (xp.sum(sample[0] * x[1:]) + x[0] - sample[1]) ** 2

    params = {"weights": jnp.zeros(NUM_INPUTS, dtype), "bias": jnp.zeros((), dtype)}
    return objectives.from_loss(predict, params), loss, None, "number"


def _logistic(dtype: str) -> tuple:
    def sample_loss(x: Any, sample: Any) -> Any:
        return optax.sigmoid_binary_cross_entropy(
            sample[0] @ x, (sample[1] + 1) / 2
        ) + L2 / 2 * jnp.vdot(x, x)

    def loss(xp: ModuleType, x: Any, sample: Any) -> Any:
        margin = sample[1] * xp.sum(sample[0] * x)
        return xp.log(1 + xp.exp(-margin)) + L2 / 2 * xp.sum(x * x)

    def error(xp: ModuleType, x: Any, sample: Any) -> Any:
        return sample[1] * xp.sum(sample[0] * x) < 0

    objective = objectives.from_loss(
        sample_loss,
        jnp.zeros(NUM_INPUTS, dtype),
        error=lambda x, sample: jnp.sign(sample[0] @ x) != sample[1],
    )
    return objective, loss, error, "sign"


def network_logits(
    xp: ModuleType, x: Any, row: Any, sizes: tuple[int, ...], activation: str
) -> Any:
    """The logits [classes] of one sample [p], by the definition of a network."""
    start, outputs = 0, row
    for layer, (rows, columns) in enumerate(pairwise(sizes)):
        if layer:
            outputs = xp.tanh(outputs) if activation == "tanh" else xp.maximum(outputs, 0)
        weights = x[start : start + rows * columns].reshape(rows, columns)
        start += rows * columns
        outputs = outputs @ weights + x[start : start + columns]
        start += columns
    return outputs


def _network_formulas(sizes: tuple[int, ...], activation: str) -> tuple[Formula, Formula]:
    def loss(xp: ModuleType, x: Any, sample: Any) -> Any:
        logits = network_logits(xp, x, sample[0], sizes, activation)
        return xp.log(xp.sum(xp.exp(logits))) - logits[sample[1]] + L2 / 2 * xp.sum(x * x)

    def error(xp: ModuleType, x: Any, sample: Any) -> Any:
        return xp.argmax(network_logits(xp, x, sample[0], sizes, activation)) != sample[1]

    return loss, error


def _closed_form(*hidden: int, activation: str) -> Callable[[str], tuple]:
    def build(dtype: str) -> tuple:
        del dtype  # x's
        sizes = (NUM_INPUTS, *hidden, NUM_CLASSES)
        objective = mlp.mlp(sizes, activation=activation, l2=L2)
        return objective, *_network_formulas(sizes, activation), "class"

    return build


def _network_by_autodiff(dtype: str) -> tuple:
    sizes = (NUM_INPUTS, 5, NUM_CLASSES)

    def logits(params: Any, sample: Any) -> Any:
        (weights, bias), (last_weights, last_bias) = params
        return jnp.tanh(sample[0] @ weights + bias) @ last_weights + last_bias

    def sample_loss(params: Any, sample: Any) -> Any:
        fit = optax.softmax_cross_entropy_with_integer_labels(logits(params, sample), sample[1])
        return fit + L2 / 2 * optax.tree.norm(params, squared=True)

    objective = objectives.from_loss(
        sample_loss,
        [
            (jnp.zeros((rows, columns), dtype), jnp.zeros(columns, dtype))
            for rows, columns in pairwise(sizes)
        ],
        error=lambda params, sample: (
            jnp.argmax(logits(params, sample)).astype(jnp.int32) != sample[1]
        ),
    )
    return objective, *_network_formulas(sizes, "tanh"), "class"


_BUILDERS: dict[str, Callable[[str], tuple]] = {
    "least_squares": _least_squares,
    "logistic": _logistic,  # strongly convex
    "tanh_by_autodiff": _network_by_autodiff,
    "softmax_regression": _closed_form(activation="relu"),
    "relu": _closed_form(5, activation="relu"),
    "tanh_deep": _closed_form(6, 5, activation="tanh"),
}
NAMES = tuple(_BUILDERS)
SMOOTH = tuple(name for name in NAMES if name != "relu")
