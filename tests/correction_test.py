"""svrg() as a transformation: identities, policies, telemetry, errors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asvrg import transforms
from asvrg.errors import InputError
from tests import problems

PROBLEM = problems.get("tanh_by_autodiff")
X, X_TILDE = problems.other_point(PROBLEM), PROBLEM.x0
AT_X = problems.sample_grads(PROBLEM, X)
AT_SNAPSHOT = problems.sample_grads(PROBLEM, X_TILDE)
MU = AT_SNAPSHOT.mean(axis=0)


def corrected(optimiser: Any, order: Any, *, refreshed: bool = True) -> tuple[np.ndarray, Any]:
    """The v of single samples, in this order, at X with the snapshot at X_TILDE."""
    state = optimiser.init(jnp.asarray(X_TILDE))
    if refreshed:
        state = transforms.refresh(state, jnp.asarray(X_TILDE), jnp.asarray(MU))
    update = jax.jit(
        lambda g, state, g_s: optimiser.update(g, state, jnp.asarray(X), snapshot_grad=g_s)
    )
    found = []
    for i in order:
        v, state = update(AT_X[i], state, AT_SNAPSHOT[i])
        found.append(np.asarray(v))
    return np.array(found), state


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_v_is_g_less_the_centred_gradient_at_the_snapshot(alpha: float) -> None:
    v, _ = corrected(transforms.svrg(alpha=alpha), range(problems.NUM_SAMPLES))
    np.testing.assert_allclose(v, AT_X - alpha * (AT_SNAPSHOT - MU), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(v.mean(axis=0), AT_X.mean(axis=0), rtol=1e-11)  # unbiased


def test_alpha_follows_a_schedule_of_the_updates() -> None:
    v, _ = corrected(transforms.svrg(alpha=optax.linear_schedule(1.0, 0.0, 4)), range(6))
    alphas = np.array([1.0, 0.75, 0.5, 0.25, 0.0, 0.0])[:, None]
    expected = AT_X[:6] - alphas * (AT_SNAPSHOT[:6] - MU)
    # optax computes a schedule in float32.
    np.testing.assert_allclose(v, expected, rtol=1e-6, atol=1e-7)


def test_a_snapshot_does_not_wind_the_schedule_back() -> None:
    optimiser = transforms.svrg(alpha=lambda step: 10.0 ** step.astype(float), every=2)
    x, state = jnp.zeros(()), optimiser.init(jnp.zeros(()))
    for t in range(5):  # g = 0, g_s = 1, mu = 0
        v, state = optimiser.update(
            x, state, x, grad_fn=lambda x: 1.0 + x, full_grad_fn=lambda x: 0.0 * x
        )
        np.testing.assert_allclose(v, -(10.0**t), rtol=1e-6)


def test_without_a_snapshot_v_is_g() -> None:
    v, state = corrected(transforms.svrg(), range(3), refreshed=False)
    np.testing.assert_array_equal(v, AT_X[:3])
    assert (int(state.step), int(state.num_snapshots), int(state.telemetry.steps)) == (3, 0, 0)


@pytest.mark.parametrize("refreshed", [False, True])
def test_an_alpha_of_0_needs_nothing_of_the_snapshot(refreshed: bool) -> None:
    """Not even that its gradient is finite; and before the first one telemetry has seen nothing."""
    optimiser = transforms.svrg(alpha=0.0 if refreshed else 1.0)
    g, lost = jnp.arange(3.0), jnp.full(3, jnp.nan)
    state = optimiser.init(g)
    state = transforms.refresh(state, g, g) if refreshed else state
    v, state = optimiser.update(g, state, g, snapshot_grad=lost)
    np.testing.assert_array_equal(v, g)
    assert bool(jnp.isnan(state.telemetry.variance)) == refreshed


def test_whole_numbers_among_the_parameters_ask_for_no_wider_floats() -> None:
    state = transforms.svrg().init(
        {"w": jnp.ones(2, jnp.float32), "count": jnp.ones((), jnp.int32)}
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(state.full_grad)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
def test_telemetry_is_the_variance_by_enumeration(alpha: float) -> None:
    """Over every sample once the averages are the variances themselves, none of them estimated."""

    def variance(samples: np.ndarray) -> float:
        return float(np.sum((samples - samples.mean(axis=0)) ** 2) / len(samples))

    v, state = corrected(transforms.svrg(alpha=alpha), range(problems.NUM_SAMPLES))
    telemetry = state.telemetry
    covariance = np.sum((AT_X - AT_X.mean(axis=0)) * (AT_SNAPSHOT - MU)) / problems.NUM_SAMPLES
    np.testing.assert_allclose(telemetry.variance, variance(AT_SNAPSHOT), rtol=1e-5)
    np.testing.assert_allclose(telemetry.covariance, covariance, rtol=1e-5)
    np.testing.assert_allclose(
        telemetry.reduction, variance(AT_X) - variance(v), rtol=1e-5, atol=1e-6
    )
    assert (float(telemetry.reduction) > 0) == (alpha < 2)  # too much of it hurts
    assert int(telemetry.steps) == problems.NUM_SAMPLES


def test_at_the_snapshot_the_covariance_is_the_variance() -> None:
    """In a single step, not only on average: g - mu is the noise itself there."""
    optimiser = transforms.svrg()
    x, mu, g = (jnp.asarray(each) for each in (X_TILDE, MU, AT_SNAPSHOT[0]))
    state = transforms.refresh(optimiser.init(x), x, mu)
    _, state = optimiser.update(g, state, x, snapshot_grad=g)
    noise = np.sum((AT_SNAPSHOT[0] - MU) ** 2)
    np.testing.assert_allclose(state.telemetry[1:], [noise] * 3, rtol=1e-6)


def test_telemetry_forgets() -> None:
    optimiser = transforms.svrg()
    state = transforms.refresh(optimiser.init(jnp.zeros(())), jnp.zeros(()), jnp.zeros(()))
    update = jax.jit(lambda g, s: optimiser.update(g, s, jnp.zeros(()), snapshot_grad=g))
    samples = np.concatenate([np.full(150, 2.0), np.full(50, 0.0)])
    for g in samples:
        _, state = update(jnp.asarray(g), state)
    # 4 until the zeros come, which then count a hundredth each.
    np.testing.assert_allclose(state.telemetry.variance, 4 * 0.99**50, rtol=1e-4)


def path(optimiser: Any, steps: int) -> tuple[list[float], list[int]]:
    """The snapshots and their ages after each update, of parameters 0, 1, 2, ..."""
    update = jax.jit(
        lambda x, state: optimiser.update(
            jnp.ones(()), state, x, grad_fn=jnp.cos, full_grad_fn=jnp.sin
        )[1]
    )
    state, snapshots, ages = optimiser.init(jnp.zeros(())), [], []
    for t in range(steps):
        state = update(jnp.asarray(float(t)), state)
        assert state.full_grad == jnp.sin(state.snapshot)
        snapshots.append(float(state.snapshot))
        ages.append(int(state.age))
    return snapshots, ages


def test_every_m_updates() -> None:
    snapshots, ages = path(transforms.svrg(every=3), 8)
    assert snapshots == [0, 0, 0, 3, 3, 3, 6, 6]
    assert ages == [1, 2, 3, 1, 2, 3, 1, 2]


def test_loopless() -> None:
    snapshots, ages = path(transforms.svrg(probability=0.2, seed=3), 1_000)
    renewed = np.array(ages) == 1
    assert renewed[0]
    np.testing.assert_array_equal(np.array(snapshots)[renewed], np.flatnonzero(renewed))
    assert abs(renewed[1:].sum() - 200) < 4 * np.sqrt(1_000 * 0.2 * 0.8)  # four sigma
    # Coins in a row are independent: the pairs of renewals are 0.04 of all.
    assert abs(np.sum(renewed[1:-1] & renewed[2:]) - 40) < 4 * np.sqrt(1_000 * 0.04)
    other, _ = path(transforms.svrg(probability=0.2, seed=4), 100)
    assert snapshots[:100] != other
    assert path(transforms.svrg(probability=1.0), 4)[1] == [1, 1, 1, 1]


def test_a_ready_gradient_of_the_old_snapshot_is_not_used_when_one_is_taken() -> None:
    optimiser = transforms.svrg(every=2)
    state, x = optimiser.init(jnp.zeros(())), jnp.ones(())
    for old in (np.nan, 5.0, np.nan):
        v, state = optimiser.update(
            jnp.asarray(7.0), state, x, snapshot_grad=jnp.asarray(old), full_grad_fn=jnp.sin
        )
        expected = jnp.sin(x) if np.isnan(old) else 7.0 - (5.0 - jnp.sin(x))
        np.testing.assert_allclose(v, expected, rtol=1e-12)


def test_low_precision_keeps_the_full_gradient_in_float32() -> None:
    """The mu of 1 + 1/512 is no bfloat16; v = g - (g_s - mu) cancels before it is rounded."""
    x = jnp.zeros((), jnp.bfloat16)
    mu = jnp.asarray(1 + 1 / 512, jnp.float32)
    optimiser = transforms.svrg()
    state = transforms.refresh(optimiser.init(x), x, mu)
    one = jnp.ones((), jnp.bfloat16)
    v, _ = optimiser.update(0 * one, state, x, snapshot_grad=one)
    assert v.dtype == jnp.bfloat16
    assert float(v) == 1 / 512


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"every": 0}, "every must be a whole number of at least 1, got 0"),
        ({"every": 2.5}, "every must be"),
        ({"probability": 0.0}, "probability must be a finite number above 0 and at most 1"),
        ({"probability": 1.5}, "probability must be"),
        ({"alpha": np.nan}, "alpha must be a finite number, got nan"),
        ({"seed": 1.5}, "seed must be a whole number of at least 0"),
        ({"every": 2, "probability": 0.5}, "by one policy"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        transforms.svrg(**arguments)


PARAMS = {"a": np.zeros(2), "b": np.zeros(3)}


@pytest.mark.parametrize(
    ("policy", "extra", "sentence"),
    [
        ({}, {}, "grad_fn .* snapshot_grad .* got neither"),
        ({}, {"grad_fn": lambda p: p, "snapshot_grad": PARAMS}, "got both"),
        ({"every": 2}, {"grad_fn": lambda p: p}, "argument full_grad_fn"),
        ({"probability": 0.5}, {"snapshot_grad": PARAMS}, "argument full_grad_fn"),
        ({}, {"grad_fn": lambda p: p, "full_grad_fn": lambda p: p}, "never call full_grad_fn"),
        ({}, {"grad_fn": lambda p: p["a"]}, "grad_fn must have the structure of the parameters"),
        ({}, {"grad_fn": lambda p: {"a": p["a"]}}, "grad_fn must have the structure"),
        ({}, {"snapshot_grad": {"a": np.zeros(2), "b": np.zeros(1)}}, r"got \(1,\) for \(3,\)"),
        (
            {"every": 2},
            {"grad_fn": lambda p: p, "full_grad_fn": lambda p: (p, 0.0)},
            "full_grad must have the structure",
        ),
        ({}, {"grad_fn": PARAMS}, "grad_fn must be a function of the parameters .* got dict"),
        ({"every": 2}, {"grad_fn": lambda p: p, "full_grad_fn": PARAMS}, "full_grad_fn must be a"),
        ({"alpha": lambda t: None}, {"snapshot_grad": PARAMS}, "alpha must be a number"),
        ({"alpha": lambda t: jnp.ones(2)}, {"snapshot_grad": PARAMS}, r"alpha .* shape \(2,\)"),
    ],
)
def test_extra_arguments_that_do_not_fit(policy: dict, extra: dict, sentence: str) -> None:
    params = jax.tree.map(jnp.asarray, PARAMS)
    optimiser = optax.chain(transforms.svrg(**policy), optax.scale(-1.0))
    with pytest.raises(InputError, match=sentence):
        optimiser.update(params, optimiser.init(params), params, **extra)


def test_parameters_are_needed() -> None:
    optimiser = transforms.svrg()
    state = optimiser.init(jnp.zeros(()))
    with pytest.raises(InputError, match=r"update\(g, state, params"):
        optimiser.update(jnp.zeros(()), state, grad_fn=jnp.cos)


def test_refresh_needs_the_state_of_an_svrg() -> None:
    with pytest.raises(InputError, match="state of an svrg"):
        transforms.refresh(optax.adam(1.0).init(PARAMS), PARAMS, PARAMS)


def test_refresh_copies() -> None:
    """Else a step that donates parameters and state would give one buffer away twice."""
    x = jnp.arange(3.0)
    state = transforms.refresh(transforms.svrg().init(x), x, x)
    places = {a.unsafe_buffer_pointer() for a in (x, state.snapshot, state.full_grad)}
    assert len(places) == 3
