"""An epoch in parts: where a simulation is after each of them, and what went wrong in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asvrg.errors import InputError
from asvrg.types import Array, PyTree


class Part(NamedTuple):
    """A simulation after some of an epoch's updates.

    Attributes:
      x: float [d], after the updates that have landed.
      landed: t, how many have.
      memory: arrays to go on from, besides x.
      observations: what the observer returned, as far as it was asked.
      is_finite: whether everything that updates of this part have changed is finite.
      culprit: () -> the number of the first update of this part that is not finite, or None if all
        are and x overflowed as they were added.
    """

    x: Array
    landed: int
    memory: tuple[Array, ...]
    observations: PyTree
    is_finite: bool
    culprit: Callable[[], int | None]


def restored(memory: Sequence[Array], like: PyTree) -> Any:
    """The arrays that a Part has remembered, in the structure that they had.

    Args:
      memory: of the Part.
      like: a pytree of arrays of the same shapes.

    Returns:
      A pytree of that structure.

    Raises:
      InputError: they are of other shapes: another driver has paused.

    >>> restored([np.ones(2)], {"a": np.zeros(2)})
    {'a': Array([1., 1.], dtype=float32)}
    """
    leaves, structure = jax.tree.flatten(like)
    if [np.shape(each) for each in memory] != [np.shape(each) for each in leaves]:
        raise InputError(
            "an epoch must be gone on with by the driver that paused in it, made with the same "
            "arguments, got one that remembers other arrays."
        )
    return jax.tree.unflatten(structure, [jnp.asarray(each) for each in memory])


def first_true(condition: Callable[[int], bool], most: int) -> int | None:
    """The smallest number from 1 to `most` for which a condition holds that stays true.

    Args:
      condition: false up to some number, and true from there on.
      most: the largest number.

    Returns:
      The number, or None if there is none.

    >>> first_true(lambda number: number * number >= 10, 100)
    4
    """
    if most < 1 or not condition(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if condition(middle) else (middle, high)
    return high
