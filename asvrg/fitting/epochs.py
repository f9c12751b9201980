"""The arguments of `asvrg.fit`: checked, completed by what is not given, and handed to the loop."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asvrg import estimators, objectives, sampling, schedules
from asvrg.drivers import simulate, threads
from asvrg.errors import INT32, InputError, check_choice, check_count, check_real, check_switch
from asvrg.fitting import inputs, loop
from asvrg.fitting.inputs import SampleFn
from asvrg.fitting.kept import Keeper, digest
from asvrg.fitting.loop import Phase, Plan
from asvrg.fitting.records import FitEpoch, MakeDriver, Settings
from asvrg.schedules import Schedule
from asvrg.types import Data, Objective, PyTree

METHODS = ("svrg", "sgd", "sgd_svrg")
DRIVERS = ("serial", "threads")
BATCH_SIZE = 10
READ_PERIOD = 4


def fit_epochs(
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
    tolerance: float | None = None,
    measure_variance: bool = False,
    chunk_size: int = objectives.CHUNK_SIZE,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 10.0,
) -> Iterator[FitEpoch]:
    """The epochs of `asvrg.fit` one by one, for a loop of one's own.

    The arguments are checked in the call; what takes time happens when the first epoch is asked
    for. What the loop does between two epochs is not timed, and it may stop at any of them.

    Args:
      loss: (params, sample) -> scalar, f_i; or an Objective; more on all arguments in `asvrg.fit`.
      params: where to start.
      data: a pytree of arrays [n, ...].
      method: "svrg", "sgd" or "sgd_svrg".
      driver: "serial", "threads", or a function called as driver(estimator, data, sampler,
        inner_steps=m), which makes a Driver.
      num_epochs: S, at most.
      batch_size: b.
      block_size: B.
      inner_steps: m.
      lr: eta, or a function of the epoch s, above 0 in every one; automatic.
      alpha: coefficient of the variance reduction, or a function of the epoch s.
      pretrain_epochs: those of SGD with "sgd_svrg".
      num_workers: K, the threads with "threads".
      read_period: a thread's updates from one read of x to the next.
      error: (params, sample) -> 0 or 1, for the history.
      seed: of the draws.
      tolerance: of ||grad f||^2, where the run ends.
      measure_variance: whether to measure the variances of g and v after every epoch.
      chunk_size: samples at once in passes over all data.
      checkpoint_dir: a folder where the run is kept, and gone on with.
      checkpoint_seconds: from one checkpoint to the next.

    Yields:
      A FitEpoch before training, or of the last epoch that was kept, then one after every epoch.

    Raises:
      InputError: as `asvrg.fit`.
      DivergedError: as `asvrg.fit`.
      DriverError: a worker of the driver failed.

    >>> import jax.numpy as jnp
    >>> data = jnp.arange(4.0)
    >>> for epoch in fit_epochs(lambda w, z: 0.5 * (w - z) ** 2, jnp.zeros(()), data, lr=0.5):
    ...     if epoch.grad_norm_sq < 1e-3:
    ...         break
    >>> epoch.epoch, round(epoch.loss, 3)
    (6, 0.625)
    """
    check_choice("method", method, METHODS)
    check_count("num_epochs", num_epochs, limit=INT32)
    check_count("seed", seed, least=0)
    check_count("chunk_size", chunk_size, limit=INT32)
    check_switch("measure_variance", measure_variance)
    check_real("checkpoint_seconds", checkpoint_seconds)
    if tolerance is not None:
        check_real("tolerance", tolerance, above=True)
    if callable(driver):
        _check_call(driver)
    else:
        check_choice("driver, where it is no function,", driver, DRIVERS)
    if driver != "threads":
        _refuse({"num_workers": num_workers, "read_period": read_period}, 'driver="threads"')
    if method != "sgd_svrg":
        _refuse({"pretrain_epochs": pretrain_epochs}, 'method="sgd_svrg"')
    alphas = _of_epochs("alpha", alpha, num_epochs, functools.partial(check_real, least=-np.inf))
    if method == "sgd":
        is_default = not callable(alpha) and alphas[0] == 1
        _refuse({"alpha": None if is_default else alpha}, 'method="svrg" or "sgd_svrg"')
    problem = inputs.check(loss, params, data, error)
    n = problem.num_samples
    lrs = None
    if lr is not None:
        lrs = _of_epochs(
            "lr",
            lr,
            num_epochs,
            lambda name, eta: schedules.check_rate(eta, problem.x0.dtype, name=name),
        )
    b = min(BATCH_SIZE, n) if batch_size is None else batch_size
    sampler = sampling.sampler(
        n, problem.objective.dim, batch_size=b, block_size=block_size, seed=seed
    )
    settings = Settings(
        num_samples=n,
        dim=sampler.dim,
        batch_size=b,
        block_size=sampler.block_size,
        inner_steps=-(-n // b)
        if inner_steps is None
        else check_count("inner_steps", inner_steps, limit=INT32),
        num_workers=None if callable(driver) else 1,
        read_period=None,
        pretrain_epochs=0,
    )
    if method == "sgd_svrg":
        settings = settings._replace(pretrain_epochs=_pretrain_epochs(pretrain_epochs, num_epochs))
    make_driver: MakeDriver = driver if callable(driver) else simulate.driver
    if driver == "threads":
        workers = check_count(
            "num_workers",
            _cores() if num_workers is None else num_workers,
            limit=threads.MOST_THREADS,
        )
        period = check_count(
            "read_period", READ_PERIOD if read_period is None else read_period, limit=INT32
        )
        settings = settings._replace(num_workers=workers, read_period=period)
        make_driver = functools.partial(threads.driver, num_threads=workers, read_period=period)
    sgd = Phase(estimators.sgd(problem.objective), [0.0] * num_epochs, settings.pretrain_epochs)
    coefficient = alphas.__getitem__ if callable(alpha) else alphas[0]
    svrg = Phase(
        estimators.svrg(problem.objective, alpha=coefficient, chunk_size=chunk_size),
        alphas,
        num_epochs,
    )
    phases = {
        "sgd": [sgd._replace(num_epochs=num_epochs)],
        "svrg": [svrg],
        "sgd_svrg": [sgd, svrg],
    }[method]
    run: dict[str, Any] = {}
    if checkpoint_dir is not None:
        run = {
            "method": method,
            "driver": driver if isinstance(driver, str) else _name(driver),
            **settings._asdict(),
            "seed": seed,
            "lr": lrs,
            "alpha": alphas,
            "tolerance": tolerance,
            "measure_variance": bool(measure_variance),
            "params": digest(problem.x0),
            "data": digest(problem.data),
        }
    return loop.run(
        Plan(
            problem,
            settings,
            phases,
            make_driver,
            sampler,
            lrs,
            tolerance,
            chunk_size,
            bool(measure_variance),
            None if checkpoint_dir is None else _keeper(checkpoint_dir, checkpoint_seconds, run),
        )
    )


def _keeper(folder: str | os.PathLike[str], seconds: float, run: dict[str, Any]) -> Keeper:
    if not os.fspath(folder):
        raise InputError("checkpoint_dir must name a folder, got an empty name.")
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise InputError(f"checkpoint_dir must name a folder, got {path}, which is a file.")
    return Keeper(path, seconds, run)


def _name(driver: MakeDriver) -> str:
    """Of a function that makes drivers, with the numbers and words that `partial` gave it."""
    given = getattr(driver, "keywords", {})
    told = {name: value for name, value in given.items() if isinstance(value, str | int | float)}
    function = getattr(driver, "func", driver)
    module, name = (getattr(function, each, "") for each in ("__module__", "__qualname__"))
    return f"{module}.{name} {told}"


def _of_epochs(
    name: str,
    given: float | Schedule,
    num_epochs: int,
    check: Callable[[str, float], object],
) -> list[float]:
    """A number for every epoch, all of them checked before the first, so that no run is lost."""
    if not callable(given):
        check(name, given)
        return [float(given)] * num_epochs
    values = []
    for epoch in range(num_epochs):
        try:
            values.append(value := given(epoch))
        except Exception as error:
            raise InputError(
                f"{name} must be a number or a function of the epoch, got one that raises "
                f"{type(error).__name__} for epoch s = {epoch} ({error})."
            ) from error
        check(f"{name} in epoch s = {epoch}", value)
    return [float(value) for value in values]


def _check_call(driver: MakeDriver) -> None:
    """Raises InputError if a function cannot be called as a driver is."""
    try:
        signature = inspect.signature(driver)
    except ValueError:  # some builtins do not tell
        return
    try:
        signature.bind("estimator", "data", "sampler", inner_steps=1)
    except TypeError as error:
        raise InputError(
            "driver must be a function that can be called as driver(estimator, data, sampler, "
            f"inner_steps=m), got one that cannot ({error}); functools.partial gives it the rest."
        ) from error


def _refuse(arguments: dict[str, object], owner: str) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise InputError(f"{name} must be left out, as it belongs to {owner}, got {value!r}.")


def _pretrain_epochs(given: int | None, num_epochs: int) -> int:
    count = max(1, num_epochs // 4) if given is None else check_count("pretrain_epochs", given)
    if count >= num_epochs:
        raise InputError(
            "num_epochs must exceed pretrain_epochs, as it counts all epochs, got "
            f"{num_epochs} and {count}."
        )
    return count


def _cores() -> int:
    """The cores that this process may use, which not every system says."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
