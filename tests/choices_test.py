"""Theorems 2 and 4 against the paper's formulas in 50 digits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from asvrg import theory
from asvrg.errors import InputError
from asvrg.theory import Choice
from tests.printed_theorems import ALL, CHOICES, theorem_1


@pytest.fixture(autouse=True)
def _fifty_digits():
    with mpmath.workdps(50):
        yield


def test_step_and_inner_length_are_those_of_theorems_2_and_4() -> None:
    steps, lengths = theory.step_size(ALL, 7.5), theory.inner_steps(ALL)
    assert lengths.dtype == np.int64
    for (u0, b, n, alpha, d), step, length in zip(CHOICES, steps, lengths, strict=True):
        power = mpmath.mpf(n) ** mpmath.mpf(alpha)
        eta = mpmath.mpf(u0) * b / (mpmath.mpf(7.5) * power)
        np.testing.assert_allclose(step, float(eta), rtol=1e-13)
        quotient = mpmath.mpf(d) * power / (6 * mpmath.mpf(u0) * b)
        if abs(quotient - mpmath.nint(quotient)) > 1e-12 * quotient:
            assert length == int(mpmath.floor(quotient))


def test_the_delay_limit_is_that_of_13_and_20() -> None:
    limits, delays = theory.delay_limit(ALL), theory.admissible_delay(ALL)
    for (u0, b, _, _, d), limit, delay in zip(CHOICES, limits, delays, strict=True):
        u0, d = mpmath.mpf(u0), mpmath.mpf(d)
        exact = min(d / (2 * u0 * b), (3 * d - 28 * u0 * b * d) / (28 * u0**2 * b**2))
        np.testing.assert_allclose(limit, float(exact), rtol=1e-12)
        admitted = [delta for delta in (delay, delay + 1) if delta >= 0 and delta**2 < exact]
        assert admitted == ([delay] if delay >= 0 else [])


def test_the_delay_limit_is_strict() -> None:
    """With u0 b = 1/32 and d = 1 the limit is 16, and a delay of 4 not below it."""
    choice = Choice(1 / 32, 1, 10, 1.0, blocks=[1.0, 1.1])
    assert theory.delay_limit(choice)[0] == 16
    assert theory.admissible_delay(choice).tolist() == [3, 4]


def test_no_delay_is_admissible_from_u0_b_of_3_28_on() -> None:
    a = np.array([1e-6, 0.03, 0.0714, 0.0715, 0.107, 0.1072, 0.5, 0.999])  # 3/28 = 0.10714...
    batch_size = np.array([1, 2, 10])[:, None]
    choice = Choice(a / batch_size, batch_size, 100, 0.5, 3.0)
    assert np.array_equal(theory.delay_limit(choice) > 0, np.broadcast_to(a < 3 / 28, (3, 8)))
    assert np.array_equal(theory.admissible_delay(choice) >= 0, theory.delay_limit(choice) > 0)
    first = np.broadcast_to(3.0 / (2 * a), (3, 8))  # the first of the two terms, for u0 b <= 1/14
    assert np.array_equal(np.isclose(theory.delay_limit(choice), first), first >= 21)


def test_sigma_is_the_largest_with_which_gamma_is_as_claimed() -> None:
    """Gamma = sigma b / (d L n^alpha), with the gamma of (11) for the theorem's eta, m and beta."""
    L, delay, compared = mpmath.mpf(2.5), 3, 0
    for choice in CHOICES:
        u0, b, n, alpha, d = choice
        eta = mpmath.mpf(u0) * b / (L * mpmath.mpf(n) ** mpmath.mpf(alpha))
        m = int(mpmath.floor(mpmath.mpf(d) / (6 * L * eta)))
        void = 2 * (L * delay * eta) ** 2 >= d
        if not 1 <= m <= 300 or void:
            continue
        gammas = theorem_1(eta, L, b, m, delay, d, 2 * L).gammas
        exact = min(gammas) * d * L * mpmath.mpf(n) ** mpmath.mpf(alpha) / b
        np.testing.assert_allclose(theory.sigma(choice, delay), float(exact), rtol=1e-10)
        compared += 1
    assert compared > 50


def test_sigma_makes_14_of_12() -> None:
    choice = Choice(0.005, 10, 1_000, 2 / 3, blocks=[1.0, 12.5])
    sigma = theory.sigma(choice, 3)
    factor = choice.blocks * np.array(2.0) * 1_000 ** (2 / 3)
    theorem_2 = factor * 5.0 / (10 * 70_000 * sigma)
    setting = theory.theorem_setting(choice, 2.0, 3)
    np.testing.assert_allclose(theory.bound(setting, 5.0, 70_000), theorem_2, rtol=1e-12)


CHOSEN = Choice(0.5, 2, 100, 0.5)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: theory.inner_steps(CHOSEN._replace(u0=1.0)), "u0 must .* above 0 and below 1"),
        (lambda: theory.delay_limit(CHOSEN._replace(u0=0.0)), "u0 must be a finite number above 0"),
        (lambda: theory.sigma(CHOSEN._replace(alpha=1.1)), "alpha must .* above 0 and at most 1"),
        (lambda: theory.sigma(CHOSEN._replace(alpha=0)), "alpha must be a finite number above 0"),
        (lambda: theory.step_size(CHOSEN._replace(batch_size=101), 1.0), "got 101 of 100."),
        (lambda: theory.step_size(CHOSEN._replace(num_samples=0), 1.0), "num_samples must be a"),
        (lambda: theory.step_size(CHOSEN, 0.0), "smoothness must be a finite number above 0"),
        (lambda: theory.inner_steps(CHOSEN._replace(u0=1e-17)), "u0 must be large enough"),
        (lambda: theory.sigma(CHOSEN, 1.5), "max_delay must be a whole number of at least 0"),
    ],
)
def test_bad_arguments_are_refused(call, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        call()


def test_scalars_give_scalars() -> None:
    values = [
        theory.step_size(CHOSEN, 1.0),
        theory.inner_steps(CHOSEN),
        theory.delay_limit(CHOSEN),
        theory.admissible_delay(CHOSEN),
        theory.sigma(CHOSEN),
    ]
    assert all(isinstance(value, np.float64 | np.int64) for value in values)


def test_a_given_step_admits_what_the_best_alpha_does() -> None:
    for lr, smoothness, blocks in ((1e-3, 2.0, 79.5), (0.01, 5.0, 1.0), (0.02, 5.3, 8.0)):
        admitted = theory.admissible_delay_of_step(lr, smoothness, blocks)
        with_alpha = [
            theory.admissible_delay(
                Choice(lr * smoothness * 1_000**alpha / 10, 10, 1_000, alpha, blocks)
            )
            for alpha in (1e-6, 0.01, 0.1, 0.3)
        ]
        assert admitted == with_alpha[0] == max(with_alpha)
        assert with_alpha[-1] < admitted
    assert theory.admissible_delay_of_step([0.11, 3.0, 1e300], 1.0).tolist() == [-1, -1, -1]
