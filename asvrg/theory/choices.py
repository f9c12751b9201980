"""Theorems 2 and 4: the step, the inner length and the delays that they allow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from asvrg.errors import InputError, check_broadcast, check_counts, check_kind, check_reals
from asvrg.theory.bounds import MOST, Setting, gamma
from asvrg.types import Array


class Choice(NamedTuple):
    """What Theorems 2 and 4 let one choose; every field a number or an array.

    Attributes:
      u0: above 0 and below 1.
      batch_size: b, a whole number from 1 to n.
      num_samples: n, a whole number of at least 1.
      alpha: above 0, at most 1.
      blocks: d / B, finite and at least 1.
    """

    u0: Array
    batch_size: Array
    num_samples: Array
    alpha: Array
    blocks: Array = 1.0


def step_size(choice: Choice, smoothness: Array) -> Array:
    """The step eta = u0 b / (L n^alpha) of Theorems 2 and 4.

    Args:
      choice: of u0, b, n and alpha.
      smoothness: L, finite and above 0.

    Returns:
      float64.

    Raises:
      InputError: an argument is outside of its domain, or the shapes do not broadcast.

    >>> choice = Choice(u0=0.5, batch_size=4, num_samples=100, alpha=0.5)
    >>> step_size(choice, smoothness=2.0).item()
    0.1

    Source: Huo and Huang (2016), Theorems 2 and 4.
    """
    u0, batch_size, power, _ = _chosen(choice)
    return u0 * batch_size / (check_reals("smoothness", smoothness, above=True) * power)


def inner_steps(choice: Choice) -> Array:
    """The inner length m = floor(d n^alpha / (6 u0 b)) of Theorems 2 and 4.

    Args:
      choice: of u0, b, n, alpha and d / B.

    Returns:
      int64; 0 where 6 u0 b > d n^alpha / B, never under (13) and (20). Where the quotient is within
      rounding of a whole number it may be one off.

    Raises:
      InputError: a field is outside of its domain, or m is above 2^53.

    >>> choice = Choice(u0=0.5, batch_size=1, num_samples=16, alpha=0.5, blocks=[1, 60])
    >>> inner_steps(choice).tolist()
    [1, 80]

    Source: Huo and Huang (2016), Theorems 2 and 4.
    """
    u0, batch_size, power, blocks = _chosen(choice)
    with np.errstate(over="ignore"):
        steps = np.floor(blocks * power / (6 * u0 * batch_size))
    if np.any(steps > MOST):
        raise InputError(f"u0 must be large enough for an m of at most 2^53, got {choice.u0!r}.")
    return steps.astype(np.int64)[()]


def theorem_setting(choice: Choice, smoothness: Array, max_delay: Array = 0) -> Setting:
    """The Setting of Theorem 2 or 4: its eta and m, and beta = 2 L.

    Args:
      choice: of u0, b, n, alpha and d / B.
      smoothness: L, finite and above 0.
      max_delay: Delta, a whole number of at least 0.

    Returns:
      A Setting; other functions refuse it where m is 0.

    Raises:
      InputError: an argument is outside of its domain, or m is above 2^53.

    >>> choice = Choice(u0=0.1, batch_size=1, num_samples=1_000, alpha=2 / 3)
    >>> setting = theorem_setting(choice, smoothness=2.0)
    >>> round(float(setting.lr), 6), int(setting.inner_steps)
    (0.0005, 166)

    Source: Huo and Huang (2016), Theorems 2 and 4.
    """
    eta, length = step_size(choice, smoothness), inner_steps(choice)
    return Setting(eta, smoothness, choice.batch_size, length, max_delay, choice.blocks)


def delay_limit(choice: Choice) -> Array:
    """The right-hand side of (13) and (20), min {d / (2 u0 b), (3 d - 28 u0 b d) / (28 u0^2 b^2)}.

    It is the first of the two if u0 b <= 1 / 14, and positive if and only if u0 b < 3 / 28.

    Args:
      choice: of u0, b and d / B; n and alpha do not count.

    Returns:
      float64, which Delta^2 has to lie below.

    Raises:
      InputError: a field is outside of its domain, or the shapes do not broadcast.

    >>> choice = Choice(u0=[0.0625, 0.125], batch_size=1, num_samples=10, alpha=1.0)
    >>> delay_limit(choice).tolist()
    [8.0, -1.1428571428571428]

    Source: Huo and Huang (2016), Theorems 2 and 4.
    """
    u0, batch_size, _, blocks = _chosen(choice)
    a = u0 * batch_size
    with np.errstate(over="ignore", divide="ignore"):
        return np.minimum(blocks / (2 * a), blocks * (3 - 28 * a) / (28 * a * a))


def admissible_delay(choice: Choice) -> Array:
    """The largest Delta that (13) or (20) admits.

    Args:
      choice: of u0, b and d / B; n and alpha do not count.

    Returns:
      int64, at most 2^53; -1 where u0 b >= 3 / 28, and none is admitted, not even 0.

    Raises:
      InputError: a field is outside of its domain, or the shapes do not broadcast.

    >>> choice = Choice([0.0625, 0.125], batch_size=1, num_samples=10, alpha=1.0, blocks=2.0)
    >>> admissible_delay(choice).tolist()  # Delta^2 < 16, and Delta^2 < -2.3
    [3, -1]

    Source: Huo and Huang (2016), Theorems 2 and 4.
    """
    limit = delay_limit(choice)
    # The smallest whole number whose square is not below the limit, less 1.
    root = np.ceil(np.sqrt(np.clip(limit, 0.0, float(MOST) ** 2)))
    return (root - 1).astype(np.int64)[()]


def admissible_delay_of_step(lr: Array, smoothness: Array, blocks: Array = 1.0) -> Array:
    """The largest Delta that (13) or (20) admits for a step that is given, with the best alpha.

    u0 b = eta L n^alpha admits the more, the smaller alpha is; its limit is eta L.

    Args:
      lr: eta, finite and above 0.
      smoothness: L, finite and above 0.
      blocks: d / B, finite and at least 1.

    Returns:
      int64, at most 2^53; -1 where eta L >= 3 / 28, and none is admitted, not even 0.

    Raises:
      InputError: an argument is outside of its domain, or the shapes do not broadcast.

    >>> admissible_delay_of_step(lr=[0.01, 0.1], smoothness=2.0, blocks=80.0).tolist()
    [44, -1]

    Source: Huo and Huang (2016), Theorems 2 and 4; the best alpha is ours.
    """
    eta, smooth = check_broadcast(
        check_reals("lr", lr, above=True), check_reals("smoothness", smoothness, above=True)
    )
    with np.errstate(over="ignore"):
        a = np.minimum(eta * smooth, 0.5)  # which admits none, as all that is above it
    return admissible_delay(Choice(a, batch_size=1, num_samples=1, alpha=1.0, blocks=blocks))


def sigma(choice: Choice, max_delay: Array = 0) -> Array:
    """The largest sigma with gamma >= sigma b / (d L n^alpha), as Theorems 2 and 4 claim.

    The theorems say that a universal one exists; under (13) and (20), sigma > u0 / 4. With it (14)
    and (21) are (12) and (19).

    Args:
      choice: of u0, b, n, alpha and d / B.
      max_delay: Delta, a whole number of at least 0.

    Returns:
      float64, below u0 / 2; where it is 0 or less the theorem gives nothing, -inf where Lemma 1
      says nothing either.

    Raises:
      InputError: an argument is outside of its domain, or m is 0.

    >>> choice = Choice(u0=0.1, batch_size=1, num_samples=1_000, alpha=2 / 3)
    >>> round(float(sigma(choice, max_delay=2)) / 0.1, 3)  # of u0
    0.498

    Source: Huo and Huang (2016), Theorems 2 and 4.
    """
    setting = theorem_setting(choice, 1.0, max_delay)  # L cancels
    u0, _, _, blocks = _chosen(choice)
    return u0 * blocks * gamma(setting) / setting.lr


def _chosen(choice: Choice) -> tuple[np.ndarray, ...]:
    """u0, b, n^alpha and d / B, float64, broadcast."""
    check_kind("choice", choice, Choice)
    u0, batch_size, n, alpha, blocks = check_broadcast(
        check_reals("u0", choice.u0, above=True, most=1.0, below=True),
        check_counts("batch_size", choice.batch_size),
        check_counts("num_samples", choice.num_samples),
        check_reals("alpha", choice.alpha, above=True, most=1.0),
        check_reals("blocks", choice.blocks, least=1.0),
    )
    if np.any(batch_size > n):
        raise InputError(
            "batch_size must be a whole number from 1 to num_samples, got "
            f"{batch_size[batch_size > n][0]} of {n[batch_size > n][0]}."
        )
    return u0, batch_size, n**alpha, blocks
