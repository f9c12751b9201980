"""The outer loop over epochs s, the same for every driver."""

from __future__ import annotations

import time
from collections.abc import Iterator

import jax
import numpy as np

from asvrg.errors import INT32, check_count, check_function, check_kind, diverged
from asvrg.schedules import Schedule, check_rate
from asvrg.types import Array, Driver, EpochResult, Halfway, Inside, Pause, Snapshot


def start(x0: Array) -> EpochResult:
    """The state before training.

    Args:
      x0: x^0, float [d].

    Returns:
      An EpochResult of epoch 0 with nothing done.

    >>> start(np.zeros(3)).updates
    0
    """
    return EpochResult(epoch=0, x=x0, seconds=0.0, updates=0, grad_evals=0, trace=None)


def run(
    driver: Driver,
    state: EpochResult,
    *,
    schedule: Schedule,
    num_epochs: int,
    pause: Pause | None = None,
) -> Iterator[EpochResult]:
    """Algorithm 1, or 2 and 3, from a state until `num_epochs` epochs are done.

    A generator: what the caller does between two epochs (evaluation, records) is not timed. One run
    can go on from the state that another one left, with another driver: SGD_SVRG is a few epochs of
    SGD, then SVRG. One that goes on inside of an epoch makes the snapshot anew, from the same
    x_tilde, with the gradient that was kept (over MPI the workers take the one that they make).

    Args:
      driver: owns x during an epoch.
      state: from `start`, or an EpochResult of an earlier run.
      schedule: epoch s -> eta.
      num_epochs: S, the epochs in all, those of `state` included.
      pause: asked now and then inside of an epoch whether to yield the state there, to be kept; of
        drivers that can pause. None for never.

    Yields:
      An EpochResult after every epoch, and where `pause` returned True one whose `inside` says how
      far the next epoch is.

    Raises:
      InputError: `num_epochs` is no whole number of at least the epochs done already, or the step
        is 0 or infinite in the dtype of x.
      DivergedError: x has an entry that is no finite number.
      DriverError: a worker of the driver failed.

    >>> from asvrg import schedules
    >>> from asvrg.types import Snapshot
    >>> shrink = Driver(
    ...     prepare=lambda x: Snapshot(),
    ...     inner_loop=lambda x, snapshot, epoch, lr: (lr * x, None),
    ...     warm_up=lambda x: None,
    ...     inner_steps=1,
    ...     grad_evals=1,
    ... )
    >>> results = run(shrink, start(np.ones(1)), schedule=schedules.constant(0.5), num_epochs=3)
    >>> [result.x.item() for result in results]
    [0.5, 0.25, 0.125]

    Source: Huo and Huang (2016), the outer loops of Algorithms 1, 2 and 3.
    """
    check_kind("state", state, EpochResult)
    check_count("num_epochs", num_epochs, least=state.epoch, limit=INT32)
    check_kind("driver", driver, Driver)
    check_function("schedule", schedule)
    if state.epoch < num_epochs:
        driver.warm_up(state.x)
    while state.epoch < num_epochs:
        lr = schedule(state.epoch)
        check_rate(lr, np.asarray(state.x).dtype)
        begin = time.perf_counter()
        snapshot = driver.prepare(state.x)
        seconds = time.perf_counter() - begin
        inside = None if driver.advance is None else state.inside
        if inside is not None:
            # It may round otherwise on another machine. Its time is among that of the epoch so far.
            snapshot, seconds = snapshot._replace(full_grad=inside.full_grad), inside.seconds
        for halfway, is_whole, more in _parts(driver, state, inside, snapshot, lr, pause):
            seconds += more
            if not np.all(np.isfinite(halfway.x)):
                raise diverged("x", state.epoch + 1, lr)
            if not is_whole:
                yield state._replace(inside=Inside(halfway, snapshot.full_grad, seconds))
        state = EpochResult(
            epoch=state.epoch + 1,
            x=halfway.x,
            seconds=state.seconds + seconds,
            updates=state.updates + driver.inner_steps,
            grad_evals=state.grad_evals + driver.grad_evals,
            trace=halfway.trace,
        )
        yield state


def _parts(
    driver: Driver,
    state: EpochResult,
    inside: Inside | None,
    snapshot: Snapshot,
    lr: float,
    pause: Pause | None,
) -> Iterator[tuple[Halfway, bool, float]]:
    """An inner loop from pause to pause: what is reached, whether that is its end, and seconds."""
    reached: Array | Halfway = state.x if inside is None else inside.halfway
    is_whole = False
    while not is_whole:
        begin = time.perf_counter()
        if driver.advance is None or (pause is None and inside is None):
            reached = Halfway(*driver.inner_loop(state.x, snapshot, state.epoch, lr))
            is_whole = True
        else:
            reached = driver.advance(reached, snapshot, state.epoch, lr, pause)
            is_whole = len(reached.trace.worker) == driver.inner_steps
        jax.block_until_ready(reached.x)
        yield reached, is_whole, time.perf_counter() - begin
