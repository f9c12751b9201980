"""The estimate of L against the eigenvalues of whole Hessians, from the problems' formulas."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asvrg import objectives
from asvrg.errors import InputError
from asvrg.theory import Smoothness, estimate_smoothness
from tests import problems
from tests.problems import Formula, Problem


def norm_of_hessian(problem: Problem, x: np.ndarray, rows: slice = slice(None)) -> float:
    """The largest |eigenvalue| of the mean over these samples of the formula's Hessian."""
    mean = np.mean(_hessians(problem.loss, x, problem.data)[rows], axis=0)
    return float(np.max(np.abs(np.linalg.eigvalsh(mean))))


@functools.partial(jax.jit, static_argnums=0)
def _hessians(loss: Formula, x: jax.Array, data: Any) -> jax.Array:
    hessian = jax.hessian(lambda x, sample: loss(jnp, x, sample))
    return jax.vmap(hessian, in_axes=(None, 0))(x, data)


@pytest.mark.parametrize("name", problems.NAMES)
def test_estimate_is_the_norm_of_the_hessian(name: str) -> None:
    """Also of a network with ReLU, whose kinks no Hessian shows."""
    problem = problems.get(name)
    for x in (problem.x0, problems.other_point(problem, 2.0)):
        found = estimate_smoothness(
            problem.objective, x, problem.data, tolerance=1e-10, max_iterations=5_000, chunk_size=5
        )
        expected = norm_of_hessian(problem, x)
        assert found.converged
        np.testing.assert_allclose(found.value, expected, rtol=1e-4)
        assert found.value <= expected * (1 + 1e-12)


def test_a_sample_has_its_own_l() -> None:
    """The theorems want the largest of the samples', which is above that of the mean."""
    problem = problems.get("logistic")
    of_samples = [
        estimate_smoothness(
            problem.objective,
            problem.x0,
            [leaf[i : i + 1] for leaf in problem.data],
            tolerance=1e-10,
        ).value
        for i in range(problems.NUM_SAMPLES)
    ]
    expected = [
        norm_of_hessian(problem, problem.x0, slice(i, i + 1)) for i in range(len(of_samples))
    ]
    np.testing.assert_allclose(of_samples, expected, rtol=1e-6)
    assert max(of_samples) > 1.5 * norm_of_hessian(problem, problem.x0)


def quadratic(*diagonal: float, dtype: str = "float64") -> tuple:
    """The objective sum_j z_j x_j^2 / 2, a point, and one sample z = diagonal."""
    z = jnp.asarray(diagonal, dtype)
    objective = objectives.from_loss(
        lambda x, z: jnp.sum(z * x * x) / jnp.asarray(2, dtype), jnp.zeros_like(z)
    )
    return objective, jnp.ones_like(z), z[None]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_negative_and_opposite_eigenvalues_count_as_well(dtype: str) -> None:
    assert estimate_smoothness(*quadratic(1, -5, dtype=dtype)).value == pytest.approx(5, rel=1e-3)
    assert estimate_smoothness(*quadratic(3, -3, 1, dtype=dtype)).value == pytest.approx(3, 1e-3)


def test_a_plane_has_no_curvature() -> None:
    assert estimate_smoothness(*quadratic(0, 0)) == Smoothness(0.0, 1, True)


def test_estimates_rise_from_below_and_say_when_they_stopped_early() -> None:
    spectrum = np.linspace(0.5, 1, 50)
    values = []
    for count in range(1, 8):
        found = estimate_smoothness(
            *quadratic(*spectrum), tolerance=1e-9, max_iterations=count, seed=3
        )
        assert found[1:] == (count, False)
        values.append(found.value)
    assert np.all(np.diff(values) > 0)
    assert values[-1] < 1


def test_the_result_depends_on_the_seed_and_hardly_on_the_chunks() -> None:
    problem = problems.get("tanh_deep")
    arguments = (problem.objective, problem.x0, problem.data)
    once = estimate_smoothness(*arguments, seed=1)
    assert estimate_smoothness(*arguments, seed=1) == once
    assert estimate_smoothness(*arguments, seed=2).value != once.value
    assert estimate_smoothness(*arguments, seed=1, chunk_size=5).value == pytest.approx(
        once.value, rel=1e-12
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": jnp.ones(3)}, r"x must be an array \[2\] of floating-point numbers"),
        ({"x": jnp.ones(2, int)}, "got shape .* and dtype int64"),
        ({"x": jnp.array([jnp.nan, 1.0])}, "x must be a point where the Hessian is finite"),
        ({"data": jnp.ones((0, 2))}, "data must be a pytree of arrays"),
        ({"tolerance": 0.0}, "tolerance must be a finite number above 0"),
        ({"max_iterations": 0}, "max_iterations must be a whole number of at least 1"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"chunk_size": 0}, "chunk_size must be a whole number of at least 1"),
    ],
)
def test_bad_arguments_are_refused(change: dict, sentence: str) -> None:
    objective = objectives.from_loss(lambda x, z: jnp.sum(z * x**4), jnp.zeros(2))
    arguments = {"objective": objective, "x": jnp.ones(2), "data": jnp.ones((3, 2))} | change
    with pytest.raises(InputError, match=sentence):
        estimate_smoothness(**arguments)
