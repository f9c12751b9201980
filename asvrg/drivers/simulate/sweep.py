"""Many independent runs at once: other seeds, steps, delays or starting points, in one program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asvrg import delays, objectives, sampling
from asvrg.drivers import arguments
from asvrg.drivers.simulate import read_order
from asvrg.errors import INT32, InputError, check_count
from asvrg.estimators import Estimator
from asvrg.sampling import Sampler
from asvrg.schedules import Schedule, check_rate
from asvrg.types import Array, Data, Draws, Observe, PyTree, Snapshot, Trace


class Run(NamedTuple):
    """One of the runs of a sweep.

    Attributes:
      x0: float [d].
      sampler: of its draws; b and B are those of all runs.
      schedule: epoch s -> eta.
      trace: epoch s -> the Trace of its m updates, with consistent reads; None for serial
        execution.
    """

    x0: Array
    sampler: Sampler
    schedule: Schedule
    trace: Callable[[int], Trace] | None = None


class SweepResult(NamedTuple):
    """All R runs after an epoch.

    Attributes:
      epoch: epochs done.
      x: float [R, d].
      observations: what the observer returned, a pytree of arrays [R, m, ...]; `()` without one.
    """

    epoch: int
    x: jax.Array
    observations: PyTree


def sweep(
    estimator: Estimator,
    data: Data,
    runs: Sequence[Run],
    *,
    inner_steps: int,
    num_epochs: int,
    first_epoch: int = 0,
    max_delay: int | None = None,
    observe: Observe | None = None,
) -> Iterator[SweepResult]:
    """Runs R simulations side by side, with one compilation and one call for all of them.

    Every run gives what `training.run` with `simulate.driver` gives for it alone, up to rounding;
    but one that diverges goes on, with numbers that are not finite, for the sake of the others.

    Args:
      estimator: gives v_t.
      data: a pytree of arrays [n, ...], the same for all runs.
      runs: at least one.
      inner_steps: m.
      num_epochs: S, the epochs in all, those before `first_epoch` included.
      first_epoch: s to begin with, where x0 is what earlier epochs made.
      max_delay: Delta, as `simulate.driver` takes it.
      observe: (x [d], data) -> a pytree of arrays, looked at before every update.

    Yields:
      A SweepResult after every epoch.

    Raises:
      InputError: an argument is out of its range, the runs' samplers differ in more than their
        seeds or their x0 in dtype, a step is 0 or not finite in it, or a trace has inconsistent
        reads, delays above `max_delay`, or does not fit.

    >>> from asvrg import estimators, schedules
    >>> objective = objectives.from_loss(lambda w, z: 0.5 * (w - z) ** 2, jnp.zeros(()))
    >>> spec = sampling.sampler(4, 1, batch_size=2)
    >>> zero = np.zeros(1, np.float32)
    >>> runs = [Run(zero, spec, schedules.constant(lr)) for lr in (0.01, 0.1)]
    >>> args = estimators.svrg(objective), np.arange(4, dtype=np.float32), runs
    >>> *_, last = sweep(*args, inner_steps=50, num_epochs=2)
    >>> [round(x, 2) for x in last.x[:, 0].tolist()]  # the minimum is at 1.5
    [0.95, 1.5]
    """
    arguments.check(estimator, inner_steps, max_delay)
    check_count("num_epochs", num_epochs, limit=INT32)
    check_count("first_epoch", first_epoch, least=0, most=num_epochs)
    runs = list(runs)
    check_count("the number of runs", len(runs))
    spec = runs[0].sampler
    sampling.check_fits(spec, objectives.num_samples(data))
    for run in runs:
        sampling.check_dim(spec, run.x0)
        if run.x0.dtype != runs[0].x0.dtype:
            raise InputError(
                f"the runs must have x0 of one dtype, got {runs[0].x0.dtype} and {run.x0.dtype}."
            )
        if run.sampler._replace(seed=spec.seed) != spec:
            raise InputError(
                f"the runs must have samplers that differ in their seeds alone, got {spec} and "
                f"{run.sampler}."
            )
    data = jax.tree.map(jnp.asarray, data)
    x = jnp.stack([jnp.asarray(run.x0) for run in runs])
    for epoch in range(first_epoch, num_epochs):
        traces = [_trace(run, epoch, inner_steps, max_delay) for run in runs]
        rates = np.stack([check_rate(run.schedule(epoch), x.dtype) for run in runs])
        snapshots = estimator.in_epoch(_prepare(estimator, x, data), epoch)
        if snapshots.alpha is not None:
            snapshots = snapshots._replace(alpha=np.broadcast_to(snapshots.alpha, len(runs)))
        x, seen = _inner_loop(
            estimator, x, snapshots, data, runs, traces, epoch, rates, max_delay, observe
        )
        yield SweepResult(epoch + 1, x, seen)


def _trace(run: Run, epoch: int, inner_steps: int, max_delay: int | None) -> Trace:
    trace = delays.none(inner_steps) if run.trace is None else run.trace(epoch)
    delays.check(trace)
    if np.size(trace.read_version) != inner_steps or len(trace.worker) != inner_steps:
        raise InputError(
            f"a trace of a sweep must have worker and read_version [{inner_steps}], got shapes "
            f"{np.shape(trace.worker)} and {np.shape(trace.read_version)} in epoch {epoch}."
        )
    delays.check_longest(trace, max_delay)
    return trace


@functools.partial(jax.jit, static_argnames="estimator")
def _prepare(estimator: Estimator, x: jax.Array, data: Data) -> Snapshot:
    return jax.vmap(lambda each: estimator.prepare(each, data, map))(x)


def _inner_loop(
    estimator: Estimator,
    x: jax.Array,
    snapshots: Snapshot,
    data: Data,
    runs: Sequence[Run],
    traces: Sequence[Trace],
    epoch: int,
    rates: np.ndarray,
    max_delay: int | None,
    observe: Observe | None,
) -> tuple[jax.Array, PyTree]:
    copies = any(trace.sees_own for trace in traces)
    scaled = any(trace.scale is not None for trace in traces)
    sharded = any(trace.shards is not None for trace in traces)
    plans = [_alike(read_order.plan(trace), copies, scaled) for trace in traces]
    count = len(plans[0].update)
    rows = max(read_order.depth(trace, max_delay) for trace in traces)
    width = runs[0].sampler.block_size
    state = jax.vmap(
        lambda each: read_order.begin(
            estimator, each, width, rows, count, data, copies=copies, observe=observe
        )
    )(x)
    length = sampling.segment_length(runs[0].sampler, count, len(runs))
    pieces = zip(
        *(
            read_order.segments(
                plan, trace.worker, sampling.streams(run.sampler, epoch, trace), length
            )
            for plan, trace, run in zip(plans, traces, runs, strict=True)
        ),
        strict=True,
    )
    for piece in pieces:
        *_, size, until = piece[0]
        stacked = [(_weighted(draws, sharded), part) for draws, part, _, _ in piece]
        draws, part = jax.tree.map(lambda *each: np.stack(each), *stacked)
        state = _turns(
            estimator, state, snapshots, data, draws, part, size, until, rates, observe=observe
        )
    return state.x[:, : x.shape[1]], state.observations


def _alike(plan: read_order.Plan, copies: bool, scaled: bool) -> read_order.Plan:
    """The same plan, with the fields that those of other runs have."""
    every = np.ones(len(plan.update))
    return plan._replace(
        begins=every.astype(bool) if copies and plan.begins is None else plan.begins,
        scale=every if scaled and plan.scale is None else plan.scale,
    )


def _weighted(draws: Draws, sharded: bool) -> Draws:
    """The same draws, with weights if those of other runs have them."""
    if sharded and draws.weight is None:
        return draws._replace(weight=np.ones(len(draws.batch)))
    return draws


@functools.partial(jax.jit, static_argnames=("estimator", "observe"))
def _turns(
    estimator: Estimator,
    state: read_order.State,
    snapshots: Snapshot,
    data: Data,
    draws: PyTree,
    part: read_order.Plan,
    count: Array,
    until: Array,
    rates: Array,
    *,
    observe: Observe | None,
) -> read_order.State:
    def one(
        state: read_order.State,
        snapshot: Snapshot,
        draws: PyTree,
        part: read_order.Plan,
        lr: jax.Array,
    ) -> read_order.State:
        return read_order.turns(
            estimator,
            state,
            snapshot,
            data,
            draws,
            part,
            count,
            until,
            lr,
            observe=observe,
            axis="runs",
        )

    return jax.vmap(one, axis_name="runs")(state, snapshots, draws, part, rates)
