"""The identities of sgd() and svrg(), on every problem of the table."""

from __future__ import annotations

import functools
import itertools

import chex
import jax
import numpy as np
import optax
import pytest

from asvrg import estimators, objectives, sampling, schedules, training
from asvrg.drivers import simulate
from asvrg.errors import InputError
from asvrg.estimators import Estimator
from asvrg.types import Array, Data, Draws, EpochResult, Snapshot
from tests import problems
from tests.problems import Problem

SAMPLES = np.arange(problems.NUM_SAMPLES, dtype=np.int32)
# Every way to draw a batch of two with replacement; all are equally likely.
PAIRS = np.array(list(itertools.product(SAMPLES, repeat=2)), np.int32)


@pytest.fixture(params=problems.NAMES)
def problem(request: pytest.FixtureRequest) -> Problem:
    return problems.get(request.param)


@functools.partial(jax.jit, static_argnames="estimator")
def directions(
    estimator: Estimator, x_hat: Array, snapshot: Snapshot, data: Data, batches: Array, block=None
) -> jax.Array:
    """The v of every batch, [number of batches, d or B]."""
    return jax.vmap(lambda batch: estimator.estimate(x_hat, snapshot, data, Draws(batch, block)))(
        batches
    )


def test_svrg_is_the_full_gradient_at_the_snapshot(problem: Problem) -> None:
    """For every batch whatever, not only on average."""
    svrg = estimators.svrg(problem.objective)
    snapshot = svrg.prepare(problem.x0, problem.data, map)
    found = directions(svrg, problem.x0, snapshot, problem.data, PAIRS)
    expected = np.mean(problems.sample_grads(problem, problem.x0), axis=0)
    chex.assert_trees_all_close(found, np.tile(expected, (len(PAIRS), 1)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [estimators.sgd, estimators.svrg])
def test_mean_over_all_batches_is_the_full_gradient(problem: Problem, make) -> None:
    estimator = make(problem.objective)
    snapshot = estimator.prepare(problem.x0, problem.data, map)
    x_hat = problems.other_point(problem)
    found = directions(estimator, x_hat, snapshot, problem.data, PAIRS)
    expected = np.mean(problems.sample_grads(problem, x_hat), axis=0)
    assert np.ptp(found, axis=0).max() > 1e-3  # they differ, and yet
    np.testing.assert_allclose(np.mean(found, axis=0), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 2.0])
def test_every_coefficient_gives_an_unbiased_direction(problem: Problem, alpha: float) -> None:
    """And at the snapshot, where g = g_s, its noise is 1 - alpha times that of g."""
    svrg, sgd = estimators.svrg(problem.objective, alpha=alpha), estimators.sgd(problem.objective)
    snapshot = svrg.in_epoch(svrg.prepare(problem.x0, problem.data, map), 0)
    x_hat = problems.other_point(problem)
    found = directions(svrg, x_hat, snapshot, problem.data, PAIRS)
    expected = np.mean(problems.sample_grads(problem, x_hat), axis=0)
    chex.assert_trees_all_close(np.mean(found, axis=0), expected, rtol=1e-9, atol=1e-12)
    g = np.asarray(directions(sgd, problem.x0, Snapshot(), problem.data, PAIRS))
    v = np.asarray(directions(svrg, problem.x0, snapshot, problem.data, PAIRS))
    mean = np.mean(problems.sample_grads(problem, problem.x0), axis=0)
    chex.assert_trees_all_close(v - mean, (1 - alpha) * (g - mean), rtol=1e-9, atol=1e-12)


