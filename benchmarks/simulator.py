"""Time of a simulated iteration: with longer and longer delays, and of many runs at once.

    python -m benchmarks.simulator --dataset=mnist

The contestants run in turn, `--repeats` times; the table and the csv hold the medians, and their
ratios to the simulation without delays within the same round. On a GPU the first line is the GPU's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
from absl import flags

from asvrg import delays, estimators, schedules
from asvrg.drivers import simulate
from asvrg.errors import INT32, check_count
from asvrg.estimators import Estimator
from asvrg.types import Array, Data, Driver, Snapshot, Trace
from benchmarks.contest import Contestant, contest
from experiments import folders, iterations, launch, problem, provenance, recording, tables

RESULT = "simulator.csv"
LR = 0.1  # small enough for every data set; the time does not depend on it


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this benchmark."""
    problem.define_flags(values)
    flags.DEFINE_list("delays", ["1", "10", "100", "1000"], "Delta.", flag_values=values)
    flags.DEFINE_list("num_runs", ["1", "4", "16"], "Runs at once.", flag_values=values)
    flags.DEFINE_integer("batch_size", 10, "b.", flag_values=values)
    flags.DEFINE_integer("block_size", 1_000, "B.", flag_values=values)
    flags.DEFINE_integer("inner_steps", 2_000, "m.", flag_values=values)
    flags.DEFINE_integer("repeats", 15, "Rounds of all contestants.", flag_values=values)
    folders.define_out_dir(values)


def main(values: flags.FlagValues) -> int:
    """Times the simulations, prints their table and writes it as simulator.csv."""
    check_count("--repeats", values.repeats, limit=INT32)
    check_count("--inner_steps", values.inner_steps, limit=INT32)
    longest, sizes = launch.counts(values, "delays"), launch.counts(values, "num_runs")
    check_count("every entry of --delays", max(longest), limit=INT32)
    check_count("every entry of --num_runs", max(sizes), limit=iterations.MOST_WORKERS)
    problem_ = problem.from_flags(values)
    m = values.inner_steps
    sampler = iterations.make_sampler(values, problem_, block_size=values.block_size)
    folder = folders.claim_folder(values.out_dir, f"simulator-{values.dataset}", holds=RESULT)
    estimator = estimators.svrg(problem_.objective)
    traces = {"no delays": delays.none(m)}
    traces |= {f"delays of {delay}": delays.constant(m, delay) for delay in longest}
    traces |= {
        f"delays of 0 to {delay}": delays.uniform(m, delay, seed=values.seed) for delay in longest
    }
    contestants = {}
    for name, trace in traces.items():
        driver = simulate.driver(
            estimator, problem_.train, sampler, inner_steps=m, trace=_every_epoch(trace)
        )
        driver.warm_up(problem_.x0)
        run = functools.partial(_inner_loop, driver, problem_.x0, driver.prepare(problem_.x0))
        contestants[name] = Contestant(run, m)
    for size in sizes:
        runs = [
            simulate.Run(
                problem_.x0,
                sampler._replace(seed=values.seed + i),
                schedules.constant(LR),
                _every_epoch(traces[f"delays of {longest[-1]}"]),
            )
            for i in range(size)
        ]
        sweep = functools.partial(_sweep, estimator, problem_.train, runs, m)
        sweep()
        contestants[f"{size} runs at once, with their snapshots"] = Contestant(sweep, size * m)
    tables.write_csv(folder / RESULT, contest(contestants, values.repeats))
    device = jax.devices()[0].device_kind
    recording.write_config(folder, provenance.describe(values, {"device": device}))
    print(folder / RESULT)
    return 0


def _every_epoch(trace: Trace) -> Callable[[int], Trace]:
    return lambda epoch: trace


def _inner_loop(driver: Driver, x: Array, snapshot: Snapshot) -> None:
    jax.block_until_ready(driver.inner_loop(x, snapshot, 0, LR)[0])


def _sweep(
    estimator: Estimator, data: Data, runs: Sequence[simulate.Run], inner_steps: int
) -> None:
    (result,) = simulate.sweep(estimator, data, runs, inner_steps=inner_steps, num_epochs=1)
    jax.block_until_ready(result.x)


if __name__ == "__main__":
    launch.start(main, define_flags)
