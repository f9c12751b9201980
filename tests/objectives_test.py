"""Objectives against references by numpy and by differentiation, on every problem of the table."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asvrg import objectives
from asvrg.errors import InputError
from tests import problems
from tests.problems import Problem

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(params=problems.NAMES)
def problem(request: pytest.FixtureRequest) -> Problem:
    return problems.get(request.param)


def test_loss_is_the_mean_of_the_formula(problem: Problem) -> None:
    loss = jax.jit(problem.objective.loss)(problem.x0, problem.data)
    np.testing.assert_allclose(loss, problems.full_loss(problem, problem.x0), rtol=1e-12)


def test_gradients_are_derivatives_of_the_formula(problem: Problem) -> None:
    expected = problems.sample_grads(problem, problem.x0)
    samples = jax.jit(problem.objective.per_sample_grads)(problem.x0, problem.data)
    mean = jax.jit(problem.objective.grad)(problem.x0, problem.data, None)
    cached, _ = jax.jit(problem.objective.grad_and_cache)(problem.x0, problem.data)
    chex.assert_trees_all_close(samples, expected, **CLOSE)
    chex.assert_trees_all_close(mean, np.mean(expected, axis=0), **CLOSE)
    chex.assert_trees_all_close(cached, mean, **CLOSE)


def test_gradient_is_the_limit_of_finite_differences(problem: Problem) -> None:
    step = 1e-6
    differences = [
        problems.full_loss(problem, problem.x0 + step * unit)
        - problems.full_loss(problem, problem.x0 - step * unit)
        for unit in np.eye(problem.objective.dim)
    ]
    gradient = jax.jit(problem.objective.grad)(problem.x0, problem.data, None)
    chex.assert_trees_all_close(gradient, np.array(differences) / (2 * step), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("alpha", [1.0, 0.0, 0.3])
def test_grad_difference_is_the_difference_of_two_gradients(problem: Problem, alpha: float) -> None:
    x_tilde, x_hat = problem.x0, problems.other_point(problem)
    rows = np.array([3, 3, 0, 7], np.int32)  # with one of them twice
    block = np.arange(0, problem.objective.dim, 2, dtype=np.int32)
    at_hat, at_tilde = (problems.sample_grads(problem, x) for x in (x_hat, x_tilde))
    expected = np.mean((at_hat - alpha * at_tilde)[rows], axis=0)
    _, cache = jax.jit(problem.objective.grad_and_cache)(x_tilde, problem.data)
    batch, cache = jax.jit(objectives.take)((problem.data, cache), rows)
    difference = jax.jit(problem.objective.grad_difference)
    whole = difference(x_hat, x_tilde, cache, batch, None, alpha)
    part = difference(x_hat, x_tilde, cache, batch, block, alpha)
    chex.assert_trees_all_close(whole, expected, **CLOSE)
    chex.assert_trees_all_close(part, expected[block], **CLOSE)


def test_grad_on_a_block_is_those_entries(problem: Problem) -> None:
    block = np.arange(1, problem.objective.dim, 3, dtype=np.int32)
    grad = jax.jit(problem.objective.grad)
    whole = grad(problem.x0, problem.data, None)
    part = grad(problem.x0, problem.data, block)
    chex.assert_trees_all_close(part, np.asarray(whole)[block], **CLOSE)


def test_unravel_keeps_every_coordinate_in_order(problem: Problem) -> None:
    numbers = np.arange(problem.objective.dim, dtype=np.float64)
    leaves = jax.tree.leaves(problem.objective.unravel(numbers))
    chex.assert_trees_all_equal(np.concatenate([np.ravel(leaf) for leaf in leaves]), numbers)


@pytest.mark.parametrize("name", ["tanh_deep", "logistic"])
@pytest.mark.parametrize("chunk_size", [1, 5, problems.NUM_SAMPLES, 100])
def test_full_gradient_and_cache_do_not_depend_on_chunks(name: str, chunk_size: int) -> None:
    problem = problems.get(name)
    expected = jax.jit(problem.objective.grad_and_cache)(problem.x0, problem.data)
    args = (problem.objective, problem.x0, problem.data)
    found = objectives.full_gradient(*args, chunk_size=chunk_size)
    chex.assert_trees_all_close(found, expected, **CLOSE)
    with ThreadPoolExecutor(3) as pool:
        threaded = objectives.full_gradient(*args, chunk_size=chunk_size, map_fn=pool.map)
    chex.assert_trees_all_equal(threaded, found)


def test_full_gradient_sums_in_the_order_of_the_chunks() -> None:
    """Whoever is ready first: the chunks are computed here from the last one to the first."""
    problem = problems.get("relu", "float32")

    def backwards(fn, starts):
        return reversed([fn(start) for start in reversed(list(starts))])

    args = (problem.objective, problem.x0, problem.data)
    chex.assert_trees_all_equal(
        objectives.full_gradient(*args, chunk_size=5, map_fn=backwards),
        objectives.full_gradient(*args, chunk_size=5),
    )


@pytest.mark.parametrize(
    ("name", "dtype", "rtol"),
    [(name, "float64", 1e-12) for name in problems.NAMES] + [("relu", "float32", 2e-5)],
)
def test_evaluate_agrees_with_numpy_in_float64(name: str, dtype: str, rtol: float) -> None:
    """In float32 too: there the point is rounded, the reference's arithmetic is not."""
    problem = problems.get(name, dtype)
    found = objectives.evaluate(
        problem.objective, problem.x0, problem.data, with_grad=True, chunk_size=6
    )
    inputs, target = problem.data
    target = target if target.dtype == np.int32 else target.astype(np.float64)
    exact = problem._replace(
        data=(inputs.astype(np.float64), target), x0=problem.x0.astype(np.float64)
    )
    gradient = np.mean(problems.sample_grads(exact, exact.x0), axis=0)
    np.testing.assert_allclose(found.loss, problems.full_loss(exact, exact.x0), rtol=rtol)
    np.testing.assert_allclose(found.grad_norm_sq, np.sum(gradient**2), rtol=rtol)
    if problem.error is None:
        assert math.isnan(found.error)
    else:
        wrong = [problem.error(np, exact.x0, sample) for sample in zip(*exact.data, strict=True)]
        assert 0 < np.mean(wrong) < 1
        np.testing.assert_allclose(found.error, np.mean(wrong), rtol=rtol)


