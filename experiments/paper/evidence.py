"""The rows of Figures 1 to 4, and the numbers that the paper's claims are held against."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import tables
from experiments.paper.plan import Labels
from experiments.speedup.predictions import seconds_to

# Files of a figure: what was run and found, and what is counted from that.
RUNS, PREDICTED, STEPS, BEST = "runs.csv", "predicted.csv", "steps.csv", "best.csv"
SPEEDUP, CLAIMS = "speedup.csv", "claims.csv"
TARGET = 2 / 3  # of its epochs, after which one worker has the loss of Equation (22)


class Run(NamedTuple):
    """One run: its labels, and columns of its metrics.csv by name, [epochs + 1] each."""

    labels: Labels
    columns: dict[str, np.ndarray]


class TimeSpeedup(NamedTuple):
    """A line of speedup.csv: Equation (22) for K workers, mean and range of the seeds.

    `seconds` to `target_loss`; the run with one worker and a seed is compared with that with K and
    the same seed. Times and speedups are empty where the run of a seed does not reach the loss.
    `kind` is measured or simulated; `updates_per_s` counts the time of whole epochs.
    """

    kind: str
    setting: str
    workers: int
    seeds: int
    target_loss: float
    seconds: float | None = None
    time_speedup: float | None = None
    smallest: float | None = None
    largest: float | None = None
    updates_per_s: float | None = None
    mean_delay: float | None = None
    max_delay: int | None = None


class Claim(NamedTuple):
    """A line of claims.csv: a number with its spread over the seeds."""

    figure: str
    what: str
    of: str
    mean: float
    smallest: float
    largest: float
    seeds: int


def read_runs(path: Path) -> list[Run]:
    """The runs in a runs.csv, in their order.

    Args:
      path: of the file.

    Returns:
      Runs.
    """
    found = []
    for key, rows in itertools.groupby(
        tables.read(path), lambda row: tuple(row[name] for name in Labels._fields)
    ):
        of_run = list(rows)
        method, workers, setting, seed = key
        columns = {
            name: np.array([float(row[name]) for row in of_run])
            for name in of_run[0]
            if name not in Labels._fields
        }
        found.append(Run(Labels(method, int(workers), setting, int(seed)), columns))
    return found


def read_predicted(path: Path) -> list[Run]:
    """The simulated runs in a predicted.csv, as runs of seed 0 with a core for each worker."""
    found = []
    for (setting, workers), rows in itertools.groupby(
        tables.read(path), lambda row: (row["setting"], int(row["workers"]))
    ):
        of_run = list(rows)
        columns = {
            name: np.array([float(row[name]) for row in of_run])
            for name in ("epoch", "seconds", "train_loss", "test_error")
        }
        found.append(Run(Labels("svrg", workers, setting, 0), columns))
    return found


def values(runs: Sequence[Run], name: str) -> np.ndarray:
    """A column of runs of equal length, [epochs + 1, runs]."""
    return np.stack([run.columns[name] for run in runs], axis=1)


def target_loss(runs: Sequence[Run]) -> float:
    """A training loss for Equation (22): what one worker has after two thirds of its epochs.

    Args:
      runs: of one method, those with one worker among them.

    Returns:
      The geometric mean over the seeds; between epochs that of a straight line in log f.
    """
    logs = [
        np.interp(
            TARGET * run.columns["epoch"][-1],
            run.columns["epoch"],
            np.log(run.columns["train_loss"]),
        )
        for run in runs
        if run.labels.workers == 1
    ]
    return float(np.exp(np.mean(logs)))


def time_speedups(kind: str, runs: Sequence[Run], target: float) -> list[TimeSpeedup]:
    """Equation (22): how much sooner K workers reach a training loss than one does.

    Times between the ends of two epochs are those of a straight line in log f.

    Args:
      kind: of the lines.
      runs: of one method and one setting; those with one worker of the same seeds among them.
      target: the loss.

    Returns:
      A line for each number of workers.
    """
    reached = {run.labels: _seconds(run, target) for run in runs}
    lines = []
    for k in sorted({run.labels.workers for run in runs}):
        mine = [run for run in runs if run.labels.workers == k]
        pairs = [(reached[run.labels._replace(workers=1)], reached[run.labels]) for run in mine]
        times = [(one, many) for one, many in pairs if one is not None and many is not None]
        line = TimeSpeedup(kind, mine[0].labels.setting, k, len(mine), target)
        if len(times) == len(pairs):
            ratios = [one / many for one, many in times]
            line = line._replace(
                seconds=float(np.mean([many for _, many in times])),
                time_speedup=float(np.mean(ratios)),
                smallest=min(ratios),
                largest=max(ratios),
            )
        lines.append(_with_updates(line, mine))
    return lines


def claims(figure: str, runs: Sequence[Run], num_train: int) -> list[Claim]:
    """The numbers that the claims about Figures 1 and 3 are held against.

    Args:
      figure: which one.
      runs: of three methods with the same seeds.
      num_train: n.

    Returns:
      For each method the state in the end, and the slope of the average of ||grad f||^2 over the
      epochs so far; and how it compares with SGD at equal epochs, gradients and time.
    """
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run.labels.method, []).append(run)
    lines = []

    def add(what: str, of: str, numbers: Iterable[float]) -> None:
        each = list(numbers)
        lines.append(Claim(figure, what, of, float(np.mean(each)), min(each), max(each), len(each)))

    for method, mine in by_method.items():
        for name in ("train_loss", "train_error", "test_error", "grad_norm_sq"):
            add(f"{name} in the end", method, (run.columns[name][-1] for run in mine))
        add("smallest test_error", method, (run.columns["test_error"].min() for run in mine))
        add("seconds", method, (run.columns["seconds"][-1] for run in mine))
        add("slope of the mean of grad_norm_sq", method, map(slope, mine))
    for method in [name for name in by_method if name != "sgd"]:
        pairs = list(zip(by_method[method], by_method["sgd"], strict=True))
        for name in ("train_loss", "train_error", "test_error"):
            add(
                f"epoch from which {name} stays below sgd's",
                method,
                (overtakes(a, b, name) for a, b in pairs),
            )
        for name in ("train_loss", "test_error"):
            add(
                f"epochs with {name} below sgd's",
                method,
                (float(np.sum(a.columns[name][1:] < b.columns[name][1:])) for a, b in pairs),
            )
        add(
            "component gradients / n from which train_loss stays below sgd's",
            method,
            (overtakes(*at_equal_gradients(a, b, num_train), "train_loss") for a, b in pairs),
        )
        add(
            "train_loss over sgd's at equal component gradients",
            method,
            (ratio_at_equal(a, b, "grad_evals") for a, b in pairs),
        )
        add(
            "train_loss over sgd's at equal time",
            method,
            (ratio_at_equal(a, b, "seconds") for a, b in pairs),
        )
    if "sgd_svrg" in by_method:
        add(
            "epoch from which train_loss stays below svrg's",
            "sgd_svrg",
            (
                overtakes(a, b, "train_loss")
                for a, b in zip(by_method["sgd_svrg"], by_method["svrg"], strict=True)
            ),
        )
    return lines


def overtakes(run: Run, other: Run, name: str) -> float:
    """The epoch from which on a column is below another run's to the end; inf if it never is.

    >>> def of(*losses):
    ...     return Run(Labels("", 1, "", 0), {"loss": np.array(losses), "epoch": np.arange(4)})
    >>> overtakes(of(4, 3, 1, 1), of(4, 2, 2, 2), "loss")
    2.0
    """
    above = np.flatnonzero(run.columns[name] >= other.columns[name])
    first = above[-1] + 1 if len(above) else 0
    epochs = run.columns["epoch"]
    return float(epochs[first]) if first < len(epochs) else float("inf")


def at_equal_gradients(run: Run, other: Run, num_train: int) -> tuple[Run, Run]:
    """Both runs after n, 2 n, ... component gradients, as far as both go; `epoch` counts the n.

    Between the ends of two epochs straight lines in log f.
    """
    last = min(each.columns["grad_evals"][-1] for each in (run, other))
    counts = np.arange(1, int(last // num_train) + 1)

    def there(each: Run) -> Run:
        spent, logs = each.columns["grad_evals"], np.log(each.columns["train_loss"])
        losses = np.exp(np.interp(num_train * counts, spent, logs))
        return each._replace(columns={"epoch": counts, "train_loss": losses})

    return there(run), there(other)


def ratio_at_equal(run: Run, other: Run, axis: str) -> float:
    """The training loss over another run's where both have spent the smaller of their totals.

    Between the ends of two epochs a straight line in log f.

    >>> def of(cost):
    ...     return Run(
    ...         Labels("", 1, "", 0),
    ...         {"train_loss": np.array([1.0, 0.1, 0.01]), "cost": cost * np.arange(3)},
    ...     )
    >>> round(ratio_at_equal(of(2.0), of(1.0), "cost"), 9)
    10.0
    """
    spent = min(run.columns[axis][-1], other.columns[axis][-1])
    logs = [
        float(np.interp(spent, each.columns[axis], np.log(each.columns["train_loss"])))
        for each in (run, other)
    ]
    return float(np.exp(logs[0] - logs[1]))


def slope(run: Run) -> float:
    """How steeply the mean of ||grad f||^2 over the epochs so far falls, log-log, in the last half.

    O(1/T) is -1: the left-hand sides of (12) and (19), with x at the ends of epochs for all x_t.

    >>> columns = {"grad_norm_sq": np.array([4.0, 4.0, 0.0, 0.0, 0.0])}
    >>> round(slope(Run(Labels("", 1, "", 0), columns)), 9)
    -1.0
    """
    norms = run.columns["grad_norm_sq"][1:]
    epochs = np.arange(1, len(norms) + 1)
    means = np.cumsum(norms) / epochs
    half = len(norms) // 2
    return float(np.polyfit(np.log(epochs[half - 1 :]), np.log(means[half - 1 :]), 1)[0])


def _seconds(run: Run, target: float) -> float | None:
    points = zip(run.columns["seconds"].tolist(), run.columns["train_loss"].tolist(), strict=True)
    return seconds_to(list(points), target)


def _with_updates(line: TimeSpeedup, runs: Sequence[Run]) -> TimeSpeedup:
    """The line with what real runs say of their updates; simulated ones leave it as it is."""
    if "updates" not in runs[0].columns:
        return line
    speeds = [run.columns["updates"][-1] / run.columns["seconds"][-1] for run in runs]
    tau = [run.columns["mean_delay"][1:].mean() for run in runs]
    return line._replace(
        updates_per_s=float(np.mean(speeds)),
        mean_delay=float(np.mean(tau)),
        max_delay=int(max(run.columns["max_delay"].max() for run in runs)),
    )
