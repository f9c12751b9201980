"""Theorems 1 and 3: Lemma 1's factor, c_t, Gamma_t, gamma, and the bounds (12) and (19)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from asvrg.errors import InputError, check_broadcast, check_counts, check_kind, check_reals
from asvrg.types import Array

MOST = 2**53  # Whole numbers up to here are exact in float64.


class Setting(NamedTuple):
    """What Theorems 1 and 3 speak of; every field a number or an array.

    Attributes:
      lr: eta, finite and above 0.
      smoothness: L of Assumption 3, for f and for every f_i; finite and above 0.
      batch_size: b, a whole number of at least 1.
      inner_steps: m, a whole number of at least 1.
      max_delay: Delta of Assumption 4, a whole number of at least 0.
      blocks: d / B, finite and at least 1.
      beta: of the theorems, finite and above 0; None for 2 L, as in Theorems 2 and 4.
    """

    lr: Array
    smoothness: Array
    batch_size: Array
    inner_steps: Array
    max_delay: Array = 0
    blocks: Array = 1.0
    beta: Array | None = None


def lemma_1_factor(setting: Setting) -> Array:
    """2 d / (d - 2 L^2 Delta^2 eta^2) of (8), by which stale reads enlarge sum_t E ||v_t||^2.

    Args:
      setting: whose lr, smoothness, max_delay and blocks count.

    Returns:
      float64, at least 2; inf where 2 L^2 Delta^2 eta^2 >= d / B, and the lemma says nothing.

    Raises:
      InputError: a field is outside of its domain, or the shapes do not broadcast.

    >>> float(lemma_1_factor(Setting(lr=0.25, smoothness=1.0, batch_size=1, inner_steps=1)))
    2.0

    Source: Huo and Huang (2016), Lemma 1.
    """
    s = _checked(setting)
    with np.errstate(all="ignore"):
        return np.where(s.slack > 0, 2 / s.slack, np.inf)[()]


def c(setting: Setting, t: Array) -> Array:
    """c_t of (10) and (17), with c_m = 0; it falls with t.

    With (10) read as c_t = c_{t+1} (1 + theta) + p it is p ((1 + theta)^(m - t) - 1) / theta.

    Args:
      setting: of Theorem 1 or 3.
      t: a whole number from 0 to m.

    Returns:
      float64, of the unit of L; inf where Lemma 1 says nothing and t < m.

    Raises:
      InputError: an argument is outside of its domain, or the shapes do not broadcast.

    >>> c(Setting(lr=0.25, smoothness=1.0, batch_size=1, inner_steps=2), [0, 1, 2]).tolist()
    [0.34375, 0.125, 0.0]

    Source: Huo and Huang (2016), Theorems 1 and 3.
    """
    return _c(*_with_step(setting, t, end=0))[()]


def gamma_t(setting: Setting, t: Array) -> Array:
    """Gamma_t of (11) and (18); it rises with t.

    Args:
      setting: of Theorem 1 or 3.
      t: a whole number from 0 to m - 1.

    Returns:
      float64, of the unit of eta, below eta B / (2 d); -inf where Lemma 1 says nothing.

    Raises:
      InputError: an argument is outside of its domain, or the shapes do not broadcast.

    >>> gamma_t(Setting(lr=0.125, smoothness=1.0, batch_size=1, inner_steps=1), 0).item()
    0.03125

    Source: Huo and Huang (2016), Theorems 1 and 3.
    """
    s, t = _with_step(setting, t, end=1)
    with np.errstate(all="ignore"):
        noise = s.noise + _c(s, t + 1) * s.eta**2
        value = s.eta / (2 * s.blocks) - 4 / (s.blocks * s.slack) * noise
    return np.where(s.slack > 0, value, -np.inf)[()]


def gamma(setting: Setting) -> Array:
    """The smallest Gamma_t of t = 0, ..., m - 1, which is Gamma_0.

    Args:
      setting: of Theorem 1 or 3.

    Returns:
      float64; -inf where Lemma 1 says nothing.

    Raises:
      InputError: a field is outside of its domain, or the shapes do not broadcast.

    >>> gamma(Setting(lr=0.125, smoothness=1.0, batch_size=1, inner_steps=1)).item()
    0.03125

    Source: Huo and Huang (2016), Theorems 1 and 3.
    """
    return gamma_t(setting, 0)


def holds(setting: Setting) -> Array:
    """Whether Theorem 1 or 3 holds: 2 L^2 Delta^2 eta^2 < d / B, gamma > 0 and c_1 <= beta / 2.

    The paper states the second condition alone; its proof needs the other two as well.

    Args:
      setting: of Theorem 1 or 3.

    Returns:
      bool.

    Raises:
      InputError: a field is outside of its domain, or the shapes do not broadcast.

    >>> holds(Setting(lr=[0.1, 0.3], smoothness=1.0, batch_size=1, inner_steps=1)).tolist()
    [True, False]

    Source: Huo and Huang (2016), Theorems 1 and 3; the other two conditions are ours.
    """
    beta = _checked(setting).beta
    return (gamma(setting) > 0) & (c(setting, 1) <= beta / 2)


def bound(setting: Setting, gap: Array, num_updates: Array) -> Array:
    """The right-hand side of (12) and (19), above the mean of E ||grad f(x_t)||^2 over T updates.

    Args:
      setting: of Theorem 1 or 3.
      gap: f(x^0) - f(x*), or more, as with a lower bound of f for f(x*); finite, at least 0.
      num_updates: T = S m, a whole number of at least 1.

    Returns:
      float64, gap / (T gamma); inf, no bound, where the theorem does not hold.

    Raises:
      InputError: an argument is outside of its domain, or the shapes do not broadcast.

    >>> setting = Setting(lr=[0.125, 0.3], smoothness=1.0, batch_size=1, inner_steps=1)
    >>> bound(setting, gap=2.0, num_updates=64).tolist()
    [1.0, inf]

    Source: Huo and Huang (2016), Theorems 1 and 3.
    """
    true, least, gap, updates = check_broadcast(
        holds(setting),
        gamma(setting),
        check_reals("gap", gap),
        check_counts("num_updates", num_updates),
    )
    with np.errstate(all="ignore"):
        return np.where(true, gap / (updates * least), np.inf)[()]


def tolerated_delay(setting: Setting) -> Array:
    """The largest Delta with which Theorem 1 or 3 still holds.

    Nothing is lost by asking for the largest alone: gamma falls as Delta rises.

    Args:
      setting: of Theorem 1 or 3; its max_delay does not count.

    Returns:
      int64, at most 2^53; -1 where the theorem does not hold even without delay.

    Raises:
      InputError: a field is outside of its domain, or the shapes do not broadcast.

    >>> setting = Setting(lr=[0.01, 0.3], smoothness=1.0, batch_size=10, inner_steps=16)
    >>> tolerated_delay(setting).tolist()
    [39, -1]

    Source: ours, from `holds`.
    """
    check_kind("setting", setting, Setting)
    s = _checked(setting._replace(max_delay=0))
    with np.errstate(over="ignore"):
        void = np.minimum(np.sqrt(s.blocks / 2) / (s.eta * s.smoothness) + 2, MOST)
    good, bad = np.full(void.shape, -1), void.astype(np.int64)
    while np.any(bad - good > 1):
        middle = (good + bad) // 2
        fine = (middle >= 0) & holds(setting._replace(max_delay=np.maximum(middle, 0)))
        good, bad = np.where(fine, middle, good), np.where(fine, bad, middle)
    return good[()]


class _Checked(NamedTuple):
    """A Setting in float64, broadcast, and what the formulas share."""

    eta: np.ndarray
    smoothness: np.ndarray
    batch_size: np.ndarray
    steps: np.ndarray
    blocks: np.ndarray
    beta: np.ndarray
    slack: np.ndarray  # 1 - 2 L^2 Delta^2 eta^2 / d
    noise: np.ndarray  # L^2 Delta^2 eta^3 / (2 d) + eta^2 L / 2


def _checked(setting: Setting) -> _Checked:
    check_kind("setting", setting, Setting)
    fields = (
        check_reals("lr", setting.lr, above=True),
        check_reals("smoothness", setting.smoothness, above=True),
        check_counts("batch_size", setting.batch_size),
        check_counts("inner_steps", setting.inner_steps),
        check_reals("blocks", setting.blocks, least=1.0),
        check_reals("beta", 1.0 if setting.beta is None else setting.beta, above=True),
        check_counts("max_delay", setting.max_delay, least=0),
    )
    eta, smooth, batch_size, steps, blocks, beta, delay = check_broadcast(*fields)
    with np.errstate(over="ignore"):
        stale = (smooth * delay * eta) ** 2 / blocks
        noise = eta / 2 * (stale + eta * smooth)
    if setting.beta is None:
        beta = 2 * smooth
    return _Checked(eta, smooth, batch_size, steps, blocks, beta, 1 - 2 * stale, noise)


def _with_step(setting: Setting, t: Array, *, end: int) -> tuple[_Checked, np.ndarray]:
    """The setting and t, from 0 to m - end."""
    s = _checked(setting)
    steps, t = check_broadcast(s.steps, check_counts("t", t, least=0))
    if np.any(t > steps - end):
        last = "inner_steps - 1" if end else "inner_steps"
        raise InputError(f"t must be a whole number from 0 to {last}, got {t.max()}.")
    return s, t


def _c(s: _Checked, t: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        share = 4 * s.smoothness**2 / (s.blocks * s.slack * s.batch_size)
        theta = s.eta * s.beta / s.blocks + share * s.eta**2
        value = share * s.noise * np.expm1((s.steps - t) * np.log1p(theta)) / theta
    return np.where(t < s.steps, np.where(s.slack > 0, value, np.inf), 0.0)
