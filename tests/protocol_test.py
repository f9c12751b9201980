"""The plan: every sample has one owner, all ranks agree, and weights keep v unbiased."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asvrg import estimators, sampling
from asvrg.drivers.mpi.protocol import HEADER, Plan, aligned, make_plan, packet, vector
from asvrg.errors import InputError
from asvrg.types import Draws, Snapshot
from tests import problems

FLOAT32 = np.dtype("float32")


def plan_of(
    n: int = 12,
    workers: int = 3,
    *,
    sizes: list[int] | None = None,
    chunk: int = 3,
    dtype: str = "float32",
    **spec,
) -> Plan:
    """A plan with the differences that a test is about."""
    sampler = sampling.sampler(n, **{"dim": 5, "batch_size": 2, **spec})
    return make_plan(sampler, np.dtype(dtype), workers, shard_sizes=sizes, chunk_size=chunk)


@st.composite
def divisions(draw) -> tuple[int, list[int] | None, int, int]:
    """(n, sizes or None, workers, samples of a unit), from one sample for each worker."""
    workers = draw(st.integers(1, 8))
    sizes = draw(st.lists(st.integers(1, 40), min_size=workers, max_size=workers))
    chunk = draw(st.integers(1, 50))
    return sum(sizes), draw(st.sampled_from([sizes, None])), workers, chunk


@given(divisions())
@settings(max_examples=150, deadline=None)
def test_every_sample_is_in_one_unit_and_every_unit_in_one_shard(division) -> None:
    n, sizes, workers, chunk = division
    plan = plan_of(n, workers, sizes=sizes, chunk=chunk, batch_size=1)
    covered = [i for unit in plan.units for i in range(unit.start, unit.start + unit.size)]
    assert covered == list(range(n))
    assert all(1 <= unit.size <= chunk for unit in plan.units)
    assert [i for shard in plan.shards for i in shard] == list(range(len(plan.units)))
    found = [sum(plan.units[i].size for i in shard) for shard in plan.shards]
    if sizes is None:
        assert max(found) - min(found) <= 1
    else:
        assert found == sizes
    assert all(sum(plan.units[i].size < chunk for i in shard) <= 1 for shard in plan.shards)


@given(divisions(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_shards_after_a_takeover_still_weigh_one_worker_each(division, random) -> None:
    """The weights n_k K / n of the K that are alive sum to K, whoever has which units."""
    n, sizes, workers, chunk = division
    plan = plan_of(n, workers, sizes=sizes, chunk=chunk, batch_size=1)
    num_alive = random.randint(1, workers)
    owners = [random.randrange(num_alive) for _ in plan.units]
    shards = [
        plan.shard([unit for unit, owner in enumerate(owners) if owner == k], num_alive)
        for k in range(num_alive)
    ]
    assert sorted(np.concatenate([shard.samples for shard in shards])) == list(range(n))
    for shard in shards:
        assert shard.samples.dtype == np.int32
        assert shard.weight == len(shard.samples) * num_alive / n


def test_a_shard_lists_its_units_in_their_order() -> None:
    """Server and worker append what is taken over alike, so that a Trace replays."""
    shard = plan_of(12, 3).shard([1, 3, 0], 2)
    np.testing.assert_array_equal(shard.samples, [3, 7, 0, 1, 2])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"workers": 13}, "num_workers must be a whole number from 1 to 12, got 13."),
        ({"workers": 0}, "num_workers must be a whole number from 1 to 12, got 0."),
        ({"chunk": 0}, "chunk_size must be a whole number of at least 1, got 0."),
        (
            {"sizes": [6, 6, 0]},
            "every entry of shard_sizes must be a whole number of at least 1, got 0.",
        ),
        (
            {"sizes": [6, 5, 2]},
            "shard_sizes must be 3 numbers, one for each worker, with the sum n = 12, got 3 with "
            "the sum 13.",
        ),
        (
            {"sizes": [6, 6]},
            "shard_sizes must be 3 numbers, one for each worker, with the sum n = 12, got 2 with "
            "the sum 12.",
        ),
        (
            {"block_size": 2},
            "sampler must have block_size None, as Algorithms 2 and 3 update all of x, got 2.",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_sentence(options, sentence) -> None:
    with pytest.raises(InputError) as caught:
        plan_of(**options)
    assert str(caught.value) == sentence


def test_the_digest_tells_every_difference_that_matters() -> None:
    same = [plan_of(), plan_of(sizes=[4, 4, 4])]
    other = [
        plan_of(seed=1),
        plan_of(dtype="float64"),
        plan_of(sizes=[5, 4, 3]),
        plan_of(batch_size=3),
        plan_of(dim=6),
        plan_of(chunk=4),
        plan_of(workers=2),
        plan_of(13, sizes=[5, 4, 4]),
    ]
    digests = [plan.digest for plan in (*same, *other)]
    assert len(digests[0]) == 32
    assert digests[0] == digests[1]
    assert len(set(digests)) == 1 + len(other)


def test_a_payload_has_room_for_whatever_is_sent() -> None:
    small, wide, many = plan_of(), plan_of(dim=5_000), plan_of(3_000, 1, chunk=1)
    assert small.room >= 1_000  # an error's text
    assert wide.room >= 5_000 * 4
    assert many.room >= 3_000 * 4


@pytest.mark.parametrize("estimator", [estimators.sgd, estimators.svrg])
def test_the_weights_make_v_unbiased_over_unequal_shards(estimator) -> None:
    """E v = grad f(x_hat): all workers equally likely, and all samples of a shard."""
    problem = problems.get("tanh_deep")
    spec = sampling.sampler(problems.NUM_SAMPLES, problem.objective.dim, batch_size=1)
    plan = make_plan(spec, np.dtype("float64"), 3, shard_sizes=[7, 1, 4], chunk_size=3)
    shards = [plan.shard(units, plan.num_workers) for units in plan.shards]
    samples = np.concatenate([shard.samples for shard in shards])
    weights = np.concatenate([np.full(len(shard.samples), shard.weight) for shard in shards])
    # How likely the next update is one of this sample.
    share = np.concatenate([np.full(len(s.samples), 1 / (3 * len(s.samples))) for s in shards])

    x_hat = problems.other_point(problem)
    snapshot = Snapshot()
    if estimator is estimators.svrg:
        _, cache = jax.jit(problem.objective.grad_and_cache)(problem.x0, problem.data)
        full_grad = problems.sample_grads(problem, problem.x0).mean(0)
        snapshot = Snapshot(problem.x0, full_grad, cache)
    estimate = jax.jit(
        jax.vmap(estimator(problem.objective).estimate, in_axes=(None, None, None, 0))
    )

    def mean_v(weights: np.ndarray) -> np.ndarray:
        draws = Draws(samples[:, None], None, weights)
        return share @ np.asarray(estimate(x_hat, snapshot, problem.data, draws))

    expected = problems.sample_grads(problem, x_hat).mean(0)
    np.testing.assert_allclose(mean_v(weights), expected, rtol=0, atol=1e-12)
    assert np.linalg.norm(mean_v(np.ones(len(weights))) - expected) > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 7, 1_000])
def test_arrays_begin_where_xla_reads_them_in_place(dtype, count) -> None:
    """Many of them, as a lucky allocation proves nothing."""
    plan = plan_of(dim=count + 1, dtype=dtype)
    kept = []
    for _ in range(20):
        kept += [aligned(count), packet(count).payload, vector(plan)]
        assert [array.ctypes.data % 64 for array in kept[-3:]] == [0, 0, 0]
    assert kept[-1].shape == (count + 1,)
    assert kept[-1].dtype == dtype


def test_a_packets_parts_are_views_on_what_is_sent() -> None:
    whole = packet(12)
    whole.header[:] = np.arange(HEADER)
    whole.payload.view(np.float32)[:] = [0.5, 1.5, 2.5]
    assert whole.raw.nbytes == 4 * HEADER + 12
    np.testing.assert_array_equal(whole.raw[: 4 * HEADER].view(np.int32), np.arange(HEADER))
    np.testing.assert_array_equal(whole.raw[4 * HEADER :].view(np.float32), [0.5, 1.5, 2.5])
