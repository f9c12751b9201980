"""The loop of `asvrg.fit`: one epoch after the other, each with a step that is checked."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from asvrg import delays, estimators, objectives, training
from asvrg.errors import DivergedError, InputError
from asvrg.estimators import Estimator, Variances
from asvrg.fitting import automatic, inputs
from asvrg.fitting.automatic import Step
from asvrg.fitting.inputs import Inputs
from asvrg.fitting.kept import Keeper, Position
from asvrg.fitting.records import FitEpoch, History, MakeDriver, Settings
from asvrg.objectives import Metrics
from asvrg.sampling import Sampler
from asvrg.types import Array, Driver, EpochResult, Trace

UNKNOWN = Variances(math.nan, math.nan, math.nan)
# Together they divide the step by a million.
MAX_HALVINGS = 20


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
