"""Searches for the steps of sgd, svrg and sgd_svrg as the paper does, by their training losses.

    python -m experiments.tune --dataset=mnist --out_dir=FOLDER

Simulated runs (asvrg.simulate.sweep: several steps at once) of all steps alpha / (1 + s)^beta of
the paper's grid: alpha of --lr with each beta of --lr_decay for sgd, and with beta = 0, a constant
step, for the two others. Where the largest alpha is the best, the grid goes on upwards, 1, 2 and 5
times powers of ten, until it is not; then the alphas half-way to its neighbours are tried. What
counts is the training loss after --num_epochs, on average of --num_seeds seeds from --seed on; take
others for the runs themselves. Delays are drawn from 0 to --delay.

In the folder: steps.csv (every step with every seed), best.csv (the best of all and of the grid to
begin with) and config.json. The same command gives the same csv files. What is done is kept in the
folder units/, and the same command goes on from there.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from asvrg import delays, schedules
from asvrg.drivers import simulate
from asvrg.errors import INT32, InputError, check_count
from asvrg.estimators import Estimator
from asvrg.sampling import Sampler
from asvrg.types import Array, Trace
from experiments import (
    checkpoints,
    folders,
    iterations,
    jobs,
    launch,
    methods,
    problem,
    provenance,
    recording,
    tables,
    units,
)
from experiments.methods import METHODS, Alpha, Phase, Step
from experiments.paper import search
from experiments.paper.evidence import BEST, STEPS
from experiments.paper.search import Best, Row
from experiments.problem import Problem

NAME = "tune"
ALL, GRID = "all", "grid"  # what best.csv's lines are among
AT_ONCE = 8  # runs of a sweep: with more, their x and deltas leave the processor's caches


class Job(NamedTuple):
    """Some steps of a method with one seed.

    `pretraining` is the step of the epochs of SGD before; None without them.
    """

    method: str
    steps: list[Step]
    seed: int
    pretraining: Step | None


class Setting(NamedTuple):
    """What all runs have in common: problem, estimators, draws but their seed, m, S and delays."""

    problem: Problem
    estimators: dict[str, Estimator]
    sampler: Sampler
    inner_steps: int
    num_epochs: int
    pretrain_epochs: int
    delay: int


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this binary."""
    problem.define_flags(values)
    values.set_default("dataset", "mnist")
    iterations.define_flags(values, inner_steps=1_000)
    flags.DEFINE_integer(
        "block_size",
        None,
        "B, coordinates that an iteration updates; 0 for all of x. Default: 1000, or d.",
        flag_values=values,
    )
    flags.DEFINE_list("methods", list(METHODS), "Methods to search for.", flag_values=values)
    flags.DEFINE_integer("num_epochs", 50, "S, epochs in all.", flag_values=values)
    flags.DEFINE_integer(
        "pretrain_epochs",
        10,
        "Epochs of SGD, with its best step, that sgd_svrg begins with.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "lr",
        [f"{lr:g}" for lr in search.PAPER_LR],
        "The alphas to begin with; extended upwards until the best lies inside.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "lr_decay",
        [f"{decay:g}" for decay in search.PAPER_LR_DECAY],
        "The betas, of sgd.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "delay", 31, "Every update's delay is drawn from 0 to this.", flag_values=values
    )
    flags.DEFINE_integer("num_seeds", 2, "Runs of each step.", flag_values=values)
    flags.DEFINE_integer(
        "num_threads", None, "Sweeps side by side. Default: all cores.", flag_values=values
    )
    folders.define_out_dir(values)
    folders.define_resume(values)


def main(values: flags.FlagValues) -> int:
    """Searches, prints the best steps, writes both csv files and config.json."""
    for name in ("num_epochs", "inner_steps"):
        check_count(f"--{name}", values[name].value, limit=INT32)
    check_count("--num_seeds", values.num_seeds, limit=1_000)
    check_count("--delay", values.delay, least=0, most=values.inner_steps)
    num_threads = len(os.sched_getaffinity(0))
    if values.num_threads is not None:
        num_threads = check_count(
            "--num_threads", values.num_threads, limit=iterations.MOST_WORKERS
        )
    wanted = _methods(values)
    tried = sorted(set(launch.reals(values, "lr")))
    decays = sorted(set(launch.reals(values, "lr_decay", above=False)))
    for step in itertools.starmap(Step, itertools.product(tried, decays)):
        methods.check_steps(Phase("sgd", step, values.num_epochs), values.dtype, "--lr")
    setting = make_setting(values)
    out_dir = folders.folder_to_resume(values, NAME, checkpoints.UNITS)
    folder = folders.claim_folder(out_dir, NAME, holds=STEPS, kind=checkpoints.UNITS)
    seeds = range(values.seed, values.seed + values.num_seeds)
    described = provenance.describe(
        values,
        {
            "num_train": setting.sampler.num_samples,
            "dim": setting.sampler.dim,
            "batch_size": setting.sampler.batch_size,
            "block_size": setting.sampler.block_size or setting.sampler.dim,
            "seeds": list(seeds),
        },
    )
    with (
        units.kept(folder, NAME, described) as kept,
        tqdm(
            total=0,
            unit="update",
            unit_scale=True,
            file=sys.stderr,
            mininterval=0.2 if sys.stderr.isatty() else 5.0,
        ) as bar,
    ):

        def try_steps(method: str, pretraining: Step | None, steps: list[Step]) -> list[Row]:
            pieces = [steps[i : i + AT_ONCE] for i in range(0, len(steps), AT_ONCE)]
            todo = [Job(method, piece, seed, pretraining) for seed in seeds for piece in pieces]
            bar.set_description(method, refresh=False)
            bar.total += sum(num_updates(setting, job) for job in todo)
            bar.update(sum(num_updates(setting, job) for job in todo if jobs.outcome(kept, job)))
            found = jobs.side_by_side(
                functools.partial(carry_out, setting),
                todo,
                num_threads,
                bar,
                kept,
                cost=lambda job: len(job.steps),
            )
            return [Row._make(row) for of_job in found for row in of_job]

        rows: list[Row] = []
        chosen: list[Best] = []
        for method in wanted:
            pretraining = None
            if method == "sgd_svrg":
                pretraining = next(Step(b.lr, b.lr_decay) for b in chosen if b.method == "sgd")
            of_method = search.search(
                functools.partial(try_steps, method, pretraining),
                tried,
                decays if method == "sgd" else [0.0],
            )
            rows += of_method
            chosen.append(search.best(of_method, ALL))
            chosen.append(search.best([row for row in of_method if row.lr in tried], GRID))
    recording.write_config(folder, kept.config)
    tables.write_csv(folder / BEST, chosen)
    tables.write_csv(folder / STEPS, rows)
    print(summary(chosen, values.num_seeds))
    print(f"\nresults  {folder}")
    return 0


