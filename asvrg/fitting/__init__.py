"""One call: `fit` trains any loss on any data, `fit_epochs` does so epoch by epoch.

What is not given is chosen: the mini-batch, the inner length, and the step, from an estimate of the
smoothness. A step that was chosen is checked against the loss after every epoch: an epoch that went
wrong is thrown away and done again with half the step. A step that was given is never changed.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from asvrg import objectives
from asvrg.errors import InputError
from asvrg.fitting.epochs import DRIVERS, METHODS, fit_epochs
from asvrg.fitting.inputs import SampleFn
from asvrg.fitting.records import FitEpoch, History, MakeDriver, Settings
from asvrg.schedules import Schedule
from asvrg.types import Data, Objective, PyTree, Trace

__all__ = [
    "DRIVERS",
    "METHODS",
    "FitEpoch",
    "FitResult",
    "History",
    "MakeDriver",
    "Settings",
    "fit",
    "fit_epochs",
]


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
      params: the parameters after the last epoch, in the structure and dtype that they were given
        in, as jax arrays.
      history: the numbers of every epoch.
      trace: of the last epoch; None if there was none, or it was done by an earlier call.
      lr: the step of the last epoch; nan if `tolerance` was met before one was chosen.
      smoothness: the estimate that it comes from, (1 - 1/b) L + L_max / b + tau L, which is L
        itself only where all f_i are alike and nothing is late; nan if lr was given.
      settings: what the run was made with, given or chosen.
    """

    params: PyTree
    history: History
    trace: Trace | None
    lr: float
    smoothness: float
    settings: Settings


