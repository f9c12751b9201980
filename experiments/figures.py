"""Figures, drawn from the rows of metrics.csv."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.recording import Row, write_whole

# Okabe and Ito (2008), Color universal design: told apart by readers of every colour vision.
BLUE, ORANGE = "#0072b2", "#d55e00"


def draw_curves(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draws loss, error, ||grad f||^2 and delays of one run as a png.

    Args:
      path: of the figure.
      rows: of metrics.csv, the one before training first.
      title: of the figure.
    """
    # Not pyplot: a figure of its own leaves no global state behind, and opens no window.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [row.epoch for row in rows]
    figure = Figure(figsize=(9, 6.2), layout="constrained", dpi=120)
    figure.suptitle(title)
    axes = figure.subplots(2, 2)

    loss, error, gradient, delay = axes.ravel()
    _pair(loss, epochs, [row.train_loss for row in rows], [row.test_loss for row in rows])
    loss.set(ylabel="loss f(x), l2 term included", yscale="log")
    _pair(
        error,
        epochs,
        [100 * row.train_error for row in rows],
        [100 * row.test_error for row in rows],
    )
    error.set(ylabel="classification error (%)", yscale="log")
    for panel in (loss, error):
        # Plain numbers instead of powers of ten: these axes span few of them.
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(_minor_label)
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
        panel.grid(True, which="both", alpha=0.25)
    write_whole(path, lambda file: figure.savefig(file, format="png"))


def _pair(panel: Any, epochs: list[int], train: list[float], test: list[float]) -> None:
    panel.plot(epochs, train, color=BLUE, marker=".", label="training")
    panel.plot(epochs, test, color=ORANGE, marker=".", linestyle="--", label="test")
    panel.legend(frameon=False)


def _minor_label(value: float, position: int) -> str:
    """A plain number for some of the ticks between two powers of ten."""
    del position
    leading_digit = f"{value:e}"[0]
    return f"{value:g}" if leading_digit in "2346" else ""
