"""The inner loop of Algorithm 2: x goes out, directions come back, and m updates land."""

from __future__ import annotations

import collections
import time
from typing import NamedTuple

import numpy as np

from asvrg.delays import adaptive_scale
from asvrg.drivers.landed import Landed
from asvrg.drivers.mpi.protocol import GRANT, Message, Tag
from asvrg.drivers.mpi.server import Server
from asvrg.errors import diverged
from asvrg.types import Pause, Shard, Trace


class Work(NamedTuple):
    """An x_hat that was sent: how many updates had landed, whose draws it is for, and when."""

    version: int
    stream: int
    sent: float


class Arrival(NamedTuple):
    """A result, and when it came."""

    message: Message
    at: float


class InnerLoop:
    """The m updates of one epoch.

    Every iteration is in one of four places: in the pool; granted to a worker (which expects its
    WORK); out (sent as WORK); landed. A death moves what it takes back to the pool, so that exactly
    m updates land.
    """

    def __init__(
        self,
        server: Server,
        x: np.ndarray,
        *,
        epoch: int,
        lr: float,
        inner_steps: int,
        overlap: bool,
        max_delay: int | None,
        delay_adaptive: bool,
        clock: dict[str, float],
        before: Trace | None,
        pause: Pause | None,
    ) -> None:
        """Nothing is sent yet; see `driver` for the arguments.

        Args:
          server: with its workers.
          x: float [d], changed.
          epoch: s.
          lr: eta.
          inner_steps: m.
          overlap: whether a worker gets its next x before its v has landed.
          max_delay: Delta; None for no limit.
          delay_adaptive: whether late updates are scaled.
          clock: seconds of the server by what it does, added to.
          before: of the updates that have landed where the epoch paused, with as many workers.
          pause: whether to end when all that is granted has landed; None for never.
        """
        self._server = server
        self._x = x
        self._epoch = epoch
        self._lr = x.dtype.type(lr)
        self._depth = 2 if overlap else 1
        self._max_delay = max_delay
        self._clock = clock
        self._step = np.empty_like(x)
        self._landed = Landed(inner_steps, scaled=delay_adaptive, before=before)
        self._begun = self._landed.number
        self._pause = pause
        self._pool = inner_steps - self._begun
        self._held_back = 0  # iterations that are left for after the pause
        self._not_finite: int | None = None  # the first such update
        self._granted = dict.fromkeys(server.books, 0)
        self._stream = dict.fromkeys(server.books, 0)  # of the newest grant
        self._out = {k: collections.deque[Work]() for k in server.books}
        self._num_out = 0
        # With first in, first out, delays never exceed the number that is out, less one.
        self._most_out = inner_steps if max_delay is None else max_delay + 1
        self._idle = collections.deque(server.books)  # who may be given another WORK
        self._arrived: list[Arrival] = []  # results that wait for older ones
        self._concurrency = self._depth * len(server.books) if delay_adaptive else None
        self._shards: dict[int, Shard] = {}
        # How many of a stream's draws are granted; those of the dead were, but did not all land.
        self._drawn = collections.Counter[int]()
        if before is not None:
            self._drawn.update(before.worker.tolist())
            known = enumerate(before.shards or ())
            self._shards = {stream: shard for stream, shard in known if len(shard.samples)}
            self._begin_streams_anew_if_shards_differ()

    def run(self) -> Trace:
        """Applies all updates to x, in place, or those up to a pause.

        Raises:
          DivergedError: an update was not finite.
          RankError: a worker raised, or none is left.
        """
        clock, now = self._clock, time.perf_counter
        server = self._server
        self._serve()
        while not self._is_done():
            begin = now()
            answer = server.receive()
            received = now()
            clock["receive"] += received - begin
            if answer is None:
                self._make_up()
            elif answer[0].tag is Tag.RESULT:
                self._arrived.append(Arrival(answer[0], self._landed.now()))
                self._land()
            if self._not_finite is not None:
                raise diverged("v", self._epoch + 1, self._lr, self._not_finite)
            updated = now()
            self._serve()
            clock["update"] += updated - received
            clock["send"] += now() - updated
        server.settle()
        return self._landed.trace(sees_own=False, shards=self._all_shards())

    def _begin_streams_anew_if_shards_differ(self) -> None:
        """Workers that came or went since the pause have other shards, and so other streams."""
        server = self._server
        for k in server.books:
            before, now = self._shards.get(server.stream(k)), server.shard(k)
            if before is not None and not (
                before.weight == now.weight and np.array_equal(before.samples, now.samples)
            ):
                server.generation = 1 + max(self._shards) // server.plan.num_workers
                return

    def _is_done(self) -> bool:
        """Whether all has landed, or, once it shall pause, all that was granted."""
        if self._pool and self._landed.number > self._begun and self._pause and self._pause():
            self._held_back += self._pool
            self._pool = 0
        return self._landed.number == self._landed.num_updates - self._held_back

    def abandon(self, failed: set[int], until: float) -> None:
        """Gives workers what they were promised, so that they hear what comes next.

        Args:
          failed: workers that raised, and hear it anyhow.
          until: when the clock shows this, the rest is left undone.
        """
        star = self._server.star
        left = {k: len(out) + self._granted.get(k, 0) for k, out in self._out.items()}
        for arrival in self._arrived:
            left[arrival.message.worker] -= 1
        while time.monotonic() < until:
            for k in star.alive:
                if k not in failed and self._granted.get(k, 0) and left[k] - self._granted[k] < 2:
                    self._granted[k] -= 1
                    star.send_vector(k, self._x)
            if not any(left.get(k, 0) for k in star.alive if k not in failed):
                return
            answer = star.receive(until)
            if answer is not None and answer.tag is Tag.RESULT:
                left[answer.worker] -= 1
                star.give_back(answer)
            elif answer is not None and answer.tag is Tag.ERROR:
                failed.add(answer.worker)

    def _serve(self) -> None:
        """Sends x to who has nothing to do, as far as `max_delay` allows."""
        while self._idle and self._num_out < self._most_out:
            k = self._idle.popleft()
            if k in self._server.books and self._give(k) and len(self._out[k]) < self._depth:
                self._idle.append(k)

    def _give(self, k: int) -> bool:
        """Sends x to worker k; False if there is no iteration left for it."""
        server = self._server
        if self._granted[k] == 0:
            # Smaller grants towards the end, so that no worker is left with many.
            count = min(GRANT, -(-self._pool // (2 * len(server.books))))
            if count == 0:
                return False
            self._pool -= count
            self._granted[k] = count
            self._stream[k] = stream = server.stream(k)
            if stream not in self._shards:
                self._shards[stream] = server.shard(k)
            server.star.send(k, Tag.GRANT, (self._epoch, count, stream, self._drawn[stream]))
            self._drawn[stream] += count
        # Written down first: what an interrupt cuts off is then waited for, and not forgotten.
        self._out[k].append(Work(self._landed.number, self._stream[k], self._landed.now()))
        self._num_out += 1
        self._granted[k] -= 1
        server.star.send_vector(k, self._x)
        return True

    def _land(self) -> None:
        """Applies the results that may land now, in the order of their arrival."""
        i = 0
        while i < len(self._arrived):
            if not self._may_land(self._arrived[i].message.worker):
                i += 1
                continue
            message, arrived = self._arrived.pop(i)
            work = self._out[message.worker].popleft()
            if self._not_finite is None and not np.isfinite(message.content).all():
                self._not_finite = self._landed.number
            np.multiply(message.content, self._lr, out=self._step)
            scale = None
            if self._concurrency is not None:
                delay = self._landed.number - work.version
                scale = adaptive_scale(delay, self._concurrency)
                # Not the rate: the other drivers scale eta v, and round as often as that.
                np.multiply(self._step, self._x.dtype.type(scale), out=self._step)
            np.subtract(self._x, self._step, out=self._x)
            self._server.star.give_back(message)
            self._landed.add(
                work.stream, work.version, number=1, read=work.sent, computed=arrived, scale=scale
            )
            self._num_out -= 1
            if message.worker not in self._idle:
                self._idle.append(message.worker)
            i = 0

    def _may_land(self, k: int) -> bool:
        """Whether all others that are out can land within `max_delay` after worker k's next one."""
        if self._max_delay is None:
            return True
        others = [work.version for out in self._out.values() for work in out]
        others.remove(self._out[k][0].version)
        slack = np.sort(others) + self._max_delay - np.arange(len(others))
        return bool(np.all(slack > self._landed.number))

    def _make_up(self) -> None:
        """Takes the iterations of dead workers back; those whose v has arrived still count."""
        server = self._server
        for k in [k for k in self._granted if k not in server.books]:
            here = sum(arrival.message.worker == k for arrival in self._arrived)
            lost = len(self._out[k]) - here
            self._pool += self._granted.pop(k) + lost
            self._num_out -= lost
            for _ in range(lost):
                self._out[k].pop()
        server.deal()
        self._land()  # what waited for an x_hat of the dead
        self._idle = collections.deque(k for k in server.books if len(self._out[k]) < self._depth)

    def _all_shards(self) -> tuple[Shard, ...]:
        nobody = Shard(np.zeros(0, np.int32), 0.0)
        return tuple(self._shards.get(i, nobody) for i in range(1 + max(self._shards)))
