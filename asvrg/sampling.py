"""The draws of an epoch, made by numpy: mini-batches I_t and coordinate blocks k_t.

Draws are data: no key is split in a hot loop. Every worker has its own stream of them, so that
threads and ranks need no common generator; the j-th iteration that a worker does in an epoch uses
the j-th draw of its stream, however the iterations are grouped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from asvrg.errors import INT32, InputError, check_count, check_kind, check_vector
from asvrg.types import Array, Draws, Shard, Trace

# Iterations in one jitted call, at most, and entries of their draws: memory stays bounded.
SEGMENT = 4_096
SEGMENT_ENTRIES = 1 << 25
# Iterations drawn at once: enough to spread numpy's overhead, few enough to bound the memory.
# A stream is a sequence of such chunks, each with a seed of its own.
CHUNK = 64


class Sampler(NamedTuple):
    """What is drawn in every iteration; make one with `sampler`.

    Attributes:
      num_samples: n, or n_k for a worker with a shard of its own.
      dim: d.
      batch_size: b.
      block_size: B; None if every iteration updates all of x.
      seed: of all streams.
    """

    num_samples: int
    dim: int
    batch_size: int
    block_size: int | None
    seed: int


def sampler(
    num_samples: int, dim: int, *, batch_size: int, block_size: int | None = None, seed: int = 0
) -> Sampler:
    """Describes the draws: b samples with replacement, B distinct coordinates, both uniform.

    Samples are drawn with replacement as Assumption 1 wants it; coordinates without, else one would
    move twice in an iteration.

    Args:
      num_samples: n.
      dim: d.
      batch_size: b, from 1 to n.
      block_size: B, from 1 to d; None, or d, for all coordinates.
      seed: a whole number of at least 0.

    Returns:
      A Sampler.

    Raises:
      InputError: one of them is no whole number in its range.

    >>> sampler(10_000, 79_510, batch_size=10, block_size=1_000).block_size
    1000

    Source: Huo and Huang (2016), Assumption 1 and Algorithm 1.
    """
    n = check_count("num_samples", num_samples, limit=INT32)
    d = check_count("dim", dim, limit=INT32)
    b = check_count("batch_size", batch_size, most=n)
    size = None if block_size is None else check_count("block_size", block_size, most=d)
    seed = check_count("seed", seed, least=0)
    return Sampler(n, d, b, None if size == d else size, seed)


def check_fits(spec: Sampler, num_samples: int) -> int:
    """Returns n if the sampler draws from n samples: others would be read out of bounds.

    Args:
      spec: of the draws.
      num_samples: n, of the data.

    Returns:
      n.

    Raises:
      InputError: the sampler was made for another number of samples.

    >>> check_fits(sampler(9, 5, batch_size=2), 9)
    9
    """
    check_kind("sampler", spec, Sampler)
    if spec.num_samples != num_samples:
        raise InputError(
            f"sampler must draw from the {num_samples} samples of the data, got one for "
            f"{spec.num_samples}."
        )
    return num_samples


def check_dim(spec: Sampler, x: Array) -> None:
    """Raises InputError unless x is a vector [d] of floating-point numbers, with the sampler's d.

    Args:
      spec: of the draws.
      x: float [d].

    Raises:
      InputError: it has another shape, or is no array of floating-point numbers.

    >>> check_dim(sampler(9, 5, batch_size=2), np.zeros(5, np.float32))
    """
    check_vector("x", x, spec.dim, "sampler")


class Stream:
    """The draws of one worker in one epoch, in order.

    The same arguments give the same draws with the same release of numpy, on any machine.

    >>> spec = sampler(9, 5, batch_size=2)
    >>> one, two = Stream(spec, epoch=0, worker=0), Stream(spec, epoch=0, worker=0)
    >>> first, second = two.take(3), two.take(4)
    >>> np.array_equal(one.take(7).batch, np.concatenate([first.batch, second.batch]))
    True
    """

    def __init__(
        self,
        spec: Sampler,
        epoch: int,
        worker: int,
        shard: Shard | None = None,
        *,
        first: int = 0,
    ) -> None:
        """The stream of `worker` (from 0) in epoch s (from 0), over its shard or all n.

        It begins with the draw of number `first`, and costs the same for every number.
        """
        self._chunks = _chunks(spec, epoch, worker, shard, first // CHUNK)
        self._rest: Draws | None = None
        if first % CHUNK:
            self.take(first % CHUNK)

    def take(self, count: int) -> Draws:
        """The next `count` draws.

        Args:
          count: r, a number of iterations of at least 1.

        Returns:
          Draws: batch int32 [r, b]; block int32 [r, B] in rising order, or None; with a shard,
          weight float64 [r].

        Raises:
          InputError: `count` is no whole number of at least 1.
        """
        check_count("count", count)
        pieces, held = [], 0
        while held < count:
            piece = self._rest if self._rest is not None else next(self._chunks)
            length = min(count - held, len(piece.batch))
            pieces.append(_rows(piece, slice(length)))
            held += length
            left = length < len(piece.batch)
            self._rest = _rows(piece, slice(length, None)) if left else None
        return _concatenate(pieces)


def streams(spec: Sampler, epoch: int, trace: Trace) -> dict[int, Stream]:
    """The streams of all workers that occur in a trace.

    Args:
      spec: of the draws.
      epoch: s, from 0.
      trace: of that epoch.

    Returns:
      Worker -> its Stream, at its beginning.

    Raises:
      InputError: a worker has a shard with samples that are none of the n.

    >>> from asvrg import delays
    >>> spec = sampler(9, 5, batch_size=2)
    >>> sorted(streams(spec, 0, delays.round_robin(6, 3)))
    [0, 1, 2]
    """
    workers = [int(k) for k in np.unique(trace.worker)]
    if trace.shards is None:
        return {k: Stream(spec, epoch, k) for k in workers}
    for k in workers:
        samples = trace.shards[k].samples
        if not len(samples) or samples.min() < 0 or samples.max() >= spec.num_samples:
            raise InputError(
                f"trace.shards must hold samples from 0 to {spec.num_samples - 1}, at least one "
                f"for each worker, got others for worker {k}."
            )
    return {k: Stream(spec, epoch, k, trace.shards[k]) for k in workers}


def segment_length(spec: Sampler, num_updates: int, num_runs: int = 1) -> int:
    """How many iterations to draw for one jitted call, so that memory stays bounded.

    Args:
      spec: of the draws.
      num_updates: m.
      num_runs: that make the call together.

    Returns:
      A number from 1 to m, or 1.

    >>> segment_length(sampler(9, 5, batch_size=2), 2_000)
    2000
    """
    entries = num_runs * (spec.batch_size + (spec.block_size or 0))
    return max(1, min(SEGMENT, SEGMENT_ENTRIES // entries, num_updates))


def in_order(streams: dict[int, Stream], worker: np.ndarray) -> Draws:
    """The draws of updates that landed in the order of their workers.

    Args:
      streams: of every worker that occurs; they advance.
      worker: int [m], who computed each update.

    Returns:
      Draws with leading axis m: where `worker[t]` is k for the j-th time stands k's j-th draw.

    >>> spec, worker = sampler(9, 5, batch_size=2), np.array([1, 0, 1])
    >>> draws = in_order({k: Stream(spec, 0, k) for k in (0, 1)}, worker)
    >>> np.array_equal(draws.batch[[0, 2]], Stream(spec, 0, 1).take(2).batch)
    True
    """
    members, inverse = np.unique(worker, return_inverse=True)
    if len(members) == 1:
        return streams[int(members[0])].take(len(worker))
    pieces = [streams[int(k)].take(int(np.sum(inverse == i))) for i, k in enumerate(members)]
    # Sorting by worker, stably, lists the updates in the order of the concatenated pieces.
    place = np.empty(len(worker), np.intp)
    place[np.argsort(inverse, kind="stable")] = np.arange(len(worker))
    return _rows(_concatenate(pieces), place)


def in_turns(
    streams: dict[int, Stream], worker: np.ndarray, update: np.ndarray, length: int, first: int = 0
) -> Iterator[Draws]:
    """The draws of updates that are computed in another order than the one they land in.

    Args:
      streams: of every worker that occurs; they advance.
      worker: int [m], who computed each update, in the order they landed.
      update: int [m], the updates in the order they are computed.
      length: turns at once; what must be held is `length` draws, and those of the updates that
        landed earlier than one computed before them.
      first: the turn to begin with; the draws of those before are made, and dropped.

    Yields:
      Draws with leading axis `length`, the last ones with as many rows as are left.

    >>> spec, worker = sampler(9, 5, batch_size=2), np.array([1, 0, 1])
    >>> streams_of = lambda: {k: Stream(spec, 0, k) for k in (0, 1)}
    >>> landed = in_order(streams_of(), worker).batch
    >>> pieces = in_turns(streams_of(), worker, np.array([1, 0, 2]), length=2)
    >>> np.array_equal(np.concatenate([piece.batch for piece in pieces]), landed[[1, 0, 2]])
    True
    """
    held: list[Draws] = []
    numbers = np.zeros(0, np.intp)
    taken = 0
    edges = [*range(0, first, length), *range(first, len(update), length), len(update)]
    for start, stop in itertools.pairwise(edges):
        wanted = update[start:stop]
        last = int(wanted.max()) + 1
        if last > taken:
            held.append(in_order(streams, worker[taken:last]))
            numbers = np.append(numbers, np.arange(taken, last))
            taken = last
        draws = _concatenate(held)
        rows = np.searchsorted(numbers, wanted)
        if start >= first:
            yield _rows(draws, rows)
        left = np.ones(len(numbers), bool)
        left[rows] = False
        held, numbers = [_rows(draws, left)], numbers[left]


def _rows(draws: Draws, rows: slice | np.ndarray) -> Draws:
    return Draws(*(None if field is None else field[rows] for field in draws))


def _concatenate(pieces: list[Draws]) -> Draws:
    if len(pieces) == 1:
        return pieces[0]
    fields = zip(*pieces, strict=True)
    return Draws(*(None if field[0] is None else np.concatenate(field) for field in fields))


def _chunks(
    spec: Sampler, epoch: int, worker: int, shard: Shard | None, index: int
) -> Iterator[Draws]:
    count = spec.num_samples if shard is None else len(shard.samples)
    weight = None if shard is None else np.full(CHUNK, shard.weight)
    while True:
        seed = np.random.SeedSequence(spec.seed, spawn_key=(epoch, worker, index))
        rng = np.random.default_rng(seed)
        batch = rng.integers(count, size=(CHUNK, spec.batch_size), dtype=np.int32)
        batch = batch if shard is None else shard.samples[batch]
        block = None
        if spec.block_size is not None:
            block = _distinct(rng, spec.dim, spec.block_size)
        yield Draws(batch, block, weight)
        index += 1


def _distinct(rng: np.random.Generator, dim: int, size: int) -> np.ndarray:
    """CHUNK uniformly random sets of `size` of `dim` coordinates, int32 [CHUNK, size], sorted."""
    if 2 * size > dim:
        everything = np.tile(np.arange(dim, dtype=np.int32), (CHUNK, 1))
        block = rng.permuted(everything, axis=1)[:, :size]
        block.sort(axis=1)
        return block
    # Draws again whatever a row holds already, until nothing is held twice. Every accepted
    # coordinate is uniform among those not yet held, which is drawing without replacement.
    block = rng.integers(dim, size=(CHUNK, size), dtype=np.int32)
    block.sort(axis=1)
    part, rows = block, np.arange(CHUNK)  # that may hold a coordinate twice
    while True:
        row, column = np.divmod(np.flatnonzero(part[:, 1:] == part[:, :-1]), size - 1)
        if not row.size:
            return block
        part[row, column + 1] = rng.integers(dim, size=row.size, dtype=np.int32)
        part.sort(axis=1, kind="stable")  # the quick one for what is nearly sorted
        if part is not block:
            block[rows] = part
        rows = rows[np.unique(row)]
        part = block[rows]
