"""The figures of `theorems` and `theory_report`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asvrg import theory
from asvrg.theory import Setting
from experiments.figures import BLUE, ORANGE
from experiments.files import write_whole
from experiments.theory.measuring import EpochRow
from experiments.theory.studies import BoundRow, DelayRow, RateRow, SlopeRow

# Okabe and Ito (2008), as the two others.
GREEN, PURPLE, BLACK = "#009e73", "#cc79a7", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
CEILING = 1e4  # Ratios above it, those that are not finite too, are drawn there.


def draw_theorems(
    path: Path,
    bounds: Sequence[BoundRow],
    rates: Sequence[RateRow],
    slopes: Sequence[SlopeRow],
    delays: Sequence[DelayRow],
    labels: dict[str, str],
) -> None:
    """Draws a row of three panels for each problem: under the bound, rates, and delays.

    Args:
      path: of the png.
      bounds: of all problems.
      rates: of all problems.
      slopes: of all problems.
      delays: of all problems.
      labels: a description of each problem by its name, in the order of the rows.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.4 * len(labels) + 0.4), layout="constrained", dpi=110)
    figure.suptitle("Theorems 1 to 4 held against runs with simulated delays")
    for (name, label), panels in zip(
        labels.items(), figure.subplots(len(labels), 3, squeeze=False), strict=True
    ):
        _bounds(panels[0], [row for row in bounds if row.problem == name])
        _rates(
            panels[1],
            [row for row in rates if row.problem == name],
            [row for row in slopes if row.problem == name],
        )
        _delays(panels[2], [row for row in delays if row.problem == name])
        panels[0].set_ylabel(f"{label}\n\naverage of ||grad f(x)||$^2$ over updates so far")
        for panel in panels:
            panel.grid(True, alpha=0.25)
    write_whole(path, lambda file: figure.savefig(file, format="png"))


def _bounds(panel: Any, rows: Sequence[BoundRow]) -> None:
    cases = itertools.groupby(rows, lambda row: (row.theorem, row.u0))
    for colour, ((theorem, u0), grouped) in zip(COLOURS, cases, strict=False):
        case = list(grouped)
        updates = [row.updates for row in case]
        first = case[0]
        condition = {2: ("(13)", "Theorem 1"), 4: ("(20)", "Theorem 3")}[theorem][
            first.admissible_delay < first.delay
        ]
        panel.plot(
            updates,
            [row.mean for row in case],
            color=colour,
            label=f"eta, m of Theorem {theorem}, u$_0$ {u0:g}, m {first.inner_steps}; delay "
            f"{first.delay}, by {condition}",
        )
        panel.fill_between(
            updates,
            [row.smallest for row in case],
            [row.largest for row in case],
            color=colour,
            alpha=0.25,
            linewidth=0,
        )
        panel.plot(updates, [row.bound for row in case], color=colour, linestyle="--")
    panel.set(xscale="log", yscale="log", xlabel="updates T")
    panel.set_ylim(top=1e3 * panel.get_ylim()[1])  # room for the legend
    panel.set_title("(a) both sides of (12), (19): the right one dashed", fontsize=10)
    panel.legend(frameon=False, fontsize=7.5, loc="upper right")


def _rates(panel: Any, rows: Sequence[RateRow], slopes: Sequence[SlopeRow]) -> None:
    ends = {each.method: each.last_half for each in slopes}
    curves = itertools.groupby(rows, lambda row: row.method)
    for colour, (method, grouped) in zip((BLUE, ORANGE, PURPLE), curves, strict=False):
        curve = list(grouped)
        updates = [row.updates for row in curve]
        panel.plot(
            updates,
            [row.mean for row in curve],
            color=colour,
            label=f"{method}, eta {curve[0].lr:.3g}, delay {curve[0].delay}: slope "
            f"{ends[method]:.2f}",
        )
        panel.plot(updates, [row.bound for row in curve], color=colour, linestyle="--")
        panel.fill_between(
            updates,
            [row.smallest for row in curve],
            [row.largest for row in curve],
            color=colour,
            alpha=0.2,
            linewidth=0,
        )
    last = max(row.updates for row in rows)
    level = min(row.mean for row in rows if row.updates == last) / 2
    panel.plot([last / 10, last], [10 * level, level], color=BLACK, linewidth=1, linestyle=":")
    panel.annotate("1/T", (last / 10, 10 * level), ha="right", va="top")
    panel.set(xscale="log", yscale="log", xlabel="updates T")
    panel.set_title("(b) rates, and SVRG's bound (dashed); slopes: last half of T", fontsize=10)
    panel.legend(frameon=False, fontsize=7.5, loc="upper right")


