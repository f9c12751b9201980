"""Windows whose iterations are all computed at the x that was read: the same steps, later seen."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asvrg import delays, estimators, objectives, sampling, steps
from asvrg.drivers import simulate, threads
from asvrg.types import Draws, Snapshot
from tests import problems

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("count", [1, steps.AT_ONCE + 5])
@pytest.mark.parametrize(
    ("name", "make", "block_size"),
    [
        ("relu", estimators.svrg, 3),
        ("relu", estimators.svrg, 20),  # more than half of the last layer
        ("relu", estimators.sgd, None),
        ("tanh_by_autodiff", estimators.svrg, 3),
    ],
)
def test_every_iteration_is_a_step_at_that_x(name: str, make, block_size, count: int) -> None:
    problem = problems.get(name, "float64")
    estimator, lr = make(problem.objective), np.float64(0.1)
    snapshot = estimator.prepare(problem.x0, problem.data, map)
    spec = sampling.sampler(
        problems.NUM_SAMPLES, problem.objective.dim, batch_size=2, block_size=block_size
    )
    draws = sampling.Stream(spec, 0, 0).take(count)
    x, data = problems.other_point(problem), jax.tree.map(jnp.asarray, problem.data)
    found = steps.window(estimator, x, snapshot, data, draws, lr, sees_own=False)
    one = jax.jit(steps.step, static_argnums=0)
    for t in range(count):
        draw = Draws(draws.batch[t], None if draws.block is None else draws.block[t])
        expected = one(estimator, x, snapshot, data, draw, lr).values
        chex.assert_trees_all_close(found.values[t], expected, rtol=1e-11, atol=1e-14)
    chex.assert_trees_all_equal(found.block, draws.block)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(("num_threads", "block_size"), [(1, 3), (3, None)])
def test_a_run_is_the_simulation_of_its_trace(
    num_threads: int, block_size: int | None, adaptive: bool
) -> None:
    problem = problems.get("relu", "float64")
    estimator = estimators.svrg(problem.objective)
    spec = sampling.sampler(
        problems.NUM_SAMPLES, problem.objective.dim, batch_size=2, block_size=block_size
    )
    driver = threads.driver(
        estimator,
        problem.data,
        spec,
        inner_steps=50,
        num_threads=num_threads,
        read_period=8,
        sees_own=False,
        delay_adaptive=adaptive,
    )
    snapshot = driver.prepare(problem.x0)
    x, trace = driver.inner_loop(problem.x0, snapshot, 1, 0.05)
    tau = delays.staleness(trace)
    assert not trace.sees_own
    if num_threads == 1:
        np.testing.assert_array_equal(tau, np.arange(50) % 8)
    if adaptive:
        np.testing.assert_array_equal(trace.scale, delays.adaptive_scale(tau, 8 * num_threads))
    replayed = simulate.driver(
        estimator, problem.data, spec, inner_steps=50, trace=lambda epoch: trace
    )
    expected, _ = replayed.inner_loop(problem.x0, snapshot, 1, 0.05)
    chex.assert_trees_all_close(x, expected, rtol=1e-11)
    exact = trace._replace(sees_own=True)
    other = simulate.driver(estimator, problem.data, spec, inner_steps=50, trace=lambda _: exact)
    assert np.abs(x - other.inner_loop(problem.x0, snapshot, 1, 0.05)[0]).max() > 1e-6


@pytest.mark.parametrize("max_delay", [0, 5, 12])
def test_max_delay_counts_the_updates_of_its_own_window(max_delay: int) -> None:
    objective = objectives.from_loss(lambda w, z: 0.5 * (w - z) ** 2, jnp.zeros(()))
    driver = threads.driver(
        estimators.sgd(objective),
        np.arange(4, dtype=np.float32),
        sampling.sampler(4, 1, batch_size=1),
        inner_steps=40,
        num_threads=2,
        read_period=20,
        sees_own=False,
        max_delay=max_delay,
    )
    _, trace = driver.inner_loop(np.zeros(1, np.float32), Snapshot(), 0, 0.1)
    least = (max_delay + 1) // 2 - 1  # of a window of as many iterations as the limit leaves
    assert max(least, 0) <= delays.staleness(trace).max() <= max_delay
