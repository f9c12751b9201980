"""Consistent reads, simulated in the order in which the workers read x.

An update's delta depends on nothing but the x that its worker read. So it is computed as soon as
that x is there, and kept until it is its turn to land: then x_hat_t needs no reconstruction, and an
iteration costs the same for every delay.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asvrg import delays, sampling, steps
from asvrg.drivers.simulate.parts import Part, first_true, restored
from asvrg.errors import InputError
from asvrg.estimators import Estimator
from asvrg.sampling import Sampler, Stream
from asvrg.types import Array, Data, Delta, Draws, Halfway, Observe, PyTree, Snapshot, Trace

_NOWHERE = np.iinfo(np.int32).max  # a row that no array has


class Plan(NamedTuple):
    """Which update each turn computes, and which ones land before it.

    Attributes:
      update: int32 [m], the number t of the update that turn i computes.
      version: int32 [m], the updates that have landed by then: x_hat_t is x_version.
      begins: bool [m], whether the worker reads x in this turn, rather than going on with its own
        copy of x; None if a worker never sees its own updates before it reads x again.
      scale: float64 [m], by which the update is multiplied when it lands; None means 1.
    """

    update: np.ndarray
    version: np.ndarray
    begins: np.ndarray | None
    scale: np.ndarray | None


class State(NamedTuple):
    """The simulation between two turns.

    Attributes:
      x: float [d], after the updates that have landed; with the estimator's padding behind.
      landed: int32, how many have.
      kept: the deltas that have not, update t in row t modulo their number: values [D, B] or
        [D, d].
      own: like x, the copy of the worker of the turn before; `()` without such copies.
      last: the delta of the turn before, as its worker saw it; `()` without copies.
      observations: a pytree of arrays [m, ...]; `()` without an observer.
    """

    x: Array
    landed: Array
    kept: Delta
    own: Array
    last: Any
    observations: PyTree


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
      trace: of m updates, read_version [m, 1].
      lr: eta, a scalar of x's dtype.
      max_delay: the largest delay of all traces, where that is known.
      observe: the observer.
      length: turns in a part.
      before: where the epoch paused after one of these parts; None for its start.

    Yields:
      A Part after as many turns as `length` says, and after the last one.

    Raises:
      InputError: a worker that sees its own updates read x while one of them had not landed.
    """
    whole = plan(trace)
    count = len(whole.update)
    state = begin(
        estimator,
        x,
        sampler.block_size,
        depth(trace, max_delay),
        count,
        data,
        copies=trace.sees_own,
        observe=observe,
    )
    done = 0
    if before is not None:
        done, state = _taken_up(estimator, state, before)
    pieces = segments(whole, trace.worker, streams, length, first=done)
    for draws, part, size, until in pieces:
        # Fewer turns of the same piece need no compilation: who looks for a culprit makes them.
        make = functools.partial(
            turns, estimator, state, snapshot, data, draws, part, lr=lr, observe=observe
        )
        state = make(count=size, until=until)
        done += int(size)
        yield Part(
            x=state.x[: x.size],
            landed=int(state.landed),
            memory=(np.int32(done), *jax.tree.leaves((state.kept, state.own, state.last))),
            observations=state.observations,
            is_finite=_is_finite(state),
            culprit=functools.partial(_culprit, make, part, int(size)),
        )


def _culprit(make: Callable[..., State], part: Plan, size: int) -> int | None:
    """The update of the first turn of a piece that makes something that is not finite."""

    def goes_wrong(count: int) -> bool:
        return not _is_finite(make(count=np.int32(count), until=np.int32(0)))

    number = first_true(goes_wrong, size)
    return None if number is None else int(part.update[number - 1])


def _taken_up(estimator: Estimator, state: State, before: Halfway) -> tuple[int, State]:
    """The turns that were made before a pause, and the state then."""
    like = (np.int32(0), state.kept, state.own, state.last)
    done, kept, own, last = restored(before.memory, like)
    x = steps.padded(estimator, before.x, kept.block)
    landed = jnp.int32(len(before.trace.worker))
    return int(done), state._replace(x=x, landed=landed, kept=kept, own=own, last=last)


def _is_finite(state: State) -> bool:
    return bool(np.all(np.isfinite(state.x)) and np.all(np.isfinite(state.kept.values)))


