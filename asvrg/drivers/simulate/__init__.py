"""Simulated asynchrony: exact Equation (6) for any J(t), in one jitted loop.

`read_order` is for consistent reads, and costs the same for every delay; `ring` is for inconsistent
ones, and for these alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asvrg import delays, objectives, sampling
from asvrg.drivers import arguments, pausing
from asvrg.drivers.simulate import read_order, ring
from asvrg.drivers.simulate.parts import Part
from asvrg.drivers.simulate.sweep import Run, SweepResult, sweep
from asvrg.errors import INT32, InputError, check_count, check_function, check_kind, diverged
from asvrg.estimators import Estimator
from asvrg.sampling import Sampler
from asvrg.types import Array, Data, Driver, Halfway, Observe, Pause, Snapshot, Trace

__all__ = ["Run", "SweepResult", "driver", "replay", "sweep"]

PART = 1_024  # updates from one point where an epoch may pause to the next, at most


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
      max_delay: Delta, at least the largest delay of all traces, so that one compilation, in
        `warm_up`, serves them all (where workers see their own updates, the largest
        `delays.lag`); None takes it from each trace, and may compile again in an epoch whose
        delays are longer than those of the first.

    Returns:
      A Driver.

    Raises:
      InputError: `inner_steps` or `max_delay` is out of its range, or the sampler is of other
        samples; in the driver's functions, a trace or an x that does not fit.
      DivergedError: in the inner loop, an update was not finite.

    >>> from asvrg import estimators, schedules, training
    >>> objective = objectives.from_loss(lambda w, z: 0.5 * (w - z) ** 2, jnp.zeros(()))
    >>> simulated = driver(
    ...     estimators.svrg(objective),
    ...     np.arange(4, dtype=np.float32),
    ...     sampling.sampler(4, 1, batch_size=2),
    ...     inner_steps=50,
    ...     trace=lambda epoch: delays.round_robin(50, 4),
    ... )
    >>> state, schedule = training.start(np.zeros(1, np.float32)), schedules.constant(0.1)
    >>> *_, last = training.run(simulated, state, schedule=schedule, num_epochs=2)
    >>> last.x.round(2), int(delays.staleness(last.trace).max())  # the minimum is at 1.5
    (Array([1.5], dtype=float32), 3)

    Source: Huo and Huang (2016), Algorithm 1 with Equation (6), and Algorithms 2 and 3 as the
    server sees them.
    """
    arguments.check(estimator, inner_steps, max_delay)
    if trace is not None:
        check_function("trace", trace)
    n = sampling.check_fits(sampler, objectives.num_samples(data))
    device_data = jax.tree.map(jnp.asarray, data)

    def prepare(x: Array) -> Snapshot:
        return estimator.prepare(x, device_data, map)

    def trace_of(epoch: int) -> Trace:
        check_count("epoch", epoch, least=0, limit=INT32)
        record = delays.none(inner_steps) if trace is None else trace(epoch)
        check_kind("what trace returns", record, Trace)
        if len(record.worker) != inner_steps:
            raise InputError(
                f"trace must hold inner_steps = {inner_steps} updates an epoch, got "
                f"{len(record.worker)} in epoch {epoch}."
            )
        return record

    def parts_of(
        reached: Array | Halfway, snapshot: Snapshot, record: Trace, epoch: int, lr: float
    ) -> Iterator[Part]:
        before = reached if isinstance(reached, Halfway) else None
        return _parts(
            estimator,
            reached if before is None else before.x,
            snapshot,
            device_data,
            sampler,
            record,
            groups=groups,
            epoch=epoch,
            lr=lr,
            max_delay=max_delay,
            observe=None,
            length=PART,
            before=before,
        )

    def advance(
        reached: Array | Halfway, snapshot: Snapshot, epoch: int, lr: float, pause: Pause | None
    ) -> Halfway:
        record = trace_of(epoch)
        for part in parts_of(reached, snapshot, record, epoch, lr):
            if not part.is_finite:
                update = part.culprit()
                raise diverged("x" if update is None else "v", epoch + 1, lr, update)
            if part.landed < inner_steps and pause is not None and pause():
                return Halfway(part.x, delays.prefix(record, part.landed), part.memory)
        return Halfway(part.x, record)

    def warm_up(x: Array) -> None:
        for part in parts_of(x, prepare(x), trace_of(0), 0, 0.0):
            jax.block_until_ready(part.x)

    evals = estimator.grad_evals(n, sampler.batch_size, inner_steps)
    return Driver(prepare, pausing.inner_loop(advance), warm_up, inner_steps, evals, advance)


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
    observe: Observe | None = None,
) -> Any:
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
      observe: (x [d], data) -> a pytree of arrays, looked at before every update. A pure function
        that is not made anew for every call, as each one is compiled.

    Returns:
      x after the updates, float [d]; with an observer, x and what it returned for x_0, ..., x_{m-1}
      with leading axis m.

    Raises:
      InputError: the trace is malformed, has a delay above `max_delay`, or its groups of
        coordinates do not fit `groups`; or x is not the sampler's [d].

    >>> from asvrg import estimators
    >>> objective = objectives.from_loss(lambda w, z: 0.5 * (w - z) ** 2, jnp.zeros(()))
    >>> data, spec = np.full(4, 8.0, np.float32), sampling.sampler(4, 1, batch_size=2)
    >>> x, trace = np.zeros(1, np.float32), delays.constant(3, 1)
    >>> replay(estimators.sgd(objective), x, Snapshot(), data, spec, trace, epoch=0, lr=0.5)
    Array([10.], dtype=float32)

    Source: Huo and Huang (2016), Equations (4), (6) and (15).
    """
    *_, last = _parts(
        estimator,
        x,
        snapshot,
        data,
        sampler,
        trace,
        groups=groups,
        epoch=epoch,
        lr=lr,
        max_delay=max_delay,
        observe=observe,
        length=sampling.SEGMENT,
        before=None,
    )
    return last.x if observe is None else (last.x, last.observations)


def _parts(
    estimator: Estimator,
    x: Array,
    snapshot: Snapshot,
    data: Data,
    sampler: Sampler,
    trace: Trace,
    *,
    epoch: int,
    lr: float,
    groups: Array | None,
    max_delay: int | None,
    observe: Observe | None,
    length: int,
    before: Halfway | None,
) -> Iterator[Part]:
    """An epoch in parts of `length` updates at most, from `before` on; else as `replay`."""
    delays.check(trace)
    sampling.check_dim(sampler, x)
    delays.check_longest(trace, max_delay)
    snapshot = estimator.in_epoch(snapshot, epoch)
    x, m = jnp.asarray(x), len(trace.worker)
    version = np.asarray(trace.read_version)
    num_groups = version.shape[1] if version.ndim == 2 else 1
    trace = trace._replace(
        worker=np.asarray(trace.worker), read_version=version.reshape(m, num_groups)
    )
    core: Any = read_order.parts
    if num_groups > 1:
        _check_groups(groups, x.size, num_groups)
        if trace.sees_own and trace.scale is not None:
            raise InputError(
                "trace must have one group of coordinates where workers see their own updates and "
                f"steps are scaled, got {num_groups}: what a worker saw unscaled is not kept."
            )
        core = functools.partial(ring.parts, groups=groups)
    if m == 0:
        entry = () if observe is None else jax.eval_shape(observe, x, data)
        seen = jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape), leaf.dtype), entry)
        return iter([Part(x, 0, (), seen, True, lambda: None)])
    parts: Iterator[Part] = core(
        estimator,
        x,
        snapshot,
        data,
        sampler,
        sampling.streams(sampler, epoch, trace),
        trace,
        np.asarray(lr, x.dtype),
        max_delay=max_delay,
        observe=observe,
        length=min(length, sampling.segment_length(sampler, m)),
        before=before,
    )
    return parts


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
