"""The variance of what passes through a chain of optax, measured on the way."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asvrg.errors import check_real
from asvrg.transforms.trees import at_least_single, check_arrays, inner, known
from asvrg.types import PyTree


class VarianceState(NamedTuple):
    """The state of measure_variance().

    Attributes:
      previous: the update of the last step, in the dtypes of the parameters.
      steps: int32, updates seen.
      variance: float32, the estimate; 0 before there were two updates.
    """

    previous: PyTree
    steps: jax.Array
    variance: jax.Array


def measure_variance(*, decay: float = 0.99) -> optax.GradientTransformationExtraArgs:
    """Measures E ||u_t - E u_t||^2, summed over all coordinates; leaves the updates as they are.

    The estimate is the average of 1/2 ||u_t - u_{t-1}||^2 over the steps, and exponential after the
    first 1 / (1 - decay) of them. If the noise of two steps in a row is uncorrelated, a term has
    the mean of the two steps' variances plus 1/2 ||E u_t - E u_{t-1}||^2: what the mean moved in
    one step, not since the snapshot. It costs one copy of the gradient. Before and after svrg() in
    a chain it measures g and v:

        chain(measure_variance(), svrg(every=100), measure_variance(), adam(1e-3))

    Args:
      decay: of the exponential average, at least 0 and below 1.

    Returns:
      An optax.GradientTransformationExtraArgs with a VarianceState.

    Raises:
      InputError: `decay` is out of its range.

    >>> measure = measure_variance()
    >>> state = measure.init(jnp.zeros(()))
    >>> for update in jnp.array([1.0, 3.0, 1.0]):
    ...     _, state = measure.update(update, state)
    >>> state.variance
    Array(2., dtype=float32)

    Source: von Neumann et al. (1941), The mean square successive difference.
    """
    if known(decay):
        check_real("decay", decay, most=1.0, below=True)

    def init(params: PyTree) -> VarianceState:
        check_arrays(params)
        return VarianceState(
            previous=jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.result_type(p)), params),
            steps=jnp.zeros((), jnp.int32),
            variance=jnp.zeros((), jnp.float32),
        )

    def update(
        updates: PyTree, state: VarianceState, params: PyTree | None = None, **others: Any
    ) -> tuple[PyTree, VarianceState]:
        del params, others
        distances = jax.tree.leaves(jax.tree.map(_distance, updates, state.previous))
        sample = 0.5 * sum(distances, jnp.zeros((), jnp.float32))
        pairs = state.steps.astype(jnp.float32)  # this one among them; the first step makes none
        weight = jnp.maximum(1 / jnp.maximum(pairs, 1), 1 - jnp.asarray(decay, jnp.float32))
        moved = state.variance + weight * (sample - state.variance)
        return updates, VarianceState(
            previous=jax.tree.map(lambda u, old: u.astype(old.dtype), updates, state.previous),
            steps=optax.safe_increment(state.steps),
            variance=jnp.where(state.steps > 0, moved, 0),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _distance(new: jax.Array, old: jax.Array) -> jax.Array:
    wide = at_least_single(new, old)
    difference = new.astype(wide) - old.astype(wide)
    return inner(difference, difference)
