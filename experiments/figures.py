"""Figures, drawn from the rows of metrics.csv, and the parts that others are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import delay_counts, files
from experiments.recording import Row

# Okabe and Ito (2008), Color universal design: told apart by readers of every colour vision.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b4b4b4"
WORKERS = (BLUE, ORANGE, GREEN, PURPLE)  # more of them are drawn as one
BARS = 40  # of a histogram, at most
GAP = 0.055  # from one label to the next, in heights of a panel
MARGIN = 1.36  # width of a panel, its labels among it, over that of its curves


def draw_curves(path: Path, rows: Sequence[Row], counts: np.ndarray, title: str) -> None:
    """Draws loss, error, ||grad f||^2 and delays of one run as a png.

    Args:
      path: of the figure.
      rows: of metrics.csv, the one before training first.
      counts: int64 [K, T], how many updates of worker k had delay tau.
      title: of the figure.
    """
    # Not pyplot: a figure of its own leaves no global state behind, and opens no window.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [row.epoch for row in rows]
    seconds = [row.seconds for row in rows]
    figure = Figure(figsize=(13, 6.6), layout="constrained", dpi=110)
    figure.suptitle(title)
    (loss, loss_by_time, error), (gradient, delay, histogram) = figure.subplots(2, 3)

    losses = [row.train_loss for row in rows], [row.test_loss for row in rows]
    _pair(loss, epochs, *losses)
    _pair(loss_by_time, seconds, *losses)
    for panel in (loss, loss_by_time):
        panel.set(ylabel="loss f(x), l2 term included", yscale="log")
    _pair(
        error,
        epochs,
        [100 * row.train_error for row in rows],
        [100 * row.test_error for row in rows],
    )
    error.set(ylabel="classification error (%)", yscale="log")
    for panel in (loss, loss_by_time, error):
        # Plain numbers instead of powers of ten: these axes span few of them.
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(minor_label)
    gradient.plot(epochs, [row.grad_norm_sq for row in rows], color=BLUE, marker=".")
    gradient.set(ylabel="||grad f(x)||$^2$, training", yscale="log")
    delay.plot(
        epochs[1:], [row.max_delay for row in rows[1:]], color=ORANGE, marker=".", label="largest"
    )
    delay.plot(
        epochs[1:], [row.mean_delay for row in rows[1:]], color=BLUE, marker=".", label="mean"
    )
    delay.set(ylabel="delay of an update (updates)")
    delay.set_ylim(bottom=0)
    delay.legend(frameon=False)
    for panel in (loss, error, gradient, delay):
        panel.set_xlabel("epochs")
        panel.set_xlim(0, max(1, epochs[-1]))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    loss_by_time.set_xlabel("optimisation time (s)")
    loss_by_time.set_xlim(0, seconds[-1] or 1)
    _histogram(histogram, counts)
    for panel in (loss, loss_by_time, error, gradient, delay, histogram):
        panel.grid(True, which="both", alpha=0.25)
    files.write_whole(path, lambda file: figure.savefig(file, format="png"))


def draw_band(
    axes: Any, places: Sequence[float], values: np.ndarray, look: dict[str, Any]
) -> tuple[float, float] | None:
    """Draws the mean over seeds and a band from the smallest to the largest.

    Args:
      axes: the panel.
      places: along the x axis, [places].
      values: [places, seeds].
      look: of the line, as matplotlib's plot takes it.

    Returns:
      Where the mean ends, which is where a seed left the finite numbers if one did.
    """
    mean = values.mean(axis=1)
    axes.plot(places, mean, **look)
    axes.fill_between(
        places,
        values.min(axis=1),
        values.max(axis=1),
        color=look["color"],
        alpha=0.18,
        linewidth=0,
    )
    drawn = np.flatnonzero(np.isfinite(mean))
    return (places[drawn[-1]], float(mean[drawn[-1]])) if len(drawn) else None


def label_ends(
    axes: Any,
    ends: Sequence[tuple[str, str, tuple[float, float]]],
    size: float = 9,
    margin: float = MARGIN,
    short: float = -0.75,
) -> None:
    """Names the curves at their right ends, none over another.

    Args:
      axes: the panel, whose x axis is linear and begins with 0.
      ends: name, colour and end of each curve.
      size: of the letters.
      margin: width of the panel over that of the curves.
      short: how far above its end, in GAP, a curve has its name that ends in the left half.
    """
    right = max(place for _, _, (place, _) in ends)
    axes.set_xlim(0, right * margin)
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= right])
    axes.autoscale_view(scalex=False)
    to_panel = axes.transData + axes.transAxes.inverted()
    at_right: list[tuple[float, str, str]] = []
    heights: list[float] = []
    for name, colour, end in sorted(ends, key=lambda end: end[2][1]):
        across, up = to_panel.transform(end)
        up = max(up, 0.0)  # a 0 lies infinitely far below a logarithmic axis
        if end[0] < right / 2:
            _write(axes, size, across - 0.03, up + short * GAP, name, colour)
            continue
        at_right.append((across + 0.015, name, colour))
        heights.append(max(up, heights[-1] + GAP) if heights else up)
    # Those that were pushed beyond the panel push back.
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], 1 - GAP * (len(heights) - i - 0.5))
    for (across, name, colour), up in zip(at_right, heights, strict=True):
        _write(axes, size, across, up, name, colour)


def _write(axes: Any, size: float, across: float, up: float, text: str, colour: str) -> None:
    axes.text(across, up, text, color=colour, transform=axes.transAxes, va="center", fontsize=size)


def _pair(panel: Any, x: Sequence[float], train: list[float], test: list[float]) -> None:
    panel.plot(x, train, color=BLUE, marker=".", label="training")
    panel.plot(x, test, color=ORANGE, marker=".", linestyle="--", label="test")
    panel.legend(frameon=False)


def _histogram(panel: Any, counts: np.ndarray) -> None:
    """The delays of all updates as bars, those of each worker as outlines, in percent of all."""
    from matplotlib.ticker import MaxNLocator

    panel.set(xlabel="delay of an update (updates)", ylabel="updates (%), all epochs")
    if counts.sum() == 0:
        return
    width = max(1, -(-counts.shape[1] // BARS))
    edges = np.arange(0, counts.shape[1] + width, width) - 0.5
    share = 100 * np.add.reduceat(counts, np.arange(0, counts.shape[1], width), axis=1)
    share = share / counts.sum()
    panel.stairs(share.sum(axis=0), edges, fill=True, color=GREY, label="all workers")
    if 1 < len(counts) <= len(WORKERS):
        for worker, (bars, colour) in enumerate(zip(share, WORKERS, strict=False)):
            panel.stairs(bars, edges, color=colour, linewidth=1.4, label=f"worker {worker}")
    tau = delay_counts.describe(counts.sum(axis=0))
    for value, style, name in ((tau.median, "-", "median"), (tau.percentile_95, ":", "95 %")):
        panel.axvline(value, color="black", linestyle=style, linewidth=1, label=f"{name} {value}")
    panel.set(yscale="log", xlim=(edges[0], edges[-1]))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.legend(frameon=False, title=None if width == 1 else f"bars: {width} delays wide")


def minor_label(value: float, position: int) -> str:
    """A plain number for some of the ticks between two powers of ten."""
    del position
    leading_digit = f"{value:e}"[0]
    return f"{value:g}" if leading_digit in "2346" else ""