def _delays(panel: Any, rows: Sequence[DelayRow]) -> None:
    for colour, (factor, grouped) in zip(
        COLOURS, itertools.groupby(rows, lambda row: row.lr_factor), strict=False
    ):
        curve = list(grouped)
        delay = [row.delay for row in curve]
        ratio = [min(row.ratio, CEILING) for row in curve]
        whose = "the theory's eta" if factor == 1 else f"{factor} times that"
        panel.plot(delay, ratio, color=colour, linewidth=1, label=f"{whose}, {curve[0].lr:.3g}")
        for row, y in zip(curve, ratio, strict=True):
            panel.plot(
                row.delay,
                y,
                color=colour,
                marker="^" if row.ratio > CEILING else "o",
                fillstyle="full" if row.holds else "none",
            )
    for fill, label in (("full", "Theorem 3 holds"), ("none", "it does not")):
        panel.plot([], [], color=BLACK, marker="o", linestyle="", fillstyle=fill, label=label)
    panel.set_xscale("symlog", linthresh=1)
    panel.set(yscale="log", xlabel=f"delay of every update, of m = {rows[0].inner_steps}")
    panel.set_ylabel("average of ||grad f||$^2$, that without delay = 1")
    panel.set_title(f"(c) delays, also beyond the theorem; {rows[0].updates} updates", fontsize=10)
    panel.legend(frameon=False, fontsize=7.5, loc="upper left")


def draw_report(
    path: Path, rows: Sequence[EpochRow], setting: Setting, gap: float, *, covered: bool
) -> None:
    """Draws ||grad f||^2 by epoch, its average so far and the bound, and the delays.

    Args:
      path: of the png.
      rows: the epochs of a run.
      setting: its eta, m, L and delay; where no theorem holds for it there is no bound.
      gap: f at the beginning.
      covered: whether a theorem may hold for it; if not there is no bound either.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=120)
    gradient, delay = figure.subplots(1, 2)
    epochs = [row.epoch + 1 for row in rows]
    updates = np.cumsum([row.updates for row in rows])
    values = np.array([row.start if np.isnan(row.mean) else row.mean for row in rows])
    what = "at its beginning" if np.isnan(rows[0].mean) else "mean over its updates"
    average = np.cumsum(values * np.diff(updates, prepend=0)) / updates
    gradient.plot(epochs, values, color=ORANGE, marker=".", label=f"epoch, {what}")
    gradient.plot(epochs, average, color=BLUE, marker=".", label="average so far")
    if covered and theory.holds(setting):
        limit = theory.bound(setting, gap, updates)
        gradient.plot(epochs, limit, color=BLACK, linestyle="--", label="bound of the average")
    gradient.set(ylabel="||grad f(x)||$^2$", yscale="log")
    gradient.legend(frameon=False, fontsize=8)
    delay.plot(epochs, [row.max_delay for row in rows], color=BLUE, marker=".", label="measured")
    if covered and (tolerated := int(theory.tolerated_delay(setting))) >= 0:
        delay.axhline(tolerated, color=BLACK, linestyle="--", label="borne by the theorem")
    delay.axhline(
        setting.inner_steps - 1, color=ORANGE, linestyle=":", label="longest that fits, m - 1"
    )
    delay.set(ylabel="largest delay (updates)")
    delay.set_ylim(bottom=0)
    delay.legend(frameon=False, fontsize=8)
    for panel in (gradient, delay):
        panel.set_xlabel("epochs")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(True, alpha=0.25)
    write_whole(path, lambda file: figure.savefig(file, format="png"))
