"""Asynchronous stochastic gradient descent with variance reduction for non-convex optimisation.

Functions in, deltas out: one pure step says what to add to x and where; a driver owns x.
"""

from asvrg import (
    checkpoints,
    delays,
    durations,
    estimators,
    fitting,
    mlp,
    objectives,
    sampling,
    schedules,
    steps,
    theory,
    training,
    transforms,
    virtual_clock,
)
from asvrg.drivers import simulate, threads
from asvrg.errors import DivergedError, InputError
from asvrg.estimators import Estimator
from asvrg.fitting import FitEpoch, FitResult, fit, fit_epochs
from asvrg.transforms import random_block, svrg
from asvrg.types import (
    Delta,
    Draws,
    Driver,
    EpochResult,
    Objective,
    Snapshot,
    Times,
    Trace,
)

__all__ = [
    "Delta",
    "DivergedError",
    "Draws",
    "Driver",
    "EpochResult",
    "Estimator",
    "FitEpoch",
    "FitResult",
    "InputError",
    "Objective",
    "Snapshot",
    "Times",
    "Trace",
    "checkpoints",
    "delays",
    "durations",
    "estimators",
    "fit",
    "fit_epochs",
    "fitting",
    "mlp",
    "objectives",
    "random_block",
    "sampling",
    "schedules",
    "simulate",
    "steps",
    "svrg",
    "theory",
    "threads",
    "training",
    "transforms",
    "virtual_clock",
]
