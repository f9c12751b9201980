"""Theorems 1 and 3 against the paper's formulas in 50 digits, written down once more."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from asvrg import theory
from asvrg.errors import InputError
from asvrg.theory import Setting
from tests.printed_theorems import Printed, theorem_1, theorem_3


@pytest.fixture(autouse=True)
def _fifty_digits():
    with mpmath.workdps(50):
        yield


def random_setting(seed: int, *, blocks: bool) -> Setting:
    """A setting of any size with 2 L^2 Delta^2 eta^2 between 0 and 0.9 d / B."""
    rng = np.random.default_rng(seed)
    smoothness = 10 ** rng.uniform(-3, 4)
    dim = int(10 ** rng.uniform(0, 5)) if blocks else 1
    share = dim / int(rng.integers(1, dim + 1)) if seed % 2 else float(dim)
    delay = int(10 ** rng.uniform(0, 3)) if seed % 3 else 0
    most = np.sqrt(0.45 * share) / max(delay, 1)
    lr = min(most, 0.3) * 10 ** rng.uniform(-3, 0) / smoothness
    beta = smoothness * 10 ** rng.uniform(-2, 1)
    return Setting(
        lr, smoothness, int(rng.integers(1, 50)), int(rng.integers(1, 200)), delay, share, beta
    )


def hold_against(setting: Setting, printed: Printed) -> None:
    m = setting.inner_steps
    scale = setting.lr / (2 * setting.blocks)
    np.testing.assert_allclose(theory.lemma_1_factor(setting), float(printed.factor), rtol=1e-13)
    expected = np.array(printed.c, np.float64)
    np.testing.assert_allclose(theory.c(setting, np.arange(m + 1)), expected, rtol=1e-11)
    expected = np.array(printed.gammas, np.float64)
    found = theory.gamma_t(setting, np.arange(m))
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13 * scale)
    least = float(min(printed.gammas))
    np.testing.assert_allclose(theory.gamma(setting), least, rtol=1e-11, atol=1e-13 * scale)
    true = least > 0 and max(printed.c[1:]) <= mpmath.mpf(float(setting.beta)) / 2
    assert bool(theory.holds(setting)) == true
    right = float(mpmath.mpf(3) / (40 * m * min(printed.gammas))) if true else np.inf
    np.testing.assert_allclose(theory.bound(setting, 3, 40 * m), right, rtol=1e-9)


def test_theorem_1_is_the_papers() -> None:
    kinds = set()
    for seed in range(60):
        setting = random_setting(seed, blocks=True)
        eta, L, b, m, delay, d, beta = setting
        hold_against(setting, theorem_1(eta, L, b, m, delay, d, beta))
        kinds.add(bool(theory.holds(setting)))
    assert kinds == {True, False}


def test_theorem_3_is_the_papers() -> None:
    kinds = set()
    for seed in range(60):
        setting = random_setting(seed, blocks=False)
        eta, L, b, m, delay, _, beta = setting
        hold_against(setting, theorem_3(eta, L, b, m, delay, beta))
        kinds.add(bool(theory.holds(setting)))
    assert kinds == {True, False}


def test_a_long_inner_loop_loses_no_digits() -> None:
    """As many steps as float64's recursion would add up errors of; and growth that overflows."""
    setting = Setting(1e-4, 2.0, 3, 5_000, 20, 7.5)
    printed = theorem_1(*setting[:6], beta=4.0)
    np.testing.assert_allclose(theory.c(setting, 0), float(printed.c[0]), rtol=1e-13)
    endless = setting._replace(inner_steps=10**9)
    assert theory.c(endless, 0) == np.inf
    assert theory.gamma(endless) == -np.inf
    assert not theory.holds(endless)


def test_holds_wants_c_1_of_at_most_half_of_beta() -> None:
    """With m = 2, c_1 does not depend on beta."""
    setting = Setting(0.01, 1.0, 2, 2, 4)
    c_1 = theorem_3(0.01, 1, 2, 2, 4, 1).c[1]
    beta = float(2 * c_1) * np.array([0.5, 0.999, 1.001, 2.0])
    assert theory.holds(setting._replace(beta=beta)).tolist() == [False, False, True, True]


