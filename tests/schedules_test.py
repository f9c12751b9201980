"""Learning rates as functions of the epoch."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from asvrg import schedules
from asvrg.errors import InputError


def test_constant_is_the_same_in_every_epoch() -> None:
    assert [schedules.constant(0.3)(epoch) for epoch in (0, 1, 100)] == [0.3] * 3


def test_polynomial_is_the_papers_formula() -> None:
    """With beta = 1/2 the step is a whole, a half and a third of alpha in epochs 0, 3 and 8."""
    found = [schedules.polynomial(0.6, 0.5)(epoch) for epoch in (0, 3, 8)]
    assert found == pytest.approx([0.6, 0.3, 0.2], rel=1e-15)
    assert schedules.polynomial(0.6, 1)(9) == pytest.approx(0.06)


def test_polynomial_without_decay_is_constant() -> None:
    assert schedules.polynomial(0.7, 0)(50) == schedules.constant(0.7)(50)


@pytest.mark.parametrize("bad", [0, -0.1, math.nan, math.inf, "0.1", None, True])
def test_bad_steps_are_refused(bad) -> None:
    sentence = "lr must be a finite number above 0, got"
    with pytest.raises(InputError, match=sentence):
        schedules.constant(bad)
    with pytest.raises(InputError, match=sentence):
        schedules.polynomial(bad, 0.5)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, "1"])
def test_bad_decays_are_refused(bad) -> None:
    with pytest.raises(InputError, match="lr_decay must be a finite number of at least 0, got"):
        schedules.polynomial(0.1, bad)


@pytest.mark.parametrize("bad", [0.0, -0.1, -np.inf, math.nan, None, "a", jnp.zeros(())])
def test_rates_are_above_zero(bad) -> None:
    with pytest.raises(InputError, match="^lr in epoch s = 3 must be a finite number above 0, got"):
        schedules.check_rate(bad, np.dtype("float64"), name="lr in epoch s = 3")


@pytest.mark.parametrize(("bad", "there"), [(1e-60, "0.0"), (1e60, "inf")])
def test_rates_fit_the_dtype(bad: float, there: str) -> None:
    assert schedules.check_rate(bad, np.dtype("float64")) == bad
    sentence = f"above 0 in float32, got {bad:g}, which is {there} there"
    with pytest.raises(InputError, match=sentence.replace("+", r"\+")):
        schedules.check_rate(bad, np.dtype("float32"))
