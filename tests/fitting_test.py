"""asvrg.fit against closed forms and runs put together by hand."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import asvrg
from asvrg import delays, estimators, fitting, mlp, objectives, sampling, schedules, training
from asvrg.drivers import simulate
from asvrg.errors import InputError
from asvrg.types import Driver, Trace
from tests import problems

N, P = 60, 3
RNG = np.random.default_rng(5)
ROWS = RNG.normal(size=(N, P))
TARGETS = ROWS @ np.array([1.0, -2.0, 0.5]) + 0.3 * RNG.normal(size=N)
SOLUTION = np.linalg.lstsq(ROWS, TARGETS, rcond=None)[0]
OPTIMUM = 0.5 * np.mean((ROWS @ SOLUTION - TARGETS) ** 2)


def squares(w: Any, sample: Any) -> Any:
    row, target = sample
    return 0.5 * (row @ w - target) ** 2


START = np.zeros(P)
DATA = (ROWS, TARGETS)
OBJECTIVE = objectives.from_loss(squares, jnp.zeros(P))


def by_hand(estimator: asvrg.Estimator, num_epochs: int, **draws: Any) -> list[Any]:
    """The start, then every epoch's EpochResult, with the simulator, no delays and step 0.1."""
    return go_on(estimator, training.start(START), num_epochs, **draws)


def go_on(estimator: asvrg.Estimator, state: Any, num_epochs: int, **draws: Any) -> list[Any]:
    sampler = sampling.sampler(N, P, **({"batch_size": 10} | draws))
    driver = simulate.driver(estimator, DATA, sampler, inner_steps=6)
    schedule = schedules.constant(0.1)
    return [state, *training.run(driver, state, schedule=schedule, num_epochs=num_epochs)]


def test_the_automatic_step_reaches_the_closed_form() -> None:
    result = asvrg.fit(squares, START, DATA, num_epochs=120)
    np.testing.assert_allclose(result.params, SOLUTION, atol=1e-10)
    assert result.history.loss[-1] == pytest.approx(OPTIMUM, rel=1e-12)
    assert result.history.grad_norm_sq[-1] < 1e-20
    assert result.history.halvings.sum() == 0
    assert result.params.dtype == np.float64


def test_a_given_step_is_the_run_by_hand() -> None:
    result = asvrg.fit(squares, START, DATA, lr=0.1, num_epochs=4, seed=3)
    expected = by_hand(estimators.svrg(OBJECTIVE), 4, seed=3)
    np.testing.assert_array_equal(result.params, expected[-1].x)
    np.testing.assert_array_equal(result.history.updates, [0, 6, 12, 18, 24])
    np.testing.assert_array_equal(result.history.grad_evals, [each.grad_evals for each in expected])
    xs = [np.asarray(each.x) for each in expected]
    losses = [0.5 * np.mean((ROWS @ x - TARGETS) ** 2) for x in xs]
    np.testing.assert_allclose(result.history.loss, losses, rtol=1e-12)
    grads = [ROWS.T @ (ROWS @ x - TARGETS) / N for x in xs]
    np.testing.assert_allclose(
        result.history.grad_norm_sq, [grad @ grad for grad in grads], rtol=1e-10
    )
    assert np.isnan(result.history.error).all()


def test_blocks_and_batches_reach_the_sampler() -> None:
    result = asvrg.fit(
        squares, START, DATA, lr=0.1, num_epochs=2, seed=1, batch_size=4, block_size=2,
        inner_steps=6,
    )  # fmt: skip
    estimator = estimators.svrg(OBJECTIVE)
    expected = by_hand(estimator, 2, batch_size=4, block_size=2, seed=1)
    np.testing.assert_array_equal(result.params, expected[-1].x)
    assert result.settings == fitting.Settings(N, P, 4, 2, 6, 1, None, 0)


def test_fit_is_its_epochs() -> None:
    arguments: dict[str, Any] = {"num_epochs": 3, "seed": 2, "error": lambda w, s: s[0] @ w < 0}
    result = asvrg.fit(squares, START, DATA, **arguments)
    epochs = list(asvrg.fit_epochs(squares, START, DATA, **arguments))
    np.testing.assert_array_equal(result.params, epochs[-1].params)
    for name in fitting.History._fields:
        expected = [getattr(each, name) for each in epochs]
        if name == "seconds":
            assert expected[0] == 0
            assert np.all(np.diff(expected) > 0)
        else:
            np.testing.assert_array_equal(getattr(result.history, name), expected)
    assert result.lr == result.history.lr[-1]
    assert result.smoothness == result.history.smoothness[-1]
    wrong = np.mean(ROWS @ np.asarray(result.params) < 0)
    assert result.history.error[-1] == pytest.approx(wrong, abs=1e-12)


