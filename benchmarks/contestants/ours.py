"""asvrg's drivers: threads with exact and with stale windows, and the simulator."""

from __future__ import annotations

import functools
import os

import jax
import numpy as np

from asvrg import estimators, mlp, objectives, sampling
from asvrg.drivers import simulate, threads
from asvrg.types import Driver
from benchmarks import measure
from benchmarks.measure import Problem, Task
from experiments import launch


class Asvrg:
    """Shared-AsySVRG by a driver; see `measure.Method`."""

    def __init__(self, problem: Problem, task: Task) -> None:
        setting = problem.setting
        self._objective = mlp.mlp(setting.layer_sizes, l2=setting.l2)
        self._data = jax.device_put((problem.inputs, problem.labels))
        self._x0 = problem.x0
        self._lr = task.lr
        self._driver = self._driver_of(task, setting)
        self._driver.warm_up(self._x0)
        self._kept = self._driver.prepare(self._x0)
        self.num_updates = setting.inner_steps
        self.grad_evals = self._driver.grad_evals
        self.nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves((self._data, self._x0)))
        self.nbytes += sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(self._kept))
        self.reset()

    def reset(self) -> None:
        """Goes back to x^0."""
        self._x = self._x0
        self._epoch = 0

    def snapshot(self) -> None:
        """The full gradient and the cache at x."""
        self._kept = jax.block_until_ready(self._driver.prepare(self._x))

    def advance(self) -> None:
        """An epoch's updates."""
        x, _ = self._driver.inner_loop(self._x, self._kept, self._epoch, self._lr)
        self._x = jax.block_until_ready(x)
        self._epoch += 1

    def loss(self) -> float:
        """The training loss."""
        return objectives.evaluate(self._objective, self._x, self._data).loss

    def close(self) -> float:
        """There are no other processes."""
        return 0.0

    def _driver_of(self, task: Task, setting: measure.Setting) -> Driver:
        sampler = sampling.sampler(
            len(self._data[1]),
            self._objective.dim,
            batch_size=setting.batch_size,
            block_size=setting.block_size,
            seed=setting.seed,
        )
        estimator = estimators.svrg(self._objective)
        if task.method == "simulator":
            return simulate.driver(estimator, self._data, sampler, inner_steps=setting.inner_steps)
        driver = functools.partial(
            threads.driver,
            estimator,
            self._data,
            sampler,
            inner_steps=setting.inner_steps,
            num_threads=task.workers,
            read_period=setting.read_period,
        )
        return driver() if task.method == "exact" else driver(sees_own=False)


if __name__ == "__main__":
    launch.configure_jax(os.environ)
    measure.main(Asvrg)
