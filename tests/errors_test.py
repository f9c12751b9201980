"""The checks of arguments, and their sentences."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asvrg.errors import (
    InputError,
    check_broadcast,
    check_choice,
    check_count,
    check_counts,
    check_real,
    check_reals,
)


@pytest.mark.parametrize(
    ("value", "limits"),
    [
        (1, {}),
        (np.int32(7), {}),
        (np.array(7), {}),
        (jnp.asarray(7), {}),
        (0, {"least": 0}),
        (5, {"most": 5}),
        (-2, {"least": -2}),
    ],
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
        (jnp.asarray(True), {}, "a whole number of at least 1"),
        (np.array(2.0), {}, "a whole number of at least 1"),
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
        (np.array(0.5), {}),
        (jnp.asarray(0.5), {}),
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


def test_without_limits_none_is_named() -> None:
    with pytest.raises(InputError, match="alpha must be a finite number, got nan"):
        check_real("alpha", math.nan, least=-math.inf)


def test_a_traced_number_is_no_number_yet() -> None:
    with pytest.raises(InputError, match="lr must be a finite number above 0, got "):
        jax.jit(lambda lr: check_real("lr", lr, above=True))(0.5)


def test_choices() -> None:
    assert check_choice("write", "locked", ("locked", "lock_free")) == "locked"
    for bad in ("Locked", "", None, 3):
        with pytest.raises(InputError) as error:
            check_choice("write", bad, ("locked", "lock_free"))
        guess = "; did you mean locked?" if bad == "Locked" else ""
        assert str(error.value) == f"write must be one of locked, lock_free, got {bad!r}{guess}."


def test_an_input_error_is_a_value_error() -> None:
    """So that callers who know nothing of asvrg catch it as what it is."""
    with pytest.raises(ValueError, match="name must be"):
        check_count("name", 0)


@pytest.mark.parametrize(
    ("value", "limits", "accepted"),
    [
        (1.0, {"above": True, "most": 1, "below": True}, "above 0 and below 1"),
        (1.5, {"above": True, "most": 1}, "above 0 and at most 1"),
        (0.5, {"least": 1, "most": 2}, "of at least 1 and at most 2"),
    ],
)
def test_reals_beyond_an_upper_limit_are_refused(value, limits: dict, accepted: str) -> None:
    with pytest.raises(InputError) as error:
        check_real("u0", value, **limits)
    assert str(error.value) == f"u0 must be a finite number {accepted}, got {value!r}."


def test_the_upper_limit_itself_is_accepted_unless_it_is_refused() -> None:
    assert check_real("alpha", 1, most=1) == 1
    assert check_reals("alpha", [0.5, 1], most=1).tolist() == [0.5, 1]


@pytest.mark.parametrize("shape", [(), (4,), (2, 2), (0,)])
def test_arrays_in_range_keep_their_shape(shape: tuple[int, ...]) -> None:
    values = np.full(shape, 3, np.int8)
    counts, reals = check_counts("name", values), check_reals("name", values.astype(np.float32))
    assert (counts.shape, counts.dtype) == (shape, np.int64)
    assert (reals.shape, reals.dtype) == (shape, np.float64)
    assert np.all(counts == 3)
    assert np.all(reals == 3)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([1, 0, 2], "0"),
        (np.array([[3, -2]]), "-2"),
        ([1.0, 2.0], r"\[1.0, 2.0\]"),
        ([True], r"\[True\]"),
        ("3", "'3'"),
        (None, "None"),
    ],
)
def test_one_bad_count_in_an_array_is_found(values, found: str) -> None:
    with pytest.raises(InputError, match=f"n must be a whole number of at least 1, got {found}."):
        check_counts("n", values)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([1.0, 0.0, 2.0], "0.0"),
        ([0.5, math.nan, 0.7], "nan"),
        ([0.5, math.inf], "inf"),
        ([-math.inf, 1], "-inf"),
        ([1.0, 2.5], "2.5"),
        ([True], r"\[True\]"),
        ([1j], r"\[1j\]"),
        (["a"], r"\['a'\]"),
    ],
)
def test_one_bad_real_in_an_array_is_found(values, found: str) -> None:
    sentence = f"lr must be a finite number above 0 and at most 2, got {found}."
    with pytest.raises(InputError, match=sentence):
        check_reals("lr", values, above=True, most=2)


def test_arrays_that_do_not_broadcast_are_refused_with_their_shapes() -> None:
    with pytest.raises(InputError, match=r"must broadcast, got shapes \(2,\), \(3, 1\), \(3,\)\."):
        check_broadcast(np.ones(2), np.ones((3, 1)), np.ones(3))
