"""Algorithm 2: the server, which owns x and keeps all books. No MPI in here: see `transport`."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from absl import logging

from asvrg.drivers.mpi.protocol import GRANT, Message, Packet, Plan, RankError, Tag
from asvrg.types import Shard, Trace

PATIENCE = 10.0  # seconds in which a job that failed is wound up


class Star(Protocol):
    """The server's messages, as `transport.Star` documents them."""

    @property
    def alive(self) -> list[int]: ...  # noqa: D102

    def send(  # noqa: D102
        self, k: int, tag: Tag, header: Sequence[int] = (), payload: np.ndarray | None = None
    ) -> None: ...

    def send_vector(self, k: int, x: np.ndarray) -> None: ...  # noqa: D102

    def receive(self, until: float = ...) -> Message | None: ...  # noqa: D102

    def give_back(self, message: Message) -> None: ...  # noqa: D102

    def flush(self, until: float) -> bool: ...  # noqa: D102


class Work(NamedTuple):
    """An x_hat that was sent: how many updates had landed, and whose draws it is for."""

    version: int
    stream: int


class Books:
    """What the server knows of one live worker."""

    def __init__(self, units: list[int]) -> None:
        """A worker that has these units and was asked for nothing but its first READY."""
        self.units = units
        self.asked: collections.deque[list[int]] = collections.deque([[]])


