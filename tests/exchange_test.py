"""mpi4jax inside of jitted functions, on real ranks: the numbers of the Python path."""

from __future__ import annotations

import pytest

from tests import mpi_jobs

pytestmark = [pytest.mark.timeout(100), mpi_jobs.needs_mpi4jax]

COMMON = """
import jax
import numpy as np

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_cpu_enable_async_dispatch", False)

from asvrg import estimators, sampling
from asvrg.drivers.mpi import transport
from asvrg.drivers.mpi.exchange import Exchange
from asvrg.drivers.mpi.protocol import Tag, make_plan
from asvrg.drivers.mpi.worker import Units
from asvrg.types import Snapshot
from tests import problems

world = transport.world()
rank, num_workers = world.rank, world.size - 1
n = problems.NUM_SAMPLES
problem = problems.get("tanh_deep")
spec = sampling.sampler(n, problem.objective.dim, batch_size=2, seed=1)
sizes = {1: [12], 2: [7, 5]}[num_workers]
plan = make_plan(spec, np.dtype("float64"), num_workers, shard_sizes=sizes, chunk_size=3)
exchange = Exchange(world, n)
grad_and_cache = jax.jit(problem.objective.grad_and_cache)
x0 = problem.x0
"""

LOOP = """
full_grad, cache = grad_and_cache(x0, problem.data)
x_hats = [problems.other_point(problem, 0.1 * i) for i in range(7)]
svrg, sgd = estimators.svrg(problem.objective), estimators.sgd(problem.objective)
# One after the other, the first count again after another one: no second compilation is needed.
RUNS = [(svrg, 5), (sgd, 3), (svrg, 7), (svrg, 0), (sgd, 1)]
for number, (estimator, count) in enumerate(RUNS):
    snapshot = Snapshot(x0, full_grad, cache) if estimator is svrg else Snapshot()
    draws = {
        k: sampling.Stream(spec, number, k, plan.shard(plan.shards[k - 1], num_workers)).take(7)
        for k in range(1, 1 + num_workers)
    }
    if rank > 0:
        exchange.loop(estimator, x0, snapshot, problem.data, draws[rank], count)
        continue
    estimate = jax.jit(estimator.estimate)
    for i in range(count):
        for k in draws:
            world.vectors.Send(x_hats[i], k, Tag.WORK)
        for k in draws:
            v = np.empty_like(x0)
            world.vectors.Recv(v, k, Tag.RESULT)
            draw = jax.tree.map(lambda leaf: leaf[i], draws[k])
            expected = estimate(x_hats[i], snapshot, problem.data, draw)
            np.testing.assert_allclose(v, expected, rtol=0, atol=1e-14)
"""

SNAPSHOT = """
svrg = estimators.svrg(problem.objective)
units, data, cache = {}, (), ()
if rank > 0:
    data = jax.tree.map(jax.numpy.asarray, problem.data)
    mine = [plan.units[i] for i in plan.shards[rank - 1]]
    for size in sorted({unit.size for unit in mine}):
        starts = [unit.start for unit in mine if unit.size == size]
        padded = np.zeros(len(plan.units), np.int32)
        padded[: len(starts)] = starts
        units[size] = Units(padded, len(starts))
    _, like = grad_and_cache(x0, data)
    cache = jax.tree.map(lambda leaf: jax.numpy.full_like(leaf, 7), like)
exchange.trace_snapshot(svrg, x0, data, cache, units)
for x_tilde in (x0, problems.other_point(problem), x0):
    x = x_tilde if rank == 0 else np.zeros_like(x0)
    found, full_grad, cache = exchange.snapshot(svrg, x, data, cache, units)
    np.testing.assert_array_equal(found, x_tilde)
    expected = problems.sample_grads(problem, x_tilde).mean(0)
    np.testing.assert_allclose(full_grad, expected, rtol=0, atol=1e-14)
    if rank > 0:  # of the rank's samples; the others' entries stay as they were
        samples = plan.shard(plan.shards[rank - 1], num_workers).samples
        others = np.setdiff1d(np.arange(n), samples)
        _, fresh = grad_and_cache(x_tilde, data)
        for whole, right in zip(jax.tree.leaves(cache), jax.tree.leaves(fresh), strict=True):
            np.testing.assert_allclose(whole[samples], right[samples], rtol=0, atol=1e-14)
            assert np.all(np.asarray(whole)[others] == 7)
print(f"rank {rank} is right")
"""


@pytest.mark.parametrize("num_workers", [1, 2])
def test_messages_inside_of_jit_carry_the_same_numbers(num_workers) -> None:
    """Directions, and grad f(x_tilde) with every rank's cache; with shards of 12, or of 7 and 5."""
    done = mpi_jobs.mpiexec(COMMON + LOOP + SNAPSHOT, 1 + num_workers)
    assert done.returncode == 0, done.stderr
    assert mpi_jobs.right(done) == list(range(1 + num_workers))
