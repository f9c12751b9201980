"""alpha-SVRG beside SVRG and SGD on a deep network, at equal budgets, through asvrg.transforms.

    python -m experiments.alpha_svrg --out_dir=FOLDER

About ten minutes on two cores: MNIST (10,000 samples) and a fully connected ReLU network of seven
layers; --dataset=digits for who has no file of MNIST. The methods: SGD; SVRG, v = g - (g_s - mu);
alpha-SVRG, v = g - alpha (g_s - mu) with an alpha that falls linearly to 0 over the run, from 0.5
and from 1. They make equally many updates, with the same mini-batches. As a snapshot and a second
gradient in every update cost SVRG three times the gradients, there is SGD with as many gradients
too: with a larger batch (sgd_batch), and with more epochs (sgd_epochs).

Every method has the step of --lr with which its training loss ends lowest on average of two seeds
that are used for nothing else. In the folder: curves.csv (the runs, epoch by epoch), steps.csv (the
ends of that search), curves.png and config.json. The same command gives the same csv files. Every
run is kept when it is done, in the folder units/: after SIGINT or SIGTERM those under way end and
no other begins, and the same command with the same --out_dir goes on, with the same results.

Source: Yin et al. (2025), A coefficient makes SVRG effective, ICLR 2025, for alpha-SVRG.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence

from absl import flags
from tqdm import tqdm

from asvrg.errors import INT32, DivergedError, InputError, check_count
from experiments import (
    checkpoints,
    folders,
    iterations,
    jobs,
    launch,
    problem,
    provenance,
    recording,
    tables,
    units,
)
from experiments.deep import drawing, runs
from experiments.deep.runs import Job, Method, Row, Setting

NAME = "alpha_svrg"
CURVES, STEPS, FIGURE = "curves.csv", "steps.csv", "curves.png"
HIDDEN = ["100"] * 6
SEARCH_SEEDS = 2  # with one, a step that is often unstable can be taken for the best
SEEDS_AT_MOST = 10_000
ALPHAS_AT_MOST = len(drawing.OF_ALPHA)


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this binary."""
    problem.define_flags(values, l2=0.0)
    values.set_default("dataset", "mnist")
    values.set_default("hidden", HIDDEN)
    flags.DEFINE_integer("batch_size", 100, "b, samples of a mini-batch.", flag_values=values)
    flags.DEFINE_integer(
        "num_epochs", 20, "Epochs, of n / b updates and one snapshot each.", flag_values=values
    )
    flags.DEFINE_list(
        "lr",
        ["0.1", "0.2", "0.4", "0.8"],
        "Steps that are tried, each method's best of which is used.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "lr_schedule",
        "cosine",
        runs.SCHEDULES,
        "Whether the step falls to 0 over a run, along a cosine.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "alpha", ["0.5", "1"], "What alpha of alpha-SVRG begins with.", flag_values=values
    )
    flags.DEFINE_integer(
        "num_seeds", 3, "Runs of each method, with other x^0 and draws.", flag_values=values
    )
    flags.DEFINE_integer(
        "num_threads", None, "Runs side by side. Default: all cores.", flag_values=values
    )
    folders.define_out_dir(values)
    folders.define_resume(values)


def main(values: flags.FlagValues) -> int:
    """Searches for the steps, runs every method, prints the outcome, writes csv, png and json."""
    check_count("--num_seeds", values.num_seeds, limit=SEEDS_AT_MOST)
    for name in ("batch_size", "num_epochs"):
        check_count(f"--{name}", values[name].value, limit=INT32)
    num_threads = len(os.sched_getaffinity(0))
    if values.num_threads is not None:
        num_threads = check_count(
            "--num_threads", values.num_threads, limit=iterations.MOST_WORKERS
        )
    tried = sorted(set(launch.reals(values, "lr")))
    alphas = sorted(set(launch.reals(values, "alpha")))
    if len(alphas) > ALPHAS_AT_MOST:
        raise InputError(f"--alpha must have at most {ALPHAS_AT_MOST} entries, got {len(alphas)}.")
    problem_ = problem.from_flags(values)
    n = len(problem_.train[1])
    if 3 * values.batch_size > n:
        raise InputError(
            f"--batch_size must be at most a third of the {n} samples, as SGD is run with three "
            f"times as many, too; got {values.batch_size}."
        )
    setting = make_setting(values, problem_)
    out_dir = folders.folder_to_resume(values, NAME, checkpoints.UNITS)
    folder = folders.claim_folder(out_dir, NAME, holds=CURVES, kind=checkpoints.UNITS)
    m = setting.inner_steps
    methods = runs.of_equal_budgets(n, m, values.batch_size, values.num_epochs, alphas)
    compiled = {method: runs.make_epoch(setting, method) for method in methods}
    seeds = range(values.seed, values.seed + values.num_seeds)

    def carry_out(job: Job, tick: Callable[[int], None]) -> list[Row]:
        method, lr, seed, every = job
        return runs.run(setting, method, compiled[method], lr, seed, every=every, tick=tick)

    others = range(seeds.stop, seeds.stop + SEARCH_SEEDS) if len(tried) > 1 else seeds[:0]
    description = provenance.describe(
        values,
        {
            "num_train": n,
            "dim": setting.objective.dim,
            "layers": len(values.hidden) + 1,
            "inner_steps": m,
            "seeds": list(seeds),
            "seeds of the search": list(others),
        },
    )
    search = [
        Job(method, lr, seed, method.num_epochs)
        for method in methods
        for lr in tried
        for seed in others
    ]
    runs_of_method = len(tried) * len(others) + len(seeds)
    total = sum(runs.grad_evals(each, n, m) * each.num_epochs for each in methods)
    with (
        units.kept(folder, NAME, description, len(methods) * runs_of_method) as kept,
        tqdm(
            total=total * runs_of_method,
            initial=sum(Row._make(of_job[-1]).grad_evals for of_job in kept.outcomes()),
            unit="grad",
            unit_scale=True,
            file=sys.stderr,
            mininterval=0.2 if sys.stderr.isatty() else 5.0,
        ) as bar,
    ):

        def all_rows(of: list[Job]) -> list[list[Row]]:
            found = jobs.side_by_side(
                carry_out, of, num_threads, bar, kept, cost=lambda job: job.method.num_epochs
            )
            return [[Row._make(row) for row in of_job] for of_job in found]

        ends = [of_job[-1] for of_job in all_rows(search)]
        chosen = {method: best_step(method, tried, ends) for method in methods}
        # SGD with more epochs is evaluated where the others have computed as many gradients.
        last = [
            Job(method, chosen[method], seed, round(method.num_epochs / values.num_epochs))
            for method in methods
            for seed in seeds
        ]
        rows = [row for of_job in all_rows(last) for row in of_job]
    resolved = description["resolved"] | {"lr": {each.name: lr for each, lr in chosen.items()}}
    recording.write_config(folder, kept.config | {"resolved": resolved})
    if ends:
        tables.write_csv(folder / STEPS, ends)
    tables.write_csv(folder / CURVES, rows)
    title = (
        f"{values.dataset}, n {n}; {len(values.hidden) + 1} layers, {values.activation}, "
        f"d {setting.objective.dim}; b {values.batch_size}, m {m}, {values.lr_schedule} step; "
        f"mean and range of {values.num_seeds} seeds"
    )
    drawing.draw(folder / FIGURE, methods, rows, n, title)
    print(summary(methods, rows, n, tried))
    print(f"\nresults  {folder}")
    return 0


