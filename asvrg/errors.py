"""The errors that asvrg raises, and the checks of arguments that raise them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

INT32 = 2**31 - 1  # the largest index: of samples, coordinates, updates
INT64 = 2**63 - 1


class InputError(ValueError):
    """Bad input, said in one sentence that names the argument and the accepted values.

    The binaries print it without a traceback and exit with a code other than 0.
    """


class DriverError(RuntimeError):
    """A worker of a driver, a thread or a process, failed; each driver has a kind of its own."""


class DivergedError(RuntimeError):
    """The iterates or the loss are no longer finite numbers; the sentence suggests the cause."""


def diverged(what: str, epoch: int, lr: float, update: int | None = None) -> DivergedError:
    """The error for a quantity that is no finite number.

    Args:
      what: the quantity: x, v or the loss.
      epoch: epochs done, the one that went wrong included.
      lr: the step of that one.
      update: the number t of the update that did it, from 0; None if it is not known.

    Returns:
      A DivergedError with a sentence that suggests the cause.

    >>> print(diverged("the training loss", 3, 10.0))
    the training loss is not a finite number after epoch 3 with step 10; ...
    >>> print(diverged("v", 3, 10.0, update=7))
    v is not a finite number in update 7 of epoch 3 with step 10; ...
    """
    when = f"after epoch {epoch}" if update is None else f"in update {update} of epoch {epoch}"
    return DivergedError(
        f"{what} is not a finite number {when} with step {lr:g}; the step (--lr) is probably too "
        "large for this problem, or the data hold numbers that are not finite or labels out of "
        "range."
    )


def check_count(
    name: str, value: Any, *, least: int = 1, most: int | None = None, limit: int | None = None
) -> int:
    """Returns `value` if it is a whole number from `least` to `most`, else raises InputError.

    Args:
      name: the argument's name, for the sentence.
      value: int, or an integer of numpy or jax, also as an array without axes.
      least: the smallest accepted value.
      most: the largest accepted value; None for no limit.
      limit: the same where no user comes near it, so that only a larger value is told of it.

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
    if whole and limit is not None and number > limit:
        accepted = f"a whole number from {least} to {limit if most is None else min(limit, most)}"
    elif whole and number >= least and (most is None or number <= most):
        return int(number)
    raise InputError(f"{name} must be {accepted}, got {said(value)}.")


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
    in_range = real and _is_finite(number) and (number > least if above else number >= least)
    if in_range and most is not None:
        in_range = number < most if below else number <= most
    if not in_range or isinstance(number, bool):
        limits = []
        if least > -np.inf:
            limits.append(f"{'above' if above else 'of at least'} {least:g}")
        if most is not None:
            limits.append(f"{'below' if below else 'at most'} {most:g}")
        accepted = " ".join(["a finite number", " and ".join(limits)]).rstrip()
        raise InputError(f"{name} must be {accepted}, got {said(value)}.")
    return float(number)


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int beyond all floats
        return False


def said(value: Any) -> str:
    """A value for a sentence: its repr in one line, and no more of it than one can read.

    Args:
      value: anything.

    Returns:
      Text.

    >>> said("x"), said(10**400), said(np.arange(1_000.0).reshape(500, 2))
    ("'x'", '1000000000000000000000000000000000000000...', 'an array of shape (500, 2)')
    """
    if getattr(value, "size", 1) > 8:
        return f"an array of shape {value.shape}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:40]}..."


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
    array = _array(name, values)
    for value in _extremes(array, "iu", values):
        check_count(name, value, least=least, limit=INT64)
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
    array = _array(name, values)
    for value in _extremes(array, "iuf", values):
        check_real(name, value, least=least, above=above, most=most, below=below)
    return array.astype(np.float64)


def _array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(
            f"{name} must be a number or an array of them, got {said(values)}."
        ) from error


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
      InputError: it is none of them; the sentence lists them, and names one that is close.

    >>> check_choice("write", "locked", ("locked", "lock_free"))
    'locked'
    """
    if isinstance(value, str) and value in accepted:
        return value
    guess = did_you_mean(value, accepted)
    raise InputError(f"{name} must be one of {', '.join(accepted)}, got {said(value)}{guess}.")


def did_you_mean(value: Any, known: Iterable[str]) -> str:
    """What a sentence about an unknown name ends with; empty where no known one is close.

    Args:
      value: what was given.
      known: names.

    Returns:
      Text.

    >>> did_you_mean("SVGR", ("sgd", "svrg")), did_you_mean("adam", ("sgd", "svrg"))
    ('; did you mean svrg?', '')
    """
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(value.lower(), lower, n=1) if isinstance(value, str) else []
    return f"; did you mean {lower[close[0]]}?" if close else ""


def check_kind(name: str, value: Any, kind: type) -> Any:
    """Returns `value` if it is of the kind, else raises InputError.

    Args:
      name: the argument's name, for the sentence.
      value: what was given.
      kind: a class.

    Returns:
      The value.

    Raises:
      InputError: it is of another one; the sentence names both.

    >>> check_kind("rows", (1, 2), tuple)
    (1, 2)
    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise InputError(f"{name} must be {article} {kind.__name__}, got {type(value).__name__}.")
    return value


def check_function(name: str, value: Any) -> Any:
    """Returns `value` if it can be called, else raises InputError.

    Args:
      name: the argument's name, for the sentence.
      value: what was given.

    Returns:
      The value.

    Raises:
      InputError: it cannot.

    >>> check_function("weight", len)
    <built-in function len>
    """
    if not callable(value):
        raise InputError(f"{name} must be a function, got {type(value).__name__}.")
    return value


def check_switch(name: str, value: Any) -> bool:
    """Returns `value` if it is True or False, else raises InputError.

    Args:
      name: the argument's name, for the sentence.
      value: bool, also numpy's.

    Returns:
      The value as a bool.

    Raises:
      InputError: it is neither, a word that says "false", for instance.

    >>> check_switch("sees_own", np.bool_(True))
    True
    """
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, got {said(value)}.")
    return bool(value)


def check_vector(name: str, x: Any, dim: int, owner: str) -> Any:
    """Returns `x` if it is a vector [d] of floating-point numbers, else raises InputError.

    Args:
      name: the argument's name, for the sentence.
      x: float [d], an array of numpy or jax.
      dim: d.
      owner: who has this d, for the sentence.

    Returns:
      The array.

    Raises:
      InputError: it has another shape or dtype, one among them that jax would change in silence.

    >>> check_vector("x", np.zeros(2, np.float32), 2, "objective")
    array([0., 0.], dtype=float32)
    """
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    real = dtype is not None and np.issubdtype(dtype, np.floating) and np.dtype(dtype).isnative
    if shape != (dim,) or not real:
        found = type(x).__name__ if dtype is None else f"shape {shape} and dtype {dtype}"
        raise InputError(
            f"{name} must be an array [{dim}] of floating-point numbers, as the {owner} has it, "
            f"got {found}."
        )
    if dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise InputError(
            f"{name} must be float32 unless jax_enable_x64 is set, got float64; cast it, or call "
            'jax.config.update("jax_enable_x64", True) first.'
        )
    return x