def test_the_same_seed_gives_the_same_result() -> None:
    same, again, other = (
        asvrg.fit(squares, START, DATA, num_epochs=2, seed=seed).params for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)


def test_alpha_zero_is_sgd() -> None:
    """To rounding: SVRG adds 0 times the snapshot's gradients."""
    sgd = asvrg.fit(squares, START, DATA, method="sgd", lr=0.1, num_epochs=2)
    plain = asvrg.fit(squares, START, DATA, alpha=0.0, lr=0.1, num_epochs=2)
    np.testing.assert_allclose(plain.params, sgd.params, rtol=1e-12)
    reduced = asvrg.fit(squares, START, DATA, lr=0.1, num_epochs=2)
    assert not np.allclose(reduced.params, sgd.params, rtol=1e-3)


def test_sgd_comes_first_and_svrg_goes_on() -> None:
    result = asvrg.fit(
        squares, START, DATA, method="sgd_svrg", pretrain_epochs=2, lr=0.1, num_epochs=4
    )
    sgd = by_hand(estimators.sgd(OBJECTIVE), 2)
    svrg = go_on(estimators.svrg(OBJECTIVE), sgd[-1], 4)
    np.testing.assert_array_equal(result.params, svrg[-1].x)
    np.testing.assert_array_equal(np.diff(result.history.grad_evals), [N, N, 3 * N, 3 * N])
    quarter = asvrg.fit(squares, START, DATA, method="sgd_svrg", lr=0.1, num_epochs=8)
    assert quarter.settings.pretrain_epochs == 2


def test_a_schedule_gives_the_steps() -> None:
    result = asvrg.fit(
        squares, START, DATA, lr=lambda epoch: 0.1 / (1 + epoch), num_epochs=3, method="sgd"
    )
    np.testing.assert_allclose(result.history.lr, [0.1, 0.1, 0.05, 0.1 / 3])
    assert np.isnan(result.smoothness)


def test_the_callback_sees_every_epoch_and_may_stop() -> None:
    seen: list[fitting.FitEpoch] = []

    def stop(epoch: fitting.FitEpoch) -> bool:
        seen.append(epoch)
        return epoch.epoch == 2

    result = asvrg.fit(squares, START, DATA, lr=0.1, callback=stop)
    assert [each.epoch for each in seen] == [0, 1, 2]
    np.testing.assert_array_equal(seen[0].params, START)
    np.testing.assert_array_equal(seen[-1].params, result.params)
    assert len(result.history.loss) == 3
    with pytest.raises(InputError, match="callback must be a function of a FitEpoch, got str."):
        asvrg.fit(squares, START, DATA, callback="print")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answer", [None, False, np.False_, np.True_, np.array(True), jnp.array(False)]
)
def test_a_callback_answers_yes_or_no(answer: Any) -> None:
    result = asvrg.fit(OBJECTIVE, START, DATA, lr=0.1, num_epochs=1, callback=lambda epoch: answer)
    assert len(result.history.loss) == (1 if answer else 2)