def make_setting(values: flags.FlagValues, problem_: problem.Problem) -> Setting:
    """What all runs have in common.

    Args:
      values: parsed, with this binary's flags.
      problem_: from them.

    Returns:
      A Setting, whose m is one pass over the samples.
    """
    return Setting(
        objective=problem_.objective,
        train=problem_.train,
        test=problem_.test,
        make_x0=problem_.make_x0,
        inner_steps=len(problem_.train[1]) // values.batch_size,
        schedule=values.lr_schedule,
    )


def best_step(method: Method, tried: Sequence[float], ends: Sequence[Row]) -> float:
    """The step with the smallest training loss in the end, on average over the seeds.

    Args:
      method: whose step it is.
      tried: the steps; if it is one, there was no search.
      ends: the last rows of the search.

    Returns:
      The step.

    Raises:
      DivergedError: with each of them a run left the finite numbers.
    """
    if len(tried) == 1:
        return tried[0]
    losses = {
        lr: sum(row.train_loss for row in ends if (row.method, row.lr) == (method.name, lr))
        for lr in tried
    }
    finite = {lr: loss for lr, loss in losses.items() if math.isfinite(loss)}
    if not finite:
        raise DivergedError(
            f"{method.name} left the finite numbers with every step of --lr; try smaller ones."
        )
    return min(finite, key=finite.__getitem__)


def summary(
    methods: Sequence[Method], rows: Sequence[Row], num_samples: int, tried: Sequence[float]
) -> str:
    """The outcome in lines of text.

    Args:
      methods: of the rows.
      rows: of curves.csv.
      num_samples: n.
      tried: the steps.

    Returns:
      A table of the methods in the end, and how the losses compare, seed by seed.
    """
    ends = {
        method.name: [
            row for row in rows if row.method == method.name and row.epoch == method.num_epochs
        ]
        for method in methods
    }

    def spread(entries: Sequence[float], form: str) -> str:
        mean = sum(entries) / len(entries)
        return f"{mean:{form}} ({min(entries):{form}} to {max(entries):{form}})"

    lines = ["in the end, mean (smallest to largest) of the seeds", ""]
    lines.append(
        f"{'':<16} {'step':<6} {'updates':>7} {'grads/n':>7}  {'training loss':<31} "
        f"{'test error, %':<21} ||grad f||^2"
    )
    for name, last in ends.items():
        edge = "*" if len(tried) > 1 and last[0].lr in (tried[0], tried[-1]) else ""
        lines.append(
            f"{name:<16} {f'{last[0].lr:g}{edge}':<6} {last[0].updates:>7} "
            f"{last[0].grad_evals / num_samples:>7.1f}  "
            f"{spread([row.train_loss for row in last], '.3e'):<31} "
            f"{spread([100 * row.test_error for row in last], '.2f'):<21} "
            f"{spread([row.grad_norm_sq for row in last], '.1e')}"
        )
    if any("*" in line for line in lines):
        lines.append("* the smallest or the largest of --lr")
    lines.append("\ntraining loss as a multiple of another method's, same seed")
    for name in [method.name for method in methods if method.alpha is not None]:
        for other in [method.name for method in methods if method.name != name]:
            ratios = [
                a.train_loss / b.train_loss for a, b in zip(ends[name], ends[other], strict=True)
            ]
            lines.append(f"  {name:<16} of {other:<16} {spread(ratios, '.3g')}")
    return "\n".join(lines)


if __name__ == "__main__":
    launch.start(main, define_flags)
