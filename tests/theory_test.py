"""What the paper claims, and where its conditions give it: where they suffice, and where not.

With two problems on which Theorem 3 as it is printed is false.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from asvrg import theory
from asvrg.errors import InputError
from asvrg.theory import Choice, Setting
from tests.printed_theorems import ALL, rate, theorem_3


def test_under_13_theorem_2_holds_with_sigma_from_u0_over_4_to_u0_over_2() -> None:
    """Also for the delays nearest to the limit, and the smallest n^alpha, b and largest d."""
    dense = Choice(
        u0=np.linspace(1e-4, 3 / 28, 300, endpoint=False)[:, None],
        batch_size=1,
        num_samples=np.array([1, 2, 1, 50, 1]),
        alpha=np.array([1.0, 0.01, 1.0, 0.5, 1.0]),
        blocks=np.array([1.0, 1.3, 10.0, 1e6, 1e12]),
    )
    least = np.inf
    for choice in (ALL._replace(u0=ALL.u0 / 9.5 / ALL.batch_size), dense):
        delay = theory.admissible_delay(choice)
        assert np.all(delay >= 0)
        assert np.all(theory.inner_steps(choice) >= 1)
        setting = theory.theorem_setting(choice, 3.0, delay)
        assert np.all(theory.holds(setting))
        sigma = theory.sigma(choice, delay)
        assert np.all(sigma > choice.u0 / 4)
        assert np.all(sigma < choice.u0 / 2)
        assert np.all(sigma * choice.batch_size < 3 / 56)  # so that b earns nothing in (14)
        least = min(least, np.min(sigma / choice.u0))
    assert least < 0.2549  # it is hardly more than a quarter


def severity(choice: Choice, delay: np.ndarray) -> np.ndarray:
    """The s = 4 e + 6 z e^2 of the module's docstring."""
    e = rate(choice)
    return 4 * e + 6 / choice.blocks * (delay * e) ** 2


def test_gamma_is_positive_up_to_a_severity_of_084_and_not_from_1_on() -> None:
    rng = np.random.default_rng(0)
    size = 200_000
    batch_size = rng.integers(1, 40, size)
    choice = Choice(
        u0=rng.uniform(0, 1, size) ** 2 + 1e-9,
        batch_size=batch_size,
        num_samples=batch_size + (10 ** rng.uniform(0, 4, size)).astype(int),
        alpha=rng.uniform(0.01, 1, size),
        blocks=10 ** rng.uniform(0, 6, size),
    )
    choice = Choice(*(field[choice.u0 < 1] for field in choice))
    choice = Choice(*(field[theory.inner_steps(choice) >= 1] for field in choice))
    e = rate(choice)
    share = rng.uniform(0, 1.1, len(e))
    reach = np.sqrt(np.maximum(share - 4 * e, 0) * choice.blocks / 6) / e
    delay = np.where(rng.random(len(e)) < 0.2, 0, reach).astype(np.int64)
    s = severity(choice, delay)
    setting = theory.theorem_setting(choice, 1.0, delay)
    positive = theory.gamma(setting) > 0
    assert np.all(positive[s <= 0.84])
    assert not np.any(positive[s >= 1 + 1e-12])
    single = setting.inner_steps == 1
    assert np.array_equal(positive[single], s[single] < 1)
    assert np.array_equal(theory.holds(setting), positive)  # c_1 <= beta / 2 follows
    between = (s > 0.84) & (s < 1)
    assert 0 < np.mean(positive[between]) < 1
    assert min(np.sum(s <= 0.84), np.sum(s >= 1), np.sum(between), np.sum(single)) > 500


