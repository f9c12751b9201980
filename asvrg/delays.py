"""Delays: the Traces that the simulator can be given, and what a Trace says about staleness."""

from __future__ import annotations

import numpy as np

from asvrg.errors import INT32, InputError, check_count, check_kind
from asvrg.types import Array, Shard, Times, Trace
from asvrg.virtual_clock import event_driven as event_driven  # a maker of Traces as well


def none(num_updates: int) -> Trace:
    """Serial execution: one worker, every update sees all that landed before it.

    Args:
      num_updates: m.

    Returns:
      A Trace of m updates.

    >>> int(staleness(none(5)).max())
    0
    """
    return constant(num_updates, 0)


def constant(num_updates: int, delay: int) -> Trace:
    """Every update lacks the `delay` updates that landed last: J(t) = {t - delay, ..., t - 1}.

    Args:
      num_updates: m.
      delay: tau, at least 0, in updates.

    Returns:
      A Trace of m updates by one worker.

    Raises:
      InputError: an argument is no whole number in its range.

    >>> constant(5, 2).read_version.tolist()
    [0, 0, 0, 1, 2]

    Source: the delay of Assumption 4 in Huo and Huang (2016), met with equality.
    """
    check_count("num_updates", num_updates, limit=INT32)
    delay = min(check_count("delay", delay, least=0), num_updates)
    version = np.maximum(np.arange(num_updates) - delay, 0)
    return Trace(np.zeros(num_updates, np.int32), version.astype(np.int32))


def uniform(num_updates: int, max_delay: int, *, seed: int, num_groups: int = 1) -> Trace:
    """Every update, or every group of coordinates of it, lacks 0 to `max_delay` updates.

    Args:
      num_updates: m.
      max_delay: Delta, at least 0, in updates.
      seed: of the delays, at least 0.
      num_groups: G; with more than one, the groups of coordinates are read at different times.

    Returns:
      A Trace of m updates by one worker; `read_version` is [m], or [m, G] if G > 1.

    Raises:
      InputError: an argument is no whole number in its range.

    >>> bool(staleness(uniform(100, 7, seed=0)).max() <= 7)
    True
    """
    check_count("num_updates", num_updates, limit=INT32)
    check_count("max_delay", max_delay, least=0, limit=INT32)
    check_count("seed", seed, least=0)
    check_count("num_groups", num_groups, limit=INT32)
    rng = np.random.default_rng(seed)
    delay = rng.integers(max_delay + 1, size=(num_updates, num_groups))
    version = np.maximum(np.arange(num_updates)[:, None] - delay, 0).astype(np.int32)
    return Trace(np.zeros(num_updates, np.int32), version if num_groups > 1 else version[:, 0])


def round_robin(num_updates: int, num_workers: int) -> Trace:
    """K workers of the same speed in turn: each reads x right after its own update landed.

    Args:
      num_updates: m.
      num_workers: K.

    Returns:
      A Trace of m updates whose delay is K - 1 from update K - 1 on.

    Raises:
      InputError: an argument is no whole number of at least 1.

    >>> round_robin(5, 2).worker.tolist(), staleness(round_robin(5, 2)).tolist()
    ([0, 1, 0, 1, 0], [0, 1, 1, 1, 1])
    """
    check_count("num_workers", num_workers)
    version = constant(num_updates, num_workers - 1).read_version
    return Trace((np.arange(num_updates) % num_workers).astype(np.int32), version)


