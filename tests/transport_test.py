"""Messages between real ranks: they arrive as they were sent, and deaths are told, not suffered."""

from __future__ import annotations

import pytest

from tests import mpi_jobs
from tests.mpi_jobs import right

pytestmark = pytest.mark.timeout(100)

# d: vectors of 320 KB, which wait for their receiver; messages below some KB do not.
COMMON = """
import os, pathlib, signal, time
import numpy as np
from asvrg import sampling
from asvrg.drivers.mpi import transport
from asvrg.drivers.mpi.protocol import TEXT, RankError, Tag, make_plan, vector

world = transport.world()
rank, num_workers = world.rank, world.size - 1
spec = sampling.sampler(24, 40_000, batch_size=2)
plan = make_plan(spec, np.dtype("float64"), num_workers, shard_sizes=None, chunk_size=5)
ramp = np.arange(spec.dim) * 0.5
if rank == 0:
    star = transport.Star(world, plan)
else:
    line = transport.Line(world, plan.room)
"""

AS_SENT = """
HEADER = (5, -7, 2**31 - 1)
SHORT = np.arange(9, dtype=np.int32)
if rank == 0:
    # Packets, to both and back: with a long payload, a short one, and none.
    for k in star.alive:
        star.send(k, Tag.PREPARE, HEADER, k * ramp)
        star.send(k, Tag.SHARD, (9, k), SHORT)
        star.send(k, Tag.WARM)
    heard = {1: [], 2: []}
    while len(heard[1]) + len(heard[2]) < 6:
        message = star.receive()
        heard[message.worker].append((message.tag, message.content))
    for k, answers in heard.items():
        assert [tag for tag, _ in answers] == [Tag.GRAD, Tag.READY, Tag.GRAD], answers
        packets = [content for _, content in answers]
        assert [tuple(p.header[:3]) for p in packets] == [HEADER, (9, k, 0), (0, 0, 0)]
        np.testing.assert_array_equal(packets[0].payload[: ramp.nbytes].view(float), 2 * k * ramp)
        np.testing.assert_array_equal(packets[1].payload[:36].view(np.int32), SHORT + k)

    # Vectors: x changes while the first ones wait for their receiver.
    x = ramp.copy()
    kept = []
    for i in range(4):
        for k in star.alive:
            star.send_vector(k, x)
        x += 1
    for _ in range(8):
        message = star.receive()
        assert message.tag is Tag.RESULT
        kept.append(message)
    for k in (1, 2):
        for i, v in enumerate(message.content for message in kept if message.worker == k):
            np.testing.assert_array_equal(v, k * (ramp + i))  # none was written over
    for message in kept:
        star.give_back(message)

    # A packet that nobody takes is not there in time.
    assert star.receive(time.monotonic() + 0.02) is None
    star.send(1, Tag.FULL, payload=ramp)
    assert not star.flush(time.monotonic() + 0.1)
    pathlib.Path(os.environ["FLAG"]).touch()
    message = star.receive()
    assert (message.worker, message.tag) == (2, Tag.ERROR)
    text = message.content.payload[: message.content.header[0]].tobytes()
    assert len(text) <= TEXT and text.decode().startswith("... \u00e9"), text[:9]
    assert text.decode().endswith("\u00e9 the end")
    for k in star.alive:
        star.send(k, Tag.STOP)
    assert star.flush(time.monotonic() + 20)
    star.close()
else:
    tag, packet = line.receive()
    assert tag is Tag.PREPARE
    line.send(Tag.GRAD, packet.header[:3].copy(), 2 * packet.payload[: ramp.nbytes].view(float))
    tag, packet = line.receive()
    assert tag is Tag.SHARD
    line.send(Tag.READY, (9, rank), packet.payload[:36].view(np.int32) + np.int32(rank))
    assert line.receive()[0] is Tag.WARM
    line.send(Tag.GRAD)
    time.sleep(0.2)
    x_hat = vector(plan)
    for _ in range(4):
        line.receive_vector(x_hat)
        line.send_vector(rank * x_hat)
    while not pathlib.Path(os.environ["FLAG"]).exists():
        time.sleep(0.01)
    if rank == 2:
        line.report("\u00e9" * TEXT + " the end")  # waits for STOP
    else:
        tag, packet = line.receive()
        assert tag is Tag.FULL
        np.testing.assert_array_equal(packet.payload[: ramp.nbytes].view(float), ramp)
        assert line.receive()[0] is Tag.STOP
print(f"rank {rank} is right")
"""