@pytest.mark.parametrize(
    ("answer", "said"),
    [(0.25, "0.25"), ("on", "'on'"), (1, "1"), ({}, "{}"), (np.array([True]), "array([ True])")],
)
def test_a_callback_answers_nothing_else(answer: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        asvrg.fit(OBJECTIVE, START, DATA, lr=0.1, callback=lambda epoch: answer)
    assert str(caught.value) == f"callback must return True, False or None, got {said}."


def test_the_run_ends_within_the_tolerance() -> None:
    result = asvrg.fit(squares, START, DATA, lr=0.1, tolerance=1e-6, num_epochs=100)
    assert result.history.grad_norm_sq[-1] <= 1e-6 < result.history.grad_norm_sq[-2]
    at_rest = asvrg.fit(squares, SOLUTION, DATA, lr=0.1, tolerance=1e-6)
    assert at_rest.trace is None
    np.testing.assert_array_equal(at_rest.params, SOLUTION)
    assert at_rest.lr == 0.1


def test_a_minimum_without_curvature_is_within_the_tolerance() -> None:
    start, data = jnp.array([2.0]), np.ones(20)
    hinge = objectives.from_loss(lambda w, z: jnp.maximum(0.0, 1 - w[0] * z), start)
    at_rest = asvrg.fit(hinge, start, data, tolerance=1e-12)
    assert len(at_rest.history.loss) == 1
    assert np.isnan([at_rest.lr, at_rest.smoothness]).all()
    assert (at_rest.params, at_rest.history.grad_evals[0]) == (2, 0)
    with pytest.raises(InputError, match="params may be a minimum already, or loss does not"):
        asvrg.fit(hinge, start, data)


def test_variances_are_measured_where_asked_for() -> None:
    """With b = 1 on the quadratic 1/2 ||w - z||^2 all f_i have one Hessian, so v is grad f."""
    data = np.random.default_rng(7).normal(size=(30, 3))

    def loss(w: Any, z: Any) -> Any:
        return 0.5 * jnp.sum((w - z) ** 2)

    arguments = {"num_epochs": 2, "batch_size": 1, "lr": 0.1, "measure_variance": True}
    half = asvrg.fit(loss, np.zeros(3), data, alpha=0.5, **arguments).history
    sgd = asvrg.fit(loss, np.zeros(3), data, method="sgd", **arguments).history
    total = np.var(data, axis=0).sum()
    np.testing.assert_allclose(half.variance_g[1:], total, rtol=1e-12)
    np.testing.assert_allclose(half.variance_v[1:], total / 4, rtol=1e-12)
    np.testing.assert_allclose(sgd.variance_v[1:], total, rtol=1e-12)
    np.testing.assert_allclose(sgd.best_alpha[1:], 1.0, rtol=1e-12)
    for name in ("variance_g", "variance_v", "best_alpha"):
        assert np.isnan(getattr(half, name)[0])


def test_params_keep_their_structure() -> None:
    """Nested containers, scalars and leaves that are None; the same numbers as the flat vector."""
    params = {"w": [np.zeros(2), None], "rest": (np.zeros(()), {"frozen": None})}

    def loss(params: Any, sample: Any) -> Any:
        assert params["w"][1] is None
        w = jnp.concatenate([params["rest"][0][None], params["w"][0]])
        return squares(w, sample)

    result = asvrg.fit(loss, params, DATA, lr=0.1, num_epochs=2)
    flat = asvrg.fit(squares, START, DATA, lr=0.1, num_epochs=2)
    assert jax.tree.structure(result.params) == jax.tree.structure(params)
    np.testing.assert_allclose(result.params["rest"][0], flat.params[0], rtol=1e-12)
    np.testing.assert_allclose(result.params["w"][0], flat.params[1:], rtol=1e-12)
    assert result.settings.dim == P


def test_an_equinox_module() -> None:
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.Linear(P, 1, key=jax.random.key(0), dtype=jnp.float64)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params: Any, sample: Any) -> Any:
        return 0.5 * (eqx.combine(params, static)(sample[0])[0] - sample[1]) ** 2

    result = asvrg.fit(loss, params, DATA, num_epochs=60)
    solution = np.linalg.lstsq(np.column_stack([ROWS, np.ones(N)]), TARGETS, rcond=None)[0]
    np.testing.assert_allclose(result.params.weight[0], solution[:P], atol=1e-7)
    np.testing.assert_allclose(result.params.bias, solution[P:], atol=1e-7)
    assert eqx.combine(result.params, static)(ROWS[0]).shape == (1,)


@pytest.mark.parametrize("form", ["x", "pytree"])
def test_an_objective_keeps_its_own_gradients(form: str) -> None:
    problem = problems.get("tanh_deep")
    x0 = problem.x0
    given = x0 if form == "x" else problem.objective.unravel(x0)
    result = asvrg.fit(problem.objective, given, problem.data, lr=0.1, num_epochs=2)
    sampler = sampling.sampler(problems.NUM_SAMPLES, len(x0), batch_size=10)
    driver = simulate.driver(
        estimators.svrg(problem.objective), problem.data, sampler, inner_steps=2
    )
    *_, last = training.run(
        driver, training.start(x0), schedule=schedules.constant(0.1), num_epochs=2
    )
    expected = last.x if form == "x" else problem.objective.unravel(last.x)
    jax.tree.map(np.testing.assert_array_equal, result.params, expected)
    loss = problems.full_loss(problem, np.asarray(last.x))
    assert result.history.loss[-1] == pytest.approx(loss, rel=1e-10)


