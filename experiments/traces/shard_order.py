"""grad f(x_tilde) summed as the workers of an MPI job sum it: float32 knows the difference."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np

from asvrg import objectives
from asvrg.drivers.mpi.protocol import Plan, make_plan
from asvrg.drivers.mpi.worker import by_size, sum_units
from asvrg.estimators import Estimator
from asvrg.sampling import Sampler
from asvrg.types import Array, Data, Shard, Snapshot
from experiments.traces import Header


def plan_of(header: Header, sampler: Sampler) -> Plan | None:
    """How the workers of a recorded MPI job divided the samples; None if it was no such job.

    Args:
      header: of the run.
      sampler: of its draws.

    Returns:
      A Plan.
    """
    given = header.config["flags"]
    if "shard_sizes" not in given or header.num_workers is None:
        return None
    sizes = given["shard_sizes"]
    return make_plan(
        sampler,
        np.dtype(header.dtype),
        header.num_workers,
        shard_sizes=None if sizes is None else [int(size) for size in sizes],
        chunk_size=objectives.CHUNK_SIZE,
    )


def units_of(plan: Plan, shards: Sequence[Shard]) -> list[list[int]] | None:
    """Which units of samples each worker summed.

    Args:
      plan: of the job.
      shards: of all streams of an epoch; it began with the first K.

    Returns:
      The indices of each worker's units, in its order; None if the shards do not say who had which,
      as a worker died while the snapshot was made, or did no update.
    """
    index_of = {unit.start: i for i, unit in enumerate(plan.units)}
    found = []
    for shard in shards[: plan.num_workers]:
        units: list[int] = []
        samples = np.asarray(shard.samples)
        while len(samples):
            index = index_of.get(int(samples[0]))
            if index is None or len(samples) < (size := plan.units[index].size):
                return None
            units.append(index)
            samples = samples[size:]
        found.append(units)
    if sorted(chain(*found)) != list(range(len(plan.units))):
        return None
    return found


def prepare(
    estimator: Estimator, x: Array, data: Data, plan: Plan, units: Sequence[Sequence[int]]
) -> Snapshot:
    """The Snapshot of an epoch, to the bit that of the job, where messages carried the sums.

    Args:
      estimator: with `grad_and_cache`.
      x: x_tilde, float [d].
      data: of all n samples.
      plan: of the job.
      units: of each worker, from `units_of`.

    Returns:
      A Snapshot.
    """
    assert estimator.grad_and_cache is not None
    x, n = jnp.asarray(x), plan.sampler.num_samples
    row = jax.tree.map(lambda leaf: leaf[:1], data)
    _, like = jax.eval_shape(estimator.grad_and_cache, x, row)
    cache = jax.tree.map(lambda one: jnp.zeros((n, *one.shape[1:]), one.dtype), like)
    full_grad = np.zeros(x.shape, x.dtype)  # as the server's: jax divides in another way
    for of_worker in sorted(filter(None, units), key=lambda indices: indices[0]):
        total = jnp.zeros_like(x)
        for size, of_size in by_size(plan, of_worker).items():
            total, cache = sum_units(estimator, x, data, total, cache, of_size, size=size)
        full_grad += np.asarray(total)
    return Snapshot(x, jnp.asarray(full_grad / full_grad.dtype.type(n)), cache)
