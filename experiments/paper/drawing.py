"""Figures 1 to 4, each as svg and png."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import figures, files
from experiments.figures import BLUE, GREEN, ORANGE
from experiments.paper import evidence
from experiments.paper.evidence import Run, TimeSpeedup

LOOKS = {
    "sgd": {"color": BLUE, "linestyle": "--"},
    "svrg": {"color": ORANGE, "linestyle": "-"},
    "sgd_svrg": {"color": GREEN, "linestyle": "-."},
}
NAMES = {"sgd": "SGD", "svrg": "SVRG", "sgd_svrg": "SGD_SVRG"}
# Inches and points: read at the width of a text column, and at that of half a page.
WIDTH, HEIGHT, LETTERS = 5.0, 4.4, 8.0
FIRST = 1  # epoch that is drawn: what x^0 has would squeeze all others
AXES = {
    "epoch": "epochs s",
    "grad_evals": "component gradients / n",
    "seconds": "optimisation time (s)",
}
PANELS = {
    "train_loss": "training loss f(x)",
    "train_error": "training error (%)",
    "test_error": "test error (%)",
    "grad_norm_sq": "||grad f(x)||$^2$",
}


def draw_methods(
    folder: Path, figure: str, runs: Sequence[Run], num_train: int, title: str
) -> None:
    """Draws Figure 1 or 3: over epochs, over component gradients and over time.

    Args:
      folder: of the svg and png files.
      figure: the beginning of their names.
      runs: of the three methods, each with the same seeds.
      num_train: n.
      title: of each.
    """
    num_seeds = len({run.labels.seed for run in runs})
    for axis, label in AXES.items():
        sheet, panels = _sheet(f"{title}\nmean and range of {num_seeds} seeds")
        for panel, (name, what) in zip(panels, PANELS.items(), strict=True):
            panel.set(yscale="log", xlabel=label, ylabel=what)
            ends = []
            for method, look in LOOKS.items():
                mine = [run for run in runs if run.labels.method == method]
                # Seeds differ in seconds alone: the mean stands for all of them.
                places = evidence.values(mine, axis).mean(axis=1)[FIRST:]
                places = places / num_train if axis == "grad_evals" else places
                columns = evidence.values(mine, name)[FIRST:] * (100 if "error" in name else 1)
                end = figures.draw_band(panel, places.tolist(), columns, {**look, "linewidth": 1.2})
                if end is not None:
                    ends.append((NAMES[method], look["color"], end))
            _fit(panel, runs, name)
            figures.label_ends(panel, ends, LETTERS - 1, margin=1.45, short=1.0)
        _save(sheet, folder / f"{figure}_{axis}")


def draw_speedup(
    path: Path,
    runs: Sequence[Run],
    predicted: Sequence[Run],
    lines: Sequence[TimeSpeedup],
    *,
    cores: int | None,
    title: str,
) -> None:
    """Draws Figure 2 or 4, of one setting.

    Args:
      path: of both files, without suffix.
      runs: measured.
      predicted: simulated.
      lines: of speedup.csv, of both kinds.
      cores: of the machine, above which a measured K is not comparable; None if it always is.
      title: of the figure.
    """
    on = f", on {cores} cores" if cores else ""
    sheet, (loss, error, by_epoch, speed) = _sheet(
        f"{title}\nsolid: measured{on}; dotted: simulated, a core for each worker"
    )
    workers = sorted({run.labels.workers for run in (*runs, *predicted)})
    colours = dict(zip(workers, _shades(len(workers)), strict=True))
    real = [k for k in workers if any(run.labels.workers == k for run in runs)]
    shown = [k for k in real if cores is None or k <= cores]
    for panel, name in ((loss, "train_loss"), (error, "test_error")):
        times = 100 if "error" in name else 1
        for k in shown:
            mine = [run for run in runs if run.labels.workers == k]
            places = evidence.values(mine, "seconds").mean(axis=1)[FIRST:]
            columns = evidence.values(mine, name)[FIRST:] * times
            figures.draw_band(panel, places.tolist(), columns, {"color": colours[k]})
        for run in predicted:
            k = run.labels.workers
            if k not in shown:
                places, column = run.columns["seconds"][FIRST:], run.columns[name][FIRST:] * times
                panel.plot(places, column, color=colours[k], linestyle=":")
        panel.set(xscale="log", yscale="log", xlabel=AXES["seconds"], ylabel=PANELS[name])
        _plain(panel.yaxis)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(_two_and_five)
        panel.xaxis.set_tick_params(which="minor", labelsize=LETTERS - 2)
    for k in real:
        mine = [run for run in runs if run.labels.workers == k]
        places = mine[0].columns["epoch"][FIRST:]
        columns = evidence.values(mine, "train_loss")[FIRST:]
        figures.draw_band(by_epoch, places.tolist(), columns, {"color": colours[k]})
    by_epoch.set(yscale="log", xlabel=AXES["epoch"], ylabel=PANELS["train_loss"])
    by_epoch.set_title("all K that were measured", fontsize=LETTERS - 1)
    by_epoch.legend(
        handles=[by_epoch.plot([], [], color=colours[k], label=f"K = {k}")[0] for k in workers],
        frameon=False,
        fontsize=LETTERS - 2,
        ncols=2,
        loc="upper right",
    )
    _plain(by_epoch.yaxis)
    by_epoch.xaxis.get_major_locator().set_params(integer=True)
    _draw_time_speedup(speed, lines, cores)
    _save(sheet, path)


def _draw_time_speedup(panel: Any, lines: Sequence[TimeSpeedup], cores: int | None) -> None:
    def points(kind: str) -> tuple[list[int], np.ndarray]:
        """K [k], and mean, smallest and largest [3, k]; of those that reach the loss."""
        found = [
            (line.workers, line.time_speedup, line.smallest, line.largest)
            for line in lines
            if line.kind == kind and line.time_speedup is not None
        ]
        return [row[0] for row in found], np.array([row[1:] for row in found], float).reshape(
            -1, 3
        ).T

    measured, (mean, smallest, largest) = points("measured")
    simulated, predicted = points("simulated")
    most = max(line.workers for line in lines)
    panel.plot([1, most], [1, most], color="0.5", linestyle="--", linewidth=1)
    half = most / 2
    panel.text(half, half, "  ideal", color="0.4", ha="left", va="top", fontsize=LETTERS - 1)
    if simulated:
        panel.plot(
            simulated,
            predicted[0],
            color=BLUE,
            linestyle=":",
            marker="o",
            markersize=4,
            fillstyle="none",
            label="simulated, a core each",
        )
    panel.errorbar(
        measured,
        mean,
        yerr=[mean - smallest, largest - mean],
        color=ORANGE,
        linestyle="-",
        marker="s",
        markersize=3.5,
        capsize=2,
        label=f"measured, {cores} cores" if cores else "measured",
    )
    panel.set(
        xscale="log",
        yscale="log",
        xlabel="workers K",
        ylabel="time speedup (22)",
    )
    panel.set_title(f"to a training loss of {lines[0].target_loss:.3g}", fontsize=LETTERS - 1)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(_powers_of_two(most))
        axis.set_minor_locator(_nothing())
        axis.set_major_formatter("{x:g}")
    if cores:
        panel.axvline(cores, color="0.6", linewidth=0.8)
    panel.legend(frameon=False, fontsize=LETTERS - 1, loc="upper left")


def _sheet(title: str) -> tuple[Any, list[Any]]:
    """A figure of its own, and its four panels."""
    # Not pyplot: a figure of its own leaves no global state behind, and opens no window.
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(WIDTH, HEIGHT), layout="constrained", dpi=200)
    sheet.suptitle(title, fontsize=LETTERS + 0.5)
    panels = list(sheet.subplots(2, 2).ravel())
    for panel in panels:
        panel.grid(True, which="major", alpha=0.25, linewidth=0.6)
        panel.tick_params(labelsize=LETTERS - 1)
        panel.xaxis.label.set_size(LETTERS)
        panel.yaxis.label.set_size(LETTERS)
    return sheet, panels


def _save(sheet: Any, path: Path) -> None:
    # The same bytes every time: no date, and no random names inside of an svg.
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "asvrg", "svg.fonttype": "none"}):
        for kind in ("svg", "png"):
            told = {"Date": None} if kind == "svg" else {"Software": None}
            write = functools.partial(sheet.savefig, format=kind, metadata=told)
            files.write_whole(path.with_name(f"{path.name}.{kind}"), write)


def _fit(panel: Any, runs: Sequence[Run], name: str) -> None:
    """Plain numbers on an axis that spans few powers of ten."""
    columns = np.concatenate([run.columns[name][FIRST:] for run in runs])
    if columns.max() < 1e3 * max(columns.min(), 1e-12):
        _plain(panel.yaxis)


def _plain(axis: Any) -> None:
    axis.set_major_formatter("{x:g}")
    low, high = axis.get_view_interval()
    axis.set_minor_formatter("{x:g}" if high < 4 * low else figures.minor_label)
    axis.set_tick_params(which="minor", labelsize=LETTERS - 2)


def _two_and_five(value: float, position: int) -> str:
    """The labels that there is room for along an x axis."""
    del position
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def _shades(count: int) -> list[Any]:
    """Colours from dark to light that are told apart by readers of every colour vision."""
    from matplotlib import colormaps

    return [colormaps["viridis"](place) for place in np.linspace(0.0, 0.88, count)]


def _powers_of_two(most: int) -> Any:
    from matplotlib.ticker import FixedLocator

    doubles = itertools.takewhile(lambda k: k <= 2 * most, (2**i for i in range(-3, 40)))
    return FixedLocator(list(doubles))


def _nothing() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
