"""What mpiexec runs in mpi_test.py: runs of the driver, one after the other, in one MPI job.

python tests/mpi_program.py FOLDER SPECS, where SPECS is JSON: a list of objects with the fields of
`Spec`. Rank 0 leaves a npz for each; every rank leaves its process number.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import NamedTuple

import jax
import numpy as np

from asvrg import estimators, mlp, sampling, schedules, training
from asvrg.drivers import mpi
from asvrg.types import Data

jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_enable_x64", True)

NUM_SAMPLES, SIZES, BATCH_SIZE, LR = 103, (6, 5, 3), 4, 0.2


class Spec(NamedTuple):
    """A run; the server leaves a file for each epoch that is done, named like the npz."""

    method: str = "svrg"
    inner_steps: int = 40
    num_epochs: int = 2
    overlap: bool = False
    max_delay: int | None = None
    delay_adaptive: bool = False
    shard_sizes: list[int] | None = None
    raise_at: int | None = None  # the rank whose data are too few


def problem() -> tuple[mlp.Objective, Data, np.ndarray, sampling.Sampler]:
    """A tanh network on random data, float64."""
    objective = mlp.mlp(SIZES, activation="tanh", l2=1e-2)
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(NUM_SAMPLES, SIZES[0]))
    labels = (inputs @ rng.normal(size=(SIZES[0], SIZES[-1]))).argmax(1).astype(np.int32)
    x0 = np.asarray(mlp.init(jax.random.key(1), SIZES, activation="tanh", dtype="float64"))
    sampler = sampling.sampler(NUM_SAMPLES, objective.dim, batch_size=BATCH_SIZE, seed=5)
    return objective, (inputs, labels), x0, sampler


def estimator(method: str, objective: mlp.Objective) -> estimators.Estimator:
    """The estimator of this name."""
    return getattr(estimators, method)(objective)


def serve(job: mpi.Job, spec: Spec, path: pathlib.Path) -> None:
    """The server's part of a run."""
    objective, _, x0, sampler = problem()
    chosen = estimator(spec.method, objective)
    states = [training.start(x0)]
    with mpi.serve(
        job, sampler, dtype="float64", shard_sizes=spec.shard_sizes, chunk_size=10
    ) as serving:
        driver = mpi.driver(
            serving,
            chosen,
            inner_steps=spec.inner_steps,
            overlap=spec.overlap,
            max_delay=spec.max_delay,
            delay_adaptive=spec.delay_adaptive,
        )
        for state in training.run(
            driver, states[0], schedule=schedules.constant(LR), num_epochs=spec.num_epochs
        ):
            states.append(state)
            path.with_suffix(f".{state.epoch}").touch()
        alive = serving.server.star.alive
    np.savez(path, alive=alive, x=[state.x for state in states], **_flat(states[1:]))


def _flat(states: list[training.EpochResult]) -> dict[str, np.ndarray]:
    arrays = {}
    for state in states:
        trace = state.trace
        assert trace is not None
        assert trace.shards is not None
        name = f"epoch{state.epoch}"
        arrays[f"{name}/worker"], arrays[f"{name}/version"] = trace.worker, trace.read_version
        if trace.scale is not None:
            arrays[f"{name}/scale"] = trace.scale
        arrays[f"{name}/weights"] = np.array([shard.weight for shard in trace.shards])
        for k, shard in enumerate(trace.shards):
            arrays[f"{name}/samples{k}"] = shard.samples
    return arrays


def work(job: mpi.Job, spec: Spec) -> None:
    """A worker's part of a run."""
    objective, data, _, sampler = problem()
    if job.rank == spec.raise_at:
        data = (data[0][:7], data[1][:7])
    with mpi.reporting(job):
        mpi.work(
            job,
            [estimator(spec.method, objective)],
            data,
            sampler,
            dtype="float64",
            shard_sizes=spec.shard_sizes,
            chunk_size=10,
        )


def main() -> None:
    """Runs all specs."""
    folder = pathlib.Path(sys.argv[1])
    job = mpi.connect()
    (folder / f"pid.{job.rank}").write_text(str(os.getpid()))
    code = 0
    try:
        for i, fields in enumerate(json.loads(sys.argv[2])):
            spec = Spec(**fields)
            if job.is_server:
                serve(job, spec, folder / f"{i}.npz")
            else:
                work(job, spec)
    except mpi.RankError as error:
        print(f"rank {job.rank}: {error}", file=sys.stderr)
        code = 1
    mpi.leave(code)


if __name__ == "__main__":
    main()