def test_blocks_put_d_over_b_in_the_place_of_d() -> None:
    """All coordinates at once is Theorem 3, whatever d; one of them is Theorem 1 as printed."""
    setting = Setting(0.01, 1.0, 2, 30, 4)
    hold_against(setting._replace(blocks=50 / 50, beta=2.0), theorem_3(0.01, 1, 2, 30, 4, 2))
    hold_against(setting._replace(blocks=50 / 1, beta=2.0), theorem_1(0.01, 1, 2, 30, 4, 50, 2))
    hold_against(setting._replace(blocks=50 / 20, beta=2.0), theorem_1(0.01, 1, 2, 30, 4, 2.5, 2))
    assert theory.gamma(setting) == theory.gamma(setting._replace(beta=2.0))


def test_arrays_are_broadcast() -> None:
    setting = Setting(
        lr=np.array([0.01, 0.05, 0.2])[:, None],
        smoothness=1.5,
        batch_size=np.array([1, 8]),
        inner_steps=12,
        max_delay=np.array([[[0]], [[3]]]),
        blocks=4.0,
    )
    for function in (theory.lemma_1_factor, theory.gamma, theory.holds, theory.tolerated_delay):
        whole = function(setting)
        shape = (2, 3, 2) if function is not theory.tolerated_delay else (1, 3, 2)
        assert np.shape(np.broadcast_to(whole, shape)) == shape
        for i, j, k in np.ndindex(shape):
            one = Setting(setting.lr[j, 0], 1.5, setting.batch_size[k], 12, [0, 3][i], 4.0)
            assert np.broadcast_to(whole, shape)[i, j, k] == function(one)
    steps = theory.c(setting, np.arange(13)[:, None, None, None])
    assert steps.shape == (13, 2, 3, 2)
    assert np.all(np.diff(steps, axis=0) < 0)


def test_tolerated_delay_is_the_largest_that_holds() -> None:
    for seed in range(40):
        setting = random_setting(seed, blocks=True)
        found = int(theory.tolerated_delay(setting))
        tried = np.arange(max(found - 50, 0), found + 50)
        expected = tried <= found
        assert np.array_equal(theory.holds(setting._replace(max_delay=tried)), expected)
        assert (found == -1) == (not theory.holds(setting._replace(max_delay=0)))


FINE = Setting(0.1, 1.0, 1, 5)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: theory.gamma(FINE._replace(lr=0)), "lr must be a finite number above 0, got 0."),
        (lambda: theory.gamma(FINE._replace(lr=[0.1, np.nan])), "lr must be a finite .* got nan."),
        (lambda: theory.c(FINE._replace(lr="0.1"), 0), "lr must be a finite number above 0"),
        (lambda: theory.c(FINE._replace(smoothness=-1), 0), "smoothness must be a finite number"),
        (lambda: theory.holds(FINE._replace(batch_size=0)), "batch_size must be a whole number of"),
        (lambda: theory.holds(FINE._replace(batch_size=1.5)), "batch_size must be a whole number"),
        (lambda: theory.holds(FINE._replace(inner_steps=[3, 0])), "inner_steps must .* got 0."),
        (lambda: theory.lemma_1_factor(FINE._replace(max_delay=-1)), "max_delay must be a whole"),
        (lambda: theory.lemma_1_factor(FINE._replace(blocks=0.5)), "blocks must .* at least 1"),
        (lambda: theory.gamma(FINE._replace(beta=0.0)), "beta must be a finite number above 0"),
        (lambda: theory.c(FINE, 6), "t must be a whole number from 0 to inner_steps, got 6."),
        (lambda: theory.c(FINE, -1), "t must be a whole number of at least 0, got -1."),
        (lambda: theory.gamma_t(FINE, 5), "t must be .* from 0 to inner_steps - 1, got 5."),
        (lambda: theory.bound(FINE, -1.0, 5), "gap must be a finite number of at least 0"),
        (lambda: theory.bound(FINE, 1.0, 0), "num_updates must be a whole number of at least 1"),
        (lambda: theory.bound(FINE._replace(lr=[0.1, 0.2]), [1.0, 1.0, 1.0], 5), "must broadcast"),
        (lambda: theory.gamma(FINE._replace(lr=np.ones(2), blocks=np.ones(3))), "must broadcast"),
    ],
)
def test_bad_arguments_are_refused(call, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        call()


def test_scalars_give_scalars() -> None:
    values = [
        theory.lemma_1_factor(FINE),
        theory.c(FINE, 2),
        theory.gamma(FINE),
        theory.bound(FINE, 1.0, 5),
        theory.tolerated_delay(FINE),
    ]
    assert all(isinstance(value, np.float64 | np.int64) for value in values)
