"""What the virtual clock says of a calibrated run with other numbers of workers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from asvrg import delays, durations, objectives, simulate
from asvrg.errors import DivergedError
from asvrg.sampling import Sampler
from asvrg.types import Trace
from asvrg.virtual_clock import Cluster, Network
from experiments.methods import Phase
from experiments.problem import Problem
from experiments.speedup import short_runs
from experiments.speedup.short_runs import Calibration, Point

# Kinds of lines and curves: of real runs, of the same runs in the virtual clock, and of runs there
# with a core for each worker, which this machine need not have.
MEASURED, SIMULATED, BEYOND = "measured", "simulated", "simulated beyond"
EPOCHS = 20  # virtual ones behind a prediction for real ones
WINDOWS, ROUNDS = 2_000, 10  # of a long virtual run: at least so many, and so many of each worker


class Speed(NamedTuple):
    """A line of speedup.csv.

    `cores` is empty where every worker, and what owns x, has one of its own. `speedup` is that of
    updates in a second over one worker's. Delays are in updates. `error_percent` compares a
    simulated line with the measured one of as many workers, and is empty elsewhere.
    """

    kind: str
    workers: int
    cores: int | None
    updates_per_s: float
    slowest: float
    fastest: float
    speedup: float
    mean_delay: float
    median_delay: float
    delay_95: float
    max_delay: int
    error_percent: float | None = None


class Curve(NamedTuple):
    """What was reached over the seconds of optimisation, at the ends of epochs, epoch 0 first."""

    kind: str
    workers: int
    cores: int | None
    points: list[Point]


class Reached(NamedTuple):
    """A line of time_speedup.csv: when a curve first reaches a training loss.

    `seconds` is empty if it never does. `time_speedup` is Equation (22): the seconds of one
    worker's curve of the same kind over these.
    """

    kind: str
    workers: int
    cores: int | None
    target_loss: float
    seconds: float | None
    time_speedup: float | None


def cluster(
    calibration: Calibration, *, cores: int | None, network: Network | None = None
) -> Cluster:
    """The machine, or machines, of a prediction.

    Args:
      calibration: of a real run.
      cores: that all share; None for enough of them.
      network: that comes on top of what the calibration has in it.

    Returns:
      A Cluster.
    """
    return Cluster(
        calibration.compute, calibration.service, network, calibration.updates_per_read, cores
    )


def crowded(calibration: Calibration, num_workers: int, cores: int | None) -> Cluster:
    """A machine that a server and its workers, processes of MPI, share.

    A process that waits for a message asks for it again and again. So all K + 1 of them want a core
    all the time, and where there are P < K + 1, computing takes (K + 1) / P times as long.

    Args:
      calibration: of a real run with a core for each process, from `uncrowded`.
      num_workers: K.
      cores: P; None for enough of them.

    Returns:
      A Cluster.
    """
    compute = durations.scaled(calibration.compute, _crowding(num_workers, cores))
    return cluster(calibration._replace(compute=compute), cores=None)


def uncrowded(calibration: Calibration, cores: int | None) -> Calibration:
    """What the processes of MPI would have measured with a core for each.

    Args:
      calibration: of a real run.
      cores: P, that it had; None for enough of them.

    Returns:
      A Calibration.
    """
    factor = 1 / _crowding(calibration.num_workers, cores)
    return calibration._replace(compute=durations.scaled(calibration.compute, factor))


def _crowding(num_workers: int, cores: int | None) -> float:
    return 1.0 if cores is None else max(1.0, (num_workers + 1) / cores)


def epochs(
    place: Cluster, num_workers: int, inner_steps: int, *, seed: int, count: int = EPOCHS
) -> list[Trace]:
    """Virtual epochs.

    Args:
      place: the cluster.
      num_workers: K.
      inner_steps: m.
      seed: of the durations; every epoch has draws of its own.
      count: of epochs.

    Returns:
      Their Traces.
    """
    seeds = np.random.SeedSequence(seed).generate_state(count)
    return [delays.event_driven(inner_steps, num_workers, place, seed=int(each)) for each in seeds]


def long_epoch(place: Cluster, num_workers: int, *, seed: int) -> Trace:
    """A virtual epoch in which every worker reads x several times.

    Args:
      place: the cluster.
      num_workers: K.
      seed: of the durations.

    Returns:
      A Trace.
    """
    windows = max(WINDOWS, ROUNDS * num_workers)
    return delays.event_driven(windows * place.updates_per_read, num_workers, place, seed=seed)


def steady_delays(trace: Trace) -> np.ndarray:
    """The delays in the middle half of a long trace, int [m / 2]."""
    tau = delays.staleness(trace)
    return tau[len(tau) // 4 : 3 * len(tau) // 4]


def line(
    kind: str,
    num_workers: int,
    cores: int | None,
    speeds: Sequence[float] | np.ndarray,
    delay: np.ndarray,
) -> Speed:
    """A line of speedup.csv, with a speedup of 1.

    Args:
      kind: of the line.
      num_workers: K.
      cores: that all share; None for enough of them.
      speeds: updates in a second, of every epoch.
      delay: of updates, int [j].

    Returns:
      A Speed.
    """
    # Nothing disturbs a virtual run.
    speed = short_runs.undisturbed(speeds) if kind == MEASURED else float(np.median(speeds))
    return Speed(
        kind,
        num_workers,
        cores,
        speed,
        float(np.min(speeds)),
        float(np.max(speeds)),
        1.0,
        float(delay.mean()),
        float(np.median(delay)),
        float(np.quantile(delay, 0.95)),
        int(delay.max()),
    )


def curve(
    kind: str,
    calibration: Calibration,
    place: Cluster,
    num_workers: int,
    problem_: Problem,
    sampler: Sampler,
    phase: Phase,
    *,
    inner_steps: int,
    cores: int | None,
    seed: int,
) -> Curve:
    """Loss over seconds of a run on the cluster: its virtual traces, replayed in the simulator.

    Every worker draws from all samples.

    Args:
      kind: of the curve.
      calibration: of a real run.
      place: the cluster.
      num_workers: K.
      problem_: what is minimised.
      sampler: of the draws.
      phase: the estimator, the steps and the number of epochs.
      inner_steps: m.
      cores: that all share; None for enough of them.
      seed: of the durations.

    Returns:
      A Curve; it ends early where x diverges.
    """
    virtual = epochs(place, num_workers, inner_steps, seed=seed, count=phase.num_epochs)
    driver = simulate.driver(
        phase.make_estimator(problem_.objective),
        problem_.train,
        sampler,
        inner_steps=inner_steps,
        trace=virtual.__getitem__,
        max_delay=max(int(delays.lag(trace).max()) for trace in virtual),
    )
    chunks = math.ceil(sampler.num_samples / objectives.CHUNK_SIZE)
    pause = calibration.setup + outside(calibration, num_workers, cores, chunks)
    seconds = np.concatenate(
        [[0.0], np.cumsum([pause + short_runs.inner_seconds(trace) for trace in virtual])]
    )
    reached_ = _until_divergence(short_runs.train(driver, problem_, phase))
    return Curve(
        kind,
        num_workers,
        cores,
        [
            point._replace(seconds=time)
            for time, point in zip(seconds.tolist(), reached_, strict=False)
        ],
    )


def outside(
    calibration: Calibration, num_workers: int, cores: int | None, num_chunks: int
) -> float:
    """Seconds of an epoch beside its inner loop: those of the full gradient, shared out in chunks.

    Args:
      calibration: of a real run.
      num_workers: K.
      cores: that all share; None for enough of them.
      num_chunks: of samples; more workers, or more than there are cores, do not help.

    Returns:
      Seconds.
    """
    most = min(num_chunks, cores or num_chunks)
    return calibration.outside * min(calibration.num_workers, most) / min(num_workers, most)


def _until_divergence(states: Iterator) -> Iterator[Point]:
    try:
        yield from (point for _, point in states)
    except DivergedError:
        return


def reached(curves: Sequence[Curve]) -> list[Reached]:
    """Equation (22): how much sooner K workers reach the loss of one.

    Args:
      curves: some of them measured.

    Returns:
      A line for every curve. The loss is the lowest that all curves reach that are not of many more
      workers than there are cores.
    """
    loss = max(each.points[-1].train_loss for each in curves if each.kind != BEYOND)
    seconds = [seconds_to([point[:2] for point in each.points], loss) for each in curves]
    serial = {
        each.kind: time for each, time in zip(curves, seconds, strict=True) if each.workers == 1
    }
    lines = []
    for each, time in zip(curves, seconds, strict=True):
        of_one = serial.get(each.kind)
        speedup = of_one / time if of_one and time else None
        lines.append(Reached(each.kind, each.workers, each.cores, loss, time, speedup))
    return lines


def seconds_to(points: Sequence[tuple[float, float]], loss: float) -> float | None:
    """When a curve first reaches a loss, with a straight line in log f between epochs.

    Args:
      points: (seconds, loss), loss above 0, the first above the one to reach.
      loss: to reach.

    Returns:
      Seconds; None if it never does.

    >>> seconds_to([(0.0, 1.0), (2.0, 0.01)], 0.1)
    1.0
    """
    for (begin, high), (end, low) in itertools.pairwise(points):
        if low <= loss < high:
            share = math.log(high / loss) / math.log(high / low)
            return begin + share * (end - begin)
    return None
