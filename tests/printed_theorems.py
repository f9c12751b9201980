"""The paper's formulas in mpmath, by recursion, and a table of choices that they are held against.

Nothing of asvrg.theory is used but its records.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import mpmath
import numpy as np

from asvrg.theory import Choice


class Printed(NamedTuple):
    """Lemma 1's factor, c_0, ..., c_m and Gamma_0, ..., Gamma_{m-1} in mpmath."""

    factor: Any
    c: list
    gammas: list


def theorem_1(eta, L, b, m, delay, d, beta) -> Printed:
    """Equations (8), (10) and (11)."""
    eta, L, d, beta = (mpmath.mpf(float(value)) for value in (eta, L, d, beta))
    b, delay = int(b), int(delay)
    stale = d - 2 * L**2 * delay**2 * eta**2
    inner = L**2 * delay**2 * eta**3 / (2 * d) + eta**2 * L / 2
    c = [mpmath.mpf(0)]
    for _ in range(m):
        grown = c[0] * (1 + eta * beta / d + 4 * L**2 * eta**2 / (stale * b))
        c.insert(0, grown + 4 * L**2 / (stale * b) * inner)
    gammas = [eta / (2 * d) - 4 / stale * (inner + c[t + 1] * eta**2) for t in range(m)]
    return Printed(2 * d / stale, c, gammas)


def theorem_3(eta, L, b, m, delay, beta) -> Printed:
    """Equations (17) and (18), and Lemma 1 with d = 1."""
    eta, L, beta = (mpmath.mpf(float(value)) for value in (eta, L, beta))
    b, delay = int(b), int(delay)
    stale = 1 - 2 * L**2 * delay**2 * eta**2
    inner = L**2 * delay**2 * eta**3 / 2 + eta**2 * L / 2
    c = [mpmath.mpf(0)]
    for _ in range(m):
        grown = c[0] * (1 + eta * beta + 4 * L**2 * eta**2 / (stale * b))
        c.insert(0, grown + 4 * L**2 / (stale * b) * inner)
    gammas = [eta / 2 - 4 / stale * (inner + c[t + 1] * eta**2) for t in range(m)]
    return Printed(2 / stale, c, gammas)


CHOICES = [
    Choice(u0, b, n, alpha, blocks)
    for u0, b, n, alpha, blocks in itertools.product(
        [1e-3, 0.0107, 0.05, 0.1, 0.107, 0.4, 0.99],
        [1, 3, 10],
        [10, 1_000, 60_000],
        [0.01, 1 / 3, 2 / 3, 1.0],
        [1.0, 2.5, 79_510.0],
    )
]
ALL = Choice(*map(np.array, zip(*CHOICES, strict=True)))


def rate(choice: Choice) -> np.ndarray:
    """L eta of Theorems 2 and 4, e in the module's docstring."""
    return choice.u0 * choice.batch_size / choice.num_samples**choice.alpha
