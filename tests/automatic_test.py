"""The automatic step: exact numbers of quadratics, and the rules about epochs that went wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asvrg import objectives
from asvrg.errors import InputError
from asvrg.fitting import automatic
from asvrg.fitting.automatic import Curvature, Step
from asvrg.objectives import Metrics


def test_estimates_of_a_quadratic() -> None:
    """f_i = sum_j a_ij w_j^2 / 2 has the Hessian diag(a_i), and f diag(mean a)."""
    curvatures = np.random.default_rng(0).uniform(0, 1, (8, 4))
    curvatures[5, 2] = 50.0
    objective = objectives.from_loss(lambda w, sample: 0.5 * jnp.sum(sample * w * w), jnp.zeros(4))
    found = automatic.estimate(
        objective, jnp.ones(4), jnp.asarray(curvatures), seed=1, chunk_size=3
    )
    # All 8 samples are among the 10 that are looked at one by one.
    assert found.of_one == pytest.approx(50, rel=automatic.TOLERANCE)
    assert found.of_mean == pytest.approx(curvatures.mean(0).max(), rel=automatic.TOLERANCE)
    assert found.of_mean <= curvatures.mean(0).max() * (1 + 1e-12)


def test_one_sample_is_never_flatter_than_the_mean() -> None:
    """Of 40 samples 10 are looked at; the two that are curved may not be among them."""
    scales = np.zeros(40)
    scales[[3, 17]] = 80.0
    objective = objectives.from_loss(lambda w, z: 0.5 * z * jnp.sum(w * w), jnp.zeros(2))
    for seed in range(3):
        found = automatic.estimate(
            objective, jnp.ones(2), jnp.asarray(scales), seed=seed, chunk_size=100
        )
        assert found.of_mean == pytest.approx(4.0)
        assert found.of_one in (pytest.approx(4.0), pytest.approx(80.0))


def test_estimates_count_what_they_compute() -> None:
    """Every product with a Hessian is one tangent of the gradient, at two component gradients."""
    rows = np.random.default_rng(0).normal(size=(12, 3))
    objective = objectives.from_loss(lambda w, z: 0.5 * (w @ z) ** 2, jnp.zeros(3))
    seen: list[int] = []

    def grad(x: jax.Array, batch: jax.Array, block: None) -> jax.Array:
        jax.debug.callback(lambda: seen.append(len(batch)))
        return objective.grad(x, batch, block)

    counted = objective._replace(grad=grad)
    found = automatic.estimate(counted, jnp.ones(3), jnp.asarray(rows), seed=0, chunk_size=5)
    jax.effects_barrier()
    assert {1, 2, 5} == set(seen)
    assert found.grad_evals == 2 * sum(seen)


def test_losses_without_second_derivatives_need_a_step() -> None:
    def twice(w: jax.Array) -> jax.Array:
        return jax.pure_callback(lambda w: 2 * w, w, w, vmap_method="broadcast_all")

    @jax.custom_vjp
    def square(w: jax.Array) -> jax.Array:
        return w * w

    square.defvjp(lambda w: (w * w, w), lambda w, g: (twice(w) * g,))
    objective = objectives.from_loss(lambda w, z: square(w) * z, jnp.zeros(()))
    with pytest.raises(InputError, match="lr must be given for this loss: its smoothness cannot"):
        automatic.estimate(objective, jnp.ones(1), jnp.ones(3), seed=0, chunk_size=10)


@pytest.mark.parametrize(
    ("batch_size", "delay", "expected"),
    [(1, 0.0, 10.0), (4, 0.0, 4.0), (10_000, 0.0, 2.0008), (4, 3.0, 10.0)],
)
def test_what_steps_feel(batch_size: int, delay: float, expected: float) -> None:
    """(1 - 1/b) 2 + 10/b + 2 tau."""
    assert automatic.felt(Curvature(2.0, 10.0, 0), batch_size, delay) == pytest.approx(expected)


HERE = Metrics(loss=3.0, error=0.0, grad_norm_sq=4.0)


def test_a_hessian_that_is_not_finite_says_nothing() -> None:
    objective = objectives.from_loss(lambda w, z: jnp.abs(w) ** 1.5 * z, jnp.zeros(()))
    found = automatic.estimate(objective, jnp.zeros(1), jnp.ones(3), seed=0, chunk_size=10)
    assert np.isnan(found[:2]).all()
    assert found.grad_evals == 2 * 3  # one product with the Hessian of each f_i
    here = Metrics(3.0, 0.0, 4.0)
    first = automatic.next_step(None, automatic.felt(found, 2, 1.0), here, 10)
    assert first.lr == 3 / 40
    assert np.isnan(first.smoothness)


def test_steps_begin_small_and_follow_the_smoothness() -> None:
    first = automatic.next_step(None, 8.0, HERE, 10)
    assert first == Step(1 / 128, 8.0, 1.0)
    second = automatic.next_step(first, 8.0, HERE, 10)
    third = automatic.next_step(second, 8.0, HERE, 10)
    assert (second.lr, third.lr) == (1 / 32, 1 / 8)
    assert automatic.next_step(third, 8.0, HERE, 10).lr == 1 / 8
    steeper = automatic.next_step(third, 1000.0, HERE, 10)
    assert steeper == Step(1e-3, 1000.0, 1.0)
    assert automatic.next_step(steeper, 1e-9, HERE, 10).lr == 4e-3
    halved = third.half()
    assert halved == Step(1 / 16, 8.0, 0.5, True)
    assert automatic.next_step(halved, 8.0, HERE, 10) == Step(1 / 16, 8.0, 0.5)
    assert first.half().half() == Step(1 / 512, 8.0, 1 / 64, True)
    # Where f is steeper than the last estimate knew, that was at fault, not the fraction.
    assert automatic.next_step(halved, 12.0, HERE, 10) == Step(1 / 16, 12.0, 0.75)
    assert automatic.next_step(halved, 50.0, HERE, 10) == Step(1 / 50, 50.0, 1.0)


def test_steps_without_curvature() -> None:
    first = automatic.next_step(None, 0.0, HERE, 10)
    assert (first.lr, first.smoothness) == (3 / (10 * 4), 0.0)
    assert automatic.next_step(None, 0.0, HERE._replace(loss=0.0), 10).lr == 1 / 40
    assert automatic.next_step(first, 0.0, HERE, 10) == first
    halved = first.half()
    assert halved == Step(3 / 80, 0.0, 1.0, True)
    assert automatic.next_step(halved, 10.0, HERE, 10) == Step(1 / 10, 10.0, 1.0)
    with pytest.raises(
        InputError, match="the gradient of loss at params is 0 and its curvature 0:"
    ):
        automatic.next_step(None, 0.0, HERE._replace(grad_norm_sq=0.0), 10)


def test_estimates_are_due_at_powers_of_two_and_after_trouble() -> None:
    step = Step(1.0)
    due = [epoch for epoch in range(70) if automatic.is_due(epoch, step)]
    assert due == [0, 1, 2, 4, 8, 16, 32, 64]
    assert automatic.is_due(0, None)
    assert automatic.is_due(5, step.half())


@pytest.mark.parametrize(
    ("first", "before", "limit", "limit_for_sgd"),
    [
        (2.0, 1.0, 1.011, 1.201),  # 0.1 % of 1; 1 % or 20 % of 1
        (2.0, 2.0, 2.002, 2.002),  # nothing won so far
        (2.0, 3.0, 3.003, 3.003),
        (-1.0, -2.0, -1.988, -1.798),  # a loss may be negative
        (1.0, 0.0, 0.01, 0.2),
    ],
)
def test_epochs_that_went_wrong(
    first: float, before: float, limit: float, limit_for_sgd: float
) -> None:
    for noisy, most in ((False, limit), (True, limit_for_sgd)):
        assert not automatic.is_worse(first, before, before - 1, noisy=noisy)
        assert not automatic.is_worse(first, before, most - 1e-9, noisy=noisy)
        assert automatic.is_worse(first, before, most + 1e-9, noisy=noisy)
        assert automatic.is_worse(first, before, np.nan, noisy=noisy)
        assert automatic.is_worse(first, before, -np.inf, noisy=noisy)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_is_no_movement(dtype: str) -> None:
    """Every one of m additions to x rounds it by half an eps at most."""
    rng = np.random.default_rng(0)
    x = before = rng.normal(size=50).astype(dtype)
    for _ in range(100):
        x = np.nextafter(x, np.where(rng.random(50) < 0.5, -np.inf, np.inf).astype(dtype))
    assert not automatic.has_moved(before, x, 100)
    limit = 10 * np.finfo(dtype).eps * np.sqrt(100)
    assert not automatic.has_moved(before, (before * (1 + 0.9 * limit)).astype(dtype), 100)
    assert automatic.has_moved(before, (before * (1 + 1.1 * limit)).astype(dtype), 100)
    assert automatic.has_moved(np.zeros(2, dtype), np.full(2, 1e-30, dtype), 100)
    assert not automatic.has_moved(np.zeros(2, dtype), np.zeros(2, dtype), 100)
