"""What a soak shows: the lines of its files, what is wrong with them, and its figure."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import files
from experiments.figures import GREY, WORKERS

PER = 100_000  # updates, of the slope
COLOURS = (*WORKERS, "black", GREY)  # one for each mode


class Mode(NamedTuple):
    """A way in which workers read and write x, and Delta or None."""

    name: str
    max_delay: int | None

    @property
    def title(self) -> str:
        """The name, and Delta if there is one."""
        limit = "" if self.max_delay is None else f", max_delay={self.max_delay}"
        return self.name + limit

    @property
    def loses_nothing(self) -> bool:
        """Whether every update must be in x in the end."""
        return not self.name.endswith("lock_free")


class Line(NamedTuple):
    """What a run showed.

    Attributes:
      mode: its name.
      half: training or counting.
      workers: K.
      block: B.
      asked: updates.
      landed: updates that the traces name.
      lost: additions to a coordinate that are missing in x; None in training.
      lost_share: of all additions.
      max_delay: Delta; None for no limit.
      longest_delay: of all updates.
      resident_mb: of all processes, when a quarter of the updates was done.
      last_mb: in the end.
      slope_mb: of resident memory after the first quarter, MB for 100,000 updates.
      slope_error: its standard error, by least squares.
      updates_per_s: snapshots included.
      first_loss: f(x^0); None in counting.
      last_loss: in the end.
    """

    mode: str
    half: str
    workers: int
    block: int
    asked: int
    landed: int
    lost: int | None
    lost_share: float | None
    max_delay: int | None
    longest_delay: int
    resident_mb: float
    last_mb: float
    slope_mb: float
    slope_error: float
    updates_per_s: float
    first_loss: float | None
    last_loss: float | None


class MemoryLine(NamedTuple):
    """Resident memory of all processes after an epoch, in MB; updates count from the start."""

    mode: str
    half: str
    updates: int
    resident_mb: float


def complaints(line: Line) -> list[str]:
    """What is wrong with a run, one sentence each."""
    found = []
    mode = Mode(line.mode, line.max_delay)
    name = f"{mode.title}, {line.half}"
    if line.landed != line.asked:
        found.append(f"{name}: {line.landed} updates landed instead of {line.asked}.")
    if line.lost is not None and (line.lost < 0 or (line.lost and mode.loses_nothing)):
        found.append(f"{name}: {line.lost} additions to a coordinate were lost.")
    if line.max_delay is not None and line.longest_delay > line.max_delay:
        found.append(f"{name}: a delay was {line.longest_delay}, above {line.max_delay}.")
    # Also where a loss is no number.
    if line.first_loss is not None and not (line.last_loss or 0.0) < line.first_loss:
        found.append(f"{name}: the loss went from {line.first_loss:g} to {line.last_loss:g}.")
    return found


def resident_mb(process: int) -> float:
    """Resident memory of a process, in MB of 10^6 bytes.

    >>> 1 < resident_mb(os.getpid()) < 1e6
    True
    """
    pages = Path(f"/proc/{process}/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def growth(memory: Sequence[MemoryLine]) -> tuple[float, float]:
    """The slope of resident memory and its standard error, MB for 100,000 updates.

    By least squares, as if the epochs were independent.

    >>> lines = [MemoryLine("", "", 50_000 * k, 400.0 + 2.0 * k) for k in range(6)]
    >>> round(growth(lines)[0], 9)
    4.0
    """
    at = np.array([line.updates for line in memory]) / PER
    fit, covariance = np.polyfit(at, [line.resident_mb for line in memory], 1, cov=True)
    return float(fit[0]), float(np.sqrt(covariance[0, 0]))


def draw(path: Path, memory: Sequence[MemoryLine], title: str) -> None:
    """Resident memory over the updates of all runs, one after the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained", dpi=110)
    panel = figure.subplots()
    runs = {
        key: list(of_run)
        for key, of_run in itertools.groupby(memory, lambda line: (line.mode, line.half))
    }
    colours = dict(zip(dict.fromkeys(mode for mode, _ in runs), COLOURS, strict=False))
    before = 0
    for (mode, half), of_run in runs.items():
        panel.plot(
            [(before + line.updates) / 1e6 for line in of_run],
            [line.resident_mb for line in of_run],
            color=colours[mode],
            linestyle="-" if half == "training" else ":",
            label=f"{mode}, {half}",
        )
        before += of_run[-1].updates
    panel.set(title=title, xlabel="updates, in millions", ylabel="resident memory (MB)")
    # Room for the legend, above what is flat.
    panel.set_ylim(0, 1.6 * max(line.resident_mb for line in memory))
    panel.grid(alpha=0.25)
    panel.legend(frameon=False, fontsize="small", ncols=2)
    files.write_whole(path, lambda file: figure.savefig(file, format="png"))
