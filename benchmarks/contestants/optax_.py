"""SGD and Adam by optax, one jitted step a call, as one writes them first."""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
import optax

from asvrg import mlp, objectives
from asvrg.types import Array, Data
from benchmarks import measure
from benchmarks.measure import Problem, Task
from experiments import launch


class Optax:
    """A gradient by autodiff and an update of all of x in each call; see `measure.Method`."""

    def __init__(self, problem: Problem, task: Task) -> None:
        setting = problem.setting
        self._objective = objective = mlp.mlp(setting.layer_sizes, l2=setting.l2)
        self._data = jax.device_put((problem.inputs, problem.labels))
        self._x0 = jax.device_put(problem.x0)
        self._optimizer = optimizer = {"sgd": optax.sgd, "adam": optax.adam}[task.method](task.lr)
        self._batch_size = setting.batch_size
        self._seed = setting.seed
        self.num_updates = setting.eval_every
        self.grad_evals = setting.batch_size * setting.eval_every

        @jax.jit
        def step(x: Array, state: Any, data: Data, batch: Array) -> tuple[Array, Any]:
            samples = jax.tree.map(lambda leaf: leaf[batch], data)
            updates, state = optimizer.update(jax.grad(objective.loss)(x, samples), state)
            return optax.apply_updates(x, updates), state

        self._step = step
        self.reset()
        self.advance()  # compiles
        self.loss()
        self.reset()
        held = jax.tree.leaves((self._data, self._x, self._state))
        self.nbytes = sum(leaf.nbytes for leaf in held)

    def reset(self) -> None:
        """Goes back to x^0, with a new optimiser."""
        self._x, self._state = self._x0, self._optimizer.init(self._x0)
        self._rng = np.random.default_rng(self._seed)

    def snapshot(self) -> None:
        """There is none."""

    def advance(self) -> None:
        """Updates, a call of jit for each."""
        n = len(self._data[1])
        for _ in range(self.num_updates):
            batch = self._rng.integers(n, size=self._batch_size, dtype=np.int32)
            self._x, self._state = self._step(self._x, self._state, self._data, batch)
        jax.block_until_ready(self._x)

    def loss(self) -> float:
        """The training loss."""
        return objectives.evaluate(self._objective, self._x, self._data).loss

    def close(self) -> float:
        """There are no other processes."""
        return 0.0


if __name__ == "__main__":
    launch.configure_jax(os.environ)
    measure.main(Optax)
