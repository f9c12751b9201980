"""The draws: what is drawn, how likely, and by whom."""

from __future__ import annotations

import itertools
import math

import chex
import numpy as np
import pytest
from scipy import stats

from asvrg import sampling
from asvrg.errors import InputError
from asvrg.sampling import Stream
from asvrg.types import Trace

SPEC = sampling.sampler(9, 20, batch_size=2, block_size=3, seed=5)
# Refuses a right generator once in a million seeds; the seeds are fixed.
QUANTILE = 1 - 1e-6


def assert_uniform(counts: np.ndarray) -> None:
    expected = np.sum(counts) / len(counts)
    statistic = np.sum((counts - expected) ** 2) / expected
    assert statistic < stats.chi2.ppf(QUANTILE, len(counts) - 1)


@pytest.mark.parametrize(
    ("dim", "size"),
    [(1_000, 400), (1_000, 500), (1_000, 501), (1_000, 999), (7, 1), (1, 1), (2, 1)],
)
def test_blocks_are_distinct_sorted_and_in_range(dim: int, size: int) -> None:
    """Both ways to draw them: again what is there already, up to half; a permutation beyond it."""
    spec = sampling.sampler(9, dim, batch_size=1, block_size=size)
    block = Stream(spec, 0, 0).take(200).block
    if size == dim:
        assert block is None  # all of x: no block at all
        return
    assert block.shape == (200, size)
    assert block.dtype == np.int32
    assert block.min() >= 0
    assert block.max() < dim
    assert np.all(np.diff(block, axis=1) > 0)


@pytest.mark.parametrize(("dim", "size"), [(6, 2), (6, 3), (6, 4), (40, 1)])
def test_every_block_is_equally_likely(dim: int, size: int) -> None:
    sets = {block: i for i, block in enumerate(itertools.combinations(range(dim), size))}
    spec = sampling.sampler(9, dim, batch_size=1, block_size=size, seed=1)
    drawn = Stream(spec, 0, 0).take(6_400).block
    counts = np.bincount([sets[tuple(row)] for row in drawn.tolist()], minlength=len(sets))
    assert len(sets) == math.comb(dim, size)
    assert_uniform(counts)


def test_every_batch_is_equally_likely_with_repetitions() -> None:
    """Pairs of 5 samples: 25 of them, the 5 with one sample twice as likely as any other."""
    batch = Stream(sampling.sampler(5, 4, batch_size=2, seed=2), 0, 0).take(6_400).batch
    assert batch.dtype == np.int32
    assert_uniform(np.bincount(batch[:, 0] * 5 + batch[:, 1], minlength=25))


def test_batches_and_blocks_are_independent() -> None:
    draws = Stream(sampling.sampler(4, 6, batch_size=1, block_size=1, seed=3), 0, 0).take(6_400)
    assert_uniform(np.bincount(draws.batch[:, 0] * 6 + draws.block[:, 0], minlength=24))


@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("pieces", [[1] * 150, [64, 64, 22], [63, 2, 85], [150], [100, 50]])
def test_draws_do_not_depend_on_how_they_are_taken(pieces: list[int], block_size) -> None:
    spec = SPEC._replace(block_size=block_size)
    stream = Stream(spec, 1, 2)
    taken = [stream.take(count) for count in pieces]
    assert [len(draws.batch) for draws in taken] == pieces
    expected = Stream(spec, 1, 2).take(150)
    chex.assert_trees_all_equal(np.concatenate([d.batch for d in taken]), expected.batch)
    if block_size is None:
        assert all(draws.block is None for draws in taken)
    else:
        chex.assert_trees_all_equal(np.concatenate([d.block for d in taken]), expected.block)


def test_streams_of_seeds_epochs_and_workers_differ() -> None:
    which = list(itertools.product(range(3), repeat=3))
    batches = [
        Stream(SPEC._replace(seed=seed), epoch, worker).take(130).batch
        for seed, epoch, worker in which
    ]
    # Of independent pairs of 9 samples, one in 81 agrees; also between shifted streams.
    for first, second in itertools.combinations(batches, 2):
        for shift in (0, 1, 64):
            same = np.all(first[shift:] == second[: len(second) - shift], axis=1)
            assert np.mean(same) < 0.15
    assert not np.array_equal(batches[0][:64], batches[0][64:128])


@pytest.mark.parametrize("block_size", [None, 3])
def test_in_order_gives_every_worker_its_own_stream(block_size) -> None:
    spec = SPEC._replace(block_size=block_size)
    worker = np.random.default_rng(0).choice([0, 3, 4], 90).astype(np.int32)
    streams = {k: Stream(spec, 2, k) for k in (0, 3, 4)}
    halves = [sampling.in_order(streams, worker[:31]), sampling.in_order(streams, worker[31:])]
    batch = np.concatenate([half.batch for half in halves])
    for k in streams:
        mine, expected = worker == k, Stream(spec, 2, k).take(90)
        chex.assert_trees_all_equal(batch[mine], expected.batch[: np.sum(mine)])
        if block_size is None:
            assert halves[0].block is None
        else:
            block = np.concatenate([half.block for half in halves])
            chex.assert_trees_all_equal(block[mine], expected.block[: np.sum(mine)])


@pytest.mark.parametrize("length", [1, 7, 200])
def test_draws_in_turns_are_those_of_the_updates(length: int) -> None:
    """In any order of computation the j-th update of a worker has the j-th draw of its stream."""
    spec = sampling.sampler(9, 20, batch_size=2, block_size=3, seed=5)
    rng = np.random.default_rng(0)
    worker = rng.choice([0, 3, 4], 90).astype(np.int32)
    update = np.argsort(np.arange(90) + rng.integers(12, size=90), kind="stable")
    trace = Trace(worker, np.zeros(90, np.int32))
    pieces = list(sampling.in_turns(sampling.streams(spec, 2, trace), worker, update, length))
    assert [len(piece.batch) for piece in pieces[:-1]] == [length] * (len(pieces) - 1)
    batch = np.concatenate([piece.batch for piece in pieces])
    expected = sampling.in_order(sampling.streams(spec, 2, trace), worker)
    chex.assert_trees_all_equal(batch, expected.batch[update])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1, got 0"),
        ({"dim": 2.0}, "dim must be a whole number of at least 1, got 2.0"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 to 9, got 0"),
        ({"batch_size": 10}, "batch_size must be a whole number from 1 to 9, got 10"),
        ({"block_size": 0}, "block_size must be a whole number from 1 to 20, got 0"),
        ({"block_size": 21}, "block_size must be a whole number from 1 to 20, got 21"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(changed: dict, sentence: str) -> None:
    arguments = {"num_samples": 9, "dim": 20, "batch_size": 2, "block_size": 3, "seed": 5} | changed
    with pytest.raises(InputError, match=sentence):
        sampling.sampler(arguments.pop("num_samples"), arguments.pop("dim"), **arguments)
