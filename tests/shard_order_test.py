"""The order in which an MPI job sums grad f(x_tilde)."""

from __future__ import annotations

import numpy as np
import pytest

from asvrg import estimators, mlp, sampling
from asvrg.drivers.mpi.protocol import make_plan
from asvrg.types import Shard
from experiments.traces import shard_order

N, K, CHUNK = 23, 3, 4


@pytest.fixture
def plan():
    sampler = sampling.sampler(N, 7 * 3, batch_size=2)
    return make_plan(sampler, np.dtype("float64"), K, shard_sizes=[10, 3, 10], chunk_size=CHUNK)


def test_the_units_of_each_worker_are_read_off_its_samples(plan):
    shards = [plan.shard(units, K) for units in plan.shards]
    assert shard_order.units_of(plan, shards) == [list(units) for units in plan.shards]
    # The second worker died: its samples came to the others, after their own.
    after = [[0, 1, 2], [], [4, 5, 6, 3]]
    shards = [plan.shard(units, 2) for units in after]
    later = [plan.shard(units, 1) for units in ([], [], range(7))]
    assert shard_order.units_of(plan, shards + later) == after


def test_shards_that_are_no_units_of_the_plan_say_nothing(plan):
    shards = [plan.shard(units, K) for units in plan.shards]
    nobody = Shard(np.zeros(0, np.int32), 0.0)
    for wrong in (
        [nobody, *shards[1:]],  # it died before its first update
        [shards[0], *shards[:2]],
        [*shards[:2], shards[2]._replace(samples=shards[2].samples[1:])],
        [*shards[:2], shards[2]._replace(samples=shards[2].samples[:-1])],
        [],
    ):
        assert shard_order.units_of(plan, wrong) is None


@pytest.mark.parametrize("units", [[[0, 1, 2], [3], [4, 5, 6]], [[], [3, 2, 0, 1], [4, 5, 6]]])
def test_the_snapshot_is_that_of_the_estimator_but_for_rounding(plan, units):
    objective = mlp.mlp((6, 3), l2=1e-2)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(N, 6)), rng.integers(3, size=N).astype(np.int32)
    x = rng.normal(size=objective.dim)
    estimator = estimators.svrg(objective)
    found = shard_order.prepare(estimator, x, data, plan, units)
    wanted = estimator.prepare(x, data, map)
    np.testing.assert_allclose(found.full_grad, wanted.full_grad, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(found.params, wanted.params)
    for one, two in zip(found.cache.deltas, wanted.cache.deltas, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-15)
