"""Holds the paper's theorems against runs on smooth non-convex problems, with simulated delays.

    python -m experiments.theorems --out_dir=FOLDER

Two problems: a network with tanh (its L is estimated from below, so what is under the bound is
evidence, not proof), and logistic regression with the non-convex regulariser
sum_j w_j^2 / (1 + w_j^2), for which L is known. Inputs are divided by their length. In the folder:
bounds.csv (both sides of (12) and (19)), rates.csv and slopes.csv (SVRG beside SGD), delays.csv
(inside of Theorem 3 and beyond), theorems.png and config.json. Each of the three studies of a
problem is kept when it is done, in the folder units/: a first SIGINT or SIGTERM waits for the end
of the one under way, and the same command with the same --out_dir goes on, with the same results.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from absl import flags

from asvrg.errors import INT32, InputError, check_count, check_real
from experiments import checkpoints, folders, launch, problem, provenance, recording, tables, units
from experiments.problem import Problem
from experiments.theory import drawing, smooth_problems, studies
from experiments.theory.smooth_problems import Smooth
from experiments.theory.studies import BoundRow, DelayRow, RateRow, SlopeRow

NAME = "theorems"
BOUNDS, RATES, SLOPES, DELAYS = "bounds.csv", "rates.csv", "slopes.csv", "delays.csv"
FIGURE = "theorems.png"
PROBLEMS = ("logistic", "network")
STUDIES = 3  # of each problem: bounds, rates and delays


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this binary."""
    flags.DEFINE_multi_enum(
        "problem", list(PROBLEMS), PROBLEMS, "What to run; can be repeated.", flag_values=values
    )
    problem.define_flags(values, hidden=8, l2=3e-2)
    values.set_default("activation", "tanh")
    values.set_default("dtype", "float64")
    flags.DEFINE_float("weight", 0.1, "Of the logistic problem's regulariser.", flag_values=values)
    flags.DEFINE_integer("num_seeds", 5, "Runs of each case, with other draws.", flag_values=values)
    flags.DEFINE_integer(
        "num_updates", 16_000, "T of the rates; an eighth of it for bounds.", flag_values=values
    )
    flags.DEFINE_integer(
        "num_singles", 300, "Samples whose L is estimated, at most n.", flag_values=values
    )
    folders.define_out_dir(values)
    folders.define_resume(values)