def check(trace: Trace) -> None:
    """Raises InputError unless the trace is one that a run could have left.

    Args:
      trace: worker int [m], read_version int [m] or [m, G], scale float [m] or None, times [m] each
        or None, a shard for every worker or None.

    Raises:
      InputError: the shapes do not fit, a worker is negative or has no shard, an update read a
        version that had not landed before it, or a scale is no finite number of at least 0.

    >>> check(none(3))
    """
    check_kind("trace", trace, Trace)
    worker, version = np.asarray(trace.worker), np.asarray(trace.read_version)
    shaped = worker.ndim == 1 and version.ndim in (1, 2) and len(worker) == len(version)
    if not shaped or version.shape[1:] == (0,):
        raise InputError(
            "trace must have worker [m] and read_version [m] or [m, G], got shapes "
            f"{worker.shape} and {version.shape}."
        )
    if not (_is_whole(worker) and _is_whole(version)):
        raise InputError(
            "trace.worker and trace.read_version must hold whole numbers, got dtypes "
            f"{worker.dtype} and {version.dtype}."
        )
    if np.any(worker < 0):
        raise InputError("trace.worker must hold numbers of at least 0, got a negative one.")
    landed = np.arange(len(worker)).reshape((-1,) + (1,) * (version.ndim - 1))
    if np.any(version < 0) or np.any(version > landed):
        raise InputError(
            "trace.read_version must lie between 0 and the update's own index, got "
            f"{int(version[(version < 0) | (version > landed)][0])}."
        )
    beside: dict[str, np.ndarray] = {}
    if trace.times is not None:
        times = check_kind("trace.times", trace.times, Times)._asdict()
        beside |= {f"times.{name}": np.asarray(each) for name, each in times.items()}
    if trace.scale is not None:
        beside["scale"] = np.asarray(trace.scale)
    for name, values in beside.items():
        if values.shape != worker.shape:
            raise InputError(
                f"trace.{name} must have a number for each of the {len(worker)} updates, got shape "
                f"{values.shape}."
            )
        if values.dtype.kind not in "iuf":
            raise InputError(f"trace.{name} must hold numbers, got dtype {values.dtype}.")
    scale = beside.get("scale", np.ones(0))
    if not np.all((scale >= 0) & (scale < np.inf)):
        raise InputError("trace.scale must hold finite numbers of at least 0, got another.")
    if trace.shards is None:
        return
    for shard in check_kind("trace.shards", trace.shards, tuple):
        check_kind("every entry of trace.shards", shard, Shard)
    if len(worker) and worker.max() >= len(trace.shards):
        raise InputError(
            f"trace.shards must have one for every worker, got {len(trace.shards)} and worker "
            f"{worker.max()}."
        )


def _is_whole(values: np.ndarray) -> bool:
    return bool(np.issubdtype(values.dtype, np.integer))


def lag(trace: Trace) -> np.ndarray:
    """T - read_version[t]: how many updates landed since the worker read x, its own ones included.

    The same as the staleness unless workers see their own updates.

    Args:
      trace: of m updates.

    Returns:
      int [m], in updates; over groups of coordinates the largest.

    >>> lag(Trace(np.array([0, 0]), np.array([0, 0]), sees_own=True)).tolist()
    [0, 1]
    """
    check_kind("trace", trace, Trace)
    version = np.asarray(trace.read_version)
    if version.ndim == 2:
        version = version.min(axis=1)
    return np.arange(len(version)) - version


def staleness(trace: Trace) -> np.ndarray:
    """tau_t = t - min J(t), the age of the oldest update that x_hat_t lacks; 0 if it lacks none.

    Its maximum is the smallest Delta with which Assumption 4 holds.

    Args:
      trace: of m updates.

    Returns:
      int [m], in updates; over groups of coordinates the largest.

    >>> staleness(Trace(np.array([0, 1, 0, 0]), np.array([0, 0, 1, 1]), sees_own=True)).tolist()
    [0, 1, 1, 2]

    Source: Huo and Huang (2016), Assumption 4 and Equation (6).
    """
    check_kind("trace", trace, Trace)
    version = np.asarray(trace.read_version)
    if version.ndim == 2:
        version = version.min(axis=1)
    steps = np.arange(len(version))
    oldest = version.astype(np.intp)
    if trace.sees_own and len(version):
        # Where the first update since the read is the worker's own, the oldest that it lacks
        # comes after this worker's unbroken run of updates.
        worker = np.asarray(trace.worker)
        run_ends = np.append(np.flatnonzero(worker[1:] != worker[:-1]) + 1, len(worker))
        end = run_ends[np.searchsorted(run_ends, steps, side="right")]
        first = np.minimum(oldest, len(worker) - 1)
        own = worker[first] == worker
        oldest = np.minimum(np.where(own, end[first], oldest), steps)
    return steps - oldest


def prefix(trace: Trace, count: int) -> Trace:
    """The first updates of a trace.

    Args:
      trace: of m updates.
      count: how many, from 0 to m.

    Returns:
      A Trace of `count` updates.

    Raises:
      InputError: `count` is no whole number from 0 to m.

    >>> prefix(round_robin(5, 2), 3).worker.tolist()
    [0, 1, 0]
    """
    check_kind("trace", trace, Trace)
    check_count("count", count, least=0, most=len(trace.worker))
    return trace._replace(
        worker=trace.worker[:count],
        read_version=trace.read_version[:count],
        scale=None if trace.scale is None else trace.scale[:count],
        times=None if trace.times is None else Times(*(each[:count] for each in trace.times)),
    )


