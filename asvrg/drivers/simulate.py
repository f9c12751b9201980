"""Simulated asynchrony: exact Equation (6) for any J(t), in one jitted scan."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from asvrg import delays, objectives, sampling, steps
from asvrg.errors import InputError, check_count
from asvrg.estimators import Estimator
from asvrg.sampling import Sampler
from asvrg.types import Array, Data, Delta, Draws, Driver, Snapshot, Trace

# Iterations in one call, at most, and entries of their largest array. An epoch with more of them
# takes several calls, so that memory stays bounded; the iterates are the same.
SEGMENT = 4_096
SEGMENT_ENTRIES = 1 << 25


def driver(
    estimator: Estimator,
    data: Data,
    sampler: Sampler,
    *,
    inner_steps: int,
    trace: Callable[[int], Trace] | None = None,
    groups: Array | None = None,
    max_delay: int | None = None,
) -> Driver:
    """Runs the updates of an epoch one by one, each at the stale x that a Trace prescribes.

    Args:
      estimator: gives v_t.
      data: a pytree of arrays [n, ...].
      sampler: of the draws; every worker of the trace has a stream of its own.
      inner_steps: m.
      trace: epoch s -> the Trace of its m updates; None for serial execution. A recorded one
        replays the run that it came from.
      groups: int [d], the group of each coordinate, for traces with inconsistent reads; None for
        consistent ones.
      max_delay: Delta, the largest delay of all traces, so that one compilation, in `warm_up`,
        serves them all; None takes it from each trace, and may compile again in an epoch whose
        delays are longer than those of the first.

    Returns:
      A Driver.

    Raises:
      InputError: `inner_steps` or `max_delay` is out of its range, or the sampler is of other
        samples; in the driver's functions, a trace or an x that does not fit.
    """
    check_count("inner_steps", inner_steps)
    if max_delay is not None:
        check_count("max_delay", max_delay, least=0)
    n = sampling.check_fits(sampler, objectives.num_samples(data))
    device_data = jax.tree.map(jnp.asarray, data)

    def prepare(x: Array) -> Snapshot:
        return estimator.prepare(x, device_data, map)

    def trace_of(epoch: int) -> Trace:
        record = delays.none(inner_steps) if trace is None else trace(epoch)
        if len(record.worker) != inner_steps:
            raise InputError(
                f"trace must hold inner_steps = {inner_steps} updates an epoch, got "
                f"{len(record.worker)} in epoch {epoch}."
            )
        return record

    def run(x: Array, snapshot: Snapshot, record: Trace, epoch: int, lr: float) -> jax.Array:
        return replay(
            estimator,
            x,
            snapshot,
            device_data,
            sampler,
            record,
            groups=groups,
            epoch=epoch,
            lr=lr,
            max_delay=max_delay,
        )

    def inner_loop(x: Array, snapshot: Snapshot, epoch: int, lr: float) -> tuple[Array, Trace]:
        record = trace_of(epoch)
        return run(x, snapshot, record, epoch, lr), record

    def warm_up(x: Array) -> None:
        jax.block_until_ready(run(x, prepare(x), trace_of(0), 0, 0.0))

    evals = estimator.grad_evals(n, sampler.batch_size, inner_steps)
    return Driver(prepare, inner_loop, warm_up, inner_steps, evals)


def replay(
    estimator: Estimator,
    x: Array,
    snapshot: Snapshot,
    data: Data,
    sampler: Sampler,
    trace: Trace,
    *,
    epoch: int,
    lr: float,
    groups: Array | None = None,
    max_delay: int | None = None,
) -> jax.Array:
    """The x that the updates of a trace make of x, with the draws of its workers' streams.

    Args:
      estimator: gives v_t.
      x: float [d], at the start of the epoch.
      snapshot: of the epoch.
      data: a pytree of arrays [n, ...].
      sampler: of the draws.
      trace: of the m updates of the epoch, or of the first ones.
      epoch: s, which selects the draws.
      lr: eta.
      groups: int [d], for a trace with inconsistent reads.
      max_delay: Delta, at least the trace's largest delay; None takes that.

    Returns:
      x after the updates, float [d].

    Raises:
      InputError: the trace is malformed, has a delay above `max_delay`, or its groups of
        coordinates do not fit `groups`; or x is not the sampler's [d].
    """
    delays.check(trace)
    sampling.check_dim(sampler, x)
    num_groups = trace.read_version.shape[1] if trace.read_version.ndim == 2 else 1
    x = jnp.asarray(x)
    if num_groups > 1:
        _check_groups(groups, x.size, num_groups)
    rate = np.asarray(lr, x.dtype)
    streams = {
        int(k): sampling.Stream(
            sampler, epoch, int(k), None if trace.shards is None else trace.shards[k]
        )
        for k in np.unique(trace.worker)
    }
    # A power of two, so that traces of about the same delay share a compilation.
    longest = int(delays.staleness(trace).max(initial=0))
    if max_delay is not None:
        if longest > max_delay:
            raise InputError(
                f"trace must have no delay above max_delay = {max_delay}, got {longest}."
            )
        longest = max_delay
    depth = 1 << (longest - 1).bit_length() if longest else 0
    ring = empty_ring(sampler, depth, x.dtype)
    width = sampler.block_size or sampler.dim
    segment = max(1, min(SEGMENT, SEGMENT_ENTRIES // max(width, depth * num_groups)))
    for start in range(0, len(trace.worker), segment):
        stop = min(start + segment, len(trace.worker))
        draws = sampling.in_order(streams, trace.worker[start:stop])
        if depth == 0:
            x, _ = steps.window(estimator, x, snapshot, data, draws, rate)
        else:
            lacking = delays.missing(trace, start, stop, depth)
            x, ring = delayed_steps(
                estimator, x, ring, snapshot, data, draws, lacking, groups, rate
            )
    return x


def _check_groups(groups: Array | None, dim: int, num_groups: int) -> None:
    if groups is None:
        found = "None"
    elif np.shape(groups) != (dim,):
        found = f"an array of shape {np.shape(groups)}"
    elif np.min(groups) < 0 or np.max(groups) >= num_groups:
        found = f"numbers from {np.min(groups)} to {np.max(groups)}"
    else:
        return
    raise InputError(
        f"groups must be an array [{dim}] of numbers from 0 to {num_groups - 1}, to give every "
        f"coordinate one of the trace's {num_groups} groups, got {found}."
    )


def empty_ring(sampler: Sampler, depth: int, dtype: np.dtype) -> Delta:
    """Room for the last deltas, at first zeros, for `delayed_steps`.

    Args:
      sampler: gives B, or d.
      depth: the number of deltas, Delta.
      dtype: of x.

    Returns:
      Delta: block int32 [depth, B] or None, values [depth, B] or [depth, d].
    """
    if sampler.block_size is None:
        return Delta(None, jnp.zeros((depth, sampler.dim), dtype))
    shape = (depth, sampler.block_size)
    return Delta(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, dtype))


@functools.partial(jax.jit, static_argnames="estimator")
def delayed_steps(
    estimator: Estimator,
    x: Array,
    ring: Delta,
    snapshot: Snapshot,
    data: Data,
    draws: Draws,
    missing: Array,
    groups: Array | None,
    lr: Array,
) -> tuple[jax.Array, Delta]:
    """Iterations whose x_hat_t lacks the updates J(t), any subset of the last Delta ones.

    x_hat_t = x_t - sum_{j in J(t)} (x_{j+1} - x_j), Equation (6).

    Args:
      estimator: gives v_t.
      x: float [d], before the first of these iterations.
      ring: the last Delta deltas, the newest first: values [Delta, B] or [Delta, d].
      snapshot: of this epoch.
      data: a pytree of arrays [n, ...].
      draws: of r iterations.
      missing: bool [r, Delta, G], whether x_hat_t lacks update t - 1 - i in group g.
      groups: int [d], the group of each coordinate; None if G is 1.
      lr: eta, a scalar of x's dtype.

    Returns:
      x after the iterations, [d], and the ring for the next ones.
    """

    def read(x: jax.Array, ring: Delta, lacking: jax.Array) -> jax.Array:
        coordinates = jnp.arange(x.shape[0])[None] if ring.block is None else ring.block
        if groups is None:
            lacks = lacking[:, :1]
        else:
            lacks = lacking[jnp.arange(lacking.shape[0])[:, None], groups[coordinates]]
        taken_back = jnp.where(lacks, ring.values, jnp.zeros_like(ring.values))
        if ring.block is None:
            return x - jnp.sum(taken_back, axis=0)
        return x.at[ring.block.ravel()].add(-taken_back.ravel(), mode="promise_in_bounds")

    def push(kept: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.concatenate([new[None].astype(kept.dtype), kept[:-1]])

    def iterate(
        carry: tuple[jax.Array, Delta], inputs: tuple[Draws, jax.Array]
    ) -> tuple[tuple[jax.Array, Delta], None]:
        x, ring = carry
        draw, lacking = inputs
        delta = steps.step(estimator, read(x, ring, lacking), snapshot, data, draw, lr)
        x = steps.apply(x, delta)
        ring = jax.tree.map(push, ring, delta)
        return (x, ring), None

    (x, ring), _ = jax.lax.scan(iterate, (jnp.asarray(x), ring), (draws, missing))
    return x, ring
