"""Updates per second of 1, 2, 4, ... threads, and what keeps them from being as many times faster.

    python -m benchmarks.scaling --dataset=mnist --out_dir=FOLDER

All numbers of threads run in turn, `--rounds` times. Beside them, as many processes with one thread
each, which share nothing but the machine: what they lose is memory bandwidth, caches and clock, and
what threads lose beyond that is the interpreter's lock, the write lock and the allocator. The parts
of an iteration come from the times that a trace holds: the compiled call (with the copy of x before
it), landing (the write lock and the additions), and the rest (draws, interpreter). Writes
scaling.csv and scaling.png.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from tqdm import tqdm

from asvrg import estimators
from asvrg.drivers import threads
from asvrg.errors import INT32, DriverError, check_count
from asvrg.types import Driver, Snapshot
from experiments import files, folders, iterations, launch, problem, provenance, recording, tables
from experiments.figures import BLUE, GREY, ORANGE
from experiments.problem import Problem

RESULT, FIGURE = "scaling.csv", "scaling.png"
LR = 0.1  # small enough for every data set; the time does not depend on it


class Line(NamedTuple):
    """Medians over the rounds; microseconds of a thread for one of its iterations in the parts.

    Attributes:
      workers: K.
      updates_per_s: of all threads together.
      speedup: over one thread in the same round.
      processes_speedup: of K processes with one thread each over one such process, same round.
      call_us: of the compiled call, and the copy of x.
      landing_us: of waiting for the write lock, and of the additions.
      rest_us: of draws, and of waiting for the interpreter.
    """

    workers: int
    updates_per_s: float
    speedup: float
    processes_speedup: float
    call_us: float
    landing_us: float
    rest_us: float


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this benchmark."""
    problem.define_flags(values)
    flags.DEFINE_list(
        "workers", None, "K. Default: 1, 2, 4, ... up to the cores.", flag_values=values
    )
    flags.DEFINE_integer("read_period", 64, "r.", flag_values=values)
    flags.DEFINE_bool("sees_own", True, "As in train_shared.", flag_values=values)
    flags.DEFINE_integer("batch_size", 10, "b.", flag_values=values)
    flags.DEFINE_integer("block_size", 1_000, "B.", flag_values=values)
    flags.DEFINE_integer("inner_steps", 8_192, "m, for each thread.", flag_values=values)
    flags.DEFINE_integer("rounds", 9, "Of all of them.", flag_values=values)
    folders.define_out_dir(values)
    flags.DEFINE_bool("alone", False, "One of the processes, by itself.", flag_values=values)


def main(values: flags.FlagValues) -> int:
    """Measures all K in turn, and writes scaling.csv and scaling.png."""
    for name in ("read_period", "inner_steps", "rounds"):
        check_count(f"--{name}", values[name].value, limit=INT32)
    if values.alone:
        return _alone(values)
    workers = _workers(values)
    problem_ = problem.from_flags(values)
    drivers = {count: _driver(values, problem_, count) for count in workers}
    folder = folders.claim_folder(values.out_dir, f"scaling-{values.dataset}", holds=RESULT)
    for driver in drivers.values():
        driver.warm_up(problem_.x0)
    snapshot = drivers[workers[0]].prepare(problem_.x0)
    rounds: dict[int, list[Line]] = {count: [] for count in workers}
    with _Processes(values, workers[-1]) as processes:
        for _ in tqdm(range(values.rounds), unit="round", mininterval=5.0):
            of_round = _round(drivers, problem_, snapshot)
            together = {count: processes.updates_per_s(count) for count in workers}
            for count, line in of_round.items():
                speedup = together[count] / together[1]
                rounds[count].append(line._replace(processes_speedup=speedup))
    lines = [
        Line(count, *(statistics.median(each) for each in list(zip(*of_count, strict=True))[1:]))
        for count, of_count in rounds.items()
    ]
    for line in lines:
        print(", ".join(f"{name} {value:.4g}" for name, value in line._asdict().items()))
    tables.write_csv(folder / RESULT, lines)
    _draw(folder / FIGURE, lines, f"{values.dataset}, r = {values.read_period}")
    recording.write_config(folder, provenance.describe(values, {"cores": _cores()}))
    print(folder / FIGURE)
    return 0


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _workers(values: flags.FlagValues) -> list[int]:
    if values.workers is not None:
        given = launch.counts(values, "workers")
        check_count("every entry of --workers", max(given), limit=iterations.MOST_WORKERS)
        return sorted({1, *given})
    return [1 << power for power in range(_cores().bit_length())]


