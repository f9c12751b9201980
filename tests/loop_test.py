"""The loop of asvrg.fit where epochs go wrong, stall or diverge, and what it compiles."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import asvrg
from asvrg import objectives
from asvrg.errors import DivergedError
from asvrg.estimators import Estimator
from asvrg.sampling import Sampler
from asvrg.types import Data, Driver, Snapshot

RNG = np.random.default_rng(2)
POINTS = 3.0 + RNG.normal(size=(40, 2))


def quartic(w: Any, z: Any) -> Any:
    return 0.25 * jnp.sum((w - z) ** 4)


def squares(w: Any, sample: Any) -> Any:
    row, target = sample
    return 0.5 * (row @ w - target) ** 2


def test_a_loss_that_is_steeper_elsewhere_is_recovered_from() -> None:
    """Nearly flat at the start, whose steps jump to where the fourth power is steep."""

    def loss(w: Any, z: Any) -> Any:
        return 0.25 * w**4 + 0.005 * w * w - z * w

    rng = np.random.default_rng(2)
    data = 1.0 + 0.1 * rng.normal(size=40)
    result = asvrg.fit(loss, jnp.zeros(()), data, inner_steps=20)
    history = result.history
    assert history.halvings[1] >= 2
    assert np.all(np.diff(history.loss) <= 1e-12)
    solution = np.roots([1.0, 0.0, 0.01, -data.mean()])
    (real,) = solution[np.isreal(solution)].real
    assert result.params == pytest.approx(real, abs=1e-8)
    # Where it ends, the step is again what the curvature there allows.
    assert result.lr == pytest.approx(1 / (3 * real**2 + 0.01), rel=0.01)


def test_quartics_far_away_are_solved() -> None:
    """Curvatures fall a hundredfold on the way, so the step must grow."""
    result = asvrg.fit(quartic, np.array([30.0, -20.0]), POINTS, num_epochs=40)
    x = np.full(2, 3.0)
    for _ in range(60):  # Newton's method for the optimum of each coordinate
        x = x - ((x - POINTS) ** 3).sum(0) / (3 * (x - POINTS) ** 2).sum(0)
    np.testing.assert_allclose(result.params, x, atol=1e-5)
    assert result.history.lr[-1] > 100 * result.history.lr[1]


def test_a_given_step_is_never_changed() -> None:
    with pytest.raises(DivergedError, match="not finite after epoch 1 with lr=10; hand in a small"):
        asvrg.fit(quartic, jnp.zeros(2), POINTS, lr=10.0)
    rng = np.random.default_rng(2)
    data = (rng.normal(size=(40, 2)), rng.normal(size=40))
    rising = asvrg.fit(squares, jnp.zeros(2), data, lr=1.5, batch_size=1, num_epochs=2)
    assert rising.history.loss[-1] > 10 * rising.history.loss[0]
    np.testing.assert_array_equal(rising.history.lr, 1.5)
    np.testing.assert_array_equal(rising.history.halvings, 0)


def test_the_epochs_before_a_divergence_are_the_callers() -> None:
    kept = []
    run = asvrg.fit_epochs(quartic, jnp.zeros(2), POINTS, lr=lambda epoch: 0.01 * 1e4**epoch)
    with pytest.raises(DivergedError, match="after epoch 2 with lr=100;"):
        kept.extend(run)
    # A list takes what it got before the error.
    assert [each.epoch for each in kept] == [0, 1]
    assert kept[1].loss < kept[0].loss


def driver_of(make_x: Any) -> Any:
    """Makes a driver whose epochs do whatever a function of x and lr says."""

    def make(estimator: Estimator, data: Data, sampler: Sampler, *, inner_steps: int) -> Driver:
        return Driver(
            prepare=lambda x: Snapshot(),
            inner_loop=lambda x, snapshot, epoch, lr: (make_x(x, lr), None),
            warm_up=lambda x: None,
            inner_steps=inner_steps,
            grad_evals=1,
        )

    return make


def test_a_loss_that_rises_with_every_step_is_said() -> None:
    steps = []

    def away(x: Any, lr: float) -> Any:
        steps.append(lr)
        return 2 * jnp.asarray(x)

    with pytest.raises(DivergedError, match="the loss rises in epoch 1 with every step down to"):
        asvrg.fit(lambda w, z: 0.5 * w * w, jnp.ones(()), np.ones(9), driver=driver_of(away))
    assert len(steps) == 21


def test_thrown_away_epochs_are_paid_for() -> None:
    """Epochs with a step above 0.01 end in nan; what they cost counts, and what they did does not.

    f_i has the Hessian 1, so an estimate takes two products for all 20 samples and for each of 10.
    """
    steps = []
    estimate = 2 * 2 * (20 + 10)

    def move(x: Any, lr: float) -> Any:
        steps.append(lr)
        return x * (np.nan if lr > 0.01 else 0.9)

    result = asvrg.fit(
        lambda w, z: 0.5 * w * w, jnp.ones(()), np.ones(20), driver=driver_of(move), num_epochs=4
    )
    # 1 is the smoothness: a sixteenth of the step, then halves of it.
    assert steps[:4] == [1 / 16, 1 / 32, 1 / 64, 1 / 128]
    np.testing.assert_array_equal(result.history.halvings, [0, 3, 0, 0, 0])
    np.testing.assert_array_equal(result.history.updates, [0, 2, 4, 6, 8])
    # Estimated after 0, 1 and 2 epochs; one component gradient an epoch, says the driver.
    costs = [estimate, 4, estimate + 1, estimate + 1, 1]
    np.testing.assert_array_equal(result.history.grad_evals, np.cumsum(costs))
    np.testing.assert_allclose(result.history.loss, 0.5 * 0.81 ** np.arange(5))
    # The curvature is 1 all over, so half of an eighth of it is kept.
    assert steps[4] == result.lr == 1 / 128


@pytest.mark.parametrize("diverges", [False, True])
def test_the_time_of_thrown_away_epochs_counts(diverges: bool) -> None:
    """Whether x ends in nan, or only the loss is higher."""

    def move(x: Any, lr: float) -> Any:
        if lr > 0.01:
            time.sleep(0.05)
            return x * (np.nan if diverges else 2.0)
        return x * 0.9

    result = asvrg.fit(
        lambda w, z: 0.5 * w * w, jnp.ones(()), np.ones(20), driver=driver_of(move), num_epochs=1
    )
    assert result.history.halvings[-1] == 3
    assert result.history.seconds[0] == 0
    assert result.history.seconds[-1] >= 0.15


def test_svrg_without_a_correction_is_judged_as_sgd_is() -> None:
    """Its noise would halve the step in almost every epoch if it had to fall as SVRG does."""
    rng = np.random.default_rng(2)
    data = (rng.normal(size=(40, 4)), rng.normal(size=40))
    objective = objectives.from_loss(squares, jnp.zeros(4))
    arguments: dict[str, Any] = {"batch_size": 1, "num_epochs": 20}
    sgd = asvrg.fit(objective, np.zeros(4), data, method="sgd", **arguments)
    plain = asvrg.fit(objective, np.zeros(4), data, alpha=0.0, **arguments)
    np.testing.assert_array_equal(plain.history.halvings, sgd.history.halvings)
    np.testing.assert_allclose(plain.history.lr, sgd.history.lr, rtol=1e-6)


def test_a_coefficient_is_noisy_in_its_own_epochs() -> None:
    """The loss rises by 5 % of what was won: too much where alpha is 1, and only there."""
    moves = iter([0.5, 0.6, 0.5, 0.6, 0.5, 0.5])

    def move(x: Any, lr: float) -> Any:
        return jnp.asarray(x) * 0 + next(moves)

    result = asvrg.fit(
        lambda w, z: 0.5 * w * w, jnp.ones(()), np.ones(20), driver=driver_of(move), num_epochs=4,
        alpha=lambda epoch: 0.5 if epoch == 1 else 1.0,
    )  # fmt: skip
    # Kept with alpha = 0.5, thrown away with 1.
    np.testing.assert_allclose(result.history.loss, 0.5 * np.square([1.0, 0.5, 0.6, 0.5, 0.5]))
    np.testing.assert_array_equal(result.history.halvings, [0, 0, 0, 0, 1])


@pytest.mark.parametrize("method", ["svrg", "sgd"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_what_has_converged_goes_on(method: str, noise: float) -> None:
    """Float32, at an optimum whose loss is 0 to rounding, or above 0: nothing raises.

    SGD cannot stay there with its first steps, but it may not end in a DivergedError.
    """
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(40, 4)).astype(np.float32)
    targets = rows.sum(1) + np.float32(noise) * rng.normal(size=40).astype(np.float32)
    optimum = np.linalg.lstsq(rows.astype(float), targets.astype(float), rcond=None)[0]
    lowest = 0.5 * np.mean((rows @ optimum - targets) ** 2)
    result = asvrg.fit(
        squares, optimum.astype(np.float32), (rows, targets), method=method, num_epochs=100
    )
    assert len(result.history.loss) == 101
    assert result.history.loss.max() <= 1.3 * lowest + 1e-12
    if method == "svrg" or noise == 0:
        assert result.history.halvings.sum() == 0


def test_rounding_does_not_halve_the_step() -> None:
    """The loss grows by a factor at every epoch, and x by some roundings only."""

    def move(x: Any, lr: float) -> Any:
        return jnp.asarray(x) * (1 + 4 * np.finfo(np.float64).eps)

    result = asvrg.fit(
        lambda w, z: 0.5 * (w - z) ** 2, jnp.ones(()) * (1 + 1e-15), np.ones(20),
        driver=driver_of(move), num_epochs=3,
    )  # fmt: skip
    assert np.all(np.diff(result.history.loss) > 0.1 * result.history.loss[:-1])
    np.testing.assert_array_equal(result.history.halvings, 0)


def test_after_the_first_epoch_nothing_is_compiled() -> None:
    """Also where the smoothness is estimated anew, after 2, 4 and 8 epochs."""
    compiled: list[str] = []
    rng = np.random.default_rng(2)
    data = (rng.normal(size=(23, 5)), rng.normal(size=23))

    def listen(event: str, duration: float, **kwargs: Any) -> None:
        if event == "/jax/core/compile/jaxpr_trace_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        counts = []
        for _ in asvrg.fit_epochs(squares, np.zeros(5), data, num_epochs=9, chunk_size=7):
            counts.append(len(compiled))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert counts[0] > 0
    assert len(set(counts[1:])) == 1


def test_a_loss_without_curvature_has_a_step_all_the_same() -> None:
    """Least absolute deviations of consistent equations, whose Hessian is 0 between the kinks."""
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(100, 3))
    solution = np.array([1.0, -2.0, 0.5])
    result = asvrg.fit(
        lambda w, sample: jnp.abs(sample[0] @ w - sample[1]),
        np.zeros(3),
        (rows, rows @ solution),
        num_epochs=20,
    )
    history = result.history
    np.testing.assert_array_equal(history.smoothness, 0)
    assert history.lr[0] == pytest.approx(history.loss[0] / (10 * history.grad_norm_sq[0]))
    np.testing.assert_allclose(result.params, solution, atol=0.05)