DEATHS = """
def die():
    os.kill(os.getpid(), signal.SIGKILL)

if rank == 0:
    # Rank 2 says five things and dies, rank 3 dies under a vector and a packet that it never takes.
    star.send_vector(3, ramp)
    star.send(3, Tag.FULL, payload=ramp)
    pathlib.Path(os.environ["FLAG"]).touch()
    heard, told = [], 0
    while star.alive != [1, 4]:
        message = star.receive()
        told += message is None
        if message:
            heard.append((message.worker, message.tag, int(message.content.header[0])))
    while told < 1:
        assert star.receive() is None
        told += 1
    assert heard == [(2, Tag.GRAD, i) for i in range(len(heard))], heard
    assert 1 <= told <= 2, told  # two deaths at once may be told at once
    for k in (2, 3):
        star.send(k, Tag.FULL, payload=ramp)
        for _ in range(3):
            star.send_vector(k, ramp)
    assert star.receive(time.monotonic() + 0.1) is None
    for k in star.alive:
        star.send_vector(k, ramp)
    answers = [star.receive() for _ in range(2)]
    assert sorted(message.worker for message in answers) == [1, 4]
    for message in answers:
        np.testing.assert_array_equal(message.content, message.worker * ramp)
    for k in star.alive:
        star.send(k, Tag.STOP)
    assert star.flush(time.monotonic() + 20)
elif rank == 2:
    for i in range(5):
        line.send(Tag.GRAD, (i,))
    die()
elif rank == 3:
    while not pathlib.Path(os.environ["FLAG"]).exists():
        time.sleep(0.01)
    die()
else:
    x_hat = vector(plan)
    line.receive_vector(x_hat)
    line.send_vector(rank * x_hat)
    assert line.receive()[0] is Tag.STOP
print(f"rank {rank} is right", flush=True)
os._exit(0)
"""

NO_SERVER = """
if rank == 0:
    ready = set()
    while ready != {1, 2, 3}:
        ready.add(star.receive().worker)
    os.kill(os.getpid(), signal.SIGKILL)
line.send(Tag.READY)
try:
    if rank == 1:
        line.receive()
    elif rank == 2:
        line.receive_vector(vector(plan))
    else:
        while True:  # the first ones may still go out
            line.send_vector(vector(plan))
except RankError as error:
    assert error.rank == 0, error
    assert str(error) == "Rank 0 failed with no answer: the server is gone."
    print(f"rank {rank} is right", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("mpi", ["openmpi", "mpich"])
def test_messages_arrive_as_they_were_sent(mpi, tmp_path) -> None:
    env = {"FLAG": str(tmp_path / "flag")}
    done = mpi_jobs.mpiexec(COMMON + AS_SENT, 3, mpi=mpi, env=env)
    assert done.returncode == 0, done.stderr
    assert right(done) == [0, 1, 2]


def test_deaths_are_told_after_the_last_words_that_arrived(tmp_path) -> None:
    """Of ranks that say something or nothing, under messages that are on their way to them.

    What a rank said last may be lost with it: the server asks somebody else.
    """
    env = {"FLAG": str(tmp_path / "flag")}
    done = mpi_jobs.mpiexec(COMMON + DEATHS, 5, fault_tolerant=True, env=env)
    assert right(done) == [0, 1, 4], done.stderr


def test_a_dead_server_is_noticed_by_who_waits_for_it() -> None:
    """In a receive of either kind, and in a send."""
    done = mpi_jobs.mpiexec(COMMON + NO_SERVER, 4, fault_tolerant=True)
    assert right(done) == [1, 2, 3], done.stderr