class Server:
    """Who has which samples, and who was asked for what; deaths are noticed and made up for."""

    def __init__(self, star: Star, plan: Plan) -> None:
        """Begins the books; sends nothing yet."""
        self.star = star
        self.plan = plan
        self.books = {k: Books(list(units)) for k, units in enumerate(plan.shards, 1)}
        self.generation = 0  # of the shards, within an epoch
        self.loop: InnerLoop | None = None
        self._orphans: list[int] = []  # units of dead workers
        self._uncounted: set[int] = set()  # units whose gradient is still to come
        self._failed: set[int] = set()  # workers that raised

    def greet(self) -> bool:
        """Waits until all workers are there.

        Returns:
          Whether all of them have mpi4jax.

        Raises:
          RankError: a worker failed, or was started with other settings.
        """
        all_have = True
        while self._is_asking():
            if answer := self.receive():
                content = answer[0].content
                assert isinstance(content, Packet)
                all_have &= bool(content.header[0])
                if content.payload[:32].tobytes() != self.plan.digest:
                    raise RankError(
                        answer[0].worker,
                        "settings other than the server's: start all ranks with the same flags.",
                    )
        return all_have

    def warm_up(self, estimator: int, *, collective: bool) -> None:
        """Has every worker compile what an estimator takes.

        Args:
          estimator: its index.
          collective: whether `collect` will be called, rather than `prepare`.
        """
        for k, books in self.books.items():
            books.asked.append([])
            self.star.send(k, Tag.WARM, (estimator, collective))
        self.settle()

    def begin_epoch(self) -> int:
        """Numbers the shards anew; returns K."""
        self.generation = 0
        return len(self.books)

    def prepare(self, estimator: int, x: np.ndarray, *, sums: bool) -> np.ndarray:
        """Has the workers sum their gradients at x, and makes grad f(x) of the sums.

        Args:
          estimator: its index.
          x: x_tilde, [d].
          sums: whether the estimator has a full gradient.

        Returns:
          grad f(x), [d]; zeros if there is none.
        """
        num_alive = self.begin_epoch()
        self._uncounted = set(range(len(self.plan.units))) if sums else set()
        for k, books in self.books.items():
            books.asked.append(list(books.units))
            self.star.send(k, Tag.PREPARE, (estimator, num_alive), x)
        gradients: dict[int, np.ndarray] = {}
        for message, units in self._answers():
            if self._uncounted.intersection(units):
                assert isinstance(message.content, Packet)
                self._uncounted.difference_update(units)
                gradients[units[0]] = message.content.payload[: x.nbytes].view(x.dtype).copy()
        full_grad = np.zeros_like(x)
        for first in sorted(gradients):  # not in the order of arrival, which rounds differently
            full_grad += gradients[first]
        full_grad /= x.dtype.type(self.plan.sampler.num_samples)
        if sums:
            for k in self.books:
                self.star.send(k, Tag.FULL, payload=full_grad)
        return full_grad

    def collect(self, estimator: int) -> None:
        """Has every worker enter the collectives that prepare an epoch.

        Args:
          estimator: its index.
        """
        num_alive = self.begin_epoch()
        for k in self.books:
            self.star.send(k, Tag.COLLECT, (estimator, num_alive))

    def deal(self) -> None:
        """Hands the units of dead workers to the live ones, and tells all of them the new K.

        A worker answers with one sum, so that units whose gradient is known already go apart.
        """
        orphans, self._orphans = self._orphans, []
        self.generation += 1
        by_size = sorted(self.books, key=lambda k: len(self.books[k].units))
        for i, k in enumerate(by_size):
            mine = orphans[i :: len(by_size)]
            for counted in (False, True):
                part = [unit for unit in mine if (unit not in self._uncounted) == counted]
                self.books[k].units += part
                self.books[k].asked.append(part)
                payload = np.array(part, np.int32)
                self.star.send(k, Tag.SHARD, (len(part), len(by_size)), payload)

    def receive(self) -> tuple[Message, list[int]] | None:
        """The next message, and the units that it is about.

        Returns:
          None after a death, when the dead worker's units wait to be dealt.

        Raises:
          RankError: a worker raised, or none is left.
        """
        message = self.star.receive()
        if message is None:
            self._bury()
            return None
        if message.tag is Tag.RESULT:
            return message, []
        if message.tag is Tag.ERROR:
            assert isinstance(message.content, Packet)
            self._failed.add(message.worker)
            text = message.content.payload[: message.content.header[0]].tobytes().decode()
            raise RankError(message.worker, text)
        return message, self.books[message.worker].asked.popleft()

    def stream(self, k: int) -> int:
        """The number of the stream that worker k draws from, as its shard is now."""
        return k - 1 + self.generation * self.plan.num_workers

    def shard(self, k: int) -> Shard:
        """The samples that worker k draws from now."""
        return self.plan.shard(self.books[k].units, len(self.books))

    def settle(self) -> None:
        """Hears all answers that are still to come."""
        for _ in self._answers():
            pass

    def stop(self) -> bool:
        """Ends the workers, in the middle of an epoch as well.

        Returns:
          Whether all that live were told in time.
        """
        until = time.monotonic() + PATIENCE
        if self.loop is not None:
            self.loop.abandon(self._failed, until)
        for k in self.books:
            self.star.send(k, Tag.STOP)
        if self.loop is None:
            self._hear_out(until)
        return self.star.flush(until)

    def _hear_out(self, until: float) -> None:
        """Takes the answers that are still to come: who stands in a send does not hear STOP."""
        while time.monotonic() < until and any(
            books.asked
            for k, books in self.books.items()
            if k in self.star.alive and k not in self._failed
        ):
            answer = self.star.receive(until)
            if answer is not None and answer.tag is Tag.ERROR:
                self._failed.add(answer.worker)
            elif answer is not None and answer.tag is not Tag.RESULT:
                self.books[answer.worker].asked.popleft()

    def _answers(self) -> Iterator[tuple[Message, list[int]]]:
        """What the workers were asked for, until nothing is to come; the dead's units are dealt."""
        while self._orphans or self._is_asking():
            if self._orphans:
                self.deal()
            if answer := self.receive():
                yield answer

    def _is_asking(self) -> bool:
        return any(books.asked for books in self.books.values())

    def _bury(self) -> None:
        for k in set(self.books) - set(self.star.alive):
            self._orphans += self.books.pop(k).units
            logging.warning("Rank %d died; %d workers go on.", k, len(self.books))
        if not self.books:
            raise RankError(None, "No worker is left.")


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
        clock: dict[str, float],
    ) -> None:
        """Nothing is sent yet; see `driver` for the arguments."""
        self._server = server
        self._x = x
        self._epoch = epoch
        self._lr = x.dtype.type(lr)
        self._depth = 2 if overlap else 1
        self._max_delay = max_delay
        self._clock = clock
        self._step = np.empty_like(x)
        self._pool = inner_steps
        self._granted = dict.fromkeys(server.books, 0)
        self._stream = dict.fromkeys(server.books, 0)  # of the newest grant
        self._out = {k: collections.deque[Work]() for k in server.books}
        self._num_out = 0
        # With first in, first out, delays never exceed the number that is out, less one.
        self._most_out = inner_steps if max_delay is None else max_delay + 1
        self._idle = collections.deque(server.books)  # who may be given another WORK
        self._arrived: list[Message] = []  # results that wait for older ones
        self._landed = 0
        self._worker = np.zeros(inner_steps, np.int32)
        self._version = np.zeros(inner_steps, np.int32)
        self._shards: dict[int, Shard] = {}

    def run(self) -> Trace:
        """Applies all updates to x, in place.

        Raises:
          RankError: a worker raised, or none is left.
        """
        clock, now = self._clock, time.perf_counter
        server = self._server
        self._serve()
        while self._landed < len(self._worker):
            begin = now()
            answer = server.receive()
            received = now()
            clock["receive"] += received - begin
            if answer is None:
                self._make_up()
            elif answer[0].tag is Tag.RESULT:
                self._arrived.append(answer[0])
                self._land()
            updated = now()
            self._serve()
            clock["update"] += updated - received
            clock["send"] += now() - updated
        server.settle()
        return Trace(self._worker, self._version, shards=self._all_shards())

    def abandon(self, failed: set[int], until: float) -> None:
        """Gives workers what they were promised, so that they hear what comes next.

        Args:
          failed: workers that raised, and hear it anyhow.
          until: when the clock shows this, the rest is left undone.
        """
        star = self._server.star
        left = {k: len(out) + self._granted.get(k, 0) for k, out in self._out.items()}
        for message in self._arrived:
            left[message.worker] -= 1
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
            server.star.send(k, Tag.GRANT, (self._epoch, count, stream))
        # Written down first: what an interrupt cuts off is then waited for, and not forgotten.
        self._out[k].append(Work(self._landed, self._stream[k]))
        self._num_out += 1
        self._granted[k] -= 1
        server.star.send_vector(k, self._x)
        return True

    def _land(self) -> None:
        """Applies the results that may land now, in the order of their arrival."""
        i = 0
        while i < len(self._arrived):
            if not self._may_land(self._arrived[i].worker):
                i += 1
                continue
            message = self._arrived.pop(i)
            work = self._out[message.worker].popleft()
            np.multiply(message.content, self._lr, out=self._step)
            np.subtract(self._x, self._step, out=self._x)
            self._server.star.give_back(message)
            self._worker[self._landed] = work.stream
            self._version[self._landed] = work.version
            self._landed += 1
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
        return bool(np.all(slack > self._landed))

    def _make_up(self) -> None:
        """Takes the iterations of dead workers back; those whose v has arrived still count."""
        server = self._server
        for k in [k for k in self._granted if k not in server.books]:
            here = sum(message.worker == k for message in self._arrived)
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
