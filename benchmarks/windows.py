"""Loss against time for windows of 1, 8, 64 and 512 iterations, with and without own updates.

    python -m benchmarks.windows --dataset=mnist --out_dir=FOLDER

A thread makes r iterations from one read of x to the next. It sees its own updates in between
(exact), or computes all of them at the x that it read (one x), where staleness buys larger matrix
products. All of them have the same draws, step and x^0, and run in turn, `--repeats` times; the
csv and the figure have the medians of the seconds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from tqdm import tqdm

from asvrg import delays, estimators, objectives, schedules, training
from asvrg.drivers import threads
from asvrg.errors import INT32, DivergedError, check_count, check_real
from asvrg.types import Driver, EpochResult
from experiments import files, folders, iterations, launch, problem, provenance, recording, tables
from experiments.figures import BLUE, GREEN, ORANGE, PURPLE
from experiments.problem import Problem

RESULT, FIGURE = "windows.csv", "windows.png"


class Line(NamedTuple):
    """A run after an epoch.

    Attributes:
      read_period: r.
      sees_own: whether a thread sees its own updates between two reads.
      epoch: epochs done.
      seconds: of optimisation, snapshots included; the median of all rounds.
      us_per_update: seconds in microseconds, divided by the updates since x^0; nan at x^0.
      loss: f(x), nan or inf after the run diverged; of the first round.
      max_delay: of this epoch's updates, in updates; of the first round.
    """

    read_period: int
    sees_own: bool
    epoch: int
    seconds: float
    us_per_update: float
    loss: float
    max_delay: int


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this benchmark."""
    problem.define_flags(values)
    flags.DEFINE_list("read_periods", ["1", "8", "64", "512"], "r.", flag_values=values)
    flags.DEFINE_integer("num_threads", 1, "K.", flag_values=values)
    flags.DEFINE_integer("batch_size", 10, "b.", flag_values=values)
    flags.DEFINE_integer("block_size", 1_000, "B.", flag_values=values)
    flags.DEFINE_integer("inner_steps", 1_024, "m.", flag_values=values)
    flags.DEFINE_float("lr", 0.5, "eta.", flag_values=values)
    flags.DEFINE_integer("num_epochs", 12, "S.", flag_values=values)
    flags.DEFINE_integer("repeats", 5, "Rounds of all runs.", flag_values=values)
    folders.define_out_dir(values)


def main(values: flags.FlagValues) -> int:
    """Runs all windows in turn, and writes windows.csv and windows.png."""
    for name in ("num_threads", "inner_steps", "num_epochs", "repeats"):
        check_count(f"--{name}", values[name].value, limit=INT32)
    check_real("--lr", values.lr, above=True)
    check_count("--num_threads", values.num_threads, limit=iterations.MOST_WORKERS)
    read_periods = launch.counts(values, "read_periods")
    check_count("every entry of --read_periods", max(read_periods), limit=INT32)
    problem_ = problem.from_flags(values)
    drivers = {
        (read_period, sees_own): _driver(values, problem_, read_period, sees_own)
        for read_period in read_periods
        for sees_own in (True, False)
    }
    folder = folders.claim_folder(values.out_dir, f"windows-{values.dataset}", holds=RESULT)
    for driver in drivers.values():
        driver.warm_up(problem_.x0)
    rounds = [
        {key: _run(values, problem_, *key, driver) for key, driver in drivers.items()}
        for _ in tqdm(range(values.repeats), unit="round", mininterval=5.0)
    ]
    lines = [line for key in drivers for line in _medians([each[key] for each in rounds])]
    tables.write_csv(folder / RESULT, lines)
    _draw(folder / FIGURE, lines, read_periods, f"{values.dataset}, K = {values.num_threads}")
    recording.write_config(folder, provenance.describe(values, {}))
    for key in drivers:
        last = [line for line in lines if (line.read_period, line.sees_own) == key][-1]
        print(", ".join(f"{name} {value:.6g}" for name, value in last._asdict().items()))
    print(folder / FIGURE)
    return 0


def _driver(
    values: flags.FlagValues, problem_: Problem, read_period: int, sees_own: bool
) -> Driver:
    spec = iterations.make_sampler(values, problem_, block_size=values.block_size)
    return threads.driver(
        estimators.svrg(problem_.objective),
        problem_.train,
        spec,
        inner_steps=values.inner_steps,
        num_threads=values.num_threads,
        read_period=read_period,
        sees_own=sees_own,
    )


def _run(
    values: flags.FlagValues, problem_: Problem, read_period: int, sees_own: bool, driver: Driver
) -> list[Line]:
    def line(result: EpochResult) -> Line:
        seconds, updates, trace = result.seconds, result.updates, result.trace
        return Line(
            read_period,
            sees_own,
            result.epoch,
            seconds,
            1e6 * seconds / updates if updates else math.nan,
            objectives.evaluate(problem_.objective, result.x, problem_.train).loss,
            0 if trace is None else int(delays.staleness(trace).max()),
        )

    start = training.start(problem_.x0)
    lines = [line(start)]
    schedule = schedules.constant(values.lr)
    try:
        for result in training.run(driver, start, schedule=schedule, num_epochs=values.num_epochs):
            lines.append(line(result))
    except DivergedError:
        lines.append(lines[-1]._replace(epoch=lines[-1].epoch + 1, loss=math.inf))
    return lines


def _medians(runs: Sequence[Sequence[Line]]) -> list[Line]:
    """The first of some runs that were alike, with the medians of all of their seconds."""
    return [
        same[0]._replace(
            seconds=statistics.median(line.seconds for line in same),
            us_per_update=statistics.median(line.us_per_update for line in same),
        )
        for same in zip(*runs, strict=False)  # with several threads one may diverge earlier
    ]


def _draw(path: Path, lines: Sequence[Line], read_periods: Sequence[int], title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained", dpi=110)
    figure.suptitle(f"{title}: r iterations between two reads of x")
    by_time, by_epoch = figure.subplots(1, 2, sharey=True)
    colours = (BLUE, ORANGE, GREEN, PURPLE)
    for i, read_period in enumerate(read_periods):
        for sees_own in (True, False):
            run = [
                line
                for line in lines
                if (line.read_period, line.sees_own) == (read_period, sees_own)
                and math.isfinite(line.loss)
            ]
            style = {
                "color": colours[i % len(colours)],
                "linestyle": "-" if sees_own else "--",
                "marker": ".",
                "label": f"r = {read_period}, {'exact' if sees_own else 'one x'}",
            }
            loss = [line.loss for line in run]
            by_time.plot([line.seconds for line in run], loss, **style)
            by_epoch.plot([line.epoch for line in run], loss, **style)
    by_time.set(xlabel="optimisation time (s)", ylabel="training loss f(x)", yscale="log")
    by_epoch.set(xlabel="epochs")
    by_time.yaxis.set_major_formatter("{x:g}")
    by_time.yaxis.set_minor_formatter("{x:g}")
    for panel in (by_time, by_epoch):
        panel.grid(True, which="both", alpha=0.25)
    by_epoch.legend(frameon=False, ncols=2, fontsize="small")
    files.write_whole(path, lambda file: figure.savefig(file, format="png"))


if __name__ == "__main__":
    launch.start(main, define_flags)
