"""The full gradient of a user's loss, a pass over arrays or over batches, for transforms.svrg()."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from asvrg.errors import InputError, check_count, check_function, check_kind, check_real
from asvrg.objectives import CHUNK_SIZE, num_samples
from asvrg.transforms.trees import at_least_single, check_arrays, fit
from asvrg.types import Array, Data, PyTree

# (parameters, batch) -> the gradient of the mean loss over the batch
BatchGradFn = Callable[[PyTree, Data], PyTree]


def over_arrays(
    grad_fn: BatchGradFn, params: PyTree, data: Data, *, chunk_size: int = CHUNK_SIZE
) -> PyTree:
    """Grad f(x) = (1/n) sum_i grad f_i(x) over arrays, chunk by chunk; can be jitted.

    Inside of a jitted step it serves as `full_grad_fn` of `transforms.svrg`. The data should then
    be an argument of the step, not captured by it: captured arrays become constants of the program.

    Args:
      grad_fn: (params, samples) -> the gradient of the mean loss over these samples, in the dtypes
        of the parameters. The loss must be a deterministic function of them.
      params: any pytree.
      data: a pytree of arrays [n, ...].
      chunk_size: samples at once; bounds the memory. The last chunk may have fewer, and counts as
        many as it has.

    Returns:
      The gradient, accumulated in at least float32 and left there.

    Raises:
      InputError: `chunk_size` is not a whole number of at least 1, the data are malformed, or
        `grad_fn` returns something else than a gradient.

    >>> grad_fn = jax.grad(lambda x, batch: 0.5 * jnp.mean((x - batch) ** 2))
    >>> over_arrays(grad_fn, jnp.array(0.0), jnp.arange(4.0), chunk_size=3)
    Array(-1.5, dtype=float32)
    """
    check_function("grad_fn", grad_fn)
    check_arrays(params)
    n = num_samples(data)
    check_count("chunk_size", chunk_size)
    size = min(chunk_size, n)
    whole, rest = divmod(n, size)

    def grad_of(start: jax.Array | int, length: int) -> PyTree:
        rows = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(jnp.asarray(leaf), start, length), data
        )
        return fit("what grad_fn returns", grad_fn(params, rows), params)

    def add(turn: jax.Array, total: PyTree) -> PyTree:
        return _add(total, grad_of(turn * size, size), size / n)

    total = jax.lax.fori_loop(0, whole, add, jax.tree.map(_zero, params))
    return _add(total, grad_of(whole * size, rest), rest / n) if rest else total


def over_batches(
    grad_fn: BatchGradFn,
    params: PyTree,
    batches: Iterable[Data],
    *,
    weight: Callable[[Data], float] = num_samples,
) -> PyTree:
    """Sum_k w_k grad_k(x) / sum_k w_k over an iterable of batches, each weighted by its samples.

    Not for jitted code: it goes through the iterable once. A ragged last batch counts as many
    samples as it has, so the result is that of one batch of all samples; it costs one more
    compilation.

    Args:
      grad_fn: (params, batch) -> the gradient of the mean loss over the batch. It is compiled once
        for every shape of a batch, if it is the same function in every pass.
      params: any pytree.
      batches: pytrees of arrays [b_k, ...].
      weight: batch -> w_k, a number above 0: whatever the mean is over. Samples, if not given;
        tokens, say, where the loss is a mean over those that are no padding.

    Returns:
      The gradient, accumulated in at least float32 and left there.

    Raises:
      InputError: there is no batch, a batch is malformed, a weight is no finite number above 0, or
        `grad_fn` returns something else than a gradient.

    >>> grad_fn = jax.grad(lambda x, batch: 0.5 * jnp.mean((x - batch) ** 2))
    >>> over_batches(grad_fn, jnp.array(0.0), [jnp.arange(3.0), jnp.array([3.0])])
    Array(-1.5, dtype=float32)
    """
    check_function("grad_fn", grad_fn)
    check_function("weight", weight)
    check_kind("batches", batches, Iterable)
    check_arrays(params)
    mean, total = jax.tree.map(_zero, params), 0.0
    for batch in batches:
        w = check_real("weight", weight(batch), above=True)
        total += w
        # A running mean: no sum that could overflow, and no second pass for the total.
        mean = _mean(grad_fn, mean, params, batch, jnp.asarray(w / total, float))
    if not total:
        raise InputError("batches must hold at least one batch, got none.")
    return mean


@functools.partial(jax.jit, static_argnames="grad_fn")
def _mean(
    grad_fn: BatchGradFn, mean: PyTree, params: PyTree, batch: Data, share: jax.Array
) -> PyTree:
    return jax.tree.map(
        lambda old, g: old + share.astype(old.dtype) * (g.astype(old.dtype) - old),
        mean,
        fit("what grad_fn returns", grad_fn(params, batch), params),
    )


def _zero(leaf: Array) -> jax.Array:
    return jnp.zeros_like(leaf, dtype=at_least_single(leaf))


def _add(total: PyTree, gradient: PyTree, share: float) -> PyTree:
    return jax.tree.map(
        lambda old, g: old + g.astype(old.dtype) * jnp.asarray(share, old.dtype), total, gradient
    )
