"""An epoch in parts: where a simulation is after each of them, and what went wrong in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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
