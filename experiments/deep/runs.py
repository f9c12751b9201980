"""Runs of SGD, SVRG and alpha-SVRG through optax, as rows of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asvrg import objectives, sampling, transforms
from asvrg.types import Array, Data, Objective

SCHEDULES = ("cosine", "constant")
CHUNK_SIZE = 1_000  # samples at once of a full gradient


class Method(NamedTuple):
    """A way to spend a budget.

    Attributes:
      name: in the tables.
      alpha: the coefficient at the beginning; None for SGD, which takes no snapshots.
      decays: whether alpha falls to 0, linearly over the run.
      batch_size: b.
      num_epochs: of m updates each; a snapshot is taken at the beginning of each.
    """

    name: str
    alpha: float | None
    decays: bool
    batch_size: int
    num_epochs: int


class Row(NamedTuple):
    """A line of curves.csv: the state after an epoch, and what the updates of that epoch measured.

    `grad_evals` counts component gradients, those of the snapshots among them, and not those of
    the evaluation. Errors lie in [0, 1]. Of the epoch's updates together: the variance (summed over
    all coordinates) of g and of v, the one alpha with which that of v would have been smallest, and
    how small; nan before training, and the last two where there is no snapshot.
    """

    method: str
    lr: float
    seed: int
    epoch: int
    updates: int
    grad_evals: int
    train_loss: float
    train_error: float
    test_loss: float
    test_error: float
    grad_norm_sq: float
    variance_g: float
    variance_v: float
    best_alpha: float
    best_variance: float


class Measured(NamedTuple):
    """What each update of an epoch measured; float32 [m].

    Attributes:
      variance_g: 1/2 ||g_t - g_{t-1}||^2, an estimate of the variance of g.
      variance_v: the same of v.
      variance_s: ||g_s - mu||^2, of the mini-batch's gradient at the snapshot.
      covariance: <g - mu, g_s - mu>.
    """

    variance_g: Array
    variance_v: Array
    variance_s: Array
    covariance: Array


class Setting(NamedTuple):
    """What all runs have in common.

    Attributes:
      objective: f.
      train: inputs and labels of the n training samples.
      test: the same for the test samples.
      make_x0: seed -> x^0 [d].
      inner_steps: m.
      schedule: of the step, one of SCHEDULES.
    """

    objective: Objective
    train: Data
    test: Data
    make_x0: Callable[[int], Array]
    inner_steps: int
    schedule: str


class Job(NamedTuple):
    """One run: a method with a step and a seed, evaluated every so many epochs."""

    method: Method
    lr: float
    seed: int
    every: int


def grad_evals(method: Method, num_samples: int, inner_steps: int) -> int:
    """Component gradients that an epoch computes: n + 2 b m with snapshots, b m without.

    >>> sgd = Method("sgd", None, False, batch_size=10, num_epochs=3)
    >>> grad_evals(sgd, 1_000, 100), grad_evals(sgd._replace(alpha=1.0), 1_000, 100)
    (1000, 3000)
    """
    drawn = method.batch_size * inner_steps
    return drawn if method.alpha is None else num_samples + 2 * drawn


def of_equal_budgets(
    num_samples: int, inner_steps: int, batch_size: int, num_epochs: int, alphas: Sequence[float]
) -> list[Method]:
    """SGD, SVRG and alpha-SVRG with as many updates each, and SGD with as many gradients as they.

    There are two ways for SGD to spend what a snapshot and the second gradient of every update
    cost: on larger mini-batches or on more epochs. Both are met as nearly as whole numbers go.

    Args:
      num_samples: n.
      inner_steps: m.
      batch_size: b.
      num_epochs: of all but the SGD with more epochs.
      alphas: the coefficients at the beginning of alpha-SVRG.

    Returns:
      The methods: sgd, sgd_batch, sgd_epochs, svrg, and alpha_svrg_A for each of the alphas.

    >>> for method in of_equal_budgets(1_000, 100, 10, 5, [0.5]):
    ...     print(method.name, method.num_epochs * grad_evals(method, 1_000, 100))
    sgd 5000
    sgd_batch 15000
    sgd_epochs 15000
    svrg 15000
    alpha_svrg_0.5 15000
    """
    sgd = Method("sgd", None, False, batch_size, num_epochs)
    svrg = Method("svrg", 1.0, False, batch_size, num_epochs)
    times = grad_evals(svrg, num_samples, inner_steps) / grad_evals(sgd, num_samples, inner_steps)
    return [
        sgd,
        sgd._replace(name="sgd_batch", batch_size=round(times * batch_size)),
        sgd._replace(name="sgd_epochs", num_epochs=round(times * num_epochs)),
        svrg,
        *(svrg._replace(name=f"alpha_svrg_{a:g}", alpha=a, decays=True) for a in alphas),
    ]


def optimiser(
    method: Method, lr: Array | float, inner_steps: int, schedule: str
) -> optax.GradientTransformationExtraArgs:
    """A chain that measures g, corrects it, measures v, and makes a step of it."""
    total = method.num_epochs * inner_steps
    shape = optax.cosine_decay_schedule(1.0, total) if schedule == "cosine" else lambda t: 1.0
    step = optax.scale_by_learning_rate(lambda t: lr * shape(t.astype(jnp.result_type(lr))))
    # decay=0: of the last two updates alone, so that averages are over an epoch's updates.
    if method.alpha is None:
        return optax.chain(transforms.measure_variance(decay=0.0), step)
    alpha = optax.linear_schedule(method.alpha, 0.0, total) if method.decays else method.alpha
    return optax.chain(
        transforms.measure_variance(decay=0.0),
        transforms.svrg(every=inner_steps, alpha=alpha),
        transforms.measure_variance(decay=0.0),
        step,
    )


Epoch = Callable[[Array, Any, Array, Data, Array], tuple[Array, Any, Measured]]


def make_epoch(setting: Setting, method: Method) -> Epoch:
    """An epoch as one compiled loop: (x, optimiser's state, lr, data, batches [m, b]) -> the same.

    The step is an argument, so that one program serves a search for it. There is no vmap over
    seeds: it would take a full gradient in every update, as it has both branches of a condition
    computed.

    Args:
      setting: of the run.
      method: of the run.

    Returns:
      A function to (x, state, what was measured).
    """

    def batch_grad(x: Array, batch: Data) -> Array:
        return setting.objective.grad(x, batch, None)

    @jax.jit
    def epoch(
        x: Array, state: Any, lr: Array, data: Data, batches: Array
    ) -> tuple[Array, Any, Measured]:
        chain = optimiser(method, lr, setting.inner_steps, setting.schedule)

        def update(carry: tuple[Array, Any], rows: Array) -> tuple[tuple[Array, Any], Measured]:
            x, state = carry
            batch = objectives.take(data, rows)
            updates, state = chain.update(
                batch_grad(x, batch),
                state,
                x,
                grad_fn=lambda at: batch_grad(at, batch),
                full_grad_fn=lambda at: transforms.over_arrays(
                    batch_grad, at, data, chunk_size=CHUNK_SIZE
                ),
            )
            state, measured = _read(state)
            return (optax.apply_updates(x, updates), state), measured

        (x, state), measured = jax.lax.scan(update, (x, state), batches)
        return x, state, measured

    return epoch


def run(
    setting: Setting,
    method: Method,
    epoch: Epoch,
    lr: float,
    seed: int,
    *,
    every: int = 1,
    tick: Callable[[int], None] = lambda count: None,
) -> list[Row]:
    """Trains, and evaluates before training, after every so many epochs, and in the end.

    Two methods with the same b see the same mini-batches, drawn with replacement.

    Args:
      setting: of the run.
      method: of the run.
      epoch: from `make_epoch`.
      lr: the step, at its largest if it decays.
      seed: of x^0 and of the draws.
      every: epochs from one evaluation to the next.
      tick: called after every epoch, with the component gradients that it computed.

    Returns:
      Rows, with entries that are not finite where x left the finite numbers.
    """
    x = jnp.asarray(setting.make_x0(seed))
    n, m = objectives.num_samples(setting.train), setting.inner_steps
    state = optimiser(method, lr, m, setting.schedule).init(x)
    spec = sampling.sampler(n, x.size, batch_size=method.batch_size, seed=seed)
    rows = [_row(setting, method, lr, seed, 0, x, None)]
    for done in range(1, method.num_epochs + 1):
        batches = sampling.Stream(spec, epoch=done - 1, worker=0).take(m).batch
        x, state, measured = epoch(x, state, jnp.asarray(lr, x.dtype), setting.train, batches)
        if done % every == 0 or done == method.num_epochs:
            rows.append(_row(setting, method, lr, seed, done, x, measured))
        tick(grad_evals(method, n, m))
    return rows


def _read(state: Any) -> tuple[Any, Measured]:
    """What the last update measured, and the state with the telemetry's averages begun anew."""
    variance_g = state[0].variance
    if len(state) == 2:
        nothing = jnp.full_like(variance_g, jnp.nan)
        return state, Measured(variance_g, variance_g, nothing, nothing)
    before, corrected, after, step = state
    told = corrected.telemetry
    anew = corrected._replace(telemetry=jax.tree.map(jnp.zeros_like, told))
    return (before, anew, after, step), Measured(
        variance_g, after.variance, told.variance, told.covariance
    )


def _row(
    setting: Setting,
    method: Method,
    lr: float,
    seed: int,
    epoch: int,
    x: Array,
    measured: Measured | None,
) -> Row:
    train = objectives.evaluate(setting.objective, x, setting.train, with_grad=True)
    test = objectives.evaluate(setting.objective, x, setting.test)
    per_epoch = grad_evals(method, objectives.num_samples(setting.train), setting.inner_steps)
    return Row(
        method.name,
        lr,
        seed,
        epoch,
        epoch * setting.inner_steps,
        epoch * per_epoch,
        train.loss,
        train.error,
        test.loss,
        test.error,
        train.grad_norm_sq,
        *_variances(measured),
    )


def _variances(measured: Measured | None) -> tuple[float, float, float, float]:
    """The last four entries of a Row."""
    if measured is None:
        return (math.nan,) * 4
    g, v, s, covariance = (float(np.mean(np.asarray(each, np.float64))) for each in measured)
    if not s > 0:
        return g, v, math.nan, math.nan
    return g, v, covariance / s, g - covariance**2 / s
