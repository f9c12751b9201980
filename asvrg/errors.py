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
      value: int, or an integer of numpy or jax, also as an array without axes.
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
    number = _scalar(value)
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if not whole or number < least or (most is not None and number > most):
        raise InputError(f"{name} must be {accepted}, got {value!r}.")
    return int(number)


def check_real(
    name: str,
    value: Any,
    *,
    least: float = 0.0,
    above: bool = False,
    most: float | None = None,
    below: bool = False,
) -> float:
    """Returns `value` if it is a finite number from `least` to `most`, else raises InputError.

    Args:
      name: the argument's name, for the sentence.
      value: a real number, also as an array without axes.
      least: the lower limit; minus infinity for none.
      above: whether the lower limit itself is refused.
      most: the upper limit; None for no limit.
      below: whether the upper limit itself is refused.

    Returns:
      The value as a float.

    Raises:
      InputError: it is no finite number, or lies outside the range.

    >>> check_real("lr", 0.5, above=True)
    0.5
    """
    number = _scalar(value)
    real = isinstance(number, int | float | np.integer | np.floating)
    in_range = real and np.isfinite(number) and (number > least if above else number >= least)
    if in_range and most is not None:
        in_range = number < most if below else number <= most
    if not in_range or isinstance(number, bool):
        limits = []
        if least > -np.inf:
            limits.append(f"{'above' if above else 'of at least'} {least:g}")
        if most is not None:
            limits.append(f"{'below' if below else 'at most'} {most:g}")
        accepted = " ".join(["a finite number", " and ".join(limits)]).rstrip()
        raise InputError(f"{name} must be {accepted}, got {value!r}.")
    return float(number)


def _scalar(value: Any) -> Any:
    """What an array without axes holds; anything else, a tracer of jax among it, as it is."""
    if getattr(value, "shape", None) != () or isinstance(value, np.generic):
        return value
    try:
        return value.item()
    except TypeError:
        return value


def check_counts(name: str, values: Any, *, least: int = 1) -> np.ndarray:
    """`check_count` for every entry of an array.

    Args:
      name: the argument's name, for the sentence.
      values: whole numbers, one or an array of them.
      least: the smallest accepted value.

    Returns:
      The values as int64, of the same shape.

    Raises:
      InputError: one of them is no whole number of at least `least`.

    >>> check_counts("batch_size", [1, 10])
    array([ 1, 10])
    """
    array = np.asarray(values)
    for value in _extremes(array, "iu", values):
        check_count(name, value, least=least)
    return array.astype(np.int64)


def check_reals(
    name: str,
    values: Any,
    *,
    least: float = 0.0,
    above: bool = False,
    most: float | None = None,
    below: bool = False,
) -> np.ndarray:
    """`check_real` for every entry of an array.

    Args:
      name: the argument's name, for the sentence.
      values: real numbers, one or an array of them.
      least: the lower limit.
      above: whether the lower limit itself is refused.
      most: the upper limit; None for no limit.
      below: whether the upper limit itself is refused.

    Returns:
      The values as float64, of the same shape.

    Raises:
      InputError: one of them is no finite number in the range.

    >>> check_reals("lr", [0.5, 2], above=True)
    array([0.5, 2. ])
    """
    array = np.asarray(values)
    for value in _extremes(array, "iuf", values):
        check_real(name, value, least=least, above=above, most=most, below=below)
    return array.astype(np.float64)


def _extremes(array: np.ndarray, kinds: str, values: Any) -> list[Any]:
    """Entries that lie in a range only if all do; the values themselves if they are no numbers.

    A nan is both the smallest and the largest entry.
    """
    if array.dtype.kind not in kinds:
        return [values]
    return [array.min().item(), array.max().item()] if array.size else []


def check_broadcast(*arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays, broadcast against each other, or an InputError if their shapes do not allow it.

    Args:
      arrays: of any shapes.

    Returns:
      Read-only views of one shape.

    Raises:
      InputError: they do not broadcast; the sentence lists the shapes.

    >>> [array.shape for array in check_broadcast(np.zeros((3, 1)), np.zeros(2))]
    [(3, 2), (3, 2)]
    """
    try:
        return list(np.broadcast_arrays(*arrays))
    except ValueError as error:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise InputError(f"fields and arguments must broadcast, got shapes {shapes}.") from error


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