def test_without_delay_the_whole_range_of_u0_needs_samples_enough() -> None:
    """With d large, so that m is not 0: n >= 4.77 b is enough for alpha = 1, n <= 4 b is not."""
    u0 = np.linspace(0, 1, 1_001)[1:-1]
    for b in (1, 7, 100):
        enough = Choice(u0, b, int(np.ceil(4.77 * b)), 1.0, blocks=1e4)
        assert np.all(theory.holds(theory.theorem_setting(enough, 1.0)))
        short = Choice(u0, b, 4 * b, 1.0, blocks=1e4)
        found = theory.holds(theory.theorem_setting(short, 1.0))
        assert found[0]
        assert not found[-1]


def test_theorem_4_runs_out_of_steps_before_gamma_fails() -> None:
    """With n = b and alpha = 1, L eta is u0: m is 0 from u0 = 1/6 on, and all is well below."""
    u0 = np.linspace(0, 1, 2_001)[1:-1]
    choice = Choice(u0, 5, 5, 1.0)
    assert np.array_equal(theory.inner_steps(choice) >= 1, u0 <= 1 / 6)
    inside = choice._replace(u0=u0[u0 <= 1 / 6])
    assert np.all(theory.holds(theory.theorem_setting(inside, 1.0)))
    with pytest.raises(InputError, match="inner_steps must be a whole number of at least 1, got 0"):
        theory.gamma(theory.theorem_setting(choice, 1.0))


def test_no_delay_that_fits_into_theorem_4s_inner_loop_is_too_long() -> None:
    """Nor into Theorem 2's, for d / B up to 5 - 24 e; with d / B = 1,000 some are."""
    loops = ALL._replace(blocks=np.maximum(1.0, 5 - 24 * rate(ALL)))
    for choice in (ALL._replace(blocks=1.0), loops):
        some = theory.inner_steps(choice) >= 1
        choice = Choice(*(np.broadcast_to(field, some.shape)[some] for field in choice))
        setting = theory.theorem_setting(choice, 1.0)
        setting = setting._replace(max_delay=setting.inner_steps - 1)
        assert np.all(theory.holds(setting))
        assert np.any(theory.admissible_delay(choice) < setting.max_delay)
    many = theory.theorem_setting(ALL._replace(blocks=1e3), 1.0)
    good = theory.tolerated_delay(many)
    assert np.all(good[good >= 0] < many.inner_steps[good >= 0] - 1)


def test_theorem_1_bears_longer_delays_than_13_admits() -> None:
    """With e = u0 b / n^alpha: sqrt((0.84 - 4 e) D / 6) / e, at least; it grows with n^alpha."""
    choice = Choice(0.01, 10, np.array([100, 10_000, 1_000_000]), 0.5, blocks=5.0)
    tolerated = theory.tolerated_delay(theory.theorem_setting(choice, 1.0))
    e = rate(choice)
    assert np.all(tolerated >= np.floor(np.sqrt((0.84 - 4 * e) * 5 / 6) / e))
    assert np.all(tolerated <= np.sqrt((1 - 4 * e) * 5 / 6) / e)
    assert np.all(tolerated > 10 * theory.admissible_delay(choice))


def test_a_negative_denominator_is_not_a_positive_gamma() -> None:
    """With f = x^2 / 2, eta = 1, Delta = 1, m = 2: an epoch takes x to -x, for ever.

    Yet (18) gives a positive Gamma_t, as 1 - 2 L^2 Delta^2 eta^2 = -1, and (19) a bound that falls.
    """
    printed = theorem_3(eta=1, L=1, b=10, m=2, delay=1, beta=2)
    assert min(printed.gammas) > 0
    x, squares = 1.0, []
    for _ in range(50):
        before = x
        for gradient in (before, before):  # the second one is late by one update
            squares.append(x**2)
            x -= gradient
    assert x == 1.0
    assert np.mean(squares) > 0.5 / (len(squares) * float(min(printed.gammas)))
    setting = Setting(lr=1.0, smoothness=1.0, batch_size=10, inner_steps=2, max_delay=1)
    assert theory.lemma_1_factor(setting) == np.inf
    assert theory.c(setting, [0, 1, 2]).tolist() == [np.inf, np.inf, 0.0]
    assert theory.gamma(setting) == -np.inf
    assert theory.bound(setting, 0.5, 100) == np.inf


