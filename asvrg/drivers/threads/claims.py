"""Who of the threads may compute how many updates, and when it must wait."""

from __future__ import annotations

import threading

import numpy as np

from asvrg.drivers.landed import Landed
from asvrg.types import Pause, Trace


class Claims:
    """The m updates of an epoch, claimed in windows.

    A window in flight is one that was claimed and has not landed. Its updates have numbers below
    that of the updates claimed so far, and its x has at least the updates that had landed at its
    claim. So the number claimed, less one, less those landed at the oldest claim in flight, bounds
    every delay.

    >>> claims = Claims(3, 2)
    >>> claims.claim(0), claims.claim(1), claims.claim(0)
    (2, 1, 0)
    """

    def __init__(
        self,
        num_updates: int,
        read_period: int,
        *,
        max_delay: int | None = None,
        scaled: bool = False,
        before: Trace | None = None,
        pause: Pause | None = None,
    ) -> None:
        """Nothing is claimed yet but what has landed before; the clock of what lands starts.

        Args:
          num_updates: m.
          read_period: r, the updates of a window, at most.
          max_delay: Delta; None for no limit.
          scaled: whether updates are multiplied by a scale as they land.
          before: of the updates that have landed, where the epoch paused.
          pause: whether to stop, asked at every claim but the first; None for never.
        """
        self.landed = Landed(num_updates, scaled=scaled, before=before)
        self._read_period = read_period
        self._max_delay = max_delay
        self._begun = self._claimed = self.landed.number
        self._pause = pause
        self._in_flight: dict[int, int] = {}  # worker -> updates that had landed at its claim
        self._stopped = False
        self._changed = threading.Condition()

    def claim(self, worker: int) -> int:
        """How many updates a thread shall do next; waits while one of them might be too late.

        Args:
          worker: the thread, which has no window in flight.

        Returns:
          A number of updates; 0 when there is nothing left, or the epoch was stopped.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_room())
            if self._pause is not None and self._claimed > self._begun and self._pause():
                self._stopped = True
                self._changed.notify_all()
            count = 0 if self._stopped else self._next()
            if count:
                self._claimed += count
                self._in_flight[worker] = self.landed.number
            return count

    def land(
        self,
        worker: int,
        version: int,
        count: int,
        read: float,
        computed: float,
        scale: np.ndarray | None = None,
    ) -> int:
        """Enters a thread's window, which was added to x; see `Landed.add`.

        Returns:
          The number t of its first update.
        """
        with self._changed:
            first = self.landed.number
            self.landed.add(
                worker, version, number=count, read=read, computed=computed, scale=scale
            )
            del self._in_flight[worker]
            if self._max_delay is not None:
                self._changed.notify_all()
            return first

    def stop(self) -> None:
        """Nobody claims anything any more; who waits is woken."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _next(self) -> int:
        return min(self._read_period, self.landed.num_updates - self._claimed)

    def _has_room(self) -> bool:
        if self._max_delay is None or not self._in_flight:
            return True  # A window that is alone lacks no more than its own updates.
        oldest = min(self._in_flight.values())
        return self._claimed + self._next() - 1 - oldest <= self._max_delay
