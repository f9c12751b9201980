"""The full gradient by a pass over arrays or batches."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asvrg import transforms
from asvrg.errors import InputError
from tests import problems

PROBLEM = problems.get("tanh_deep")
GRAD = jax.jit(jax.grad(PROBLEM.objective.loss))
DATA = jax.tree.map(jnp.asarray, PROBLEM.data)
EXPECTED = problems.sample_grads(PROBLEM, PROBLEM.x0).mean(axis=0)


def part(start: int, stop: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[start:stop], DATA)


@pytest.mark.parametrize("chunk_size", [1, 5, 6, 12, 1_000])
@pytest.mark.parametrize("jitted", [True, False])
def test_over_arrays(chunk_size: int, jitted: bool) -> None:
    def full(x: jax.Array, data: Any) -> jax.Array:
        return transforms.over_arrays(GRAD, x, data, chunk_size=chunk_size)

    found = (jax.jit(full) if jitted else full)(jnp.asarray(PROBLEM.x0), DATA)
    np.testing.assert_allclose(found, EXPECTED, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("bounds", [(0, 12), (0, 5, 10, 12), (0, 11, 12), (0, 1, 12)])
def test_over_batches_of_any_sizes(bounds: tuple[int, ...]) -> None:
    batches = (part(*ends) for ends in pairwise(bounds))
    found = transforms.over_batches(GRAD, jnp.asarray(PROBLEM.x0), batches)
    np.testing.assert_allclose(found, EXPECTED, rtol=1e-11, atol=1e-13)


def test_a_weight_of_ones_own() -> None:
    """A mean over tokens that are no padding: the weight is their number, not the rows'."""
    rows, real = (
        np.arange(12.0).reshape(4, 3),
        np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 1, 1]]),
    )
    grad = jax.grad(lambda x, z: jnp.sum(z[1] * (x - z[0]) ** 2 / 2) / jnp.sum(z[1]))
    batches = [(rows[:3], real[:3] * 1.0), (rows[3:], real[3:] * 1.0)]
    found = transforms.over_batches(
        grad, jnp.zeros(()), batches, weight=lambda batch: jnp.sum(batch[1])
    )
    np.testing.assert_allclose(found, -np.sum(rows * real) / real.sum(), rtol=1e-12)


def test_low_precision_is_accumulated_in_float32() -> None:
    """In bfloat16 a sum of 300 ones stops at 256."""
    ones = jnp.ones(300, jnp.bfloat16)
    x = jnp.zeros((), jnp.bfloat16)
    grad = lambda x, batch: batch.mean() + 0 * x  # noqa: E731
    for found in (
        transforms.over_arrays(grad, x, ones, chunk_size=1),
        transforms.over_batches(grad, x, [ones[:1]] * 300),
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, 1.0, rtol=1e-5)


def test_what_is_no_data() -> None:
    x = jnp.asarray(PROBLEM.x0)
    with pytest.raises(InputError, match="batches must hold at least one batch"):
        transforms.over_batches(GRAD, x, [])
    with pytest.raises(InputError, match="share a leading axis"):
        transforms.over_batches(GRAD, x, [(np.zeros((2, 4)), np.zeros(3))])
    with pytest.raises(InputError, match="weight must be a finite number above 0"):
        transforms.over_batches(GRAD, x, [DATA], weight=lambda batch: 0.0)
    with pytest.raises(InputError, match="chunk_size must be"):
        transforms.over_arrays(GRAD, x, DATA, chunk_size=0)


def test_a_function_that_returns_the_loss_as_well_is_no_grad_fn() -> None:
    both = jax.value_and_grad(lambda x, batch: jnp.sum(x * x))
    x = jnp.asarray(PROBLEM.x0)
    with pytest.raises(InputError, match="what grad_fn returns must have the structure"):
        transforms.over_arrays(both, x, DATA)
    with pytest.raises(InputError, match="what grad_fn returns must have the structure"):
        transforms.over_batches(both, x, [DATA])
