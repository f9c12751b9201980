"""Time of one inner iteration of Shared-AsySVRG, beside a plain jitted step with two gradients.

    python -m benchmarks.inner_iteration --dataset=mnist

The contestants run in turn, `--repeats` times; the table and the csv hold the medians, and their
ratios to the plain step within the same round.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from asvrg import estimators, sampling
from asvrg.drivers import simulate, threads
from asvrg.errors import INT32, check_count
from asvrg.types import Array, Data, Driver, Snapshot
from benchmarks.contest import Contestant, contest
from experiments import folders, iterations, launch, problem, provenance, recording, tables
from experiments.problem import Problem

RESULT = "inner_iteration.csv"
LR = 0.1  # small enough for every data set; the time does not depend on it


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this benchmark."""
    problem.define_flags(values)
    flags.DEFINE_list("num_threads", ["1", "2"], "Numbers of threads.", flag_values=values)
    flags.DEFINE_list("read_periods", ["1", "16", "64"], "Read periods.", flag_values=values)
    flags.DEFINE_integer("batch_size", 10, "b.", flag_values=values)
    flags.DEFINE_integer("block_size", 1_000, "B.", flag_values=values)
    flags.DEFINE_integer("inner_steps", 1_000, "m.", flag_values=values)
    flags.DEFINE_integer("repeats", 15, "Rounds of all contestants.", flag_values=values)
    folders.define_out_dir(values)


def main(values: flags.FlagValues) -> int:
    """Times the contestants, prints their table and writes it as inner_iteration.csv."""
    check_count("--repeats", values.repeats, limit=INT32)
    check_count("--inner_steps", values.inner_steps, limit=INT32)
    num_threads = launch.counts(values, "num_threads")
    check_count("every entry of --num_threads", max(num_threads), limit=iterations.MOST_WORKERS)
    read_periods = launch.counts(values, "read_periods")
    check_count("every entry of --read_periods", max(read_periods), limit=INT32)
    problem_ = problem.from_flags(values)
    sampler = iterations.make_sampler(values, problem_, block_size=values.block_size)
    folder = folders.claim_folder(values.out_dir, f"inner_iteration-{values.dataset}", holds=RESULT)
    estimator = estimators.svrg(problem_.objective)
    drivers = {
        "simulator": simulate.driver(
            estimator, problem_.train, sampler, inner_steps=values.inner_steps
        )
    }
    for workers in num_threads:
        for read_period in read_periods:
            drivers[f"threads, K = {workers}, read_period = {read_period}"] = threads.driver(
                estimator,
                problem_.train,
                sampler,
                inner_steps=values.inner_steps,
                num_threads=workers,
                read_period=read_period,
            )
    snapshot = drivers["simulator"].prepare(problem_.x0)
    contestants = {
        "two gradients, one jitted call an iteration": Contestant(
            functools.partial(_plain, problem_, snapshot, sampler, values.inner_steps),
            values.inner_steps,
        )
    }
    contestants |= {
        name: Contestant(
            functools.partial(_inner_loop, driver, problem_.x0, snapshot), values.inner_steps
        )
        for name, driver in drivers.items()
    }
    for driver in drivers.values():
        driver.warm_up(problem_.x0)
    _plain(problem_, snapshot, sampler, values.inner_steps)
    tables.write_csv(folder / RESULT, contest(contestants, values.repeats))
    recording.write_config(folder, provenance.describe(values, {}))
    print(folder / RESULT)
    return 0


def _inner_loop(driver: Driver, x: Array, snapshot: Snapshot) -> None:
    jax.block_until_ready(driver.inner_loop(x, snapshot, 0, LR)[0])


def _plain(
    problem_: Problem, snapshot: Snapshot, sampler: sampling.Sampler, inner_steps: int
) -> None:
    """What one writes first: both gradients by autodiff, one call of jit for each iteration."""
    draws = sampling.Stream(sampler, 0, 0).take(inner_steps)
    assert draws.block is not None
    x = problem_.x0
    for batch, block in zip(draws.batch, draws.block, strict=True):
        x = _plain_step(
            problem_.objective.loss,
            x,
            snapshot.params,
            snapshot.full_grad,
            problem_.train,
            batch,
            block,
            np.asarray(LR, x.dtype),
        )
    jax.block_until_ready(x)


@functools.partial(jax.jit, static_argnums=0)
def _plain_step(
    loss: Callable[[Array, Data], jax.Array],
    x: Array,
    x_tilde: Array,
    full_grad: Array,
    data: Data,
    batch: Array,
    block: Array,
    lr: Array,
) -> jax.Array:
    samples = jax.tree.map(lambda leaf: leaf[batch], data)
    v = jax.grad(loss)(x, samples) - jax.grad(loss)(x_tilde, samples) + full_grad
    return jnp.asarray(x).at[block].add(-lr * v[block])


if __name__ == "__main__":
    launch.start(main, define_flags)