def adaptive_scale(delay: Array, concurrency: int) -> Array:
    """min(1, C / tau_t): whole steps while no gradient is older than it has to be, smaller beyond.

    With C gradients in the making at any time, delays are C - 1 on average; the step of an update
    whose delay is above C shrinks in proportion.

    Args:
      delay: tau_t, int [...], in updates.
      concurrency: C, how many gradients are in the making at once, at least 1.

    Returns:
      float64 [...], by which to multiply eta.

    Raises:
      InputError: `concurrency` is no whole number of at least 1.

    Source: the delay-adaptive steps of Mishchenko, Bach, Even and Woodworth (2022), Asynchronous
    SGD beats minibatch SGD under arbitrary delays, relative to a given eta.

    >>> adaptive_scale(np.array([0, 3, 6]), 3).tolist()
    [1.0, 1.0, 0.5]
    """
    check_count("concurrency", concurrency, limit=INT32)
    if np.asarray(delay).dtype.kind not in "iuf":
        raise InputError(f"delay must be numbers, got dtype {np.asarray(delay).dtype}.")
    return concurrency / np.maximum(delay, concurrency)


def adaptive(trace: Trace, concurrency: int) -> Trace:
    """The trace with the steps of late updates scaled down by `adaptive_scale`.

    Args:
      trace: of m updates.
      concurrency: C.

    Returns:
      A Trace with `scale`.

    Raises:
      InputError: `concurrency` is no whole number of at least 1.

    >>> adaptive(constant(4, 2), 1).scale.tolist()
    [1.0, 1.0, 0.5, 0.5]

    Source: as for `adaptive_scale`.
    """
    check_kind("trace", trace, Trace)
    return trace._replace(scale=adaptive_scale(staleness(trace), concurrency))


def check_longest(trace: Trace, max_delay: int | None) -> None:
    """Raises InputError where a trace has a delay above Delta.

    Args:
      trace: of m updates.
      max_delay: Delta; None for no limit.

    Raises:
      InputError: a delay is longer.

    >>> check_longest(constant(5, 2), 2)
    """
    check_kind("trace", trace, Trace)
    if max_delay is not None:
        check_count("max_delay", max_delay, least=0)
    longest = int(staleness(trace).max(initial=0))
    if max_delay is not None and longest > max_delay:
        raise InputError(f"trace must have no delay above max_delay = {max_delay}, got {longest}.")


def missing(trace: Trace, start: int, stop: int, depth: int) -> np.ndarray:
    """J(t) of Equation (6) as a mask, for the updates from `start` to `stop`.

    Args:
      trace: of m updates.
      start: the first update, from 0.
      stop: one past the last update, at most m.
      depth: how many updates to look back, at least the largest staleness.

    Returns:
      bool [stop - start, depth, G]: entry [t - start, i, g] says whether x_hat_t lacks update
      t - 1 - i in the coordinates of group g; G is 1 for consistent reads.

    >>> missing(constant(4, 2), 3, 4, 3)[0, :, 0].tolist()
    [True, True, False]

    Source: Huo and Huang (2016), Equation (6).
    """
    steps = np.arange(start, stop)[:, None]
    update = steps - 1 - np.arange(depth)[None, :]
    version = np.asarray(trace.read_version).reshape(len(trace.read_version), -1)
    lacking = update[:, :, None] >= np.maximum(version[start:stop], 0)[:, None, :]
    if trace.sees_own:
        worker = np.asarray(trace.worker)
        lacking &= (worker[np.maximum(update, 0)] != worker[start:stop, None])[:, :, None]
    return lacking


def contiguous_groups(dim: int, num_groups: int) -> np.ndarray:
    """Splits the coordinates into G runs of nearly equal length, as a reader passes over them.

    Args:
      dim: d.
      num_groups: G, from 1 to d.

    Returns:
      int32 [d], the group of each coordinate.

    Raises:
      InputError: an argument is no whole number in its range.

    >>> contiguous_groups(5, 2).tolist()
    [0, 0, 0, 1, 1]
    """
    check_count("dim", dim, limit=INT32)
    check_count("num_groups", num_groups, most=dim)
    return (np.arange(dim) * num_groups // dim).astype(np.int32)