def test_evaluate_without_grad_does_not_compute_one() -> None:
    problem = problems.get("relu")
    objective = problem.objective._replace(grad=None, grad_and_cache=None)
    assert math.isnan(objectives.evaluate(objective, problem.x0, problem.data).grad_norm_sq)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_the_square_of_a_gradient_in_float32_is_not_lost(scale: float) -> None:
    x, data = np.ones(2, np.float32), np.zeros((3, 2), np.float32)
    objective = objectives.from_loss(lambda w, z: jnp.float32(scale) * jnp.sum(w - z), x)
    found = objectives.evaluate(objective, x, data, with_grad=True).grad_norm_sq
    assert found == pytest.approx(2 * scale**2, rel=1e-6)


def test_take_gives_rows_of_every_array() -> None:
    data = {"a": jnp.arange(6.0).reshape(3, 2), "b": jnp.arange(3)}
    found = objectives.take(data, np.array([2, 0, 2]))
    chex.assert_trees_all_equal(
        found, {"a": jnp.array([[4.0, 5.0], [0.0, 1.0], [4.0, 5.0]]), "b": jnp.array([2, 0, 2])}
    )


@pytest.mark.parametrize(
    "data", [(), np.float64(3.0), np.zeros((0, 2)), (np.zeros(3), np.zeros(2)), (np.zeros(3), 1.0)]
)
def test_malformed_data_are_refused(data) -> None:
    with pytest.raises(InputError, match=r"^data must be .* leading axis .*\.$"):
        objectives.num_samples(data)


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({}, "no array"),
        (np.zeros(2, np.int32), "int32"),
        ((np.zeros(2), np.zeros(2, np.float32)), "'float32', 'float64'"),
        (np.zeros(0), "at least one entry"),
    ],
)
def test_malformed_params_are_refused(params, sentence: str) -> None:
    with pytest.raises(InputError, match=rf"^params must .*{sentence}.*\.$"):
        objectives.from_loss(lambda params, sample: 0.0, params)


@pytest.mark.parametrize("chunk_size", [0, 2.5, True])
def test_malformed_chunk_sizes_are_refused(chunk_size) -> None:
    problem = problems.get("logistic")
    with pytest.raises(InputError, match="chunk_size must be a whole number of at least 1"):
        objectives.full_gradient(problem.objective, problem.x0, problem.data, chunk_size=chunk_size)
