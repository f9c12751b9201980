"""Predicts speed and convergence with more workers, and holds the prediction against measurement.

    python -m experiments.predict_speedup --dataset=mnist --workers=1,2
    mpiexec -n 2 python -m experiments.predict_speedup --dataset=digits --hidden=50
    python -m experiments.predict_speedup --runs=RUN1,RUN2

Times short runs with threads, or of the MPI job that it is started in, or reads runs that
train_shared or train_distributed left with --record. The run with the fewest workers, best one,
calibrates a virtual clock (asvrg.virtual_clock). That predicts the others, and then what machines
with a core for each worker, and --latency and --bandwidth between them, would do: updates in a
second, delays, and the loss over time. Whatever comes from the virtual clock is called simulated.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from absl import flags

from asvrg import delays, virtual_clock
from asvrg.drivers import mpi
from asvrg.errors import INT32, check_count, check_real
from asvrg.virtual_clock import Cluster, Network
from experiments import folders, iterations, launch, methods, problem, provenance
from experiments.speedup import outputs, predictions, short_runs, sources
from experiments.speedup.outputs import Delays, Results
from experiments.speedup.predictions import BEYOND, MEASURED, SIMULATED, Curve, Speed
from experiments.speedup.sources import Source

WORKERS_BEYOND = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1_000, 10_000)
WORKERS_REPLAYED = (1, 2, 8, 32)
MOST_WORKERS = 100_000  # that are simulated to look at a saturation beyond those asked for


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this binary."""
    problem.define_flags(values)
    methods.define_flags(values, pretrain_epochs=1)
    values.set_default("num_epochs", 4)
    iterations.define_flags(values, inner_steps=1_000)
    flags.DEFINE_integer(
        "block_size",
        None,
        "Of threads: B, coordinates that an iteration updates; 0 for all of x. Default: 1000, or "
        "d.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "read_period",
        16,
        "Of threads: iterations of a thread from one read of x to the next.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "workers",
        None,
        "Numbers of threads to measure, with commas between. Default: 1, and that of the cores.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "rounds", 5, "Times that each number of workers is measured.", flag_values=values
    )
    flags.DEFINE_list(
        "runs",
        None,
        "Folders of runs made with --record, with commas between, instead of measuring; the flags "
        "of the problem are theirs.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "cores",
        None,
        "Cores that the measured workers shared; 0: each had one of its own, as in a cluster. "
        "Default: those of this machine, or of the one that the first of --runs is from.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "beyond",
        [str(count) for count in WORKERS_BEYOND],
        "Numbers of workers to simulate with a core for each, with commas between.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "replay",
        [str(count) for count in WORKERS_REPLAYED],
        "Of these, whose convergence to simulate too; 0 for none.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "latency",
        0.0,
        "Microseconds of a message between the simulated machines, on top of what was measured.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "bandwidth",
        None,
        "Mbit/s each way of the simulated server's link, which x goes down and v goes up. Default: "
        "messages take the time that they took when measured.",
        flag_values=values,
    )
    folders.define_out_dir(values)


def main(values: flags.FlagValues) -> int:
    """Measures, predicts, and leaves csv files, config.json and speedup.png in --out_dir."""
    beyond = sorted(set(launch.counts(values, "beyond")))
    replayed = [] if values.replay == ["0"] else sorted(set(launch.counts(values, "replay")))
    for name, counts in (("beyond", beyond), ("replay", replayed)):
        check_count(f"every entry of --{name}", max(counts, default=1), limit=10 * MOST_WORKERS)
    for name in ("rounds", "inner_steps", "read_period"):
        check_count(f"--{name}", values[name].value, limit=INT32)
    if values.cores is not None:
        check_count("--cores", values.cores, least=0, limit=INT32)
    check_real("--latency", values.latency)
    if values.bandwidth is not None:
        check_real("--bandwidth", values.bandwidth, above=True)
    asked = sources.check_flags(values)
    folder = None
    if launch.is_first_rank(os.environ):
        folder = folders.claim_folder(values.out_dir, "predict_speedup", holds=outputs.SPEEDS)
    source = sources.from_flags(values, asked)
    if source is None:
        return 0  # a worker of an MPI job
    assert folder is not None
    results = _predict(source, beyond, replayed, _network(values, source), values.seed)
    config = provenance.describe(values, _describe(source, results))
    outputs.write(folder, results, config)
    print(outputs.summary(folder, results))
    return 0


