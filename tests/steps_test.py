"""One iteration, and a window of them."""

from __future__ import annotations

import chex
import jax
import numpy as np
import pytest

from asvrg import estimators, sampling, steps
from asvrg.types import Delta, Draws
from tests import problems

# Numbers that change when anything is added to them, be it zero.
FRAGILE = np.array([-0.0, np.nan, 5e-324, -0.0, np.inf, -0.0, 1.0, -0.0])


def bits(x) -> np.ndarray:
    return np.asarray(x).view(np.int64)


@pytest.mark.parametrize("block", [[0], [7], [2, 3, 6], list(range(8))])
@pytest.mark.parametrize("apply", [steps.apply, jax.jit(steps.apply)])
def test_apply_touches_its_block_and_nothing_else(apply, block: list[int]) -> None:
    values = np.arange(1.0, len(block) + 1)
    found = apply(jax.numpy.asarray(FRAGILE), Delta(np.array(block, np.int32), values))
    expected = FRAGILE.copy()
    expected[block] += values
    np.testing.assert_array_equal(bits(found), bits(expected))


def test_apply_without_a_block_adds_everywhere() -> None:
    values = np.arange(8.0)
    found = steps.apply(jax.numpy.asarray(FRAGILE), Delta(None, values))
    np.testing.assert_array_equal(bits(found), bits(FRAGILE + values))


@pytest.mark.parametrize(
    ("name", "make", "block_size"),
    [
        ("relu", estimators.sgd, 3),
        ("relu", estimators.svrg, None),
        ("least_squares", estimators.sgd, None),
        ("least_squares", estimators.svrg, 3),
    ],
)
def test_step_is_equation_4_and_window_repeats_it(name: str, make, block_size) -> None:
    problem = problems.get(name)
    estimator, lr = make(problem.objective), np.float64(0.1)
    snapshot = estimator.prepare(problem.x0, problem.data, map)
    spec = sampling.sampler(
        problems.NUM_SAMPLES, problem.objective.dim, batch_size=2, block_size=block_size
    )
    draws = sampling.Stream(spec, 0, 0).take(5)
    data = jax.tree.map(jax.numpy.asarray, problem.data)
    one = jax.jit(steps.step, static_argnums=0)
    estimate = jax.jit(estimator.estimate)
    x, values = problems.other_point(problem), []
    for t in range(5):
        draw = Draws(draws.batch[t], None if draws.block is None else draws.block[t])
        delta = one(estimator, x, snapshot, data, draw, lr)
        v = np.asarray(estimate(x, snapshot, data, draw))
        chex.assert_trees_all_equal(delta.block, draw.block)
        chex.assert_trees_all_close(delta.values, -lr * v, rtol=1e-13)
        where = slice(None) if draw.block is None else draw.block
        x = x.copy()
        x[where] += delta.values
        values.append(delta.values)
    deltas = steps.window(estimator, problems.other_point(problem), snapshot, data, draws, lr)
    chex.assert_trees_all_equal(deltas.block, draws.block)
    chex.assert_trees_all_close(deltas.values, np.stack(values), rtol=1e-11, atol=1e-15)
