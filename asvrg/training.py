"""The outer loop over epochs s, the same for every driver."""

from __future__ import annotations

import time
from collections.abc import Iterator

import jax
import numpy as np

from asvrg.errors import DivergedError, check_count
from asvrg.schedules import Schedule, check_rate
from asvrg.types import Array, Driver, EpochResult


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
    driver: Driver, state: EpochResult, *, schedule: Schedule, num_epochs: int
) -> Iterator[EpochResult]:
    """Algorithm 1, or 2 and 3, from a state until `num_epochs` epochs are done.

    A generator: what the caller does between two epochs (evaluation, records) is not timed. One run
    can go on from the state that another one left, with another driver: SGD_SVRG is a few epochs of
    SGD, then SVRG.

    Args:
      driver: owns x during an epoch.
      state: from `start`, or an EpochResult of an earlier run.
      schedule: epoch s -> eta.
      num_epochs: S, the epochs in all, those of `state` included.

    Yields:
      An EpochResult after every epoch.

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
    check_count("num_epochs", num_epochs, least=state.epoch)
    if state.epoch < num_epochs:
        driver.warm_up(state.x)
    while state.epoch < num_epochs:
        lr = schedule(state.epoch)
        check_rate(lr, np.asarray(state.x).dtype)
        begin = time.perf_counter()
        snapshot = driver.prepare(state.x)
        x, trace = driver.inner_loop(state.x, snapshot, state.epoch, lr)
        jax.block_until_ready(x)
        seconds = time.perf_counter() - begin
        if not np.all(np.isfinite(x)):
            raise diverged("x", state.epoch + 1, lr)
        state = EpochResult(
            epoch=state.epoch + 1,
            x=x,
            seconds=state.seconds + seconds,
            updates=state.updates + driver.inner_steps,
            grad_evals=state.grad_evals + driver.grad_evals,
            trace=trace,
        )
        yield state


def diverged(what: str, epoch: int, lr: float) -> DivergedError:
    """The error for a quantity that is no finite number after an epoch.

    Args:
      what: the quantity, x or the loss.
      epoch: epochs done.
      lr: the step of the last one.

    Returns:
      A DivergedError with a sentence that suggests the cause.

    >>> print(diverged("the training loss", 3, 10.0))
    the training loss is not a finite number after epoch 3 with step 10; ...
    """
    return DivergedError(
        f"{what} is not a finite number after epoch {epoch} with step {lr:g}; the step (--lr) is "
        "probably too large for this problem, or the data hold numbers that are not finite."
    )
