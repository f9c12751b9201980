"""Where a prediction's real runs come from: threads, the MPI job at hand, or records of runs."""

from __future__ import annotations

import os
from typing import NamedTuple

from absl import flags

from asvrg import threads
from asvrg.drivers import mpi
from asvrg.errors import InputError, check_count
from asvrg.sampling import Sampler
from asvrg.types import Driver
from experiments import (
    iterations,
    launch,
    methods,
    problem,
    replay,
    train_distributed,
    train_shared,
)
from experiments.methods import Phase, Step
from experiments.problem import Problem
from experiments.speedup import short_runs
from experiments.speedup.short_runs import Run


class Source(NamedTuple):
    """Real runs, and what they were runs of.

    Attributes:
      name: for titles.
      problem: what was minimised.
      sampler: of the draws.
      phase: the estimator, its steps, and the epochs of a run.
      inner_steps: m.
      processes: whether the workers are processes of MPI rather than threads.
      cores: of the machine; None if every worker had one of its own.
      runs: by rising K, at least one.
    """

    name: str
    problem: Problem
    sampler: Sampler
    phase: Phase
    inner_steps: int
    processes: bool
    cores: int | None
    runs: list[Run]


class Asked(NamedTuple):
    """What is measured, from flags that were all checked; no record says it."""

    problem: Problem
    sampler: Sampler
    phase: Phase
    workers: list[int]


def check_flags(values: flags.FlagValues) -> Asked | None:
    """What the flags ask to be measured; None where records of runs are read.

    Args:
      values: parsed, with the flags of `predict_speedup`.

    Returns:
      An Asked, or None.

    Raises:
      InputError: a flag's value is not accepted, or the flags do not belong together.
    """
    if values.method == "sgd_svrg":
        raise InputError("--method must be sgd or svrg here, got sgd_svrg.")
    job = launch.started_by_mpiexec(os.environ)
    if job and values.runs is not None:
        raise InputError("--runs must be left out under mpiexec, where the job is measured.")
    for name in ("workers", "block_size", "read_period"):
        if launch.given(values, name) and (job or values.runs is not None):
            raise InputError(f"--{name} belongs to runs with threads, got --{name} without them.")
    if values.runs is not None:
        return None
    tuned = (train_distributed if job else train_shared).TUNED
    (phase,) = methods.phases(values, tuned[values.dataset])
    default = [1, len(os.sched_getaffinity(0))]
    workers = default if values.workers is None else launch.counts(values, "workers")
    check_count("every entry of --workers", max(workers), limit=iterations.MOST_WORKERS)
    problem_ = problem.from_flags(values)
    dim = problem_.objective.dim
    block_size = 0 if job else min(1_000, dim) if values.block_size is None else values.block_size
    check_count("--block_size", block_size, least=0, most=dim)
    sampler = iterations.make_sampler(values, problem_, block_size=block_size or None)
    return Asked(problem_, sampler, phase, sorted(set(workers)))


def from_flags(values: flags.FlagValues, asked: Asked | None) -> Source | None:
    """Measures, or reads, what the flags describe.

    Args:
      values: parsed, with the flags of `predict_speedup`.
      asked: from `check_flags`.

    Returns:
      A Source; None on the workers of an MPI job.

    Raises:
      InputError: a flag's value is not accepted, or a recorded run cannot be used.
    """
    if asked is None:
        return _recorded(values)
    problem_, sampler, phase, workers = asked
    name = f"{values.dataset}-{values.method}"
    cores = _cores(values, len(os.sched_getaffinity(0)))
    if launch.started_by_mpiexec(os.environ):
        run = _measure_job(values, problem_, sampler, phase)
        if run is None:
            return None
        return Source(
            f"{name}, MPI", problem_, sampler, phase, values.inner_steps, True, cores, [run]
        )

    def driver(num_threads: int) -> Driver:
        return threads.driver(
            phase.make_estimator(problem_.objective),
            problem_.train,
            sampler,
            inner_steps=values.inner_steps,
            num_threads=num_threads,
            read_period=values.read_period,
        )

    runs = short_runs.in_turn(
        {k: driver(k) for k in workers}, problem_, phase, rounds=values.rounds
    )
    return Source(
        f"{name}, threads", problem_, sampler, phase, values.inner_steps, False, cores, list(runs)
    )


def _measure_job(
    values: flags.FlagValues, problem_: Problem, sampler: Sampler, phase: Phase
) -> Run | None:
    """The Run of this MPI job; None on its workers."""
    launch.configure_mpi(os.environ)
    job = mpi.connect()
    estimator = phase.make_estimator(problem_.objective)
    if not job.is_server:
        with mpi.reporting(job):
            mpi.work(job, [estimator], problem_.train, sampler, dtype=values.dtype)
        return None
    with mpi.serve(job, sampler, dtype=values.dtype) as serving:
        driver = mpi.driver(serving, estimator, inner_steps=values.inner_steps)
        (run,) = short_runs.in_turn(
            {job.num_workers: driver}, problem_, phase, rounds=values.rounds
        )
    return run


def _recorded(values: flags.FlagValues) -> Source:
    """The runs that were recorded."""
    found = [short_runs.recorded(path) for path in values.runs]
    header = found[0][0]
    own = ("out_dir", "data_dir", "num_threads", "checkpoint_seconds", "tensorboard", "num_epochs")
    given = header.config["flags"]
    for path, (other, _) in zip(values.runs, found, strict=True):
        others = other.config["flags"]
        differing = sorted(
            name for name in given if name not in own and others.get(name) != given[name]
        )
        if other.config["program"] != header.config["program"] or differing:
            what = ", ".join(f"--{name}" for name in differing) or "another program"
            raise InputError(f"--runs must differ in K alone, got {path} with {what}.")
    if given["method"] == "sgd_svrg":
        raise InputError("--runs must be of --method=sgd or svrg, got sgd_svrg.")
    if not given.get("sees_own", True):
        raise InputError(
            "--runs must be of threads that see their own updates, as those of the model do, got "
            "--nosees_own."
        )
    step = Step(**header.config["resolved"]["steps"][0])
    num_epochs = min(len(run.traces) for _, run in found)
    if launch.given(values, "num_epochs"):
        num_epochs = check_count("--num_epochs", values.num_epochs)
    phase = Phase(given["method"], step, num_epochs, methods.recorded_alpha(given))
    by_workers = {run.num_workers: run for _, run in found}
    if len(by_workers) < len(found):
        raise InputError("--runs must have a different K each, got the same twice.")
    return Source(
        f"{given['dataset']}-{given['method']}, {header.config['program']}",
        problem.from_recorded(given, values.data_dir),
        replay.make_sampler(header),
        phase,
        header.inner_steps,
        header.config["program"] == "train_distributed",
        _cores(values, header.config["machine"]["cores"]),
        [by_workers[k] for k in sorted(by_workers)],
    )


def _cores(values: flags.FlagValues, here: int) -> int | None:
    return here if values.cores is None else values.cores or None
