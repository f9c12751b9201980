"""The checks of arguments, and their sentences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from asvrg.errors import InputError, check_choice, check_count, check_real


@pytest.mark.parametrize(
    ("value", "limits"),
    [(1, {}), (np.int32(7), {}), (0, {"least": 0}), (5, {"most": 5}), (-2, {"least": -2})],
)
def test_counts_in_range_come_back_as_ints(value, limits: dict) -> None:
    found = check_count("name", value, **limits)
    assert found == value
    assert type(found) is int


@pytest.mark.parametrize(
    ("value", "limits", "accepted"),
    [
        (0, {}, "a whole number of at least 1"),
        (-1, {"least": 0}, "a whole number of at least 0"),
        (6, {"most": 5}, "a whole number from 1 to 5"),
        (0, {"most": 5}, "a whole number from 1 to 5"),
        (2.0, {}, "a whole number of at least 1"),
        (math.nan, {}, "a whole number of at least 1"),
        ("2", {}, "a whole number of at least 1"),
        (None, {}, "a whole number of at least 1"),
        (True, {}, "a whole number of at least 1"),
        (np.bool_(True), {}, "a whole number of at least 1"),
    ],
)
def test_other_counts_are_refused(value, limits: dict, accepted: str) -> None:
    with pytest.raises(InputError) as error:
        check_count("num_epochs", value, **limits)
    assert str(error.value) == f"num_epochs must be {accepted}, got {value!r}."


@pytest.mark.parametrize(
    ("value", "limits"),
    [
        (0.0, {}),
        (3, {}),
        (np.float32(0.5), {"above": True}),
        (np.int64(2), {}),
        (-1, {"least": -1}),
    ],
)
def test_reals_in_range_come_back_as_floats(value, limits: dict) -> None:
    found = check_real("name", value, **limits)
    assert found == value
    assert type(found) is float


@pytest.mark.parametrize(
    ("value", "limits", "accepted"),
    [
        (-1e-9, {}, "of at least 0"),
        (0.0, {"above": True}, "above 0"),
        (0.5, {"least": 1.0}, "of at least 1"),
        (math.nan, {}, "of at least 0"),
        (math.inf, {}, "of at least 0"),
        ("0.1", {}, "of at least 0"),
        (None, {}, "of at least 0"),
        (True, {}, "of at least 0"),
        (1j, {}, "of at least 0"),
        (np.ones(2), {}, "of at least 0"),
    ],
)
def test_other_reals_are_refused(value, limits: dict, accepted: str) -> None:
    with pytest.raises(InputError) as error:
        check_real("lr", value, **limits)
    assert str(error.value) == f"lr must be a finite number {accepted}, got {value!r}."


def test_choices() -> None:
    assert check_choice("write", "locked", ("locked", "lock_free")) == "locked"
    for bad in ("Locked", "", None, 3):
        with pytest.raises(InputError) as error:
            check_choice("write", bad, ("locked", "lock_free"))
        assert str(error.value) == f"write must be one of locked, lock_free, got {bad!r}."


def test_an_input_error_is_a_value_error() -> None:
    """So that callers who know nothing of asvrg catch it as what it is."""
    with pytest.raises(ValueError, match="name must be"):
        check_count("name", 0)