def _driver(values: flags.FlagValues, problem_: Problem, workers: int) -> Driver:
    spec = iterations.make_sampler(values, problem_, block_size=values.block_size)
    return threads.driver(
        estimators.svrg(problem_.objective),
        problem_.train,
        spec,
        inner_steps=values.inner_steps * workers,
        num_threads=workers,
        read_period=values.read_period,
        sees_own=values.sees_own,
    )


def _round(drivers: dict[int, Driver], problem_: Problem, snapshot: Snapshot) -> dict[int, Line]:
    lines: dict[int, Line] = {}
    for workers, driver in drivers.items():
        begin = time.perf_counter()
        _, trace = driver.inner_loop(problem_.x0, snapshot, 0, LR)
        seconds = time.perf_counter() - begin
        assert trace.times is not None
        updates = len(trace.worker)
        first = np.flatnonzero(np.diff(trace.times.landed, prepend=-1.0))  # of every window
        read, computed, landed = (field[first] for field in trace.times)
        call = 1e6 * (computed - read).sum() / updates
        landing = 1e6 * (landed - computed).sum() / updates
        rest = 1e6 * seconds * workers / updates - call - landing
        rate = updates / seconds
        base = lines[1].updates_per_s if lines else rate
        lines[workers] = Line(workers, rate, rate / base, 0.0, call, landing, rest)
    return lines


class _Processes:
    """Processes with one thread each, that run when they are told to."""

    def __init__(self, values: flags.FlagValues, count: int) -> None:
        given = values.flags_into_string().splitlines()
        command = [sys.executable, "-m", "benchmarks.scaling", *given, "--alone"]
        self._all = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
            for _ in range(count)
        ]

    def __enter__(self) -> _Processes:
        for process in self._all:
            self._answer(process)  # that it is ready
        return self

    def __exit__(self, *args: object) -> None:
        for process in self._all:
            process.kill()
            process.communicate()

    def updates_per_s(self, count: int) -> float:
        """The sum over some of them that run at once."""
        chosen = self._all[:count]
        for process in chosen:
            assert process.stdin is not None
            process.stdin.write("go\n")
        return sum(self._answer(process) for process in chosen)

    @staticmethod
    def _answer(process: subprocess.Popen[str]) -> float:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise DriverError(f"a process ended with exit code {process.wait()}.")
        return float(line)


def _alone(values: flags.FlagValues) -> int:
    """Prints its updates per second whenever it is told to run."""
    problem_ = problem.from_flags(values)
    driver = _driver(values, problem_, 1)
    driver.warm_up(problem_.x0)
    snapshot = driver.prepare(problem_.x0)
    print(0.0, flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        driver.inner_loop(problem_.x0, snapshot, 0, LR)
        print(driver.inner_steps / (time.perf_counter() - begin), flush=True)
    return 0


def _draw(path: Path, lines: Sequence[Line], title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained", dpi=110)
    figure.suptitle(f"{title}, cores: {_cores()}")
    speedup, parts = figure.subplots(1, 2)
    workers = [line.workers for line in lines]
    speedup.plot(workers, workers, color=GREY, linestyle=":", label="as many times faster")
    for values, colour, marker, name in (
        ([line.processes_speedup for line in lines], ORANGE, "s", "processes, nothing shared"),
        ([line.speedup for line in lines], BLUE, "o", "threads"),
    ):
        speedup.plot(workers, values, color=colour, marker=marker, label=name)
    speedup.set(xlabel="threads, or processes", ylabel="updates/s beside those of one", ylim=0)
    speedup.set_xticks(workers)
    speedup.legend(frameon=False)
    bottom = np.zeros(len(lines))
    places = np.arange(len(lines))
    for name, colour, label in (
        ("call_us", BLUE, "compiled call, copy of x"),
        ("landing_us", ORANGE, "write lock, additions"),
        ("rest_us", GREY, "draws, interpreter"),
    ):
        heights = np.array([getattr(line, name) for line in lines])
        parts.bar(places, heights, 0.6, bottom, color=colour, label=label)
        bottom += heights
    parts.set_xticks(places, [str(count) for count in workers])
    parts.set(xlabel="threads", ylabel="µs of a thread for one of its iterations")
    parts.set_ylim(0, 1.35 * bottom.max())
    parts.legend(frameon=False)
    files.write_whole(path, lambda file: figure.savefig(file, format="png"))


if __name__ == "__main__":
    launch.start(main, define_flags)
