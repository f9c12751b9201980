"""Workers that are played in this process, for tests of the server: no MPI, any order of events."""

from __future__ import annotations

import collections
import random
from collections.abc import Sequence

import numpy as np

from asvrg.drivers.mpi.protocol import Message, Packet, Plan, Tag, packet
from asvrg.types import Shard


def gradient(units: Sequence[int]) -> np.ndarray:
    """A sum that tells which units it was made of, without rounding."""
    return sum((np.array([2.0**unit, unit + 1, 1.0]) for unit in units), np.zeros(3))


class Worker:
    """What a worker does between two messages; its v tell the stream and the version of x_hat."""

    def __init__(self, rank: int, plan: Plan, *, sums: bool) -> None:
        self.rank, self.plan, self.sums = rank, plan, sums
        self.units = list(plan.shards[rank - 1])
        self.num_alive = plan.num_workers
        self.packets: collections.deque[tuple[Tag, Packet]] = collections.deque()
        self.vectors: collections.deque[np.ndarray] = collections.deque()
        # To the server, by communicator: only messages on the same one keep their order.
        self.sent: tuple[collections.deque[Message], ...] = collections.deque(), collections.deque()
        self.left = 0  # WORKs that it was promised and has not received
        self.stream = -1
        self.shards: dict[tuple[int, int], Shard] = {}  # by epoch and stream
        self.full_grad: np.ndarray | None = None
        self.dead = self.raised = self.stopped = False
        self.say(Tag.READY, np.frombuffer(plan.digest, np.uint8), 1)

    def say(self, tag: Tag, payload: np.ndarray | None = None, *header: int) -> None:
        raw = np.zeros(0, np.uint8) if payload is None else payload.view(np.uint8)
        message = packet(self.plan.room)
        message.header[: len(header)] = header
        message.payload[: len(raw)] = raw
        self.sent[0].append(Message(self.rank, tag, message))

    def fail(self) -> None:
        text = f"ValueError: broken at rank {self.rank}".encode()
        self.say(Tag.ERROR, np.frombuffer(text, np.uint8), len(text))
        self.raised = True

    def can_move(self) -> bool:
        if self.dead or self.stopped:
            return False
        return bool(self.vectors if self.left and not self.raised else self.packets)

    def move(self) -> None:
        if self.left and not self.raised:
            x_hat = self.vectors.popleft()
            self.left -= 1
            v = np.array([1.0, self.stream, -x_hat[0]])  # with a step of 1, -x[0] counts updates
            self.sent[1].append(Message(self.rank, Tag.RESULT, v))
            return
        tag, message = self.packets.popleft()
        self.stopped = tag is Tag.STOP
        if not self.raised:
            self.answer(tag, *(int(entry) for entry in message.header[:3]), message.payload)

    def answer(self, tag: Tag, number: int, second: int, third: int, payload: np.ndarray) -> None:
        if tag is Tag.WARM:
            self.say(Tag.READY)
        elif tag in (Tag.PREPARE, Tag.SHARD):
            self.num_alive = second
            units = self.units
            if tag is Tag.SHARD:
                units = payload[: 4 * number].view(np.int32).tolist()
                self.units = self.units + units
            self.say(Tag.GRAD, gradient(units) if self.sums else None)
        elif tag is Tag.FULL:
            self.full_grad = payload.view(np.float64)[:3].copy()
        elif tag is Tag.GRANT:
            self.left, self.stream = second, third
            shard = self.plan.shard(self.units, self.num_alive)
            self.shards.setdefault((number, third), shard)


class Star:
    """Plays the workers, in an order that the seed decides; `deaths` are ranks by moment."""

    def __init__(
        self,
        plan: Plan,
        seed: int,
        *,
        sums: bool = True,
        deaths: dict[int, int] | None = None,
        failures: dict[int, int] | None = None,
        interrupt: int | None = None,
    ) -> None:
        self.workers = {k: Worker(k, plan, sums=sums) for k in range(1, 1 + plan.num_workers)}
        self.alive = sorted(self.workers)
        self.landed: list[tuple[int, int]] = []
        self.moment = 0
        self.most_out = 0  # WORKs without a RESULT, of one worker
        self._rng = random.Random(seed)
        self._deaths, self._failures = deaths or {}, failures or {}
        self._interrupt = interrupt
        self._inbox: collections.deque[Message] = collections.deque()
        self._untold = 0
        self._owed = dict.fromkeys(self.workers, 0)  # WORKs that were promised and not sent
        self._out = dict.fromkeys(self.workers, 0)

    def send(
        self, k: int, tag: Tag, header: Sequence[int] = (), payload: np.ndarray | None = None
    ) -> None:
        self._pass_time()
        raw = np.zeros(0, np.uint8) if payload is None else payload.view(np.uint8)
        message = packet(len(raw))
        message.header[: len(header)] = header
        message.payload[:] = raw
        if tag is Tag.GRANT:
            assert self._owed[k] == 0, "a grant came before the last one was used up"
            self._owed[k] = header[1]
        if k in self.alive:
            self.workers[k].packets.append((tag, message))

    def send_vector(self, k: int, x: np.ndarray) -> None:
        self._pass_time()
        self._owed[k] -= 1
        assert self._owed[k] >= 0, "a WORK that was not promised"
        vectors = self.workers[k].vectors
        while k in self.alive and len(vectors) == 2:  # long ones leave when they are received
            assert self._move(), f"rank {k} takes no WORK any more"
        if k in self.alive:
            self._out[k] += 1
            self.most_out = max(self.most_out, self._out[k])
            vectors.append(x.copy())

    def receive(self, until: float = float("inf")) -> Message | None:
        del until
        while not self._inbox:
            if self._untold:
                self._untold = 0
                return None
            self._pass_time()
            if self._interrupt and self.moment >= self._interrupt:
                self._interrupt = None
                raise KeyboardInterrupt
            assert self._move() or self._untold, (
                "the server waits for a message that nobody will send"
            )
        message = self._inbox.popleft()
        self._out[message.worker] -= message.tag is Tag.RESULT
        return message

    def give_back(self, message: Message) -> None:
        """The server has taken v, in the order in which updates land."""
        _, stream, version = message.content
        self.landed.append((int(stream), int(version)))

    def flush(self, until: float) -> bool:
        del until
        while self._move():
            pass
        return all(w.stopped or w.dead for w in map(self.workers.__getitem__, self.alive))

    def _pass_time(self) -> None:
        """Somebody may die, or raise; a send may be what shows a death."""
        self.moment += 1
        if dying := self._deaths.get(self.moment):
            self.workers[dying].dead = True
        if failing := self._failures.get(self.moment):
            self.workers[failing].fail()
        dead = [k for k in self.alive if self.workers[k].dead]
        if dead and self._rng.random() < 0.1:
            self._notice(self._rng.choice(dead))

    def _notice(self, k: int) -> None:
        """What has not been received from k by now is lost."""
        self.alive.remove(k)
        self._untold += 1

    def _move(self) -> bool:
        """One thing happens, somewhere; False if nothing can."""
        moves = [worker.move for worker in self.workers.values() if worker.can_move()]
        for k in self.alive:
            boxes = [box for box in self.workers[k].sent if box]
            moves += [lambda box=box: self._inbox.append(box.popleft()) for box in boxes]
            if self.workers[k].dead:
                moves.append(lambda k=k: self._notice(k))
        if moves:
            self._rng.choice(moves)()
        return bool(moves)
