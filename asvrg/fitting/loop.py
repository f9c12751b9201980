"""The loop of `asvrg.fit`: one epoch after the other, each with a step that is checked."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from asvrg import delays, estimators, objectives, training
from asvrg.errors import DivergedError, InputError
from asvrg.estimators import Estimator, Variances
from asvrg.fitting import automatic, inputs
from asvrg.fitting.automatic import Step
from asvrg.fitting.inputs import Inputs
from asvrg.fitting.kept import Keeper, Position
from asvrg.objectives import Metrics
from asvrg.sampling import Sampler
from asvrg.types import Array, Data, Driver, EpochResult, PyTree, Trace

UNKNOWN = Variances(math.nan, math.nan, math.nan)
# Together they divide the step by a million.
MAX_HALVINGS = 20


class MakeDriver(Protocol):
    """What `asvrg.fit` takes as `driver`: `asvrg.simulate.driver`, say."""

    def __call__(
        self, estimator: Estimator, data: Data, sampler: Sampler, /, *, inner_steps: int
    ) -> Driver:
        """Makes a Driver for the epochs of one estimator."""


class Settings(NamedTuple):
    """What a run is made with, given or chosen.

    Attributes:
      num_samples: n.
      dim: d, the entries of params.
      batch_size: b.
      block_size: B; None if every update moves all of x.
      inner_steps: m.
      num_workers: K, the threads; 1 with the serial driver; None with a driver of the user's own.
      read_period: a thread's updates from one read of x to the next; None without threads.
      pretrain_epochs: those of SGD before SVRG begins.
    """

    num_samples: int
    dim: int
    batch_size: int
    block_size: int | None
    inner_steps: int
    num_workers: int | None
    read_period: int | None
    pretrain_epochs: int


class History(NamedTuple):
    """The numbers of all epochs that were kept, [epochs + 1] each, the first before training.

    epochs is `num_epochs`, or fewer if the run ended early. What the numbers are, and which of them
    are sums over the epochs so far, see `FitEpoch`.

    Attributes:
      epoch: int64 [epochs + 1], 0, 1, 2, ...
      loss: float64 [epochs + 1], f.
      error: float64 [epochs + 1], share of samples that are classified wrongly; nan without it.
      grad_norm_sq: float64 [epochs + 1], ||grad f||^2.
      lr: float64 [epochs + 1], eta.
      smoothness: float64 [epochs + 1], the estimate behind eta, not of L alone; nan if lr was
        given.
      halvings: int64 [epochs + 1], how often the epoch was done again with half the step.
      seconds: float64 [epochs + 1], a sum, of optimisation alone, thrown-away epochs included.
      updates: int64 [epochs + 1], a sum, of what was kept.
      grad_evals: int64 [epochs + 1], a sum, with thrown-away epochs and estimates.
      mean_delay: float64 [epochs + 1], of the epoch, in updates.
      max_delay: int64 [epochs + 1], of the epoch, in updates.
      variance_g: float64 [epochs + 1], of the mini-batch gradient; nan unless it was measured.
      variance_v: float64 [epochs + 1], of v.
      best_alpha: float64 [epochs + 1], with which that of v would have been smallest.
    """

    epoch: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    grad_norm_sq: np.ndarray
    lr: np.ndarray
    smoothness: np.ndarray
    halvings: np.ndarray
    seconds: np.ndarray
    updates: np.ndarray
    grad_evals: np.ndarray
    mean_delay: np.ndarray
    max_delay: np.ndarray
    variance_g: np.ndarray
    variance_v: np.ndarray
    best_alpha: np.ndarray


class FitEpoch(NamedTuple):
    """A run after an epoch; counts and seconds are sums over the epochs so far.

    What was thrown away has been computed all the same, and is in `seconds` and `grad_evals`.

    Attributes:
      epoch: epochs done; 0 before training.
      params: the parameters, in the structure and dtype that they were given in, as jax arrays.
      loss: f, over all samples.
      error: share of samples that `error` calls wrong, in [0, 1]; nan without it.
      grad_norm_sq: ||grad f||^2.
      lr: the step of this epoch; of epoch 0, that of the first. It is nan if there was none to
        choose, as the start met the tolerance.
      smoothness: the estimate that an automatic step comes from, of (1 - 1/b) L + L_max / b + tau
        L; nan if lr was given, or the Hessian is not finite.
      halvings: how often this epoch was thrown away and done again with half the step.
      seconds: wall-clock time of optimisation alone, with the estimates of the smoothness after the
        first: no compilation, no evaluation.
      updates: updates of x, of the epochs that were kept.
      grad_evals: component gradients computed, as the theory counts them; with an automatic step
        those of epochs that were thrown away are among them, and two for every product of the
        estimates with the Hessian of one f_i. So it begins with the first estimate.
      mean_delay: of the updates of this epoch, in updates; 0 in epoch 0.
      max_delay: the largest of them.
      variance_g: E ||g - grad f||^2 of the mini-batch gradient g, where this epoch ended; nan in
        epoch 0, and unless `measure_variance` is set.
      variance_v: the same of v, with the snapshot and the alpha of this epoch.
      best_alpha: with which that of v would have been smallest.
      trace: who computed which update from which x in this epoch; None in epoch 0, and if an
        earlier run did this epoch.
      history: the numbers of all epochs so far, this one included.
      settings: what the run is made with; the same in all epochs.
    """

    epoch: int
    params: PyTree
    loss: float
    error: float
    grad_norm_sq: float
    lr: float
    smoothness: float
    halvings: int
    seconds: float
    updates: int
    grad_evals: int
    mean_delay: float
    max_delay: int
    variance_g: float
    variance_v: float
    best_alpha: float
    trace: Trace | None
    history: History
    settings: Settings


class Phase(NamedTuple):
    """A part of a run with one estimator; it lasts until `num_epochs` epochs are done in all.

    `alphas` are the coefficients of the variance reduction in all epochs of the run, 0 for SGD.
    """

    estimator: Estimator
    alphas: Sequence[float]
    num_epochs: int


class Plan(NamedTuple):
    """A run that is ready to start."""

    inputs: Inputs
    settings: Settings
    phases: list[Phase]
    make_driver: MakeDriver
    sampler: Sampler
    lrs: Sequence[float] | None
    tolerance: float | None
    chunk_size: int
    measure_variance: bool
    keeper: Keeper | None = None


def run(plan: Plan) -> Iterator[FitEpoch]:
    """Algorithm 1 with the phases, steps and checks of a plan.

    Args:
      plan: what to run.

    Yields:
      A FitEpoch before training, then one after every epoch.

    Raises:
      InputError: the loss or its gradient are not finite at the start, an automatic step cannot be
        chosen, or the user's function makes no Driver.
      DivergedError: as `asvrg.fit`.
      DriverError: a worker of the driver failed.

    Source: Huo and Huang (2016), Algorithm 1.
    """
    position = None if plan.keeper is None else plan.keeper.position
    if position is None:
        position = _first(plan)
        _take(plan, position)
    yield _epoch(plan, position, None)
    try:
        for phase in plan.phases:
            if position.state.epoch >= phase.num_epochs or _is_done(plan, position.metrics):
                continue
            driver = _warm_driver(plan, phase, position.state.x)
            while position.state.epoch < phase.num_epochs and not _is_done(plan, position.metrics):
                position, trace = _next(plan, phase, driver, position)
                yield _epoch(plan, position, trace)
    finally:
        if plan.keeper is not None:
            # What stopped the run is told, not that the disk is full now too.
            with (
                contextlib.nullcontext()
                if sys.exception() is None
                else contextlib.suppress(OSError)
            ):
                plan.keeper.save()


def _first(plan: Plan) -> Position:
    """Before training."""
    state = training.start(plan.inputs.x0)
    metrics = _evaluate(plan, state.x)
    inputs.check_finite(metrics, plan.inputs.data)
    step = Step(math.nan)
    if plan.lrs is not None or not _is_done(plan, metrics):
        state, step = _next_step(plan, state, metrics, None, None)
        state = state._replace(seconds=0.0)  # most of it was compilation
    return Position(state, metrics, metrics, step, 0, [_row(state, metrics, step, 0, UNKNOWN)])


def _next(
    plan: Plan, phase: Phase, driver: Driver, position: Position
) -> tuple[Position, Trace | None]:
    """After one more epoch, which is done again with half the step as long as it goes wrong."""
    state, step, halvings = position.state, position.step, position.halvings
    if state.inside is None:
        halvings = 0
        if state.epoch:
            delay = position.rows[-1][History._fields.index("mean_delay")]
            state, step = _next_step(plan, state, position.metrics, step, delay)
    while True:
        here = position._replace(state=state, step=step, halvings=halvings)
        reached, metrics = _one_epoch(plan, driver, here)
        state = state._replace(inside=None)
        if _is_good(plan, phase, (position.start, position.metrics, metrics), (state, reached)):
            break
        if plan.lrs is not None or halvings == MAX_HALVINGS:
            raise _diverged(plan, state.epoch + 1, step.lr)
        state = state._replace(seconds=reached.seconds, grad_evals=reached.grad_evals)
        step, halvings = step.half(), halvings + 1
    variances = _variances(plan, phase, state, reached)
    row = _row(reached, metrics, step, halvings, variances)
    position = Position(
        reached._replace(trace=None),
        position.start,
        metrics,
        step,
        halvings,
        [*position.rows, row],
    )
    _take(plan, position)
    return position, reached.trace


def _take(plan: Plan, position: Position) -> None:
    if plan.keeper is not None:
        plan.keeper.take(position)


def _is_done(plan: Plan, metrics: Metrics) -> bool:
    return plan.tolerance is not None and metrics.grad_norm_sq <= plan.tolerance


def _warm_driver(plan: Plan, phase: Phase, x: Array) -> Driver:
    """The driver of a phase, which has nothing left to compile."""
    driver = plan.make_driver(
        phase.estimator, plan.inputs.data, plan.sampler, inner_steps=plan.settings.inner_steps
    )
    if not isinstance(driver, Driver):
        raise InputError(
            "driver must be a function that returns an asvrg.types.Driver, got one that "
            f"returns {type(driver).__name__}."
        )
    driver.warm_up(x)
    return driver._replace(warm_up=_nothing)


def _next_step(
    plan: Plan, state: EpochResult, metrics: Metrics, last: Step | None, delay: float | None
) -> tuple[EpochResult, Step]:
    """The step of the epoch that begins, and the state with what it has cost.

    `delay` is the mean one of the last epoch, None before the first.
    """
    if plan.lrs is not None:
        return state, Step(plan.lrs[state.epoch])
    if last is not None and not automatic.is_due(state.epoch, last):
        return state, last
    begin = time.perf_counter()
    curvature = automatic.estimate(
        plan.inputs.objective,
        state.x,
        plan.inputs.data,
        seed=plan.sampler.seed,
        chunk_size=plan.chunk_size,
    )
    if delay is None:
        delay = ((plan.settings.num_workers or 1) - 1) * (plan.settings.read_period or 0)
    smoothness = automatic.felt(curvature, plan.settings.batch_size, float(delay))
    step = automatic.next_step(last, smoothness, metrics, plan.settings.inner_steps)
    state = state._replace(
        seconds=state.seconds + time.perf_counter() - begin,
        grad_evals=state.grad_evals + curvature.grad_evals,
    )
    return state, step


def _one_epoch(plan: Plan, driver: Driver, here: Position) -> tuple[EpochResult, Metrics]:
    """The state after one more epoch; if it diverges, a loss of nan, and nothing but its costs."""
    state, seconds = here.state, 0.0 if here.state.inside is None else here.state.inside.seconds
    begin = time.perf_counter()
    results = training.run(
        driver,
        state,
        schedule=lambda epoch: here.step.lr,
        num_epochs=state.epoch + 1,
        pause=None if plan.keeper is None else plan.keeper.is_due,
    )
    try:
        for reached in results:
            if reached.inside is None:
                break
            seconds = reached.inside.seconds
            _take(plan, here._replace(state=reached))
            begin = time.perf_counter()
    except DivergedError:
        seconds += state.seconds + time.perf_counter() - begin
        lost = state._replace(seconds=seconds, grad_evals=state.grad_evals + driver.grad_evals)
        return lost, Metrics(math.nan, math.nan, math.nan)
    return reached, _evaluate(plan, reached.x)


def _nothing(x: Array) -> None:
    """Instead of a warm-up, once the driver is warm."""


def _is_good(
    plan: Plan,
    phase: Phase,
    metrics: tuple[Metrics, Metrics, Metrics],
    states: tuple[EpochResult, EpochResult],
) -> bool:
    """Whether to keep an epoch, from the metrics at the start, before and after it, and its states.

    With a given step any finite loss will do.
    """
    start, before, after = metrics
    old, new = states
    if plan.lrs is not None or not math.isfinite(after.loss):
        return math.isfinite(after.loss)
    if math.isnan(after.grad_norm_sq):
        return False
    noisy = phase.alphas[old.epoch] != 1
    if not automatic.is_worse(start.loss, before.loss, after.loss, noisy=noisy):
        return True
    return not automatic.has_moved(old.x, new.x, plan.settings.inner_steps)


def _diverged(plan: Plan, epoch: int, lr: float) -> DivergedError:
    if plan.lrs is not None:
        return DivergedError(
            f"params or the loss are not finite after epoch {epoch} with lr={lr:g}; hand in a "
            "smaller lr, or none for an automatic one."
        )
    return DivergedError(
        f"the loss rises in epoch {epoch} with every step down to {lr:g}; is it a fixed, "
        "differentiable function of params and sample?"
    )


def _evaluate(plan: Plan, x: Array) -> Metrics:
    return objectives.evaluate(
        plan.inputs.objective, x, plan.inputs.data, with_grad=True, chunk_size=plan.chunk_size
    )


def _variances(plan: Plan, phase: Phase, before: EpochResult, after: EpochResult) -> Variances:
    """At the end of an epoch, whose snapshot was taken where it began."""
    if not plan.measure_variance:
        return UNKNOWN
    return estimators.variances(
        plan.inputs.objective,
        after.x,
        before.x,
        plan.inputs.data,
        batch_size=plan.settings.batch_size,
        alpha=phase.alphas[before.epoch],
        chunk_size=plan.chunk_size,
    )


def _row(
    state: EpochResult, metrics: Metrics, step: Step, halvings: int, variances: Variances
) -> list[float]:
    """The numbers of an epoch, in the order of History."""
    tau = np.zeros(1, int) if state.trace is None else delays.staleness(state.trace)
    return [
        state.epoch,
        metrics.loss,
        metrics.error,
        metrics.grad_norm_sq,
        step.lr,
        step.smoothness,
        halvings,
        state.seconds,
        state.updates,
        state.grad_evals,
        float(tau.mean()),
        int(tau.max()),
        *variances,
    ]


def _epoch(plan: Plan, position: Position, trace: Trace | None) -> FitEpoch:
    """What the caller gets to see."""
    return FitEpoch(
        **dict(zip(History._fields, position.rows[-1], strict=True)),  # type: ignore[arg-type]
        params=plan.inputs.unravel(jnp.asarray(position.state.x)),
        trace=trace,
        history=History(*map(np.array, zip(*position.rows, strict=True))),
        settings=plan.settings,
    )
