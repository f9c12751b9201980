"""Inner loops that pause: where they begin, and the whole of them in one call."""

from __future__ import annotations

from collections.abc import Callable

from asvrg.types import Array, Halfway, Pause, Snapshot, Trace

Advance = Callable[[Array | Halfway, Snapshot, int, float, Pause | None], Halfway]


def begin(reached: Array | Halfway) -> tuple[Array, Trace | None]:
    """The x that an inner loop goes on with, and what has landed before.

    Args:
      reached: x, float [d], of an inner loop that begins, or a Halfway.

    Returns:
      x and the trace so far; None at the beginning.
    """
    return (reached.x, reached.trace) if isinstance(reached, Halfway) else (reached, None)


def inner_loop(advance: Advance) -> Callable[[Array, Snapshot, int, float], tuple[Array, Trace]]:
    """An inner loop that never pauses.

    Args:
      advance: of a Driver.

    Returns:
      The `inner_loop` of that Driver.
    """

    def whole(x: Array, snapshot: Snapshot, epoch: int, lr: float) -> tuple[Array, Trace]:
        reached = advance(x, snapshot, epoch, lr, None)
        return reached.x, reached.trace

    return whole
