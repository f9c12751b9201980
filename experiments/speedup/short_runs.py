"""Real runs whose updates were timed, and what a virtual clock needs to know of them."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asvrg import durations, objectives, training
from asvrg.durations import Duration
from asvrg.errors import InputError
from asvrg.types import Driver, EpochResult, Trace
from experiments import recording, traces
from experiments.methods import Phase
from experiments.problem import Problem
from experiments.traces import Header


class Point(NamedTuple):
    """The end of an epoch, or the state before training: seconds of optimisation, and metrics."""

    seconds: float
    train_loss: float
    test_error: float


class Run(NamedTuple):
    """One run with K workers, or several in the same setting.

    Attributes:
      num_workers: K.
      traces: of its epochs, with times.
      outside: seconds of each epoch beside its inner loop: the full gradient of SVRG.
      curve: before training and after every epoch; of several runs, that of the fastest.
    """

    num_workers: int
    traces: list[Trace]
    outside: list[float]
    curve: list[Point]


class Calibration(NamedTuple):
    """What a run says about a window of updates; see `asvrg.virtual_clock` for the model.

    Attributes:
      num_workers: K of the run.
      updates_per_read: r.
      compute: of a worker, from its read of x until its updates are ready to land.
      service: from then on until the worker may read x again: what only one worker does at a time.
      setup: seconds of an epoch's inner loop before the first read of x.
      outside: seconds of an epoch beside its inner loop, with K workers.
    """

    num_workers: int
    updates_per_read: int
    compute: Duration
    service: Duration
    setup: float
    outside: float


def in_turn(
    drivers: Mapping[int, Driver],
    problem_: Problem,
    phase: Phase,
    *,
    rounds: int,
) -> Iterator[Run]:
    """Trains with each driver in turn, several times from the start.

    Args:
      drivers: K -> a driver with K workers, whose traces have times.
      problem_: what is minimised.
      phase: the steps and the number of epochs.
      rounds: runs with each driver.

    Yields:
      For each K, the Run that its runs make.

    Raises:
      DivergedError: x has an entry that is no finite number.
      DriverError: a worker failed.
    """
    runs: dict[int, list[list[tuple[EpochResult, Point]]]] = {k: [] for k in drivers}
    for _ in range(rounds):
        for k, driver in drivers.items():
            runs[k].append(list(train(driver, problem_, phase)))
    for k, repeats in runs.items():
        pairs = [pair for run in repeats for pair in itertools.pairwise(run)]
        fastest = min(repeats, key=lambda run: run[-1][0].seconds)
        yield Run(
            k,
            [_timed(after.trace) for _, (after, _) in pairs],
            [
                after.seconds - before.seconds - inner_seconds(_timed(after.trace))
                for (before, _), (after, _) in pairs
            ],
            [point for _, point in fastest],
        )


def train(driver: Driver, problem_: Problem, phase: Phase) -> Iterator[tuple[EpochResult, Point]]:
    """The states of a run, the one before training first, each with its metrics.

    Args:
      driver: owns x.
      problem_: what is minimised.
      phase: the steps and the number of epochs.

    Yields:
      An EpochResult and its Point; the loss with the l2 term.
    """
    state = training.start(problem_.x0)
    results = training.run(driver, state, schedule=phase.schedule, num_epochs=phase.num_epochs)
    for reached in itertools.chain([state], results):
        loss = objectives.evaluate(problem_.objective, reached.x, problem_.train).loss
        error = objectives.evaluate(problem_.objective, reached.x, problem_.test).error
        yield reached, Point(reached.seconds, loss, error)


def recorded(path: str) -> tuple[Header, Run]:
    """A run that --record has left.

    Args:
      path: of the run's folder.

    Returns:
      Which run it is, and its Run.

    Raises:
      InputError: there is no record, it is damaged, or says nothing of times or of K.
    """
    recording_ = traces.load(path)
    num_workers = recording.num_workers(recording_.header.config)
    if num_workers is None:
        raise InputError(f"{path} must be the record of a run with workers, got a simulated one.")
    timed = [_timed(epoch.trace, str(path)) for epoch in recording_.epochs]
    metrics = Path(path) / recording.METRICS
    try:
        with open(metrics, newline="", encoding="utf-8") as file:
            curve = [
                Point(*(float(row[name]) for name in Point._fields)) for row in csv.DictReader(file)
            ]
    except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{metrics} must be the csv of the recorded run ({error}).") from error
    if len(curve) != len(timed) + 1:
        raise InputError(
            f"{metrics} must have the {len(timed)} epochs of the record and that before training, "
            f"got {len(curve)} lines."
        )
    outside = [
        after.seconds - before.seconds - inner_seconds(trace)
        for (before, after), trace in zip(itertools.pairwise(curve), timed, strict=True)
    ]
    return recording_.header, Run(num_workers, timed, outside, curve)


def _timed(trace: Trace | None, where: str = "the driver") -> Trace:
    if trace is None or trace.times is None:
        raise InputError(f"{where} must give the times of its updates, got a trace without them.")
    return trace


def inner_seconds(trace: Trace) -> float:
    """Seconds of an inner loop until its last update had landed."""
    assert trace.times is not None
    return float(trace.times.landed[-1])


def speeds(run: Run) -> np.ndarray:
    """Updates landed in a second of the inner loop, of every epoch, float64 [epochs]."""
    return np.array([len(trace.worker) / inner_seconds(trace) for trace in run.traces])


def undisturbed(values: Sequence[float] | np.ndarray) -> float:
    """The median of the faster half: what else a machine does only makes a run slower."""
    return float(np.quantile(values, 0.75))


def calibrate(run: Run) -> Calibration:
    """What the faster half of the epochs of a run says.

    With one worker nobody waits, and all is known. With more, the times of a thread contain its
    waiting for others, so that the model takes them for slower than they are; those of an MPI
    worker contain the time in which the server does not yet listen.

    Args:
      run: of at least one epoch.

    Returns:
      A Calibration.

    Raises:
      InputError: no worker has read x twice in an epoch.
    """
    speed = speeds(run)
    fast = np.flatnonzero(speed >= np.median(speed))
    updates_per_read = max(int(window_sizes(run.traces[i]).max()) for i in fast)
    compute, service, setup = [], [], []
    for trace in (run.traces[i] for i in fast):
        assert trace.times is not None
        size = window_sizes(trace)
        first = np.cumsum(size) - size
        read, computed = trace.times.read[first], trace.times.computed[first]
        setup.append(read.min())
        compute += list((computed - read)[size == updates_per_read])
        for k in np.unique(trace.worker):
            mine = trace.worker[first] == k
            service += list(read[mine][1:] - computed[mine][:-1])
    if not service:
        raise InputError(
            "--inner_steps must be enough for a worker to read x twice, got "
            f"{len(run.traces[0].worker)}, with {updates_per_read} updates from read to read."
        )
    return Calibration(
        run.num_workers,
        updates_per_read,
        durations.measured(np.maximum(compute, 0.0)),
        durations.measured(np.maximum(service, 0.0)),
        float(np.median(setup)),
        max(0.0, float(np.median([run.outside[i] for i in fast]))),
    )


def window_sizes(trace: Trace) -> np.ndarray:
    """The numbers of updates that landed together, int [windows], in the order of landing."""
    assert trace.times is not None
    changes = (np.diff(trace.worker) != 0) | (np.diff(trace.times.read) != 0)
    return np.diff(np.concatenate([[0], np.flatnonzero(changes) + 1, [len(trace.worker)]]))
