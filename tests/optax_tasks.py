"""The table of problems as a user of optax has it, and a loop that trains on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from asvrg import transforms
from tests import problems

N = problems.NUM_SAMPLES


class Task:
    """A problem of the table as a user of optax has it: a loss over a pytree, and arrays."""

    def __init__(self, name: str, dtype: str = "float64") -> None:
        self.problem = problems.get(name, dtype)
        self.data = jax.tree.map(jnp.asarray, self.problem.data)
        self.params = self.problem.objective.unravel(jnp.asarray(self.problem.x0))

    def grad(self, params: Any, batch: Any) -> Any:
        loss = self.problem.objective.loss
        return jax.grad(lambda tree: loss(ravel_pytree(tree)[0], batch))(params)

    def extra_args(self, batch: Any, data: Any) -> dict[str, Callable]:
        return {
            "grad_fn": lambda params: self.grad(params, batch),
            "full_grad_fn": lambda params: transforms.over_arrays(
                self.grad, params, data, chunk_size=5
            ),
        }

    def batch(self, t: int, size: int = 2) -> Any:
        return jax.tree.map(lambda leaf: leaf[(t * size + np.arange(size)) % N], self.data)


def run(
    task: Task, optimiser: Any, grads: Callable, extra: Callable, steps: int
) -> tuple[Any, Any, int]:
    """Trains, with all arguments donated, and counts how often the step was compiled."""

    def step(params: Any, state: Any, t: jax.Array, data: Any) -> Any:
        updates, state = optimiser.update(
            grads(params, t, data), state, params, **extra(params, t, data)
        )
        assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda p: p.dtype, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, task.params)
    state = optimiser.init(params)
    with jax.numpy_dtype_promotion("standard"):  # optax's own code is not strict
        for t in range(steps):
            params, state = step(params, state, jnp.int32(t), task.data)
    return params, state, step._cache_size()


def rows(t: Any, data: Any, size: int = 2) -> Any:
    return jax.tree.map(lambda leaf: leaf[(t * size + jnp.arange(size, dtype=jnp.int32)) % N], data)


def found(state: Any) -> list[transforms.SvrgState]:
    is_state = lambda node: isinstance(node, transforms.SvrgState)  # noqa: E731
    return [s for s in jax.tree.leaves(state, is_leaf=is_state) if is_state(s)]