def _network(values: flags.FlagValues, source: Source) -> Network | None:
    if values.bandwidth is None and not values.latency:
        return None
    size = source.problem.x0.nbytes
    return Network(
        latency=values.latency / 1e6,
        bandwidth=math.inf if values.bandwidth is None else values.bandwidth * 1e6 / 8,
        bytes_up=size,
        bytes_down=size,
    )


def _predict(
    source: Source,
    beyond: Sequence[int],
    replayed: Sequence[int],
    network: Network | None,
    seed: int,
) -> Results:
    """All that the virtual clock is asked."""
    runs, m, cores = source.runs, source.inner_steps, source.cores
    calibration = short_runs.calibrate(runs[0])
    if source.processes:
        calibration = predictions.uncrowded(calibration, cores)
    place = predictions.cluster(calibration, cores=None, network=network)

    def machine(num_workers: int) -> Cluster:
        if source.processes:
            return predictions.crowded(calibration, num_workers, cores)
        return predictions.cluster(calibration, cores=cores)

    def curve(kind: str, where: Cluster, num_workers: int) -> Curve:
        return predictions.curve(
            kind,
            calibration,
            where,
            num_workers,
            source.problem,
            source.sampler,
            source.phase,
            inner_steps=m,
            cores=None if kind == BEYOND else cores,
            seed=seed,
        )

    def guess(num_workers: int) -> tuple[Speed, np.ndarray]:
        virtual = predictions.epochs(machine(num_workers), num_workers, m, seed=seed)
        seconds = [calibration.setup + short_runs.inner_seconds(each) for each in virtual]
        tau = np.concatenate([delays.staleness(each) for each in virtual])
        speeds = m / np.array(seconds)
        return predictions.line(SIMULATED, num_workers, cores, speeds, tau), tau

    def far(num_workers: int) -> tuple[Speed, np.ndarray]:
        trace = predictions.long_epoch(place, num_workers, seed=seed)
        tau, speed = predictions.steady_delays(trace), virtual_clock.updates_per_second(trace)
        return predictions.line(BEYOND, num_workers, None, [speed], tau), tau

    serial, _ = guess(1)
    measured, simulated, histograms = [], [], []
    for run in runs:
        tau = np.concatenate([delays.staleness(each) for each in run.traces])
        k = run.num_workers
        real = predictions.line(MEASURED, k, cores, short_runs.speeds(run), tau)
        virtual, virtual_tau = guess(k)
        error = 100 * (virtual.updates_per_s / real.updates_per_s - 1)
        measured.append(real)
        simulated.append(virtual._replace(error_percent=error))
        histograms += [Delays(real, tau), Delays(virtual, virtual_tau)]
    limit = virtual_clock.saturation(place)
    corner = math.ceil(limit) if limit <= MOST_WORKERS else None
    distant = []
    for k in sorted({1, *beyond} | ({corner} if corner else set())):
        speed, tau = far(k)
        distant.append(speed)
        if k == corner:
            histograms.append(Delays(speed, tau))
    of_one = measured[0] if runs[0].num_workers == 1 else serial
    curves = [
        *(
            Curve(MEASURED, run.num_workers, cores, run.curve[: source.phase.num_epochs + 1])
            for run in runs
        ),
        *(curve(SIMULATED, machine(run.num_workers), run.num_workers) for run in runs if replayed),
        *(curve(BEYOND, place, k) for k in sorted({1, *replayed}) if replayed),
    ]
    return Results(
        source.name,
        [
            *speedups(measured, of_one),
            *speedups(simulated, serial),
            *speedups(distant, distant[0]),
        ],
        curves,
        predictions.reached(curves),
        histograms,
        limit,
        calibration,
    )


def speedups(lines: Sequence[Speed], serial: Speed) -> list[Speed]:
    """The lines with their speedup over one worker's."""
    return [each._replace(speedup=each.updates_per_s / serial.updates_per_s) for each in lines]


def _describe(source: Source, results: Results) -> dict[str, object]:
    """What became of flags without a value, for config.json."""
    calibration = results.calibration
    return {
        "source": source.name,
        "cores": source.cores,
        "workers": [run.num_workers for run in source.runs],
        **iterations.describe(source.problem, source.sampler, [source.phase]),
        "calibration": {
            "num_workers": calibration.num_workers,
            "updates_per_read": calibration.updates_per_read,
            "compute_seconds": calibration.compute.mean,
            "service_seconds": calibration.service.mean,
            "setup_seconds": calibration.setup,
            "outside_seconds": calibration.outside,
        },
        "saturation_workers": results.saturation if math.isfinite(results.saturation) else None,
    }


if __name__ == "__main__":
    launch.start(main, define_flags, mpi.leave)
