"""asvrg: threads with exact and with stale windows, these without their draws, the simulator."""

from __future__ import annotations

import os

import jax
import numpy as np

from asvrg import estimators, mlp, objectives, sampling, steps
from asvrg.drivers import simulate, threads
from asvrg.types import Driver
from benchmarks import measure
from benchmarks.contestants import c_floor
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
        self._estimator = estimators.svrg(self._objective)
        self._sampler = sampling.sampler(
            len(problem.labels),
            self._objective.dim,
            batch_size=setting.batch_size,
            block_size=setting.block_size,
            seed=setting.seed,
        )
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
        arguments = self._estimator, self._data, self._sampler
        if task.method == "simulator":
            return simulate.driver(*arguments, inner_steps=setting.inner_steps)
        return threads.driver(
            *arguments,
            inner_steps=setting.inner_steps,
            num_threads=task.workers,
            read_period=setting.read_period,
            sees_own=task.method.startswith("exact"),
        )


class Drawn(Asvrg):
    """What one thread does, with draws made beforehand, as the C code has them."""

    def __init__(self, problem: Problem, task: Task) -> None:
        super().__init__(problem, task)
        setting = problem.setting
        stream, count = sampling.Stream(self._sampler, 0, 0), c_floor.DRAWS
        self._draws = [
            stream.take(setting.read_period) for _ in range(count // setting.read_period)
        ]
        self._windows = setting.inner_steps // setting.read_period
        self.num_updates = self._windows * setting.read_period
        self.grad_evals = self._estimator.grad_evals(
            len(problem.labels), setting.batch_size, self.num_updates
        )
        self._sees_own = task.method.startswith("exact")

    def advance(self) -> None:
        """An epoch's updates, less what is left over of a window."""
        buffer, copy = threads.shared_buffer(self._x), threads.shared_buffer(self._x)
        view, lr = threads.live_view(copy), np.asarray(self._lr, buffer.dtype)
        for window in range(self._epoch * self._windows, (self._epoch + 1) * self._windows):
            np.copyto(copy, buffer)
            delta = steps.window(
                self._estimator,
                view,
                self._kept,
                self._data,
                self._draws[window % len(self._draws)],
                lr,
                sees_own=self._sees_own,
            )
            threads.add(buffer, delta)
        self._x = buffer
        self._epoch += 1


if __name__ == "__main__":
    launch.configure_jax(os.environ)
    measure.main(lambda problem, task: (Drawn if "drawn" in task.method else Asvrg)(problem, task))
