"""The errors that asvrg raises, and the checks of arguments that raise them."""

from __future__ import annotations

from typing import Any

import numpy as np


class InputError(ValueError):
    """Bad input, said in one sentence that names the argument and the accepted values.

    The binaries print it without a traceback and exit with a code other than 0.
    """


class DriverError(RuntimeError):
    """A worker of a driver, a thread or a process, failed; each driver has a kind of its own."""


class DivergedError(RuntimeError):
    """The iterates or the loss are no longer finite numbers; the sentence suggests the cause."""


def check_count(name: str, value: Any, *, least: int = 1, most: int | None = None) -> int:
    """Returns `value` if it is a whole number from `least` to `most`, else raises InputError.

    Args:
      name: the argument's name, for the sentence.
      value: int, or a numpy integer.
      least: the smallest accepted value.
      most: the largest accepted value; None for no limit.

    Returns:
      The value as an int.

    Raises:
      InputError: it is no whole number, or lies outside the range.

    >>> check_count("batch_size", 10, most=100)
    10
    """
    accepted = f"a whole number of at least {least}"
    if most is not None:
        accepted = f"a whole number from {least} to {most}"
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        raise InputError(f"{name} must be {accepted}, got {value!r}.")
    return int(value)


def check_real(name: str, value: Any, *, least: float = 0.0, above: bool = False) -> float:
    """Returns `value` if it is a finite number of at least (`above`: above) `least`.

    Args:
      name: the argument's name, for the sentence.
      value: a real number.
      least: the lower limit.
      above: whether the limit itself is refused.

    Returns:
      The value as a float.

    Raises:
      InputError: it is no finite number, or lies below the limit.

    >>> check_real("lr", 0.5, above=True)
    0.5
    """
    number = isinstance(value, int | float | np.integer | np.floating)
    in_range = number and np.isfinite(value) and (value > least if above else value >= least)
    if not in_range or isinstance(value, bool):
        relation = "above" if above else "of at least"
        raise InputError(f"{name} must be a finite number {relation} {least:g}, got {value!r}.")
    return float(value)


def check_choice(name: str, value: Any, accepted: tuple[str, ...]) -> str:
    """Returns `value` if it is one of the accepted names, else raises InputError.

    Args:
      name: the argument's name, for the sentence.
      value: the name that was given.
      accepted: the names to choose from.

    Returns:
      The value.

    Raises:
      InputError: it is none of them; the sentence lists them.

    >>> check_choice("write", "locked", ("locked", "lock_free"))
    'locked'
    """
    if value not in accepted:
        raise InputError(f"{name} must be one of {', '.join(accepted)}, got {value!r}.")
    return value
