"""The few records that cross the layers of asvrg."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

# A jax.Array in jitted code, a numpy.ndarray where a driver owns it; a type checker cannot tell.
Array = Any
PyTree = Any
# A data set, or some samples of it: a pytree of arrays that share their leading axis (the samples).
Data = Any


# (x [d], data) -> a pytree of arrays: what is looked at in every x of a simulation.
Observe = Callable[[Array, Data], PyTree]


class Objective(NamedTuple):
    """f(x) = (1/n) sum_i f_i(x) over x in R^d, Equation (1), as pure functions that can be jitted.

    `x` is float [d]; in calls of `grad` and `grad_difference` with a block it may have `padding`
    zeros behind. `batch` holds b samples: a pytree of arrays with leading axis b. `block` is int32
    [B], distinct coordinates of x, or None for all of them; where a function takes one, it returns
    those B entries of a gradient only, and may compute no more than it needs for them.

    Attributes:
      dim: d, the number of coordinates.
      unravel: x [d] -> the parameters as the pytree that the user knows.
      loss: (x, batch) -> scalar, the mean of f_i(x) over the batch.
      grad: (x, batch, block) -> [d] or [B], the mean of grad f_i(x) over the batch.
      grad_and_cache: (x, batch) -> ([d] mean gradient, cache). The cache is a pytree of arrays
        with leading axis b: whatever about each sample at x spares work in `grad_difference`
        later; an empty tuple if there is nothing to keep.
      grad_difference: (x_hat, x_tilde, cache, batch, block, alpha) -> [d] or [B], the mean over the
        batch of grad f_i(x_hat) - alpha grad f_i(x_tilde), where `cache` holds the batch's rows of
        the cache that `grad_and_cache` made at x_tilde, and alpha is a scalar of x's dtype.
      per_sample_grads: (x, batch) -> [b, d], the grad f_i(x) of every sample.
      error: (x, batch) -> scalar in [0, 1], the share of samples that are classified wrongly; None
        where that has no meaning.
      padding: how many zeros behind x spare compiled loops a copy of parameters in every iteration
        (see `steps.padded`).
    """

    dim: int
    unravel: Callable[[Array], PyTree]
    loss: Callable[[Array, Data], jax.Array]
    grad: Callable[[Array, Data, Array | None], jax.Array]
    grad_and_cache: Callable[[Array, Data], tuple[jax.Array, PyTree]]
    grad_difference: Callable[[Array, Array, PyTree, Data, Array | None, Array], jax.Array]
    per_sample_grads: Callable[[Array, Data], jax.Array]
    error: Callable[[Array, Data], jax.Array] | None = None
    padding: int = 0


class Snapshot(NamedTuple):
    """What the estimator remembers of x_tilde for one epoch; every array is `()` for SGD.

    Attributes:
      params: x_tilde, float [d].
      full_grad: grad f(x_tilde), float [d].
      cache: per-sample quantities at x_tilde (see `Objective.grad_and_cache`), leading axis n.
      alpha: the coefficient of the correction, a scalar; None if it is 1, so that compiled code is
        without it. See `Estimator.in_epoch`.
    """

    params: Array = ()
    full_grad: Array = ()
    cache: PyTree = ()
    alpha: Array | None = None


class Draws(NamedTuple):
    """The random choices of one iteration, or of many with a leading axis.

    Attributes:
      batch: I_t, int32 [..., b], indices of samples, drawn with replacement.
      block: k_t, int32 [..., B], distinct coordinates of x in rising order; None means all d.
      weight: float [...], by which the gradients of the batch are multiplied (see `Shard`); None
        means 1.
    """

    batch: Array
    block: Array | None
    weight: Array | None = None


class Delta(NamedTuple):
    """What one iteration adds to x, and where.

    Attributes:
      block: int32 [..., B], the coordinates; None means all d.
      values: float [..., B] or [..., d], what is added there: -eta v.
    """

    block: Array | None
    values: Array


class Shard(NamedTuple):
    """The samples that a worker of the distributed algorithm draws from.

    Attributes:
      samples: int32 [n_k], their indices.
      weight: n_k K / n. A worker of K that are equally likely to make the next update then gives an
        unbiased v, also where shards differ in size.
    """

    samples: np.ndarray
    weight: float


class Times(NamedTuple):
    """When the updates of an epoch happened, in seconds since its inner loop began.

    Attributes:
      read: float64 [m], when the worker began to read x, or the server sent it.
      computed: float64 [m], when the update was ready to land, or had arrived at the server.
      landed: float64 [m], when it had landed.
    """

    read: np.ndarray
    computed: np.ndarray
    landed: np.ndarray


class Trace(NamedTuple):
    """Who computed which update of an epoch, from which x; the updates in the order they landed.

    Update t was computed by worker `worker[t]` with the next draw of this worker's own stream, at
    an x that the worker read when `read_version[t]` updates had landed. So J(t) of Equation (6),
    the landed updates that x_hat_t lacks, is {read_version[t], ..., t - 1}, without the worker's
    own updates if it applies those to its copy of x (`sees_own`).

    Attributes:
      worker: int32 [m]; a worker that took over samples of a dead one counts as another from then
        on, with a stream of its own: number k + K, k + 2 K, ... for worker k of K.
      read_version: int32 [m]; or [m, G] where G groups of coordinates were read at different
        times (an inconsistent read).
      sees_own: whether a worker sees the updates that it made since it read x.
      shards: the Shard of each of these numbers; None if all of them draw from all samples.
      scale: float64 [m], by which the step of each update was multiplied when it landed (a worker
        that sees its own updates saw them unscaled); None means 1.
      times: when the updates happened; None if nobody looked at a clock.
    """

    worker: np.ndarray
    read_version: np.ndarray
    sees_own: bool = False
    shards: tuple[Shard, ...] | None = None
    scale: np.ndarray | None = None
    times: Times | None = None


class Halfway(NamedTuple):
    """An inner loop that paused: nothing is in the making, and it can go on from here.

    Attributes:
      x: x_t, float [d].
      trace: of the t updates that have landed.
      memory: arrays that the driver needs besides; `()` if it needs none.
    """

    x: Array
    trace: Trace
    memory: tuple[Array, ...] = ()


# Whether an inner loop shall pause; asked often, by any of its threads.
Pause = Callable[[], bool]


class Driver(NamedTuple):
    """Something that owns x during an epoch: the simulator, the threads, an MPI server.

    Attributes:
      prepare: x [d] -> Snapshot, the pass over all samples at the start of an epoch.
      inner_loop: (x [d], snapshot, epoch s, lr) -> (x [d] after m updates, Trace).
      warm_up: x [d] -> None; compiles and loads whatever an epoch needs, outside of the clock.
      inner_steps: m, the updates of an epoch, those of all workers together.
      grad_evals: component gradients that an epoch computes, as the theory counts them.
      advance: (x [d] or a Halfway, snapshot, epoch s, lr, pause) -> Halfway, the inner loop from
        where it is until `pause` returns True or its trace has m updates, without one until then;
        None for a driver that cannot pause.
    """

    prepare: Callable[[Array], Snapshot]
    inner_loop: Callable[[Array, Snapshot, int, float], tuple[Array, Trace]]
    warm_up: Callable[[Array], None]
    inner_steps: int
    grad_evals: int
    advance: Callable[[Array | Halfway, Snapshot, int, float, Pause | None], Halfway] | None = None


class Inside(NamedTuple):
    """Where a run is inside of the epoch that follows its last whole one.

    Attributes:
      halfway: of the inner loop.
      full_grad: grad f(x_tilde), float [d], where x_tilde is the x of the last epoch; `()` for SGD.
      seconds: of this epoch so far.
    """

    halfway: Halfway
    full_grad: Array
    seconds: float


class EpochResult(NamedTuple):
    """The state of a run after an epoch; counts and seconds are sums since the run began.

    Attributes:
      epoch: epochs done; 0 before training.
      x: x^s, float [d].
      seconds: wall-clock time of optimisation alone: no compilation, no evaluation.
      updates: updates applied to x.
      grad_evals: component gradients computed (calls of an incremental first-order oracle).
      trace: the Trace of this epoch; None before the first one.
      inside: what has been done of the next epoch; None between two epochs. All other fields are
        without it.
    """

    epoch: int
    x: Array
    seconds: float
    updates: int
    grad_evals: int
    trace: Trace | None
    inside: Inside | None = None