def test_a_random_sample_may_bring_its_key() -> None:
    """Noise with a key that is part of the sample makes a fixed f_i, as dropout may be."""
    keys = jax.random.split(jax.random.key(3), N)
    noise = np.asarray(jax.vmap(jax.random.uniform)(keys), np.float64)
    solution = np.linalg.lstsq(ROWS, TARGETS + noise, rcond=None)[0]

    def loss(w: Any, sample: Any) -> Any:
        row, target, key = sample
        return squares(w, (row, target + jax.random.uniform(key)))

    result = asvrg.fit(loss, START, (*DATA, keys), num_epochs=60)
    np.testing.assert_allclose(result.params, solution, atol=1e-8)


@pytest.mark.timeout(60)
def test_threads_reach_the_optimum() -> None:
    result = asvrg.fit(
        squares, START, DATA, driver="threads", num_workers=2, num_epochs=60, inner_steps=24
    )
    # The order of the threads' updates is not fixed; that they all converge is.
    assert result.history.loss[-1] == pytest.approx(OPTIMUM, rel=1e-6)
    assert result.trace is not None
    assert isinstance(result.trace, Trace)
    assert len(result.trace.worker) == 24
    tau = delays.staleness(result.trace)
    assert result.history.max_delay[-1] == tau.max()
    assert result.history.mean_delay[-1] == pytest.approx(tau.mean())
    assert (result.settings.num_workers, result.settings.read_period) == (2, 4)


def test_a_driver_of_ones_own() -> None:
    """Simulated delays: as many as the driver prescribes, and their steps are shorter."""

    def make(estimator: Any, data: Any, sampler: Any, *, inner_steps: int) -> Driver:
        return simulate.driver(
            estimator, data, sampler, inner_steps=inner_steps,
            trace=lambda epoch: delays.round_robin(inner_steps, 4),
        )  # fmt: skip

    result = asvrg.fit(squares, START, DATA, driver=make, num_epochs=150)
    np.testing.assert_array_equal(result.history.max_delay[1:], 3)
    np.testing.assert_allclose(result.params, SOLUTION, atol=1e-6)
    assert result.settings.num_workers is None
    serial = asvrg.fit(squares, START, DATA, num_epochs=3)
    assert result.lr < 0.5 * serial.lr
    with pytest.raises(InputError, match="driver must be a function that returns .* got .* None"):
        asvrg.fit(squares, START, DATA, driver=lambda *arguments, inner_steps: None, lr=0.1)


def test_the_drivers_of_the_package_are_drivers() -> None:
    arguments: dict[str, Any] = {"lr": 0.1, "num_epochs": 2, "seed": 4}
    serial = asvrg.fit(OBJECTIVE, START, DATA, **arguments)
    simulated = asvrg.fit(OBJECTIVE, START, DATA, driver=asvrg.simulate.driver, **arguments)
    np.testing.assert_array_equal(simulated.params, serial.params)
    # One thread makes the updates of the serial driver, in their order.
    alone = functools.partial(asvrg.threads.driver, num_threads=1, read_period=1)
    thread = asvrg.fit(OBJECTIVE, START, DATA, driver=alone, **arguments)
    np.testing.assert_allclose(thread.params, serial.params, rtol=1e-12)


def test_logistic_regression_comes_to_the_optimum() -> None:
    """The optimum by Newton's method, which uses nothing of asvrg."""
    problem = problems.get("logistic")
    x = np.zeros(problems.NUM_INPUTS)
    rows, signs = problem.data
    for _ in range(20):
        weight = 1 / (1 + np.exp(signs * (rows @ x)))
        grad = -rows.T @ (signs * weight) / len(signs) + problems.L2 * x
        hessian = rows.T * (weight * (1 - weight)) @ rows / len(signs)
        x = x - np.linalg.solve(hessian + problems.L2 * np.eye(len(x)), grad)
    result = asvrg.fit(problem.objective, problem.x0, problem.data, batch_size=2, num_epochs=60)
    assert problems.full_loss(problem, np.asarray(result.params)) == pytest.approx(
        problems.full_loss(problem, x), abs=1e-10
    )


def test_a_small_initialisation_does_not_die() -> None:
    """Its curvature is far below what the run meets; ReLU units must survive the first steps."""
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=200).astype(np.int32)
    rows = np.eye(4, 8, dtype=np.float32)[labels] + 0.1 * rng.normal(size=(200, 8))
    sizes = (8, 16, 4)
    start = 0.1 * mlp.init(jax.random.key(1), sizes, dtype="float32")
    result = asvrg.fit(mlp.mlp(sizes), start, (rows.astype(np.float32), labels), num_epochs=20)
    assert result.params.dtype == np.float32
    assert result.history.loss[0] > 1.3
    assert result.history.loss[-1] < 0.1
    assert result.history.error[-1] == 0
