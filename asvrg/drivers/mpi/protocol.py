"""What server and workers say to each other, and the settings on which they must agree."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from asvrg.errors import INT32, DriverError, InputError, check_choice, check_count, check_kind
from asvrg.sampling import Sampler
from asvrg.types import Shard

SERVER = 0  # rank
HEADER = 16  # int32 numbers before the payload of a packet: 64 bytes, which keep it aligned
TEXT = 3_072  # bytes of an error's text, at most: so few are sent even if nobody takes them
GRANT = 64  # iterations that a worker does without a packet in between, at most


class Tag(enum.IntEnum):
    """Kinds of messages, with the meaning of the numbers in the header of those that have one.

    WORK and RESULT are bare vectors [d] on a communicator of their own; all others are packets.
    """

    WARM = 1  # to a worker: (estimator) compile what it takes; answered by READY
    PREPARE = 2  # to a worker: (estimator, K) and x_tilde; answered by GRAD
    COLLECT = 3  # to a worker: (estimator, K) prepare, with collectives; not answered
    SHARD = 4  # to a worker: (how many, K) and as many units more; answered by GRAD
    FULL = 5  # to a worker: grad f(x_tilde)
    GRANT = 6  # to a worker: (epoch, how many, stream, its draws so far) as many WORKs follow
    STOP = 7  # to a worker: the end
    READY = 8  # to the server: compiled; the first one: (has mpi4jax) and the plan's digest
    GRAD = 9  # to the server: the sum of the gradients of a PREPARE's or a SHARD's samples
    ERROR = 10  # to the server: (length) and a text; a worker's last message
    WORK = 11  # to a worker: x_hat; answered by RESULT
    RESULT = 12  # to the server: v


class RankError(DriverError):
    """A process of the job failed, or none of its workers is left.

    Attributes:
      rank: of the process; None if it is none in particular.
    """

    def __init__(self, rank: int | None, text: str) -> None:
        super().__init__(text if rank is None else f"Rank {rank} failed with {text}")
        self.rank = rank


class Unit(NamedTuple):
    """Samples start, ..., start + size - 1: what is handed from a dead worker to a live one."""

    start: int
    size: int


class Plan(NamedTuple):
    """What server and workers derive from the same arguments, each on its own.

    Attributes:
      sampler: of the draws, over all n samples; every worker has a stream of its own.
      dtype: of x.
      units: all n samples, in order.
      shards: the indices of the units of each worker, rank 1 first.
    """

    sampler: Sampler
    dtype: np.dtype
    units: tuple[Unit, ...]
    shards: tuple[tuple[int, ...], ...]

    @property
    def num_workers(self) -> int:
        """K, at the start."""
        return len(self.shards)

    @property
    def room(self) -> int:
        """Bytes of a packet's payload, at most."""
        return max(self.sampler.dim * self.dtype.itemsize, 4 * len(self.units), TEXT)

    @property
    def digest(self) -> bytes:
        """Tells plans apart, in 32 bytes."""
        return hashlib.sha256(repr(self).encode()).digest()

    def shard(self, units: Sequence[int], num_alive: int) -> Shard:
        """The Shard of a worker that has these units while `num_alive` workers are alive."""
        pieces = [np.arange(u.start, u.start + u.size) for u in map(self.units.__getitem__, units)]
        samples = np.concatenate([np.zeros(0, int), *pieces]).astype(np.int32)
        return Shard(samples, len(samples) * num_alive / self.sampler.num_samples)


def make_plan(
    sampler: Sampler,
    dtype: np.dtype,
    num_workers: int,
    *,
    shard_sizes: Sequence[int] | None,
    chunk_size: int,
) -> Plan:
    """Divides the samples among the workers, in order, and the shards into units.

    Args:
      sampler: of the draws.
      dtype: of x.
      num_workers: K.
      shard_sizes: n_k of each worker; None for sizes that differ by one at most.
      chunk_size: samples of a unit, at most.

    Returns:
      A Plan.

    Raises:
      InputError: there are more workers than samples, the sizes are not K numbers of at least 1
        that sum to n, or the sampler draws blocks.

    >>> from asvrg import sampling
    >>> spec = sampling.sampler(7, 5, batch_size=2)
    >>> make_plan(spec, np.dtype("float32"), 2, shard_sizes=None, chunk_size=3).units
    (Unit(start=0, size=3), Unit(start=3, size=1), Unit(start=4, size=3))
    """
    n = check_kind("sampler", sampler, Sampler).num_samples
    check_choice("dtype", str(dtype), ("float32", "float64"))
    check_count("num_workers", num_workers, most=n)
    check_count("chunk_size", chunk_size, limit=INT32)
    if sampler.block_size is not None:
        raise InputError(
            "sampler must have block_size None, as Algorithms 2 and 3 update all of x, got "
            f"{sampler.block_size}."
        )
    if shard_sizes is None:
        sizes = [n // num_workers + (k < n % num_workers) for k in range(num_workers)]
    else:
        check_kind("shard_sizes", shard_sizes, Sequence)
        sizes = [check_count("every entry of shard_sizes", size) for size in shard_sizes]
    if len(sizes) != num_workers or sum(sizes) != n:
        raise InputError(
            f"shard_sizes must be {num_workers} numbers, one for each worker, with the sum n = {n},"
            f" got {len(sizes)} with the sum {sum(sizes)}."
        )
    units: list[Unit] = []
    shards = []
    for start, stop in pairwise(accumulate(sizes, initial=0)):
        first = len(units)
        units += [Unit(at, min(chunk_size, stop - at)) for at in range(start, stop, chunk_size)]
        shards.append(tuple(range(first, len(units))))
    return Plan(sampler, np.dtype(dtype), tuple(units), tuple(shards))


class Packet(NamedTuple):
    """A message with a header; the arrays are views on `raw`.

    Attributes:
      raw: uint8, what is sent.
      header: int32 [HEADER].
      payload: uint8, after the header.
    """

    raw: np.ndarray
    header: np.ndarray
    payload: np.ndarray


class Message(NamedTuple):
    """What a worker sent: `content` is v, [d], for RESULT, and a Packet for all other tags."""

    worker: int
    tag: Tag
    content: np.ndarray | Packet


def packet(room: int) -> Packet:
    """An empty packet whose payload has `room` bytes and begins at a multiple of 64."""
    start = 4 * HEADER
    raw = aligned(start + room)
    return Packet(raw, raw[:start].view(np.int32), raw[start:])


def pack(header: Sequence[int], payload: np.ndarray | None) -> Packet:
    """A packet with these numbers in its header and the bytes of an array, or nothing, after it."""
    raw = np.zeros(0, np.uint8) if payload is None else payload.view(np.uint8)
    message = packet(len(raw))
    message.header[: len(header)] = header
    message.payload[:] = raw
    return message


def aligned(count: int) -> np.ndarray:
    """Zeros, uint8 [count], that begin at a multiple of 64 bytes: XLA reads them in place."""
    room = np.zeros(count + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + count]


def vector(plan: Plan) -> np.ndarray:
    """Zeros [d] of x's dtype, aligned."""
    return aligned(plan.sampler.dim * plan.dtype.itemsize).view(plan.dtype)