def saddle_moments(lr: float, slope: float, bend: float, cross: float, m: int) -> float:
    """Sum over an epoch of E ||grad f(x_t)||^2, for f_i = (slope x^2 + bend y^2) / 2 +- cross x y.

    Exact: serial SVRG with b = 1 from (1, 0) moves by -lr (H p +- K (p - p~)), so the second
    moments of p and p~ follow a linear map, whose powers give the sum.
    """
    hessian, noise = np.diag([slope, bend]), np.array([[0, cross], [cross, 0.0]])
    drift, swap = np.eye(2) - lr * hessian, np.eye(4)[[0, 2, 1, 3]]
    shake = lr**2 * np.kron(noise, noise)
    turn = np.zeros((13, 13))  # of E p p^T, E p p~^T, E p~ p~^T and the sum
    turn[:4, :4] = np.kron(drift, drift) + shake
    turn[:4, 4:8] = -shake @ (np.eye(4) + swap)
    turn[:4, 8:12] = shake
    turn[4:8, 4:8] = np.kron(drift, np.eye(2))
    turn[8:12, 8:12] = np.eye(4)
    turn[12, :4] = (hessian @ hessian).ravel()
    turn[12, 12] = 1
    start = np.outer([1.0, 0.0], [1.0, 0.0]).ravel()
    state = np.linalg.matrix_power(turn, m) @ np.concatenate([start, start, start, [0.0]])
    return float(state[12])


def test_saddle_moments_are_the_mean_over_all_draws() -> None:
    lr, slope, bend, cross, m = 0.3, 0.2, 0.5, 0.6, 6
    hessian, noise = np.diag([slope, bend]), np.array([[0, cross], [cross, 0.0]])
    sums = []
    for signs in itertools.product([-1, 1], repeat=m):
        p, total = np.array([1.0, 0.0]), 0.0
        for sign in signs:
            total += np.sum((hessian @ p) ** 2)
            p = p - lr * (hessian @ p + sign * noise @ (p - np.array([1.0, 0.0])))
        sums.append(total)
    found = saddle_moments(lr, slope, bend, cross, m)
    np.testing.assert_allclose(found, np.mean(sums), rtol=1e-12)


def test_theorem_3_is_false_for_a_small_beta_and_true_where_it_holds() -> None:
    """One epoch of serial SVRG, whose noise grows with the distance from the snapshot.

    A tiny beta makes c_t small and Gamma_t positive for an inner loop of 1.3 million steps, but
    the mean of ||grad f||^2 is ten times the right-hand side of (19).
    """
    lr, m, bend = 1e-3, 1_300_000, 0.5
    slope = 2 / (m * lr)
    cross = np.sqrt((1 - slope) * (1 - bend))  # both f_i then have L = 1
    printed = Setting(lr, 1.0, 1, m, beta=1e-9)
    assert theory.gamma(printed) > lr / 8
    assert theory.c(printed, 1) > 1e9 * printed.beta / 2
    measured = saddle_moments(lr, slope, bend, cross, m)
    assert measured > 10 * (slope / 2) / theory.gamma(printed)
    assert not theory.holds(printed)
    assert theory.bound(printed, slope / 2, m) == np.inf
    for beta in (0.03, 0.1, 0.3, 1.0, 2.0):
        tried = Setting(lr, 1.0, 1, np.arange(1, m, 17), beta=beta)
        longest = int(tried.inner_steps[theory.holds(tried)].max())
        setting = tried._replace(inner_steps=longest)
        assert longest > 300
        for gentle in (slope, 0.01, 0.1, 0.9):
            cross = np.sqrt((1 - gentle) * (1 - bend))
            mean = saddle_moments(lr, gentle, bend, cross, longest) / longest
            assert mean <= theory.bound(setting, gentle / 2, longest)
