"""Trains the paper's network with Shared-AsySVRG (Algorithm 1), with SGD, or with SGD_SVRG.

    python -m experiments.train_shared --dataset=mnist --method=svrg --num_threads=2

The defaults are the paper's MNIST setting, with tuned steps: 10,000 training and 2,000 test
samples, 100 hidden units, mini-batches of 10, inner loops of 1,000 iterations, each of which
updates 1,000 random coordinates, and an l2 weight of 0.001. The embedded default data set, digits,
needs no download.
"""

from __future__ import annotations

import numpy as np
from absl import flags

from asvrg import delays, sampling
from asvrg.drivers import simulate, threads
from asvrg.errors import INT32, InputError, check_count
from asvrg.theory import Setting
from asvrg.types import Driver, EpochResult, Trace
from experiments import (
    delay_counts,
    iterations,
    launch,
    methods,
    problem,
    provenance,
    recording,
    session,
)
from experiments.methods import Phase, Step
from experiments.problem import Problem
from experiments.theory import coverage

DRIVERS = ("threads", "simulate")
DELAYS = ("round_robin", "constant", "uniform")

# For mnist from the search for Figure 1 (results/figure1/best.csv), for digits from
# results/step_search_digits.csv: sgd has its best step, svrg less than its best (0.7, and 1), which
# leaves a margin for more threads and their delays. Fashion-MNIST has the shape and the scale of
# MNIST, and takes its steps; those of cifar10 and its features were tried by hand only.
_MNIST = {"sgd": Step(0.3, 0.2), "svrg": Step(0.5, 0.0)}
TUNED = {
    "mnist": _MNIST,
    "fashion_mnist": _MNIST,
    "cifar10": {"sgd": Step(0.2, 0.3), "svrg": Step(0.2, 0.0)},
    "cifar10_features": {"sgd": Step(0.1, 0.3), "svrg": Step(0.2, 0.0)},
    "digits": {"sgd": Step(0.5, 0.1), "svrg": Step(0.5, 0.0)},
}


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this binary."""
    problem.define_flags(values)
    methods.define_flags(values, pretrain_epochs=10)
    iterations.define_flags(values, inner_steps=1_000)
    iterations.define_delay_flags(values)
    recording.define_flags(values)
    flags.DEFINE_enum("driver", "threads", DRIVERS, "What owns x.", flag_values=values)
    flags.DEFINE_integer(
        "num_threads",
        None,
        "K, threads; with --driver=simulate, virtual workers. Default: 2, and 1 for simulate.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "block_size",
        None,
        "B, coordinates that an iteration updates; 0 for all of x. Default: 1000, or d.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "read",
        "consistent",
        threads.READS,
        "How a thread reads x: a copy under the write lock, a copy without it, or in place.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "write", "locked", threads.WRITES, "How a thread adds its updates to x.", flag_values=values
    )
    flags.DEFINE_integer(
        "read_period",
        16,
        "Iterations of a thread from one read of x to the next.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "sees_own",
        True,
        "Whether a thread sees its own updates before it reads x again; else its iterations in "
        "between are larger products, with delays, which are held against Theorem 2 in the end.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "delays",
        "round_robin",
        DELAYS,
        "Of --driver=simulate: workers in turn, or --delay for every update, or 0 to --delay.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "delay", 0, "Of --delays=constant and uniform, in updates.", flag_values=values
    )
    flags.DEFINE_integer(
        "read_groups",
        1,
        "Of --delays=uniform: groups of coordinates that are read at different times.",
        flag_values=values,
    )


def main(values: flags.FlagValues) -> int:
    """Trains, and leaves metrics.csv, config.json and curves.png in the results folder.

    In the folder of the same run, interrupted or shorter, it goes on with that run.
    """
    recording.check_flags(values)
    _check_driver_flags(values)
    problem_ = problem.from_flags(values)
    sampler = make_sampler(values, problem_)
    phases = methods.phases(values, TUNED[values.dataset])
    num_threads = _num_threads(values)
    resolved = {
        "num_threads": num_threads,
        "block_size": sampler.block_size or sampler.dim,
        **iterations.describe(problem_, sampler, phases),
    }
    name = f"{values.dataset}-{values.method}"
    config = provenance.describe(values, resolved)
    with recording.open_recorder(values, f"train_shared-{name}", config) as recorder:
        last = session.train(
            problem_,
            phases,
            lambda phase: make_driver(values, problem_, sampler, phase),
            recorder,
            title=f"{name}, {values.driver}, K = {num_threads}",
        )
        counts = recorder.delay_counts
    if not values.sees_own:
        print(
            f"{'Theorem 2':<18} {_theorem_2(values, problem_, sampler, phases[-1], last, counts)}"
        )
    return 0


def _theorem_2(
    values: flags.FlagValues,
    problem_: Problem,
    sampler: sampling.Sampler,
    phase: Phase,
    last: EpochResult,
    counts: np.ndarray,
) -> str:
    """Whether the delays of a run are such as Theorem 2 admits."""
    reasons = coverage.uncovered(values.flag_values_dict(), phase.step.decay)
    if values.method == "sgd_svrg":
        reasons.append("it begins with SGD, and the theorems are SVRG's")
    if values.activation == "relu":
        reasons.append(coverage.KINKS)
    setting = Setting(
        lr=phase.step.lr,
        smoothness=1.0,
        batch_size=sampler.batch_size,
        inner_steps=values.inner_steps,
        max_delay=delay_counts.describe(counts.sum(axis=0)).largest,
        blocks=sampler.dim / (sampler.block_size or sampler.dim),
    )
    told = coverage.of_delays(problem_, (problem_.x0, last.x), setting)
    return (
        f"{told}; but no theorem covers this run: {'; '.join(reasons)}." if reasons else f"{told}."
    )


def make_sampler(values: flags.FlagValues, problem_: Problem) -> sampling.Sampler:
    """The draws that the flags describe.

    Raises:
      InputError: --batch_size, --block_size, --read_groups or --seed is not accepted.
    """
    dim = problem_.objective.dim
    block_size = min(1_000, dim) if values.block_size is None else values.block_size
    check_count("--block_size", block_size, least=0, most=dim)
    check_count("--read_groups", values.read_groups, most=dim)
    return iterations.make_sampler(values, problem_, block_size=block_size or None)


def make_driver(
    values: flags.FlagValues, problem_: Problem, sampler: sampling.Sampler, phase: Phase
) -> Driver:
    """The driver that the flags describe, for one phase of the method."""
    estimator = phase.make_estimator(problem_.objective)
    num_threads = _num_threads(values)
    if values.driver == "threads":
        return threads.driver(
            estimator,
            problem_.train,
            sampler,
            inner_steps=values.inner_steps,
            num_threads=num_threads,
            read=values.read,
            write=values.write,
            read_period=values.read_period,
            sees_own=values.sees_own,
            max_delay=values.max_delay,
            delay_adaptive=values.delay_adaptive,
        )
    groups = None
    if values.read_groups > 1:
        groups = delays.contiguous_groups(sampler.dim, values.read_groups)
    return simulate.driver(
        estimator,
        problem_.train,
        sampler,
        inner_steps=values.inner_steps,
        trace=lambda epoch: _simulated_trace(values, epoch),
        groups=groups,
        max_delay=num_threads - 1 if values.delays == "round_robin" else values.delay,
    )


def _num_threads(values: flags.FlagValues) -> int:
    if values.num_threads is not None:
        return values.num_threads
    return 2 if values.driver == "threads" else 1


def _simulated_trace(values: flags.FlagValues, epoch: int) -> Trace:
    m, delay, num_workers = values.inner_steps, values.delay, _num_threads(values)
    # With it the gradients that are in the making at once: the mean delay, and the one that lands.
    if values.delays == "constant":
        trace, concurrency = delays.constant(m, delay), delay + 1
    elif values.delays == "uniform":
        seed = np.random.SeedSequence(values.seed, spawn_key=(epoch,)).generate_state(1)[0]
        trace = delays.uniform(m, delay, seed=seed, num_groups=values.read_groups)
        concurrency = delay // 2 + 1
    else:
        trace, concurrency = delays.round_robin(m, num_workers), num_workers
    return delays.adaptive(trace, concurrency) if values.delay_adaptive else trace


def _check_driver_flags(values: flags.FlagValues) -> None:
    iterations.check_flags(values)
    check_count("--num_threads", _num_threads(values), limit=iterations.MOST_WORKERS)
    check_count("--read_period", values.read_period, limit=INT32)
    check_count("--read_groups", values.read_groups)
    check_count("--delay", values.delay, least=0, most=values.inner_steps)
    other = {
        "threads": ("delays", "delay", "read_groups"),
        "simulate": ("read", "write", "read_period", "sees_own", "max_delay"),
    }
    for name in other[values.driver]:
        if launch.given(values, name):
            owner = "simulate" if values.driver == "threads" else "threads"
            raise InputError(f"--{name} belongs to --driver={owner}, got --driver={values.driver}.")
    if values.driver == "simulate":
        if values.delays == "round_robin" and launch.given(values, "delay"):
            raise InputError("--delay belongs to --delays=constant or uniform, got round_robin.")
        if values.delays != "round_robin" and launch.given(values, "num_threads"):
            raise InputError(
                f"--num_threads belongs to --delays=round_robin, got --delays={values.delays}."
            )
        if values.delays != "uniform" and values.read_groups > 1:
            raise InputError(f"--read_groups belongs to --delays=uniform, got {values.delays}.")
    if values.read == "consistent" and values.write == "lock_free":
        raise InputError(
            "--write=lock_free needs --read=inconsistent or view, got --read=consistent."
        )


if __name__ == "__main__":
    launch.start(main, define_flags)
