"""Inconsistent reads, simulated in the order in which updates land: Equation (6) as it stands.

The last Delta deltas are kept, and those that x_hat_t lacks are taken back, which costs Delta B
additions an iteration.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from asvrg import delays, sampling, steps
from asvrg.drivers.simulate.parts import Part, restored
from asvrg.estimators import Estimator
from asvrg.sampling import Sampler, Stream
from asvrg.types import Array, Data, Delta, Draws, Halfway, Observe, PyTree, Snapshot, Trace


def parts(
    estimator: Estimator,
    x: jax.Array,
    snapshot: Snapshot,
    data: Data,
    sampler: Sampler,
    streams: dict[int, Stream],
    trace: Trace,
    lr: np.ndarray,
    *,
    groups: Array,
    max_delay: int | None,
    observe: Observe | None,
    length: int,
    before: Halfway | None,
) -> Iterator[Part]:
    """What the updates of a trace make of x; see `simulate.replay`.

    Args:
      estimator: gives v_t.
      x: float [d], at the start of the epoch; with `before` any array like it.
      snapshot: of this epoch.
      data: a pytree of arrays [n, ...].
      sampler: of the draws.
      streams: of every worker that occurs, at their beginning.
      trace: of m updates, read_version [m, G].
      lr: eta, a scalar of x's dtype.
      groups: int [d], the group of each coordinate.
      max_delay: the largest delay of all traces, where that is known.
      observe: the observer.
      length: updates in a part, at most.
      before: where the epoch paused after one of these parts; None for its start.

    Yields:
      A Part after as many updates, and after the last one.
    """
    longest = int(delays.staleness(trace).max(initial=0)) if max_delay is None else max_delay
    # A power of two, so that traces of about the same delay share a compilation.
    depth = 1 << max(longest - 1, 0).bit_length()
    ring = empty_ring(sampler.block_size, x.size, depth, x.dtype)
    length = max(1, min(length, sampling.SEGMENT_ENTRIES // (depth * trace.read_version.shape[1])))
    first = 0
    if before is not None:
        x, first = jnp.asarray(before.x), len(before.trace.worker)
        ring = restored(before.memory, ring)
        for start in range(0, first, length):
            sampling.in_order(streams, trace.worker[start : min(start + length, first)])
    seen = None
    for start in range(first, len(trace.worker), length):
        stop = min(start + length, len(trace.worker))
        rows = slice(start, stop)
        draws = sampling.in_order(streams, trace.worker[rows])
        lacking = delays.missing(trace, start, stop, depth)
        scale = None if trace.scale is None else trace.scale[rows]
        make = functools.partial(
            delayed_steps, estimator, snapshot=snapshot, data=data, groups=groups, lr=lr
        )
        culprit = functools.partial(_culprit, make, x, ring, start, (draws, lacking, scale))
        x, ring, more = make(
            x=x, ring=ring, draws=draws, missing=lacking, scale=scale, observe=observe
        )
        seen = more if seen is None else jax.tree.map(_joined, seen, more)
        yield Part(
            x=x,
            landed=stop,
            memory=tuple(jax.tree.leaves(ring)),
            observations=seen,
            is_finite=bool(np.all(np.isfinite(x))),
            culprit=culprit,
        )


def _joined(before: jax.Array, after: jax.Array) -> jax.Array:
    return jnp.concatenate([before, after])


def _culprit(
    make: Callable[..., tuple[jax.Array, Delta, PyTree]],
    x: jax.Array,
    ring: Delta,
    start: int,
    inputs: tuple[Draws, np.ndarray, np.ndarray | None],
) -> int | None:
    """The first update of a part that is not finite; they are made again, one by one."""
    for i in range(len(inputs[0].batch)):
        draws, lacking, scale = jax.tree.map(lambda leaf: leaf[i : i + 1], inputs)  # noqa: B023
        x, ring, _ = make(x=x, ring=ring, draws=draws, missing=lacking, scale=scale)
        if not np.all(np.isfinite(ring.values[0])):
            return start + i
    return None


def empty_ring(width: int | None, dim: int, depth: int, dtype: np.dtype) -> Delta:
    """Room for the last deltas, at first zeros, for `delayed_steps`.

    Args:
      width: B; None if every update is of all of x.
      dim: d.
      depth: the number of deltas, Delta.
      dtype: of x.

    Returns:
      Delta: block int32 [depth, B] or None, values [depth, B] or [depth, d].
    """
    block = None if width is None else jnp.zeros((depth, width), jnp.int32)
    return Delta(block, jnp.zeros((depth, width or dim), dtype))


@functools.partial(jax.jit, static_argnames=("estimator", "observe"))
def delayed_steps(
    estimator: Estimator,
    x: Array,
    ring: Delta,
    snapshot: Snapshot,
    data: Data,
    draws: Draws,
    missing: Array,
    groups: Array,
    scale: Array | None,
    lr: Array,
    *,
    observe: Observe | None = None,
) -> tuple[jax.Array, Delta, PyTree]:
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
      groups: int [d], the group of each coordinate.
      scale: float64 [r], by which the updates are multiplied when they land; None means 1.
      lr: eta, a scalar of x's dtype.
      observe: (x_t, data) -> a pytree of arrays.

    Returns:
      x after the iterations, [d], the ring for the next ones, and what the observer returned.
    """

    def read(x: jax.Array, ring: Delta, lacking: jax.Array) -> jax.Array:
        coordinates = jnp.arange(x.shape[0])[None] if ring.block is None else ring.block
        lacks = lacking[jnp.arange(lacking.shape[0])[:, None], groups[coordinates]]
        taken_back = jnp.where(lacks, ring.values, jnp.zeros_like(ring.values))
        if ring.block is None:
            return x - jnp.sum(taken_back, axis=0)
        return x.at[ring.block.ravel()].add(-taken_back.ravel(), mode="promise_in_bounds")

    def push(kept: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.concatenate([new[None].astype(kept.dtype), kept[:-1]])

    def iterate(
        carry: tuple[jax.Array, Delta], inputs: tuple[Draws, jax.Array, jax.Array | None]
    ) -> tuple[tuple[jax.Array, Delta], PyTree]:
        x, ring = carry
        draw, lacking, scale = inputs
        seen = () if observe is None else observe(x[:dim], data)
        delta = steps.step(estimator, read(x, ring, lacking), snapshot, data, draw, lr)
        if scale is not None:
            delta = steps.scaled(delta, scale)
        return (steps.apply(x, delta), jax.tree.map(push, ring, delta)), seen

    groups, dim = jnp.asarray(groups), x.size
    x = steps.padded(estimator, x, draws.block)
    (x, ring), seen = jax.lax.scan(iterate, (x, ring), (draws, missing, scale))
    return x[:dim], ring, seen
