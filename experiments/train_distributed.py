"""Trains the paper's network with Distributed-AsySVRG (Algorithms 2 and 3), SGD, or SGD_SVRG.

    mpiexec -n 3 python -m experiments.train_distributed --method=svrg

Rank 0 is the server, all others are workers. The defaults are the paper's setting for
--dataset=cifar10_features, with tuned steps: 20,000 training and 4,000 test samples, 50 hidden
units, mini-batches of 10, inner loops of 2,000 iterations, an l2 weight of 0.0001. The embedded
default data set, digits, needs no file. With Open MPI's `mpiexec --with-ft ulfm` the run goes on
when workers die.
"""

from __future__ import annotations

import os
import signal

from absl import flags

from asvrg.checkpoints import SIGNALS
from asvrg.drivers import mpi
from asvrg.errors import InputError
from experiments import iterations, launch, methods, problem, provenance, recording, session
from experiments.methods import Phase, Step

# For cifar10_features the best of the search for Figure 3 (results/figure3/best.csv). Those of the
# others were tried by hand only.
_OTHERS = {"sgd": Step(0.1, 0.3), "svrg": Step(0.1, 0.0)}
TUNED = {
    "mnist": _OTHERS,
    "fashion_mnist": _OTHERS,
    "cifar10": {"sgd": Step(0.05, 0.3), "svrg": Step(0.05, 0.0)},
    "cifar10_features": {"sgd": Step(0.1, 0.4), "svrg": Step(0.02, 0.0)},
    "digits": _OTHERS,
}


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this binary."""
    problem.define_flags(values, hidden=50, l2=1e-4)
    methods.define_flags(values, pretrain_epochs=1)
    iterations.define_flags(values, inner_steps=2_000)
    iterations.define_delay_flags(values)
    recording.define_flags(values)
    flags.DEFINE_list(
        "shard_sizes",
        None,
        "n_k, samples of each worker, with commas between; their sum is n. Default: equal ones.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "overlap",
        False,
        "A worker gets its next x before its gradient has landed: messages cost less time, and "
        "every delay is longer by one update of each worker.",
        flag_values=values,
    )


def main(values: flags.FlagValues) -> int:
    """Trains, and leaves metrics.csv, config.json and curves.png in the results folder."""
    iterations.check_flags(values)
    recording.check_flags(values)
    shard_sizes = _shard_sizes(values)
    phases = methods.phases(values, TUNED[values.dataset])
    launch.configure_mpi(os.environ)
    job = mpi.connect()
    if job.is_server:
        _serve(job, values, phases, shard_sizes)
        return 0
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the server says when it ends
    with mpi.reporting(job):
        problem_ = problem.from_flags(values)
        mpi.work(
            job,
            [phase.make_estimator(problem_.objective) for phase in phases],
            problem_.train,
            iterations.make_sampler(values, problem_),
            dtype=values.dtype,
            shard_sizes=shard_sizes,
        )
    return 0  # also after an error that was reported: the server's exit code is the job's


def _serve(
    job: mpi.Job,
    values: flags.FlagValues,
    phases: list[Phase],
    shard_sizes: list[int] | None,
) -> None:
    problem_ = problem.from_flags(values)
    sampler = iterations.make_sampler(values, problem_)
    name = f"{values.dataset}-{values.method}"
    config = provenance.describe(values, iterations.describe(problem_, sampler, phases))
    recorder = recording.open_recorder(
        values, f"train_distributed-{name}", config | {"job": _describe(job)}
    )
    serving = mpi.serve(job, sampler, dtype=values.dtype, shard_sizes=shard_sizes)
    with recorder, serving as workers:
        session.train(
            problem_,
            phases,
            lambda phase: mpi.driver(
                workers,
                phase.make_estimator(problem_.objective),
                inner_steps=values.inner_steps,
                index=phases.index(phase),
                overlap=values.overlap,
                max_delay=values.max_delay,
                delay_adaptive=values.delay_adaptive,
            ),
            recorder,
            title=f"{name}, MPI, K = {job.num_workers}",
        )


def _describe(job: mpi.Job) -> dict[str, object]:
    """What a resumed run may change."""
    return {"num_workers": job.num_workers, "fault_tolerant": job.fault_tolerant}


def _shard_sizes(values: flags.FlagValues) -> list[int] | None:
    if values.shard_sizes is None:
        return None
    bad = [size for size in values.shard_sizes if not size.strip().isdecimal()]
    if bad:
        raise InputError(
            f"--shard_sizes must be whole numbers with commas between, got {bad[0]!r}."
        )
    return [int(size) for size in values.shard_sizes]


if __name__ == "__main__":
    launch.start(main, define_flags, mpi.leave)
