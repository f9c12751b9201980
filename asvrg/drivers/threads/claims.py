"""Who of the threads may compute which updates, and what landed when: the books of an epoch."""

from __future__ import annotations

import threading
import time

import numpy as np

from asvrg.types import Times, Trace


class Claims:
    """The m updates of an epoch, claimed in windows, and the Trace of those that have landed.

    A window in flight is one that was claimed and has not landed. The number of an update that is
    in flight is at most that of the updates claimed, less one, and the x that it lacks nothing of
    is at least the one at its claim: so the number claimed, less the updates that had landed at
    the oldest claim in flight, less one, bounds every delay.

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
    ) -> None:
        """Begins the books, and the clock.

        Args:
          num_updates: m.
          read_period: r, the updates of a window, at most.
          max_delay: Delta; None for no limit.
          scaled: whether updates are multiplied by a scale as they land.
        """
        self.landed = 0
        self._read_period = read_period
        self._max_delay = max_delay
        self._claimed = 0
        self._in_flight: dict[int, int] = {}  # worker -> updates that had landed at its claim
        self._stopped = False
        self._changed = threading.Condition()
        self._worker = np.zeros(num_updates, np.int32)
        self._read_version = np.zeros(num_updates, np.int32)
        self._scale = np.zeros(num_updates) if scaled else None
        self._times = Times(*(np.zeros(num_updates) for _ in Times._fields))
        self._begin = time.perf_counter()

    def now(self) -> float:
        """Seconds since the epoch's inner loop began."""
        return time.perf_counter() - self._begin

    def claim(self, worker: int) -> int:
        """How many updates a thread shall do next; waits while one of them might be too late.

        Args:
          worker: the thread, which has no window in flight.

        Returns:
          A number of updates; 0 when there is nothing left, or the epoch was stopped.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_room())
            count = 0 if self._stopped else self._next()
            if count:
                self._claimed += count
                self._in_flight[worker] = self.landed
            return count

    def land(
        self,
        worker: int,
        count: int,
        version: int,
        begin: float,
        computed: float,
        scale: np.ndarray | None = None,
    ) -> None:
        """Enters a window that was added to x.

        Args:
          worker: the thread.
          count: updates of the window.
          version: how many updates had landed when it read x.
          begin: when it began to read x.
          computed: when its updates were ready.
          scale: float64 [count], by which its updates were multiplied, if they were.
        """
        with self._changed:
            window = slice(self.landed, self.landed + count)
            self._worker[window] = worker
            self._read_version[window] = version
            if self._scale is not None:
                self._scale[window] = scale
            for all_, one in zip(self._times, (begin, computed, self.now()), strict=True):
                all_[window] = one
            self.landed += count
            del self._in_flight[worker]
            if self._max_delay is not None:
                self._changed.notify_all()

    def stop(self) -> None:
        """Nobody claims anything any more; who waits is woken."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def trace(self) -> Trace:
        """What has landed, when all of it has."""
        return Trace(
            self._worker,
            self._read_version,
            sees_own=True,
            scale=self._scale,
            times=self._times,
        )

    def _next(self) -> int:
        return min(self._read_period, len(self._worker) - self._claimed)

    def _has_room(self) -> bool:
        if self._max_delay is None or not self._in_flight:
            return True  # A window that is alone lacks nothing.
        oldest = min(self._in_flight.values())
        return self._claimed + self._next() - 1 - oldest <= self._max_delay
