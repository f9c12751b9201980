"""measure_variance()."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asvrg import transforms
from asvrg.errors import InputError


def measured(updates: np.ndarray, **arguments: Any) -> np.ndarray:
    """The estimate after every update."""
    measure = transforms.measure_variance(**arguments)

    def body(state: Any, u: jax.Array) -> tuple[Any, jax.Array]:
        tree, state = measure.update({"a": u[:2], "b": u[2:]}, state)
        return state, (state.variance, jnp.concatenate([tree["a"], tree["b"]]))

    state = measure.init({"a": jnp.zeros(2), "b": jnp.zeros(updates.shape[1] - 2)})
    _, (variances, passed) = jax.lax.scan(body, state, jnp.asarray(updates))
    np.testing.assert_array_equal(passed, updates)
    return np.asarray(variances)


def test_it_is_the_mean_square_successive_difference() -> None:
    updates = np.random.default_rng(0).normal(size=(9, 5))
    halves = 0.5 * np.sum(np.diff(updates, axis=0) ** 2, axis=1)
    expected = np.concatenate([[0.0], np.cumsum(halves) / np.arange(1, 9)])
    np.testing.assert_allclose(measured(updates), expected, rtol=1e-5)


def test_it_is_the_variance_though_the_mean_drifts() -> None:
    rng = np.random.default_rng(1)
    scale = np.array([1.0, 2.0, 0.5])
    drift = 3.0 * np.sin(np.arange(4_000) / 300)[:, None]
    found = measured(drift + scale * rng.normal(size=(4_000, 3)), decay=0.9995)[-1]
    np.testing.assert_allclose(found, np.sum(scale**2), rtol=0.1)
    assert np.var(drift) > 0.8 * np.sum(scale**2)  # a variance about one mean would double it


def test_it_forgets() -> None:
    updates = np.zeros((60, 3))
    updates[0] = 2.0  # one difference of 6, which then decays
    np.testing.assert_allclose(measured(updates, decay=0.5)[1:4], [6.0, 3.0, 1.5], rtol=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0, np.nan])
def test_decays_out_of_range(decay: float) -> None:
    with pytest.raises(InputError, match="decay must be"):
        transforms.measure_variance(decay=decay)