def main(values: flags.FlagValues) -> int:
    """Runs the studies, prints their outcome, and writes csv, png and json."""
    if values.activation != "tanh":
        raise InputError(
            "--activation must be tanh, got relu: with its kinks there is no L, and no theorem."
        )
    for name in ("num_seeds", "num_updates", "num_singles"):
        check_count(f"--{name}", values[name].value, limit=INT32)
    check_real("--weight", values.weight, above=True)
    problem_ = problem.from_flags(values)
    out_dir = folders.folder_to_resume(values, NAME, checkpoints.UNITS)
    folder = folders.claim_folder(out_dir, NAME, holds=BOUNDS, kind=checkpoints.UNITS)
    seeds = range(values.seed, values.seed + values.num_seeds)
    T = values.num_updates
    description = provenance.describe(values, {"num_train": len(problem_.train[1])})
    total = STUDIES * len(set(values.problem))
    bounds: list[BoundRow] = []
    rates: list[RateRow] = []
    slopes: list[SlopeRow] = []
    delays: list[DelayRow] = []
    with units.kept(folder, NAME, description, total) as kept:
        smooth = make_problems(values, problem_)
        for each in smooth:
            found = kept.do(
                f"{each.name}: bounds", partial(studies.bounds, each, seeds, T // 8 or 1)
            )
            bounds += map(BoundRow._make, found)
            found = kept.do(f"{each.name}: rates", partial(studies.rates, each, seeds[:3], T))
            rates += map(RateRow._make, found[0])
            slopes += map(SlopeRow._make, found[1])
            found = kept.do(f"{each.name}: delays", partial(studies.delay_effects, each, seeds[:1]))
            delays += map(DelayRow._make, found)
    resolved = {
        each.name: {
            "smoothness": each.smoothness,
            "proven": each.proven,
            "gap": each.gap,
            "curvature at x0": each.curvature,
            "dim": each.objective.dim,
            "num_train": len(each.data[1]),
        }
        for each in smooth
    }
    recording.write_config(folder, kept.config | {"resolved": resolved})
    for name, rows in ((BOUNDS, bounds), (RATES, rates), (SLOPES, slopes), (DELAYS, delays)):
        tables.write_csv(folder / name, rows)
    labels = {each.name: _label(each, values.dataset) for each in smooth}
    drawing.draw_theorems(folder / FIGURE, bounds, rates, slopes, delays, labels)
    print(summary(bounds, slopes, delays))
    print(f"\nresults  {folder}")
    return 0


def make_problems(values: flags.FlagValues, problem_: Problem) -> list[Smooth]:
    """The problems that the flags describe.

    Args:
      values: parsed, with this binary's flags.
      problem_: from them.

    Returns:
      The logistic problem, the network, or both.
    """
    inputs, labels = problem_.train
    inputs = smooth_problems.of_length_1(inputs)
    found = []
    if "logistic" in values.problem:
        upper = labels > jnp.median(labels).astype(labels.dtype)
        signs = jnp.where(upper, jnp.ones((), inputs.dtype), -jnp.ones((), inputs.dtype))
        found.append(
            smooth_problems.logistic(inputs, signs, weight=values.weight, seed=values.seed)
        )
    if "network" in values.problem:
        found.append(
            smooth_problems.network(
                problem_.objective,
                problem_.x0,
                inputs,
                labels,
                num_singles=min(values.num_singles, len(labels)),
            )
        )
    return found


def summary(
    bounds: Sequence[BoundRow], slopes: Sequence[SlopeRow], delays: Sequence[DelayRow]
) -> str:
    """The outcome in lines of text.

    Args:
      bounds: rows of bounds.csv.
      slopes: rows of slopes.csv.
      delays: rows of delays.csv.

    Returns:
      Three tables.
    """
    lines = ["(12), (19): average of ||grad f||^2 over all updates, mean and largest of the seeds"]
    last: dict[Any, BoundRow] = {(row.problem, row.theorem, row.u0): row for row in bounds}
    for row in last.values():
        lines.append(
            f"  {row.problem:<13} Theorem {row.theorem}, u0 {row.u0:g}, b {row.batch_size:<2} eta "
            f"{row.lr:.2e}, m {row.inner_steps:<5} delay {row.delay:<3} (admitted "
            f"{row.admissible_delay}, proven {row.tolerated_delay}), T {row.updates}: "
            f"{row.mean:.3e}, {row.largest:.3e}; bound {row.bound:.3e}, "
            f"{row.bound / row.mean:.1f} times the mean"
        )
    lines.append("\nslope of the running average in log-log, over the last decade and half of T")
    for each in slopes:
        lines.append(
            f"  {each.problem:<13} {each.method:<19} {each.last_decade:6.2f} {each.last_half:6.2f}"
        )
    lines.append("\naverage with a delay of every update, over that without")
    for at in sorted({(row.problem, row.lr_factor) for row in delays}):
        of = [row for row in delays if (row.problem, row.lr_factor) == at]
        entries = [f"{row.delay}{'' if row.holds else '*'}: {row.ratio:.3g}" for row in of]
        lines.append(f"  {at[0]:<13} {at[1]:>3} x eta  " + ", ".join(entries))
    return "\n".join([*lines, "  * beyond Theorem 3"])


def _label(each: Smooth, dataset: str) -> str:
    kind = "L" if each.proven else "L (estimated)"
    return f"{each.name}, {dataset}, d {each.objective.dim}, {kind} {each.smoothness:.3g}"


if __name__ == "__main__":
    launch.start(main, define_flags)