def make_setting(values: flags.FlagValues) -> Setting:
    """What all runs have in common, from the flags.

    Raises:
      InputError: a flag's value is not accepted, or a data file is missing or damaged.
    """
    problem_ = problem.from_flags(values)
    dim = problem_.objective.dim
    block_size = min(1_000, dim) if values.block_size is None else values.block_size
    check_count("--block_size", block_size, least=0, most=dim)
    return Setting(
        problem_,
        # Made once: what is jitted knows them by identity.
        {
            name: methods.make_estimator(name, problem_.objective, Alpha())
            for name in ("sgd", "svrg")
        },
        iterations.make_sampler(values, problem_, block_size=block_size or None),
        values.inner_steps,
        values.num_epochs,
        values.pretrain_epochs,
        values.delay,
    )


def carry_out(setting: Setting, job: Job, tick: Callable[[int], None]) -> list[Row]:
    """Runs some steps side by side.

    Args:
      setting: of all runs.
      job: which ones.
      tick: called with the updates of all of them after every epoch.

    Returns:
      A row for each step.
    """
    x0, first = setting.problem.make_x0(job.seed), 0
    if job.pretraining is not None:
        first = setting.pretrain_epochs
        (x0,) = _sweep(setting, "sgd", [job.pretraining], job.seed, x0, 0, first, tick)
    name = "sgd" if job.method == "sgd" else "svrg"
    ends = _sweep(setting, name, job.steps, job.seed, x0, first, setting.num_epochs, tick)
    return [
        Row(
            job.method,
            *step,
            job.seed,
            setting.num_epochs,
            *problem.evaluate(setting.problem, x),
        )
        for step, x in zip(job.steps, ends, strict=True)
    ]


def _sweep(
    setting: Setting,
    estimator: str,
    steps: Sequence[Step],
    seed: int,
    x0: Array,
    first_epoch: int,
    num_epochs: int,
    tick: Callable[[int], None],
) -> jax.Array:
    """The x of every step after the epochs, [steps, d]."""

    def trace(epoch: int) -> Trace:
        of_epoch = np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(1)[0]
        return delays.uniform(setting.inner_steps, setting.delay, seed=int(of_epoch))

    runs = [
        simulate.Run(
            x0,
            setting.sampler._replace(seed=seed),
            schedules.polynomial(step.lr, step.decay),
            trace,
        )
        for step in steps
    ]
    x = jnp.asarray(x0)
    for result in simulate.sweep(
        setting.estimators[estimator],
        setting.problem.train,
        runs,
        inner_steps=setting.inner_steps,
        num_epochs=num_epochs,
        first_epoch=first_epoch,
        max_delay=setting.delay,
    ):
        x = result.x
        tick(setting.inner_steps * len(steps))
    return x


def num_updates(setting: Setting, job: Job) -> int:
    """Those of all runs of a job."""
    if job.pretraining is None:
        return setting.inner_steps * setting.num_epochs * len(job.steps)
    epochs = setting.num_epochs - setting.pretrain_epochs
    return setting.inner_steps * (setting.pretrain_epochs + epochs * len(job.steps))


def summary(chosen: Sequence[Best], num_seeds: int) -> str:
    """The best steps as a table."""
    lines = [f"training loss in the end: mean of {num_seeds} seeds (smallest to largest)", ""]
    for each in chosen:
        edge = " (the search ended)" if each.lr >= search.LARGEST_LR else ""
        where = "of all" if each.among == ALL else "of the grid to begin with"
        lines.append(
            f"{each.method:<9} {where:<26} lr {each.lr:<6g} lr_decay {each.lr_decay:<4g} "
            f"loss {each.train_loss:.4g} ({each.smallest:.4g} to {each.largest:.4g})  "
            f"test error {each.test_error:.2%}  ||grad f||^2 {each.grad_norm_sq:.1e}  "
            f"{each.num_tried} tried{edge}"
        )
    return "\n".join(lines)


def _methods(values: flags.FlagValues) -> list[str]:
    """--methods in the order in which they are searched for."""
    given = values.methods
    if not given or set(given) - set(METHODS):
        raise InputError(
            f"--methods must be some of {', '.join(METHODS)}, with commas between, got "
            f"{','.join(given)!r}."
        )
    if "sgd_svrg" in given:
        if "sgd" not in given:
            raise InputError("--methods must hold sgd where it holds sgd_svrg, which begins so.")
        check_count("--pretrain_epochs", values.pretrain_epochs, most=values.num_epochs - 1)
    return [method for method in METHODS if method in given]


if __name__ == "__main__":
    launch.start(main, define_flags)