def test_a_coefficient_belongs_to_its_epoch() -> None:
    """1 in the first epoch and 0 in the second: an epoch of SVRG, then one of SGD."""
    problem = problems.get("tanh_deep")
    spec = sampling.sampler(problems.NUM_SAMPLES, problem.objective.dim, batch_size=2)

    def epochs(estimator: Estimator, state: EpochResult, num_epochs: int) -> list[EpochResult]:
        driver = simulate.driver(estimator, problem.data, spec, inner_steps=20)
        schedule = schedules.constant(0.1)
        return list(training.run(driver, state, schedule=schedule, num_epochs=num_epochs))

    start = training.start(problem.x0)
    scheduled = estimators.svrg(problem.objective, alpha=optax.linear_schedule(1.0, 0.0, 1))
    found = epochs(scheduled, start, 2)
    first = epochs(estimators.svrg(problem.objective), start, 1)
    second = epochs(estimators.sgd(problem.objective), first[-1], 2)
    for one, other in zip(found, [*first, *second], strict=True):
        chex.assert_trees_all_close(one.x, other.x, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("alpha", [np.nan, "1", None])
def test_a_coefficient_that_is_no_number_is_refused(alpha) -> None:
    with pytest.raises(InputError, match="alpha must be a finite number"):
        estimators.svrg(problems.get("logistic").objective, alpha=alpha)


def test_a_schedule_that_gives_no_finite_number_is_refused() -> None:
    svrg = estimators.svrg(problems.get("logistic").objective, alpha=lambda epoch: 1 / epoch - 1)
    assert svrg.in_epoch(Snapshot(), 1).alpha == 0
    svrg = svrg._replace(alpha=lambda epoch: np.inf)
    with pytest.raises(InputError, match="alpha must be a finite number"):
        svrg.in_epoch(Snapshot(), 1)


@pytest.mark.parametrize("name", problems.SMOOTH)  # relu's gradient jumps
def test_variance_of_svrg_vanishes_quadratically_and_that_of_sgd_stays(name: str) -> None:
    """Var v = O(||x_hat - x_tilde||^2), exactly as the enumeration of all samples gives it."""
    problem = problems.get(name)
    svrg, sgd = estimators.svrg(problem.objective), estimators.sgd(problem.objective)
    snapshot = svrg.prepare(problem.x0, problem.data, map)
    distances = np.array([1e-1, 1e-2, 1e-3])

    def variance(estimator: Estimator, snapshot: Snapshot, distance: float) -> float:
        x_hat = problems.other_point(problem, distance)
        v = directions(estimator, x_hat, snapshot, problem.data, SAMPLES[:, None])
        return np.sum(np.var(v, axis=0))

    of_svrg = np.array([variance(svrg, snapshot, distance) for distance in distances])
    of_sgd = np.array([variance(sgd, Snapshot(), distance) for distance in distances])
    rates = np.diff(np.log10(of_svrg)) / np.diff(np.log10(distances))
    np.testing.assert_allclose(rates, 2.0, atol=0.1)
    assert of_sgd.min() > 0.5 * of_sgd.max() > 1e-2
    assert of_svrg[-1] < 1e-4 * of_sgd[-1]


@pytest.mark.parametrize("make", [estimators.sgd, estimators.svrg])
@pytest.mark.parametrize("name", ["logistic", "tanh_deep"])
def test_direction_on_a_block_is_those_entries(name: str, make) -> None:
    problem = problems.get(name)
    estimator = make(problem.objective)
    snapshot = estimator.prepare(problem.x0, problem.data, map)
    x_hat, block = problems.other_point(problem), np.array([1, 3], np.int32)
    args = (estimator, x_hat, snapshot, problem.data, SAMPLES[:, None])
    chex.assert_trees_all_close(
        directions(*args, block), np.asarray(directions(*args))[:, block], rtol=1e-10, atol=1e-12
    )


def test_snapshots_remember_x_tilde(problem: Problem) -> None:
    svrg, sgd = estimators.svrg(problem.objective), estimators.sgd(problem.objective)
    snapshot = svrg.prepare(problem.x0, problem.data, map)
    chex.assert_trees_all_equal(snapshot.params, problem.x0)
    assert all(leaf.shape[0] == problems.NUM_SAMPLES for leaf in jax.tree.leaves(snapshot.cache))
    assert sgd.prepare(problem.x0, problem.data, map) == Snapshot((), (), ())


def test_gradients_are_counted_as_the_theory_does() -> None:
    objective = problems.get("logistic").objective
    assert estimators.sgd(objective).grad_evals(10_000, 10, 1_000) == 10_000
    assert estimators.svrg(objective).grad_evals(10_000, 10, 1_000) == 30_000


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_variances_are_those_over_all_batches(problem: Problem, alpha: float) -> None:
    """Enumerated, where `variances` sums over samples; b = 2."""
    x, x_tilde = problems.other_point(problem), problem.x0

    def enumerated(alpha: float) -> float:
        estimator = estimators.svrg(problem.objective, alpha=alpha)
        snapshot = estimator.in_epoch(estimator.prepare(x_tilde, problem.data, map), 0)
        v = np.asarray(directions(estimator, x, snapshot, problem.data, PAIRS))
        return float(np.mean(np.sum((v - v.mean(axis=0)) ** 2, axis=1)))

    found = estimators.variances(
        problem.objective, x, x_tilde, problem.data, batch_size=2, alpha=alpha, chunk_size=3
    )
    np.testing.assert_allclose(found[:2], (enumerated(0.0), enumerated(alpha)), rtol=1e-9)
    least = enumerated(found.best_alpha)
    assert least < min(enumerated(found.best_alpha + off) for off in (-0.01, 0.01))


def test_without_variance_no_alpha_is_best() -> None:
    objective = objectives.from_loss(lambda w, z: 0.5 * (w - z) ** 2, np.zeros(()))
    found = estimators.variances(objective, np.ones(1), np.zeros(1), np.full(2, 3.0), batch_size=1)
    assert found[:2] == (0.0, 0.0)
    assert np.isnan(found.best_alpha)
