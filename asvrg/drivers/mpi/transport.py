"""Messages by mpi4py: the server's star of workers, and a worker's line to the server.

A worker exchanges messages with the server alone, so that a worker's death is seen by the server
and by nobody else, and no communicator has to be revoked or shrunk.

Importing this module starts MPI.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from asvrg.drivers.mpi.protocol import (
    SERVER,
    TEXT,
    Message,
    Packet,
    Plan,
    RankError,
    Tag,
    pack,
    packet,
    vector,
)

# Polls without a message before a waiting process begins to sleep, and for how long. Until then it
# only yields the core to who can use it.
SPINS = 2_000
NAP = 5e-5  # seconds
LOOK = 256  # polls without a message between two questions whether a worker died
_WITH_FT = "OMPI_MCA_mpi_ft_enable"
GRACE = 10.0  # seconds from an MPI error to the name of the rank that it was about


class World(NamedTuple):
    """The processes of the job, and a communicator for each kind of traffic.

    Attributes:
      rank: of this process.
      size: K + 1.
      fault_tolerant: whether the job goes on when a worker dies.
      packets: for messages with a header, by mpi4py.
      vectors: for x_hat and v, by mpi4py at the server, by mpi4jax at workers that have it.
      collectives: for the snapshot, by mpi4jax.
    """

    rank: int
    size: int
    fault_tolerant: bool
    packets: MPI.Intracomm
    vectors: MPI.Intracomm
    collectives: MPI.Intracomm


@functools.cache
def world() -> World:
    """The World of all ranks that were started together, the same at every call."""
    everyone = MPI.COMM_WORLD
    packets, vectors, collectives = (everyone.Dup() for _ in range(3))
    for comm in (packets, vectors):
        comm.Set_errhandler(MPI.ERRORS_RETURN)
    # Set by `mpiexec --with-ft ulfm` of Open MPI. With other launchers a death ends the whole job.
    tolerant = os.environ.get(_WITH_FT, "0") in ("1", "true")
    return World(everyone.rank, everyone.size, tolerant, packets, vectors, collectives)


def dismiss(world: World) -> None:
    """Sends STOP to workers that may not have heard it; a second one does no harm."""
    stop = packet(0)
    for k in range(1, world.size):
        with contextlib.suppress(MPI.Exception):  # who is dead has no need of it
            world.packets.Isend([stop.raw, MPI.BYTE], k, Tag.STOP).Free()


class Star:
    """The server's messages: no call waits inside of MPI, and every request names its worker.

    - Measured with Open MPI 5.0.11: a blocking Recv(ANY_SOURCE) or Send hangs in some per cent of
      the deaths, when a dead rank's message was matched but not yet copied. Here such a request is
      left alone once `Get_failed` names its rank.
    - A receive is posted for every worker at all times, also while a send is under way: a worker
      may stand in a send, and would not come to take what is sent to it.
    """

    def __init__(self, world: World, plan: Plan) -> None:
        """Posts a receive for every worker."""
        self._world = world
        self._plan = plan
        self._alive = collections.deque(range(1, world.size))  # rotates: all get their turn
        self._deaths: list[int] = []
        self._reported = 0
        self._inbox: collections.deque[Message] = collections.deque()
        self._spare: list[np.ndarray] = []
        self._idle = 0
        # By worker: the receives that are posted, the sends under way, and two vectors for WORK.
        self._vector_in: dict[int, tuple[MPI.Request, np.ndarray]] = {}
        self._packet_in: dict[int, tuple[MPI.Request, Packet]] = {}
        self._packets_out: dict[int, list[tuple[MPI.Request, Packet]]] = {}
        self._vectors_out: dict[int, collections.deque[tuple[MPI.Request, np.ndarray]]] = {}
        self._abandoned: list[object] = []  # what a dead worker's requests still point to
        for k in self._alive:
            self._packets_out[k] = []
            slots = [(MPI.REQUEST_NULL, vector(plan)) for _ in range(2)]
            self._vectors_out[k] = collections.deque(slots)
            self._post_vector(k)
            self._post_packet(k)

    @property
    def alive(self) -> list[int]:
        """The ranks of the workers that have not died."""
        return sorted(self._alive)

    def send(
        self, k: int, tag: Tag, header: Sequence[int] = (), payload: np.ndarray | None = None
    ) -> None:
        """Begins to send a packet; nothing happens for a dead worker."""
        message = pack(header, payload)
        try:
            if k in self._alive:
                request = self._world.packets.Isend([message.raw, MPI.BYTE], k, tag)
                under_way = [each for each in self._packets_out[k] if not each[0].Test()]
                self._packets_out[k] = [*under_way, (request, message)]
        except MPI.Exception as error:
            self._look_until_dead(k, error)

    def send_vector(self, k: int, x: np.ndarray) -> None:
        """Begins to send x as WORK; x may be changed afterwards. Nothing for a dead worker."""
        try:
            while k in self._alive:
                slots = self._vectors_out[k]
                request, buffer = slots[0]
                if request.Test():
                    np.copyto(buffer, x)
                    request = self._world.vectors.Isend([buffer, MPI.BYTE], k, Tag.WORK)
                    slots[0] = (request, buffer)
                    slots.rotate(-1)
                    return
                self._poll()
        except MPI.Exception as error:
            self._look_until_dead(k, error)

    def receive(self, until: float = float("inf")) -> Message | None:
        """The next message, from whichever worker; give its vector back.

        None after a death that was not told yet, or when the clock shows `until`.
        """
        while not self._inbox:
            if self._reported < len(self._deaths):
                self._reported = len(self._deaths)
                return None
            if time.monotonic() > until:
                return None
            self._poll()
        return self._inbox.popleft()

    def give_back(self, message: Message) -> None:
        """Takes the vector of a RESULT for a later one."""
        if isinstance(message.content, np.ndarray):
            self._spare.append(message.content)

    def flush(self, until: float) -> bool:
        """Waits for the packets under way; whether all arrived before the clock shows `until`."""
        while time.monotonic() < until:
            try:
                if all(request.Test() for k in self._alive for request, _ in self._packets_out[k]):
                    return True
            except MPI.Exception:
                self._look()
            self._poll()
        return False

    def close(self) -> None:
        """Takes back the receives that are posted."""
        for posted in (self._vector_in, self._packet_in):
            for request, _ in posted.values():
                with contextlib.suppress(MPI.Exception):  # a worker that ended counts as dead
                    request.Cancel()
                    request.Wait()
            posted.clear()

    def _post_vector(self, k: int) -> None:
        buffer = self._spare.pop() if self._spare else vector(self._plan)
        request = self._world.vectors.Irecv([buffer, MPI.BYTE], k, Tag.RESULT)
        self._vector_in[k] = (request, buffer)

    def _post_packet(self, k: int) -> None:
        content = packet(self._plan.room)
        self._packet_in[k] = (self._world.packets.Irecv([content.raw, MPI.BYTE], k), content)

    def _poll(self) -> None:
        """Puts what has arrived into the inbox; lets others have the core if that is nothing."""
        arrived = self._poll_vectors()
        if self._idle % 16 == 0 or self._idle > SPINS:
            arrived |= self._poll_packets()
        if arrived:
            self._idle = 0
            return
        self._idle += 1
        if self._idle % LOOK == 0:
            self._look()
        _pause(self._idle)

    def _poll_vectors(self) -> bool:
        arrived = False
        for _ in range(len(self._alive)):
            k = self._alive[0]
            self._alive.rotate(-1)
            request, buffer = self._vector_in[k]
            try:
                if request.Test():
                    self._inbox.append(Message(k, Tag.RESULT, buffer))
                    self._post_vector(k)
                    arrived = True
            except MPI.Exception as error:
                self._look_until_dead(k, error)
                break
        return arrived

    def _poll_packets(self) -> bool:
        arrived, status = False, MPI.Status()
        for k in self.alive:
            if k not in self._packet_in:  # it died with another one, just now
                continue
            request, content = self._packet_in[k]
            try:
                if request.Test(status):
                    self._inbox.append(Message(k, Tag(status.tag), content))
                    self._post_packet(k)
                    arrived = True
            except MPI.Exception as error:
                self._look_until_dead(k, error)
        return arrived

    def _look(self) -> None:
        """Asks MPI who died."""
        if not self._world.fault_tolerant:
            return
        comm = self._world.packets
        failed, everyone = comm.Get_failed(), comm.Get_group()
        dead = MPI.Group.Translate_ranks(failed, None, everyone)
        everyone.Free()
        if failed != MPI.GROUP_EMPTY:
            failed.Free()
        for k in dead:
            if k in self._alive:
                self._alive.remove(k)
                self._deaths.append(k)
                for of_worker in (
                    self._vector_in,
                    self._packet_in,
                    self._packets_out,
                    self._vectors_out,
                ):
                    self._abandoned.append(of_worker.pop(k))

    def _look_until_dead(self, k: int, error: MPI.Exception) -> None:
        deadline = time.monotonic() + GRACE
        while k in self._alive:
            self._look()
            if not self._world.fault_tolerant or time.monotonic() > deadline:
                raise RankError(k, f"an error of MPI: {error}.") from error
            os.sched_yield()


class Line:
    """A worker's messages: it answers the server, and talks to nobody else."""

    def __init__(self, world: World, room: int) -> None:
        """Makes room for one packet with a payload of `room` bytes."""
        self._world = world
        self._in = packet(room)

    def receive(self) -> tuple[Tag, Packet]:
        """Waits for the server's next packet; it is valid until the next call.

        Raises:
          RankError: the server is gone.
        """
        status = MPI.Status()
        try:
            self._wait(self._world.packets.Irecv([self._in.raw, MPI.BYTE], SERVER), status)
        except MPI.Exception as error:
            raise _server_is_gone() from error
        return Tag(status.tag), self._in

    def send(self, tag: Tag, header: Sequence[int] = (), payload: np.ndarray | None = None) -> None:
        """Sends a packet to the server.

        Raises:
          RankError: the server is gone.
        """
        message = pack(header, payload)
        try:
            self._wait(self._world.packets.Isend([message.raw, MPI.BYTE], SERVER, tag))
        except MPI.Exception as error:
            raise _server_is_gone() from error

    def report(self, text: str) -> None:
        """Sends the text of an error, and waits until the server ends the job."""
        raw = text.encode()
        raw = raw if len(raw) <= TEXT else b"... " + raw[4 - TEXT :]
        shown = raw.decode(errors="ignore").encode()
        self.send(Tag.ERROR, (len(shown),), np.frombuffer(shown, np.uint8))
        while self.receive()[0] is not Tag.STOP:
            pass

    def receive_vector(self, x: np.ndarray) -> None:
        """Waits for a WORK, and writes it to x."""
        try:
            self._world.vectors.Recv([x, MPI.BYTE], SERVER, Tag.WORK)
        except MPI.Exception as error:
            raise _server_is_gone() from error

    def send_vector(self, v: np.ndarray) -> None:
        """Sends v as a RESULT."""
        try:
            self._world.vectors.Send([v, MPI.BYTE], SERVER, Tag.RESULT)
        except MPI.Exception as error:
            raise _server_is_gone() from error

    def _wait(self, request: MPI.Request, status: MPI.Status | None = None) -> None:
        idle = 0
        while not request.Test(status):
            idle += 1
            _pause(idle)


def _pause(idle: int) -> None:
    """Lets others have the core, after so many polls without a message."""
    if idle > SPINS:
        time.sleep(NAP)
    else:
        os.sched_yield()


def _server_is_gone() -> RankError:
    return RankError(SERVER, "no answer: the server is gone.")
