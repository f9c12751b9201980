"""What a prediction leaves behind: csv, figure, summary. What is simulated is always called so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import files, recording, tables
from experiments.speedup.predictions import BEYOND, MEASURED, SIMULATED, Curve, Reached, Speed
from experiments.speedup.short_runs import Calibration, Point

SPEEDS, CURVES, REACHED, HISTOGRAMS, FIGURE = (
    "speedup.csv",
    "convergence.csv",
    "time_speedup.csv",
    "delays.csv",
    "speedup.png",
)
# Okabe and Ito (2008), Color universal design: told apart by readers of every colour vision.
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


class Delays(NamedTuple):
    """The delays of the updates behind a line of speedup.csv."""

    of: Speed
    tau: np.ndarray


class Results(NamedTuple):
    """All that a prediction found.

    Attributes:
      name: of what was run.
      speeds: measured, then simulated on the same machine, then with a core for each worker.
      curves: in the same order.
      reached: a line for each curve.
      histograms: of the measured and simulated workers on this machine, and at the saturation.
      saturation: K*, of workers with a core each.
      calibration: of the measured run with the fewest workers.
    """

    name: str
    speeds: list[Speed]
    curves: list[Curve]
    reached: list[Reached]
    histograms: list[Delays]
    saturation: float
    calibration: Calibration


def write(folder: Path, results: Results, config: dict[str, Any]) -> None:
    """Writes the csv files, config.json and the figure.

    Args:
      folder: that exists.
      results: to write.
      config: from `provenance.describe`.
    """
    key = ("kind", "workers", "cores")
    curves = (
        (each.kind, each.workers, each.cores, epoch, *point)
        for each in results.curves
        for epoch, point in enumerate(each.points)
    )
    histograms = (
        (each.of.kind, each.of.workers, each.of.cores, int(delay), count / len(each.tau))
        for each in results.histograms
        for delay, count in zip(*np.unique(each.tau, return_counts=True), strict=True)
    )
    _write(folder / CURVES, (*key, "epoch", *Point._fields), curves)
    _write(folder / REACHED, Reached._fields, results.reached)
    _write(folder / HISTOGRAMS, (*key, "delay", "share"), histograms)
    recording.write_config(folder, config)
    _draw(folder / FIGURE, results)
    # The last, as the folder is known by it.
    _write(folder / SPEEDS, Speed._fields, results.speeds)


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    tables.write_lines(path, [header, *rows], digits=6)


def summary(folder: Path, results: Results) -> str:
    """The tables that end the binary.

    Args:
      folder: of the results.
      results: to tell of.

    Returns:
      Lines of text.
    """
    measured, simulated, far = (
        [each for each in results.speeds if each.kind == kind]
        for kind in (MEASURED, SIMULATED, BEYOND)
    )
    cores = measured[0].cores
    calibration = results.calibration
    where = "a core for each" if cores is None else f"{cores} cores"
    lines = [
        f"{results.name}: this machine, {where}",
        f"{'workers':>8}{'updates/s':>24}{'error':>10}{'speedup':>20}{'mean delay':>20}",
        f"{'':>8}"
        + f"{'measured':>12}{'simulated':>12}{'':>10}"
        + 2 * f"{'meas.':>10}{'sim.':>10}",
    ]
    lines += [
        f"{each.workers:>8}{each.updates_per_s:>12,.0f}{other.updates_per_s:>12,.0f}"
        f"{other.error_percent:>+8.1f} %{each.speedup:>10.2f}{other.speedup:>10.2f}"
        f"{each.mean_delay:>10.1f}{other.mean_delay:>10.1f}"
        for each, other in zip(measured, simulated, strict=True)
    ]
    lines += [
        "",
        "SIMULATED, a core for each worker",
        f"{'workers':>8}{'updates/s':>14}{'speedup':>10}{'mean delay':>16}{'95 %':>10}{'max':>10}",
    ]
    lines += [
        f"{each.workers:>8}{each.updates_per_s:>14,.0f}{each.speedup:>10.2f}"
        f"{each.mean_delay:>16.1f}{each.delay_95:>10.0f}{each.max_delay:>10}"
        for each in far
    ]
    lines += [
        "",
        f"calibrated with K = {calibration.num_workers}: a window of "
        f"{calibration.updates_per_read} updates takes {1e3 * calibration.compute.mean:.3g} ms of "
        f"computing, and {1e3 * calibration.service.mean:.3g} ms one at a time",
        f"saturated from K* = {results.saturation:.1f} workers on (simulated)",
    ]
    if len(results.reached) > 1:
        lines += [
            "",
            f"time speedup (22) to a training loss of {results.reached[0].target_loss:.4g}",
        ]
    for each in results.reached:
        speedup = "" if each.time_speedup is None else f"{each.time_speedup:.2f} times as fast"
        when = "not reached" if each.seconds is None else f"{each.seconds:.3f} s"
        lines.append(f"{each.workers:>8}  {each.kind:<18}{when:>11}  {speedup}")
    lines += ["", f"results  {folder / SPEEDS}", f"figure   {folder / FIGURE}"]
    return "\n".join(lines)


def _draw(path: Path, results: Results) -> None:
    """Draws speedup, delays, their distribution, and loss over time as a png."""
    # Not pyplot: a figure of its own leaves no global state behind, and opens no window.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained", dpi=120)
    figure.suptitle(f"{results.name}: measured, and simulated by a virtual clock")
    (speed, loss), (delay, histogram) = figure.subplots(2, 2)
    _draw_speed(speed, results)
    _draw_delays(delay, results)
    _draw_histograms(histogram, results)
    _draw_curves(loss, results)
    for panel in (speed, loss, delay, histogram):
        panel.grid(True, which="major", alpha=0.25)
        # Plain numbers instead of powers of ten.
        panel.xaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(_some)
        panel.legend(frameon=False, fontsize="small")
    files.write_whole(path, lambda file: figure.savefig(file, format="png"))


def _some(value: float, position: int) -> str:
    """A label for a few of the ticks between two powers of ten."""
    del position
    return f"{value:g}" if f"{value:e}"[0] in "235" else ""


def _draw_speed(panel: Any, results: Results) -> None:
    far = [each for each in results.speeds if each.kind == BEYOND]
    workers = [each.workers for each in far]
    top = max(each.speedup for each in results.speeds)
    panel.plot([1, 2 * top], [1, 2 * top], color="0.6", linestyle=":", label="linear")
    panel.plot(
        workers,
        [each.speedup for each in far],
        color=COLOURS[1],
        linestyle="--",
        marker=".",
        label="simulated, a core for each worker",
    )
    for kind, colour, marker in ((SIMULATED, COLOURS[2], "x"), (MEASURED, COLOURS[0], "o")):
        lines = [each for each in results.speeds if each.kind == kind]
        cores = lines[0].cores
        on = "" if kind == MEASURED or cores is None else f", {cores} cores"
        panel.plot(
            [each.workers for each in lines],
            [each.speedup for each in lines],
            color=colour,
            linestyle="",
            marker=marker,
            fillstyle="none",
            label=kind + on,
        )
    if np.isfinite(results.saturation):
        panel.axvline(
            results.saturation,
            color="0.3",
            linewidth=0.8,
            label=f"K* = {results.saturation:.1f} (simulated)",
        )
    panel.set(
        xlabel="workers K",
        ylabel="speedup of updates/s",
        xscale="log",
        yscale="log",
        ylim=(0.8, 2.5 * top),
    )


def _draw_delays(panel: Any, results: Results) -> None:
    far = [each for each in results.speeds if each.kind == BEYOND and each.max_delay > 0]
    for field, colour, label in (
        ("max_delay", COLOURS[2], "largest"),
        ("delay_95", COLOURS[3], "95 %"),
        ("mean_delay", COLOURS[1], "mean"),
    ):
        panel.plot(
            [each.workers for each in far],
            [getattr(each, field) for each in far],
            color=colour,
            linestyle="--",
            marker=".",
            label=f"{label}, simulated",
        )
    real = [each for each in results.speeds if each.kind == MEASURED and each.max_delay > 0]
    if real:
        panel.plot(
            [each.workers for each in real],
            [each.mean_delay for each in real],
            color=COLOURS[0],
            linestyle="",
            marker="o",
            fillstyle="none",
            label="mean, measured",
        )
    panel.set(xlabel="workers K", ylabel="delay of an update (updates)", xscale="log", yscale="log")


def _draw_histograms(panel: Any, results: Results) -> None:
    for (of, tau), colour in zip(results.histograms[-3:], COLOURS, strict=False):
        # How many updates are at least so late: no bins to choose.
        delay = np.sort(tau)
        panel.step(
            delay,
            1 - np.arange(len(delay)) / len(delay),
            where="pre",
            color=colour,
            linestyle="-" if of.kind == MEASURED else "--",
            label=f"K = {of.workers}, {of.kind}",
        )
    panel.set(
        xlabel="delay tau (updates)",
        ylabel="share of updates with at least this delay",
        xscale="symlog",
    )


def _draw_curves(panel: Any, results: Results) -> None:
    workers = sorted({each.workers for each in results.curves})
    colours = dict(
        zip(workers, (COLOURS[i % len(COLOURS)] for i in range(len(workers))), strict=True)
    )
    styles = {MEASURED: "-", SIMULATED: "--", BEYOND: ":"}
    for each in results.curves:
        panel.plot(
            [point.seconds for point in each.points],
            [point.train_loss for point in each.points],
            color=colours[each.workers],
            linestyle=styles[each.kind],
            marker=".",
            label=f"K = {each.workers}, {each.kind}",
        )
    panel.set(xlabel="seconds of optimisation", ylabel="training loss f(x)", yscale="log")
    panel.set_ylim(
        top=1.3 * results.curves[0].points[0].train_loss
    )  # what diverges leaves the panel
