"""The benchmarks as a figure: time of an update, and time to each loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import TARGETS
from benchmarks.results import Line, seconds_to
from experiments import files
from experiments.figures import BLUE, GREEN, GREY, ORANGE, PURPLE

# By the beginning of a name; what has none of them is a floor.
COLOURS = {"asvrg": BLUE, "PyTorch Hogwild": ORANGE, "PyTorch": PURPLE, "optax": GREEN}
MARKERS = ("o", "s", "D")  # of the targets, told apart without colour


def draw(path: Path, lines: Sequence[Line], title: str) -> None:
    """Draws times of an update as bars and seconds to the losses as marks, as a png."""
    # Not pyplot, as in experiments.figures.
    from matplotlib.figure import Figure

    lines = [line for line in lines if line.us_per_update is not None]
    figure = Figure(figsize=(13, 1.6 + 0.34 * len(lines)), layout="constrained", dpi=110)
    figure.suptitle(title)
    bars, marks = figure.subplots(1, 2, sharey=True)
    _bars(bars, lines)
    _marks(marks, lines)
    for panel in (bars, marks):
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.grid(True, axis="x", alpha=0.25)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    bars.invert_yaxis()
    files.write_whole(path, lambda file: figure.savefig(file, format="png"))


def colour(contestant: str) -> str:
    """One for asvrg, for PyTorch's Hogwild, its plain optimisers, optax, and the floors."""
    return next((c for name, c in COLOURS.items() if contestant.startswith(name)), GREY)


def _bars(panel: Any, lines: Sequence[Line]) -> None:
    for place, line in enumerate(lines):
        us, low, high = line.us_per_update or 0.0, line.us_min or 0.0, line.us_max or 0.0
        panel.barh(place, us, color=colour(line.contestant))
        panel.plot([low, high], [place, place], color="black", linewidth=1)
        panel.annotate(
            f"{us:.0f}" if us >= 100 else f"{us:.1f}",
            (high, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    panel.set_yticks(range(len(lines)), [line.contestant for line in lines])
    panel.set_xlabel("time of an update (µs): median, and range over the rounds")
    panel.set_xlim(1, 3 * max(line.us_max or 1.0 for line in lines))


def _marks(panel: Any, lines: Sequence[Line]) -> None:
    for place, line in enumerate(lines):
        reached = [seconds for seconds in seconds_to(line) if seconds is not None]
        panel.plot(reached, [place] * len(reached), color=colour(line.contestant), linewidth=1)
        for seconds, marker in zip(reached, MARKERS, strict=False):
            panel.plot(seconds, place, marker, color=colour(line.contestant))
        if reached:
            panel.annotate(
                f"{reached[-1]:.2g} s",
                (reached[-1], place),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
            )
    for marker, target in zip(MARKERS, TARGETS, strict=True):
        panel.plot([], [], marker, color="black", label=f"loss {target:g}")
    panel.legend(frameon=False, ncols=len(TARGETS), loc="lower center", bbox_to_anchor=(0.5, 1))
    panel.tick_params(left=False, labelleft=False)
    panel.set_xlabel("seconds of optimisation to a training loss, where it was reached")
    if any(seconds_to(line)[0] for line in lines):
        panel.margins(x=0.12)
    else:
        panel.set_xlim(0.1, 10)  # else an axis without any mark has no limits
