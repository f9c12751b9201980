"""What has landed in an epoch, and when: the Trace as a driver writes it."""

from __future__ import annotations

import time

import numpy as np

from asvrg.errors import InputError
from asvrg.types import Shard, Times, Trace


class Landed:
    """The updates of an epoch that have landed, in their order.

    >>> landed = Landed(3)
    >>> landed.add(0, 0, number=2, read=0.0, computed=0.1)
    >>> landed.add(1, 0, number=1, read=0.0, computed=0.2)
    >>> landed.number, landed.trace(sees_own=True).worker.tolist()
    (3, [0, 0, 1])
    """

    def __init__(
        self, num_updates: int, *, scaled: bool = False, before: Trace | None = None
    ) -> None:
        """Room for m updates, with a scale each if they are scaled; starts the clock.

        Args:
          num_updates: m.
          scaled: whether updates are multiplied by a scale as they land.
          before: of those that have landed, where the epoch paused; the clock goes on from there.
        """
        self.number = 0
        self._worker = np.zeros(num_updates, np.int32)
        self._read_version = np.zeros(num_updates, np.int32)
        self._scale = np.zeros(num_updates) if scaled else None
        self._times = Times(*(np.zeros(num_updates) for _ in Times._fields))
        self._begin = time.perf_counter()
        if before is not None:
            self._take_over(before)

    @property
    def num_updates(self) -> int:
        """The updates of the epoch, m; `number` counts those that have landed."""
        return len(self._worker)

    def now(self) -> float:
        """Seconds since the epoch's inner loop began."""
        return time.perf_counter() - self._begin

    def add(
        self,
        worker: int,
        version: int,
        *,
        number: int,
        read: float,
        computed: float,
        scale: np.ndarray | float | None = None,
    ) -> None:
        """Enters updates that have landed just now.

        Args:
          worker: who made them; the number of its stream.
          version: how many updates had landed in the x that it read.
          number: of updates.
          read: when it began to read x.
          computed: when they were ready to land.
          scale: float64 [number], by which they were multiplied, if they were.
        """
        assert self.number + number <= len(self._worker)
        assert (scale is None) == (self._scale is None)
        window = slice(self.number, self.number + number)
        self._worker[window] = worker
        self._read_version[window] = version
        if self._scale is not None:
            self._scale[window] = scale
        for all_, one in zip(self._times, (read, computed, self.now()), strict=True):
            all_[window] = one
        self.number += number

    def trace(self, *, sees_own: bool, shards: tuple[Shard, ...] | None = None) -> Trace:
        """The Trace of what has landed.

        Args:
          sees_own: whether a worker sees its own updates before it reads x again.
          shards: of the streams.
        """
        done = slice(self.number)
        return Trace(
            self._worker[done],
            self._read_version[done],
            sees_own,
            shards,
            None if self._scale is None else self._scale[done],
            Times(*(each[done] for each in self._times)),
        )

    def _take_over(self, before: Trace) -> None:
        if before.times is None or (before.scale is None) != (self._scale is None):
            raise InputError(
                "an epoch must be gone on with by the driver that paused in it, made with the same "
                "arguments, got one whose trace has other fields."
            )
        done = slice(len(before.worker))
        self.number = len(before.worker)
        self._worker[done], self._read_version[done] = before.worker, before.read_version
        if self._scale is not None:
            self._scale[done] = before.scale
        for all_, earlier in zip(self._times, before.times, strict=True):
            all_[done] = earlier
        self._begin -= max(before.times.landed, default=0.0)
