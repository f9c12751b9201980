"""Algorithm 2: the server, which owns x and keeps all books. No MPI in here: see `transport`."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from absl import logging

from asvrg.drivers.mpi.protocol import Message, Packet, Plan, RankError, Tag
from asvrg.types import Shard

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
        self.abandon: Callable[[set[int], float], None] | None = None  # of an epoch under way
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
        if self.abandon is not None:
            self.abandon(self._failed, until)
        for k in self.books:
            self.star.send(k, Tag.STOP)
        if self.abandon is None:
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
