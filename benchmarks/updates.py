"""Updates per second of Distributed-AsySVRG, beside a raw round trip of the same messages.

    mpiexec -n 3 python -m benchmarks.updates --dataset=cifar10_features --out_dir=FOLDER

With and without overlap run in turn, `--repeats` times, and before them, twice, the round trip: d
numbers from rank 0 to rank 1 and back by mpi4py, with nothing computed. The csv holds medians over
the rounds, in microseconds an update; a run with another number of workers adds its lines.
"""

from __future__ import annotations

import csv
import os
import statistics
import time
from pathlib import Path

import numpy as np
from absl import flags

from asvrg import estimators
from asvrg.drivers import mpi
from asvrg.errors import check_count
from asvrg.types import Driver
from experiments import files, iterations, launch, problem, provenance, recording

RESULT = "updates.csv"
LR = 0.01  # small enough for every data set; the time does not depend on it
ROUND_TRIPS = 500
FIELDS = (
    "workers",
    "contestant",
    "updates_per_s",
    "us",
    "us_min",
    "us_max",
    "receive_us",
    "update_us",
    "send_us",
    "round_trip_us",
    "server_share",
)


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this benchmark."""
    problem.define_flags(values, hidden=50, l2=1e-4)
    iterations.define_flags(values, inner_steps=2_000)
    flags.DEFINE_integer("repeats", 15, "Rounds.", flag_values=values)
    flags.DEFINE_string("out_dir", None, "Folder for the csv.", flag_values=values)


def main(values: flags.FlagValues) -> int:
    """Times the contestants, prints their table and adds it to updates.csv."""
    check_count("--repeats", values.repeats)
    check_count("--inner_steps", values.inner_steps)
    launch.configure_mpi(os.environ)
    job = mpi.connect()
    from mpi4py import MPI  # starts MPI, which reads the settings above

    problem_ = problem.from_flags(values)
    sampler = iterations.make_sampler(values, problem_)
    estimator = estimators.svrg(problem_.objective)
    x0 = np.asarray(problem_.x0)
    trips = [_round_trips(job, x0) for _ in range(2)]
    if not job.is_server:
        with mpi.reporting(job):
            mpi.work(job, [estimator], problem_.train, sampler)
        return 0
    rounds: dict[str, list[dict[str, float]]] = {"in turn": [], "overlap": []}
    with mpi.serve(job, sampler) as serving:
        drivers = {
            name: mpi.driver(
                serving, estimator, inner_steps=values.inner_steps, overlap=name == "overlap"
            )
            for name in rounds
        }
        drivers["in turn"].warm_up(x0)
        for _ in range(values.repeats):
            for name, driver in drivers.items():
                rounds[name].append(_split(serving, driver, x0))
    lines = [
        _line(job.num_workers, name, of_name, statistics.mean(trips))
        for name, of_name in rounds.items()
    ]
    for line in lines:
        print(", ".join(f"{field} {value}" for field, value in zip(FIELDS, line, strict=True)))
    folder = Path(values.out_dir or "runs/updates")
    files.make_folder("--out_dir must be a folder", folder)
    new = not (folder / RESULT).exists()
    with open(folder / RESULT, "a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([FIELDS, *lines] if new else lines)
    recording.write_config(
        folder, provenance.describe(values, {"library": MPI.Get_library_version()})
    )
    return 0


def _round_trips(job: mpi.Job, x: np.ndarray) -> float:
    """Microseconds from rank 0 to rank 1 and back; the other ranks wait."""
    comm = job.world.packets
    received = np.zeros_like(x)
    seconds = 0.0
    for count in (ROUND_TRIPS // 10, ROUND_TRIPS):  # the first ones warm up
        comm.Barrier()
        begin = time.perf_counter()
        for _ in range(count):
            if job.rank == 0:
                comm.Send(x, 1)
                comm.Recv(received, 1)
            elif job.rank == 1:
                comm.Recv(received, 0)
                comm.Send(x, 0)
        seconds = time.perf_counter() - begin
    comm.Barrier()
    return seconds / ROUND_TRIPS * 1e6


def _split(serving: mpi.Serving, driver: Driver, x: np.ndarray) -> dict[str, float]:
    """Microseconds of an update, in all and by what the server does."""
    snapshot = driver.prepare(x)
    before = dict(serving.seconds)
    begin = time.perf_counter()
    driver.inner_loop(x, snapshot, 0, LR)
    seconds = {"all": time.perf_counter() - begin}
    seconds |= {name: total - before[name] for name, total in serving.seconds.items()}
    return {name: 1e6 * each / driver.inner_steps for name, each in seconds.items()}


def _line(
    workers: int, name: str, rounds: list[dict[str, float]], round_trip: float
) -> tuple[object, ...]:
    median = {part: statistics.median(each[part] for each in rounds) for part in rounds[0]}
    times = [each["all"] for each in rounds]
    server = (median["update"] + median["send"]) / round_trip
    numbers = (
        1e6 / median["all"],
        median["all"],
        min(times),
        max(times),
        median["receive"],
        median["update"],
        median["send"],
        round_trip,
        server,
    )
    return workers, name, *(f"{number:.4g}" for number in numbers)


if __name__ == "__main__":
    launch.start(main, define_flags, mpi.leave)
