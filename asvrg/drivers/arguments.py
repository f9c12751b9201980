"""Arguments that the drivers have in common, checked before any work."""

from __future__ import annotations

from typing import Any

from asvrg.errors import INT32, check_count, check_kind
from asvrg.estimators import Estimator


def check(estimator: Any, inner_steps: Any, max_delay: Any) -> None:
    """Raises InputError unless a driver can be made of these.

    Args:
      estimator: an Estimator.
      inner_steps: m, a whole number of at least 1.
      max_delay: Delta, a whole number of at least 0; None for no limit.

    Raises:
      InputError: one of them is something else.

    >>> check(None, 5, None)
    Traceback (most recent call last):
      ...
    asvrg.errors.InputError: estimator must be an Estimator, got NoneType.
    """
    check_kind("estimator", estimator, Estimator)
    check_count("inner_steps", inner_steps, limit=INT32)
    if max_delay is not None:
        check_count("max_delay", max_delay, least=0, limit=INT32)
