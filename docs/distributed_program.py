"""A program of one's own on Algorithms 2 and 3: a least-squares problem, a server and its workers.

mpiexec -n 3 python docs/distributed_program.py
"""

from __future__ import annotations

import numpy as np

from asvrg import delays, estimators, objectives, sampling, schedules, training
from asvrg.drivers import mpi
from asvrg.types import Array, Data


def loss(params: Array, sample: Data) -> Array:
    """f_i, of one sample."""
    inputs, target = sample
    return 0.5 * (inputs @ params - target) ** 2


def main() -> None:
    """The same on every rank; only then do server and workers part."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 5)).astype(np.float32)
    data = inputs, inputs @ np.arange(5, dtype=np.float32)
    objective = objectives.from_loss(loss, np.zeros(5, np.float32))
    estimator = estimators.svrg(objective)
    sampler = sampling.sampler(200, objective.dim, batch_size=5)

    job = mpi.connect()
    if job.is_server:
        with mpi.serve(job, sampler) as serving:
            driver = mpi.driver(serving, estimator, inner_steps=100)
            start = training.start(np.zeros(5, np.float32))
            schedule = schedules.constant(0.05)
            for result in training.run(driver, start, schedule=schedule, num_epochs=10):
                metrics = objectives.evaluate(objective, result.x, data)
                longest = delays.staleness(result.trace).max()
                print(f"epoch {result.epoch}: loss {metrics.loss:.2e}, longest delay {longest}")
        print("x =", np.abs(result.x).round(2).tolist())
    else:
        with mpi.reporting(job):
            mpi.work(job, [estimator], data, sampler)
    mpi.leave(0)


if __name__ == "__main__":
    main()
