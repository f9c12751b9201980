"""Holds what a run did against the theorems."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from asvrg import theory
from asvrg.theory import Choice, Setting
from experiments.theory.measuring import Curvature, Measured


class Findings(NamedTuple):
    """The theory's numbers for a run.

    Attributes:
      theorem: 3, or 1 where an iteration updates a block.
      curvatures: all estimates of L.
      choice: u0, b, n, alpha and d / B of what is suggested.
      suggested: eta, m and beta of Theorem 2 or 4, with L the largest estimate.
      setting: the run's own eta and m, its measured delay, and that L.
      tolerated: the largest delay with which Theorem 1 or 3 holds for the run's eta and m.
      verdict: a sentence.
      predicted: the right-hand side of (12) or (19); inf where no theorem covers the run.
      measured: the average of ||grad f||^2.
    """

    theorem: int
    curvatures: list[Curvature]
    choice: Choice
    suggested: Setting
    setting: Setting
    tolerated: int
    verdict: str
    predicted: float
    measured: float


def judge(measured: Measured, curvatures: list[Curvature], u0: float, alpha: float) -> Findings:
    """Holds a run against the theorems.

    Args:
      measured: the run.
      curvatures: estimates of L, the largest of which is taken.
      u0: of what is suggested.
      alpha: of what is suggested.

    Returns:
      Findings.

    Raises:
      InputError: `u0` or `alpha` is out of its range, or no update fits into an inner loop.
    """
    smoothness = max(each.value for each in curvatures)
    choice = Choice(u0, measured.batch_size, measured.num_samples, alpha, measured.blocks)
    suggested = theory.theorem_setting(choice, smoothness)
    setting = Setting(
        lr=measured.lr,
        smoothness=smoothness,
        batch_size=measured.batch_size,
        inner_steps=max(row.updates for row in measured.rows),
        max_delay=max(row.max_delay for row in measured.rows),
        blocks=measured.blocks,
    )
    theorem = 3 if measured.blocks == 1 else 1
    tolerated = int(theory.tolerated_delay(setting))
    total = sum(row.updates for row in measured.rows)
    predicted = float(theory.bound(setting, measured.gap, total))
    values = [row.start if math.isnan(row.mean) else row.mean for row in measured.rows]
    return Findings(
        theorem,
        curvatures,
        choice,
        suggested,
        setting,
        tolerated,
        _verdict(measured, setting, suggested, tolerated, theorem),
        math.inf if measured.uncovered else predicted,
        float(np.average(values, weights=[row.updates for row in measured.rows])),
    )


def _verdict(
    measured: Measured, setting: Setting, suggested: Setting, tolerated: int, theorem: int
) -> str:
    delay = setting.max_delay
    if measured.uncovered:
        return f"no theorem covers this run: {'; and '.join(measured.uncovered)}."
    if theory.holds(setting):
        return (
            f"Theorem {theorem} holds for this run if L is no larger: its longest delay, {delay}, "
            f"is within the {tolerated} that its eta and m bear."
        )
    if tolerated >= 0:
        return (
            f"Theorem {theorem} does not hold for this run: its longest delay is {delay}, and its "
            f"eta and m bear {tolerated}."
        )
    return (
        f"Theorem {theorem} does not hold for this run, whatever its delays: its eta is "
        f"{setting.lr / suggested.lr:.3g} times the suggested one, and its m "
        f"{setting.inner_steps / max(1, suggested.inner_steps):.3g} times."
    )