def segments(
    whole: Plan, worker: np.ndarray, streams: dict[int, Stream], length: int, first: int = 0
) -> Iterator[tuple[Draws, Plan, np.int32, np.int32]]:
    """A plan in pieces, each with the draws of its updates.

    Args:
      whole: of m turns.
      worker: int [m], who computed each update, in the order they landed.
      streams: of every worker that occurs; they advance.
      length: turns in a piece.
      first: the turn that the first piece begins with.

    Yields:
      The arguments draws, part, count and until of `turns`; the first two are padded to a power of
      two, so that epochs of about the same length share a compilation.
    """
    room = 1 << (length - 1).bit_length()

    def padded(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([rows, np.zeros((room - len(rows), *rows.shape[1:]), rows.dtype)])

    start = first
    for draws in sampling.in_turns(streams, worker, whole.update, length, first):
        size = len(draws.batch)
        part = jax.tree.map(lambda each: padded(each[start : start + size]), whole)  # noqa: B023
        draws = jax.tree.map(padded, draws)
        start += size
        until = start if start == len(whole.update) else 0
        yield draws, part, np.int32(size), np.int32(until)


def plan(trace: Trace) -> Plan:
    """Sorts the updates of a trace by the version of x that they read.

    Args:
      trace: of m updates, read_version [m] or [m, 1].

    Returns:
      A Plan.

    Raises:
      InputError: a worker that sees its own updates read x while one of them had not landed.

    >>> plan(delays.round_robin(4, 2)).update.tolist()
    [0, 1, 2, 3]
    >>> plan(Trace(np.array([0, 1, 2]), np.array([0, 0, 0]))).version.tolist()
    [0, 0, 0]
    """
    worker = np.asarray(trace.worker)
    version = np.asarray(trace.read_version).reshape(len(worker))
    if not trace.sees_own:
        order = np.argsort(version, kind="stable")
        begins = None
    else:
        order = np.lexsort((worker, version))
        of, at = worker[order], version[order]
        begins = np.ones(len(order), bool)
        begins[1:] = (of[1:] != of[:-1]) | (at[1:] != at[:-1])
        _check_own_landed(worker, version)
    scale = None if trace.scale is None else np.asarray(trace.scale, np.float64)[order]
    return Plan(order.astype(np.int32), version[order].astype(np.int32), begins, scale)


def _check_own_landed(worker: np.ndarray, version: np.ndarray) -> None:
    order = np.argsort(worker, kind="stable")  # every worker's updates in their order
    before, after = order[:-1], order[1:]
    same = worker[before] == worker[after]
    reads = same & (version[before] != version[after])
    wrong = np.flatnonzero(reads & (version[after] <= before))
    if wrong.size:
        t = int(after[wrong[0]])
        raise InputError(
            "trace.read_version of a worker that sees its own updates must be that of its update "
            f"before, or lie above the number of that update, got {int(version[t])} for update "
            f"{t} of worker {int(worker[t])}."
        )


def depth(trace: Trace, most: int | None = None) -> int:
    """Rows for the deltas that have not landed: a power of two, so that traces share compilations.

    Args:
      trace: of m updates.
      most: the largest lag of all traces, where that is known; the trace's is taken if larger.

    Returns:
      D, above t - read_version[t] for every update t.
    """
    return 1 << int(max(delays.lag(trace).max(initial=0), most or 0)).bit_length()


def begin(
    estimator: Estimator,
    x: Array,
    width: int | None,
    rows: int,
    inner_steps: int,
    data: Data,
    *,
    copies: bool,
    observe: Observe | None,
) -> State:
    """The state before the first turn.

    Args:
      estimator: gives v_t.
      x: float [d].
      width: B; None if every update is of all of x.
      rows: D, from `depth`.
      inner_steps: m.
      data: a pytree of arrays [n, ...], for the observer.
      copies: whether the workers have copies of x that see their own updates.
      observe: the observer.

    Returns:
      A State.
    """
    x = jnp.asarray(x)

    def room(*shape: int) -> Delta:
        block = None if width is None else jnp.zeros((*shape, width), jnp.int32)
        return Delta(block, jnp.zeros((*shape, x.size if width is None else width), x.dtype))

    kept, last = room(rows), room() if copies else ()
    observations: PyTree = ()
    if observe is not None:
        entry = jax.eval_shape(observe, x, data)
        observations = jax.tree.map(
            lambda leaf: jnp.zeros((inner_steps, *leaf.shape), leaf.dtype), entry
        )
    x = steps.padded(estimator, x, kept.block)
    return State(x, jnp.int32(0), kept, x if copies else (), last, observations)


@functools.partial(jax.jit, static_argnames=("estimator", "observe", "axis"))
def turns(
    estimator: Estimator,
    state: State,
    snapshot: Snapshot,
    data: Data,
    draws: Draws,
    part: Plan,
    count: Array,
    until: Array,
    lr: Array,
    *,
    observe: Observe | None = None,
    axis: str | None = None,
) -> State:
    """Some turns of a plan, each of which computes one delta at the x that its worker read.

    Args:
      estimator: gives v_t.
      state: before them.
      snapshot: of this epoch.
      data: a pytree of arrays [n, ...].
      draws: of these turns' updates, with leading axis r.
      part: r turns of the plan.
      count: how many of the r turns to make, so that the number needs no compilation of its own.
      until: how many updates shall have landed in the end: m after the last turn, else 0.
      lr: eta, a scalar of x's dtype.
      observe: (x_t, data) -> a pytree of arrays, called before update t lands.
      axis: of `jax.vmap`, over the runs that are simulated side by side; None for one run.

    Returns:
      The State after them.
    """
    rows = len(state.kept.values)
    dim = state.x.size if draws.block is None else state.x.size - estimator.padding

    def land(t: jax.Array, live: jax.Array | None, state: State) -> State:
        """Update t lands, unless it does so in other runs alone."""
        seen = state.observations
        if observe is not None:
            row = t if live is None else jnp.where(live, t, _NOWHERE)
            seen = jax.tree.map(
                lambda all_, entry: all_.at[row].set(entry, mode="drop"),
                seen,
                observe(state.x[:dim], data),
            )
        delta = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, t % rows, keepdims=False), state.kept
        )
        if live is not None:
            nothing = jnp.asarray(-0.0, state.x.dtype)
            delta = delta._replace(values=jnp.where(live, delta.values, nothing))
        landed = t + 1 if live is None else jnp.where(live, t + 1, state.landed)
        return state._replace(x=steps.apply(state.x, delta), landed=landed, observations=seen)

    def land_until(stop: Array, state: State) -> State:
        # In a loop of its own the compiler cannot make one multiply-add of -eta v + x, which would
        # round once where the other drivers round twice. All of the state goes through the loop:
        # what it only read, the deltas that are kept, would be copied in every turn.
        if axis is None:
            return jax.lax.fori_loop(
                state.landed, stop, lambda t, state: land(t, None, state), state
            )
        # As many rounds in every run: if each had its own number, all that the loop changes would
        # be selected from, observations included, in every round.
        begin = state.landed
        return jax.lax.fori_loop(
            0,
            jax.lax.pmax(stop - begin, axis),
            lambda i, state: land(begin + i, begin + i < stop, state),
            state,
        )

    def turn(i: jax.Array, state: State) -> State:
        draw, now = jax.tree.map(lambda leaf: leaf[i], (draws, part))
        state = land_until(now.version, state)
        x_hat, own, last = state.x, state.own, state.last
        if now.begins is not None:
            x_hat = own = jnp.where(now.begins, state.x, steps.apply(own, last))
        delta = steps.step(estimator, x_hat, snapshot, data, draw, lr)
        if now.begins is not None:
            last = delta
        if now.scale is not None:
            delta = steps.scaled(delta, now.scale)
        # landed is version here, which the compiler does not know: it would write the block before
        # the loop that reads the others, and copy them all for that.
        row = (state.landed + (now.update - now.version)) % rows
        kept = jax.tree.map(
            lambda all_, new: jax.lax.dynamic_update_index_in_dim(all_, new, row, 0),
            state.kept,
            delta,
        )
        return state._replace(kept=kept, own=own, last=last)

    draws, part = jax.tree.map(jnp.asarray, (draws, part))
    return land_until(until, jax.lax.fori_loop(0, count, turn, state))
