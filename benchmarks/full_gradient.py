"""Time of the pass for the full gradient, beside its matrix products alone.

    python -m benchmarks.full_gradient --dataset=mnist --out_dir=FOLDER

The products are those of a forward and a backward pass over the same chunks of samples, without
activations, losses, caches and sums. Both run in turn, `--repeats` times; times are those of one
sample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np
from absl import flags

from asvrg import estimators, objectives
from asvrg.errors import INT32, check_count
from asvrg.types import Array, PyTree
from benchmarks.contest import Contestant, contest
from experiments import folders, launch, problem, provenance, recording, tables

RESULT = "full_gradient.csv"


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this benchmark."""
    problem.define_flags(values)
    flags.DEFINE_integer("repeats", 15, "Rounds of both.", flag_values=values)
    folders.define_out_dir(values)


def main(values: flags.FlagValues) -> int:
    """Times both, prints their table and writes it as full_gradient.csv."""
    check_count("--repeats", values.repeats, limit=INT32)
    problem_ = problem.from_flags(values)
    folder = folders.claim_folder(values.out_dir, f"full_gradient-{values.dataset}", holds=RESULT)
    estimator = estimators.svrg(problem_.objective)
    weights = [matrix[:-1] for matrix in problem_.objective.unravel(problem_.x0)]
    inputs = np.asarray(problem_.train[0])
    size = objectives.CHUNK_SIZE
    chunks = [jax.device_put(inputs[i : i + size]) for i in range(0, len(inputs), size)]
    runs: dict[str, Callable[[], object]] = {
        "matrix products alone": functools.partial(_all_products, weights, chunks),
        "snapshot: full gradient and cache": lambda: jax.block_until_ready(
            estimator.prepare(problem_.x0, problem_.train, map)
        ),
    }
    for run in runs.values():
        run()
    contestants = {name: Contestant(run, len(inputs)) for name, run in runs.items()}
    tables.write_csv(folder / RESULT, contest(contestants, values.repeats))
    recording.write_config(folder, provenance.describe(values, {}))
    print(folder / RESULT)
    return 0


def _all_products(weights: list[jax.Array], chunks: list[jax.Array]) -> PyTree:
    return jax.block_until_ready([_products(weights, chunk) for chunk in chunks])


@jax.jit
def _products(weights: list[jax.Array], inputs: Array) -> list[jax.Array]:
    layers = [inputs]
    for matrix in weights:
        layers.append(layers[-1] @ matrix)
    delta, gradients = layers.pop(), []
    for matrix, layer in zip(reversed(weights), reversed(layers), strict=True):
        gradients.append(layer.T @ delta)
        if layer is not inputs:
            delta = delta @ matrix.T
    return gradients


if __name__ == "__main__":
    launch.start(main, define_flags)
