"""Of which runs the theorems speak, and which delays they admit of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asvrg import theory
from asvrg.theory import Setting
from asvrg.types import Array
from experiments import methods
from experiments.problem import Problem

KINKS = "relu has kinks, so that its f has no L (Assumption 3)"


def uncovered(given: Mapping[str, Any], decay: float) -> list[str]:
    """Why no theorem speaks of a run, whatever its delays.

    Args:
      given: the run's flags by name.
      decay: of its last phase's step.

    Returns:
      Parts of a sentence; none if the theorems may hold.
    """
    reasons = []
    if given["method"] == "sgd":
        reasons.append("it is SGD's, and the theorems are SVRG's")
    elif methods.recorded_alpha(given) != methods.Alpha():
        reasons.append("its correction has a coefficient, and the theorems have none")
    if decay != 0:
        reasons.append("its step decays, and the theorems have a constant one")
    if given.get("delay_adaptive"):
        reasons.append("its step depends on the delay, and the theorems have a constant one")
    return reasons


def of_delays(problem_: Problem, points: Sequence[Array], setting: Setting) -> str:
    """Whether the delays of a run are such as Theorem 2, or Theorem 1, admits.

    Both answers are for the largest L that is estimated at the points, from below: another one
    would admit less.

    Args:
      problem_: what was minimised.
      points: float [d] each, of the run.
      setting: the run's eta, m, b, d / B and largest delay; its `smoothness` does not count.

    Returns:
      A sentence.
    """
    smoothness = max(
        theory.estimate_smoothness(
            problem_.objective, x, problem_.train, tolerance=1e-2, max_iterations=20
        ).value
        for x in points
    )
    setting = setting._replace(smoothness=smoothness)
    by_13 = int(theory.admissible_delay_of_step(setting.lr, smoothness, setting.blocks))
    by_1 = int(theory.tolerated_delay(setting))
    inside = setting.max_delay <= by_13
    return (
        f"{'inside of' if inside else 'outside of'} (13), if L is no larger than the estimated "
        f"{smoothness:.3g}: the longest delay is {setting.max_delay}, Theorem 2 admits "
        f"{_up_to(by_13)} with this step, and Theorem 1 {_up_to(by_1)} with this step and m"
    )


def _up_to(delay: int) -> str:
    return "none, not even 0," if delay < 0 else f"up to {delay}"
