"""Learning rates as functions of the epoch s."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from asvrg.errors import InputError, check_real

Schedule = Callable[[int], float]


def constant(lr: float) -> Schedule:
    """The same step in every epoch, as Theorems 1 to 4 have it.

    Args:
      lr: eta, above 0.

    Returns:
      A function of the epoch s (an int from 0) that gives eta.

    Raises:
      InputError: `lr` is not a finite number above 0.

    >>> constant(0.5)(7)
    0.5

    Source: Huo and Huang (2016), Theorems 1 to 4 and, for SVRG, section Experiments.
    """
    eta = check_real("lr", lr, above=True)
    return lambda epoch: eta


def polynomial(lr: float, decay: float) -> Schedule:
    """eta_s = alpha / (1 + s)^beta, the step that the paper's experiments use for SGD.

    Args:
      lr: alpha, the step of epoch 0, above 0.
      decay: beta, at least 0; with 0 the step is constant.

    Returns:
      A function of the epoch s (an int from 0) that gives eta_s.

    Raises:
      InputError: `lr` is not a finite number above 0, or `decay` not one of at least 0.

    >>> polynomial(1.0, 0.5)(3)
    0.5

    Source: Huo and Huang (2016), section Experiments.
    """
    alpha, beta = check_real("lr", lr, above=True), check_real("lr_decay", decay)

    def rate(epoch: int) -> float:
        try:
            return alpha / (1.0 + epoch) ** beta
        except OverflowError:  # `check_rate` says what that means
            return 0.0

    return rate


def check_rate(lr: float, dtype: np.dtype, *, name: str = "lr") -> np.ndarray:
    """The step in the dtype of x, where it must neither vanish nor overflow.

    Args:
      lr: eta, above 0.
      dtype: of x.
      name: what the sentence calls it.

    Returns:
      A scalar of that dtype.

    Raises:
      InputError: it is not a finite number above 0, or is 0 or infinite in that dtype: x would stay
        where it is, silently, or be lost.

    >>> check_rate(0.5, np.dtype("float32"))
    array(0.5, dtype=float32)
    """
    eta = check_real(name, lr, above=True)
    with np.errstate(over="ignore", under="ignore"):
        rate = np.asarray(eta).astype(dtype)
    if rate == 0 or np.isinf(rate):
        raise InputError(
            f"{name} must be a finite number above 0 in {dtype}, got {eta!r}, which is {rate} "
            "there."
        )
    return rate
