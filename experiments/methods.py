"""The methods that the paper compares: sgd, svrg, and sgd_svrg, SVRG from a pre-trained model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import optax
from absl import flags

from asvrg import estimators, schedules
from asvrg.errors import INT32, InputError, check_count, check_real
from asvrg.estimators import Estimator
from asvrg.schedules import Schedule
from asvrg.types import Objective
from experiments import launch

METHODS = ("sgd", "svrg", "sgd_svrg")


class Alpha(NamedTuple):
    """alpha_s = start, or falling from there to 0 linearly over this many epochs."""

    start: float = 1.0
    epochs: int | None = None


def recorded_alpha(given: Mapping[str, Any]) -> Alpha:
    """The coefficient of a run, from the flags in its config.json; 1 of runs before there was one.

    Args:
      given: the run's flags by name.

    Returns:
      An Alpha.
    """
    return Alpha(given.get("alpha", 1.0), given.get("alpha_epochs"))


def make_estimator(name: str, objective: Objective, alpha: Alpha) -> Estimator:
    """The estimator of a name.

    Args:
      name: sgd or svrg, what a recorded epoch says of itself.
      objective: the finite sum f.
      alpha: the coefficient, of svrg.

    Returns:
      An Estimator.

    Raises:
      InputError: it is another name.
    """
    if name == "sgd":
        return estimators.sgd(objective)
    if name != "svrg":
        raise InputError(f"the estimator must be sgd or svrg, got {name!r}.")
    if alpha.epochs is None:
        return estimators.svrg(objective, alpha=alpha.start)
    schedule = optax.linear_schedule(alpha.start, 0.0, alpha.epochs)
    return estimators.svrg(objective, alpha=lambda epoch: float(schedule(epoch)))


class Step(NamedTuple):
    """eta_s = lr / (1 + s)^decay."""

    lr: float
    decay: float


class Phase(NamedTuple):
    """A part of a run with one estimator; it lasts until `num_epochs` epochs are done in all."""

    estimator: str
    step: Step
    num_epochs: int
    alpha: Alpha = Alpha()

    @property
    def schedule(self) -> Schedule:
        """eta_s as a function of the epoch s."""
        return schedules.polynomial(self.step.lr, self.step.decay)

    def make_estimator(self, objective: Objective) -> Estimator:
        """The estimator, of this finite sum."""
        return make_estimator(self.estimator, objective, self.alpha)


def define_flags(values: flags.FlagValues, *, pretrain_epochs: int) -> None:
    """Adds the flags of the method and its steps; `pretrain_epochs` is the paper's number."""
    flags.DEFINE_enum("method", "svrg", METHODS, "Method to train with.", flag_values=values)
    flags.DEFINE_integer(
        "num_epochs",
        25,
        "S, epochs in all, with those of pre-training.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "lr",
        None,
        "alpha of the step alpha / (1 + s)^beta in epoch s. Default: tuned for method, data "
        "set and the share of coordinates that an iteration updates.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "lr_decay",
        None,
        "beta of the step. Default: tuned for sgd, 0 (a constant step) for svrg and sgd_svrg.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "alpha",
        1.0,
        "Coefficient of SVRG's correction, v = g - alpha (g_s - grad f(x~)): 1 is the paper's, 0 "
        "is SGD.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "alpha_epochs",
        None,
        "Epochs over which the coefficient falls from --alpha to 0, linearly (alpha-SVRG); they "
        "count from the run's first one. Default: it stays.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "pretrain_epochs",
        pretrain_epochs,
        "Epochs of SGD that sgd_svrg begins with.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "pretrain_lr",
        None,
        "alpha of these epochs. Default: that of --method=sgd.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "pretrain_lr_decay",
        None,
        "beta of these epochs. Default: that of --method=sgd.",
        flag_values=values,
    )


def phases(values: flags.FlagValues, tuned: dict[str, Step]) -> list[Phase]:
    """The phases of the run that the flags describe.

    Args:
      values: parsed, with the flags of `define_flags`.
      tuned: the default step of sgd and of svrg.

    Returns:
      One Phase, or two for sgd_svrg.

    Raises:
      InputError: a flag's value is not accepted, or does not belong to the method.
    """
    method = values.method
    check_count("--num_epochs", values.num_epochs, limit=INT32)
    for name in ("alpha", "alpha_epochs"):
        if method == "sgd" and launch.given(values, name):
            raise InputError(f"--{name} belongs to --method=svrg or sgd_svrg, got --method=sgd.")
    alpha = Alpha(check_real("--alpha", values.alpha, least=-math.inf), values.alpha_epochs)
    if alpha.epochs is not None:
        check_count("--alpha_epochs", alpha.epochs, limit=INT32)
    if method != "sgd_svrg":
        for name in ("pretrain_epochs", "pretrain_lr", "pretrain_lr_decay"):
            if launch.given(values, name):
                raise InputError(f"--{name} belongs to --method=sgd_svrg, got --method={method}.")
    main = Phase(
        name := "sgd" if method == "sgd" else "svrg",
        _step(values, "lr", tuned[name]),
        values.num_epochs,
        alpha,
    )
    check_steps(main, values.dtype, "--lr")
    if method != "sgd_svrg":
        return [main]
    check_count("--pretrain_epochs", values.pretrain_epochs)
    if values.pretrain_epochs >= values.num_epochs:
        raise InputError(
            f"--num_epochs counts all epochs and must exceed --pretrain_epochs, got "
            f"{values.num_epochs} and {values.pretrain_epochs}."
        )
    pretraining = Phase("sgd", _step(values, "pretrain_lr", tuned["sgd"]), values.pretrain_epochs)
    check_steps(pretraining, values.dtype, "--pretrain_lr")
    return [pretraining, main]


def check_steps(phase: Phase, dtype: str, flag: str) -> None:
    """Raises InputError where the first or the last step is 0 or infinite in the dtype of x."""
    for epoch in (0, phase.num_epochs - 1):
        eta = phase.schedule(epoch)
        if eta == 0:
            raise InputError(
                f"{flag}_decay must leave a step above 0 in every epoch, got {phase.step.decay!r}, "
                f"with which that of epoch {epoch} is 0."
            )
        schedules.check_rate(eta, np.dtype(dtype), name=f"the step by {flag} in epoch {epoch}")


def _step(values: flags.FlagValues, flag: str, default: Step) -> Step:
    lr, decay = values[flag].value, values[f"{flag}_decay"].value
    return Step(
        default.lr if lr is None else check_real(f"--{flag}", lr, above=True),
        default.decay if decay is None else check_real(f"--{flag}_decay", decay),
    )