def fit(
    loss: SampleFn | Objective,
    params: PyTree,
    data: Data,
    *,
    method: str = "svrg",
    driver: str | MakeDriver = "serial",
    num_epochs: int = 20,
    batch_size: int | None = None,
    block_size: int | None = None,
    inner_steps: int | None = None,
    lr: float | Schedule | None = None,
    alpha: float | Schedule = 1.0,
    pretrain_epochs: int | None = None,
    num_workers: int | None = None,
    read_period: int | None = None,
    error: SampleFn | None = None,
    seed: int = 0,
    callback: Callable[[FitEpoch], bool | np.bool_ | None] | None = None,
    tolerance: float | None = None,
    measure_variance: bool = False,
    chunk_size: int = objectives.CHUNK_SIZE,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 10.0,
) -> FitResult:
    """Minimises f(x) = (1/n) sum_i f_i(x), Equation (1), over the parameters x of any model.

    f_i is the loss of sample i. It must be a fixed function: the same numbers for the same params
    and sample, however often it is called. Dropout with a key of its own for every call, or the
    batch statistics of batch normalisation, make f_i random, and the snapshot's gradient is then
    another function's. Dropout with a fixed key, or one that is part of the sample, is fine.

    An automatic step is 1 / ((1 - 1/b) L + L_max / b + tau L), where L is the smoothness of f and
    L_max that of single f_i, both estimated from Hessian-vector products on some samples, and tau
    the mean delay. The first epoch has a sixteenth of it. It is estimated anew after 1, 2, 4, 8,
    ... epochs, and grows four-fold at most each time. An epoch after which the loss is not finite,
    or higher than before by more than 0.1 % of itself and 1 % of what had been won (20 % for SGD,
    and where alpha is not 1), is thrown away and done again with half the step; after it there is
    an estimate, too. Thrown-away epochs and estimates are part of the history's `grad_evals`.

    Args:
      loss: (params, sample) -> scalar, f_i; the sample is one slice of the data along axis 0,
        without that axis. Or an Objective, such as `asvrg.mlp.mlp` makes.
      params: where to start: a pytree of arrays, all float32 or all float64 (with jax_enable_x64).
        Leaves that are None stay so. For an Objective also x^0 itself, [d].
      data: a pytree of arrays of numbers (or of keys of `jax.random`), [n, ...] each; leave them
        as they are until the run has ended.
      method: "svrg"; "sgd"; or "sgd_svrg", some epochs of SGD and then SVRG.
      driver: "serial"; "threads", Algorithm 1 on the cores of this machine; or a function called
        as driver(estimator, data, sampler, inner_steps=m) -> Driver, for MPI, say: also
        `asvrg.simulate.driver` or `asvrg.threads.driver`, with the rest of their arguments from
        functools.partial. With threads keep XLA to one thread, as `asvrg.threads.driver` says.
      num_epochs: S, at most; those of pre-training included.
      batch_size: b, samples of an update; 10, or n if that is smaller.
      block_size: B, how many coordinates an update moves; all d.
      inner_steps: m, updates of an epoch, those of all workers together; n / b, rounded up.
      lr: eta, a number, or a function of the epoch s (see `asvrg.schedules`) that is above 0 in
        every epoch s = 0, ..., S - 1; automatic. What is given is never changed. An optax schedule
        of epochs that begins with 0 becomes lambda s: schedule(s + 1).
      alpha: coefficient of the variance reduction, a number or a function of the epoch s of the
        whole run: with "sgd_svrg" SVRG begins at s = `pretrain_epochs`; 1.
      pretrain_epochs: those of SGD with "sgd_svrg"; a quarter of `num_epochs`.
      num_workers: K, the threads with "threads"; the cores that this process may use.
      read_period: a thread's updates from one read of x to the next; 4. More of them make an
        update cheaper and staler.
      error: (params, sample) -> 0 or 1, whether a sample is classified wrongly, for the history.
      seed: of the draws, and of the samples that the smoothness is estimated from; at least 0.
        Without threads the same seed gives the same result.
      callback: called with a FitEpoch before training and after every epoch; the run ends when it
        returns True, and goes on with None or False. It is not timed.
      tolerance: the run ends when ||grad f||^2 is this or less, also before the first epoch.
      measure_variance: whether to measure after every epoch, over all samples, the variances of g
        and v, which say whether the correction pays (`asvrg.estimators.variances`). It is not
        timed, and costs four component gradients a sample that are not counted.
      chunk_size: samples at once in passes over all data; bounds their memory.
      checkpoint_dir: a folder where the run is kept, inside of epochs too, for the same call to go
        on with: one with the same params, data and arguments, and a `num_epochs` that may be
        larger. (That the loss is the same, nobody checks.) Without threads the result is that of
        one undisturbed run, to the bit. The callback's first epoch is then the last one that was
        kept. The extra [checkpoints] must be installed; None for no checkpoints.
      checkpoint_seconds: from one of them to the next; 0 for one after every epoch alone.

    Returns:
      A FitResult.

    Raises:
      InputError: an argument is not accepted, or the loss is not finite at params.
      DivergedError: with a given lr, params or the loss are no longer finite; with an automatic
        one, the loss rises however small the step.
      DriverError: a worker of the driver failed.

    >>> import jax.numpy as jnp
    >>> rng = np.random.default_rng(0)
    >>> inputs = rng.normal(size=(200, 3)).astype("float32")
    >>> targets = inputs @ np.array([1.0, -2.0, 0.5], "float32")
    >>> def loss(w, sample):
    ...     row, target = sample
    ...     return 0.5 * (row @ w - target) ** 2
    >>> result = fit(loss, jnp.zeros(3), (inputs, targets), num_epochs=12)
    >>> print(result.params.round(2))
    [ 1.  -2.   0.5]
    >>> bool(result.history.loss[-1] < 1e-6 * result.history.loss[0])
    True

    The same with a driver of its own, two threads that read x before every update:

    >>> import functools
    >>> from asvrg import threads
    >>> two = functools.partial(threads.driver, num_threads=2, read_period=1)
    >>> result = fit(loss, jnp.zeros(3), (inputs, targets), driver=two, lr=0.1, num_epochs=1)
    >>> len(result.trace.worker)
    20

    Source: Huo and Huang (2016), Algorithm 1 and Equation (5).
    """
    if callback is not None and not callable(callback):
        raise InputError(
            f"callback must be a function of a FitEpoch, got {type(callback).__name__}."
        )
    for epoch in fit_epochs(
        loss,
        params,
        data,
        method=method,
        driver=driver,
        num_epochs=num_epochs,
        batch_size=batch_size,
        block_size=block_size,
        inner_steps=inner_steps,
        lr=lr,
        alpha=alpha,
        pretrain_epochs=pretrain_epochs,
        num_workers=num_workers,
        read_period=read_period,
        error=error,
        seed=seed,
        tolerance=tolerance,
        measure_variance=measure_variance,
        chunk_size=chunk_size,
        checkpoint_dir=checkpoint_dir,
        checkpoint_seconds=checkpoint_seconds,
    ):
        if callback is not None and _is_yes(callback(epoch)):
            break
    return FitResult(
        params=epoch.params,
        history=epoch.history,
        trace=epoch.trace,
        lr=epoch.lr,
        smoothness=epoch.smoothness,
        settings=epoch.settings,
    )


def _is_yes(answer: object) -> bool:
    """What a callback returned, as a bool."""
    if answer is None or isinstance(answer, bool | np.bool_):
        return bool(answer)
    if isinstance(answer, np.ndarray | jax.Array) and answer.ndim == 0 and answer.dtype == bool:
        return bool(answer)
    raise InputError(f"callback must return True, False or None, got {reprlib.repr(answer)}.")
