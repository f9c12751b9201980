"""Finite sums f(x) = (1/n) sum_i f_i(x) over x in R^d, from any loss over a pytree."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from asvrg.errors import InputError, check_count, check_function, check_kind, check_vector
from asvrg.types import Array, Data, Objective, PyTree

# Runs a function over the starts of the chunks, in any order, and gives the results in theirs.
MapFn = Callable[[Callable[[int], Any], Iterable[int]], Iterable[Any]]

CHUNK_SIZE = 1_000


class Metrics(NamedTuple):
    """The objective at one x over a whole data set.

    Attributes:
      loss: f(x).
      error: share of samples that are classified wrongly, in [0, 1]; nan without `error`.
      grad_norm_sq: ||grad f(x)||^2; nan where it was not asked for.
    """

    loss: float
    error: float
    grad_norm_sq: float


def num_samples(data: Data) -> int:
    """n, the leading axis that all arrays of a data set share.

    Args:
      data: a pytree of arrays [n, ...].

    Returns:
      n.

    Raises:
      InputError: there is no array, no sample, or the arrays' leading axes differ.

    >>> num_samples((np.zeros((3, 2)), np.zeros(3)))
    3
    """
    leaves = jax.tree.leaves(data)
    lengths = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in leaves}
    if len(lengths) != 1 or 0 in lengths:
        shapes = ", ".join(str(np.shape(leaf)) for leaf in leaves) or "none"
        raise InputError(
            "data must be a pytree of arrays that share a leading axis of at least one sample, "
            f"got arrays of shape {shapes}."
        )
    for dtype in {np.dtype(leaf.dtype) for leaf in leaves if isinstance(leaf, np.ndarray)}:
        if dtype.kind in "OSUMmV" and not jnp.issubdtype(dtype, jnp.number):
            raise InputError(f"data must be a pytree of arrays of numbers, got dtype {dtype}.")
        if not dtype.isnative:
            raise InputError(
                f"data must be in this machine's byte order, got dtype {dtype}; "
                "array.astype(array.dtype.newbyteorder('=')) changes it."
            )
    return lengths.pop()


def take(data: Data, indices: Array) -> Data:
    """The rows `indices` of every array of a pytree.

    Args:
      data: a pytree of arrays [n, ...].
      indices: int [...], in [0, n); others read what they should not, unnoticed.

    Returns:
      The pytree with arrays [..., ...], the indices' axes in the place of the first one.

    >>> take((jnp.arange(4) * 10,), jnp.array([3, 0]))
    (Array([30,  0], dtype=int32),)
    """
    return jax.tree.map(
        lambda leaf: (
            jnp.asarray(leaf).at[indices].get(mode="promise_in_bounds", wrap_negative_indices=False)
        ),
        data,
    )


def from_loss(
    loss: Callable[[PyTree, Data], jax.Array],
    params: PyTree,
    *,
    error: Callable[[PyTree, Data], jax.Array] | None = None,
) -> Objective:
    """Makes a finite sum out of any differentiable loss of one sample.

    The gradients come from reverse-mode differentiation. Nothing is known about their structure:
    there is no cache, and an SVRG direction costs two backward passes. The loss must be a
    deterministic function of its arguments, else f is no sum of fixed f_i and the snapshot's
    gradient does not belong to it (dropout, say, or the batch statistics of batch normalisation).

    Args:
      loss: (params, sample) -> scalar, f_i; the sample is one slice of the data along axis 0.
      params: a pytree of arrays with the shapes and the dtype of the parameters; not its values.
      error: (params, sample) -> 0 or 1, whether the sample is classified wrongly.

    Returns:
      An Objective on x = the raveled parameters, [d], in the order of `jax.tree.leaves`.

    Raises:
      InputError: `params` has no entry, or entries that are no floating-point numbers, or of
        different dtypes.

    >>> objective = from_loss(lambda w, z: 0.5 * (w @ z) ** 2, jnp.zeros(2))
    >>> objective.grad(jnp.array([1.0, 2.0]), jnp.array([[1.0, 0.0], [0.0, 1.0]]), None)
    Array([0.5, 1. ], dtype=float32)
    """
    check_function("loss", loss)
    if error is not None:
        check_function("error", error)
    dtypes = {_dtype(leaf) for leaf in jax.tree.leaves(params)}
    if len(dtypes) != 1 or not jnp.issubdtype(next(iter(dtypes)), jnp.floating):
        raise InputError(
            "params must be a pytree of floating-point arrays of one dtype, got "
            f"{sorted(map(str, dtypes)) or 'no array'}."
        )
    flat, unravel = ravel_pytree(params)
    if flat.size == 0:
        raise InputError("params must have at least one entry, got empty arrays.")

    def sample_loss(x: Array, sample: Data) -> jax.Array:
        return loss(unravel(x), sample)

    def mean_loss(x: Array, batch: Data) -> jax.Array:
        return jnp.mean(jax.vmap(sample_loss, in_axes=(None, 0))(x, batch))

    def grad(x: Array, batch: Data, block: Array | None) -> jax.Array:
        return on_block(jax.grad(mean_loss)(x, batch), block)

    def grad_and_cache(x: Array, batch: Data) -> tuple[jax.Array, PyTree]:
        return jax.grad(mean_loss)(x, batch), ()

    def grad_difference(
        x_hat: Array, x_tilde: Array, cache: PyTree, batch: Data, block: Array | None, alpha: Array
    ) -> jax.Array:
        del cache
        at_snapshot = jax.grad(mean_loss)(x_tilde, batch)
        return on_block(jax.grad(mean_loss)(x_hat, batch) - alpha * at_snapshot, block)

    def mean_error(error: Callable[[PyTree, Data], jax.Array], x: Array, batch: Data) -> jax.Array:
        wrong = jax.vmap(lambda sample: error(unravel(x), sample))(batch)
        return jnp.mean(wrong.astype(x.dtype))

    return Objective(
        dim=flat.size,
        unravel=unravel,
        loss=mean_loss,
        grad=grad,
        grad_and_cache=grad_and_cache,
        grad_difference=grad_difference,
        per_sample_grads=jax.vmap(jax.grad(sample_loss), in_axes=(None, 0)),
        error=None if error is None else functools.partial(mean_error, error),
    )


def _dtype(leaf: Any) -> np.dtype:
    """Of an array or a number; whatever else it is counts as an object."""
    try:
        return np.dtype(jnp.result_type(leaf))
    except (TypeError, ValueError):
        return np.dtype(object)


def on_block(vector: jax.Array, block: Array | None) -> jax.Array:
    """The entries `block` of a vector.

    Args:
      vector: [d].
      block: int [B], in [0, d); others read what they should not, unnoticed. None for all.

    Returns:
      [B], or the vector.

    >>> on_block(jnp.array([5, 6, 7]), jnp.array([0, 2]))
    Array([5, 7], dtype=int32)
    """
    return vector if block is None else take(vector, block)


def full_gradient(
    objective: Objective,
    x: Array,
    data: Data,
    *,
    chunk_size: int = CHUNK_SIZE,
    map_fn: MapFn = map,
) -> tuple[jax.Array, PyTree]:
    """Grad f(x) = (1/n) sum_i grad f_i(x), and the cache of every sample, chunk by chunk.

    The sum runs in the order of the chunks whoever computes them, so that the result does not
    depend on `map_fn`.

    Args:
      objective: the finite sum.
      x: float [d].
      data: a pytree of arrays [n, ...].
      chunk_size: samples per chunk; bounds the memory for intermediate results.
      map_fn: `map`, or the map of a pool of threads, each of which then computes chunks.

    Returns:
      The gradient [d] and the objective's cache, a pytree of arrays with leading axis n.

    Raises:
      InputError: `chunk_size` is not a whole number of at least 1, the data are malformed, or x is
        not the objective's [d].

    >>> objective = from_loss(lambda w, z: 0.5 * (w - z) ** 2, jnp.zeros(()))
    >>> full_gradient(objective, jnp.zeros(1), jnp.arange(4.0), chunk_size=3)[0]
    Array([-1.5], dtype=float32)

    Source: grad f of Equation (1) in Huo and Huang (2016), Algorithm 1.
    """
    n = _check(objective, x, data)
    check_function("map_fn", map_fn)
    chunks = list(_chunks(n, chunk_size))
    sizes = dict(chunks)
    results = map_fn(
        lambda start: _chunk_grad(objective, x, data, start, sizes[start]), [c[0] for c in chunks]
    )
    gradient: Any = None
    caches = []
    for (_, size), (chunk_gradient, cache) in zip(chunks, results, strict=True):
        term = chunk_gradient * np.asarray(size / n, chunk_gradient.dtype)
        gradient = term if gradient is None else gradient + term
        caches.append(cache)
    return gradient, jax.tree.map(lambda *rows: jnp.concatenate(rows), *caches)


def evaluate(
    objective: Objective,
    x: Array,
    data: Data,
    *,
    with_grad: bool = False,
    chunk_size: int = CHUNK_SIZE,
) -> Metrics:
    """f(x), the classification error and ||grad f(x)||^2 over a data set, chunk by chunk.

    Args:
      objective: the finite sum.
      x: float [d].
      data: a pytree of arrays [n, ...].
      with_grad: whether to compute the gradient as well.
      chunk_size: samples per chunk.

    Returns:
      Metrics of Python floats.

    Raises:
      InputError: `chunk_size` is not a whole number of at least 1, the data are malformed, or x is
        not the objective's [d].

    >>> objective = from_loss(lambda w, z: 0.5 * (w - z) ** 2, jnp.zeros(()))
    >>> evaluate(objective, jnp.zeros(1), jnp.arange(4.0), with_grad=True)
    Metrics(loss=1.75, error=nan, grad_norm_sq=2.25)
    """
    n = _check(objective, x, data)
    loss = error = 0.0
    for start, size in _chunks(n, chunk_size):
        chunk_loss, chunk_error = _chunk_loss(objective, x, data, start, size)
        loss += float(chunk_loss) * (size / n)
        error += float(chunk_error) * (size / n)
    grad_norm_sq = float("nan")
    if with_grad:
        gradient, _ = full_gradient(objective, x, data, chunk_size=chunk_size)
        # In float32 the squares of what is below 1e-23 or above 1e19 would be 0 or infinite.
        wide = np.asarray(gradient, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # inf and nan say enough
            # Not wide @ wide: the threads of numpy's BLAS would spin on after it for some 50 ms, on
            # the core of a worker of the next epoch.
            grad_norm_sq = float(np.sum(np.square(wide)))
    return Metrics(loss, error, grad_norm_sq)


def _check(objective: Objective, x: Array, data: Data) -> int:
    """Returns n if x is the objective's and the data are arrays of numbers."""
    check_kind("objective", objective, Objective)
    check_vector("x", x, objective.dim, "objective")
    return num_samples(data)


def _chunks(n: int, chunk_size: int) -> Iterator[tuple[int, int]]:
    """(start, size) of chunks that cover range(n)."""
    check_count("chunk_size", chunk_size)
    return ((start, min(chunk_size, n - start)) for start in range(0, n, chunk_size))


def _slice(data: Data, start: Array, size: int) -> Data:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), data)


@functools.partial(jax.jit, static_argnames=("objective", "size"))
def _chunk_grad(
    objective: Objective, x: Array, data: Data, start: Array, size: int
) -> tuple[jax.Array, PyTree]:
    return objective.grad_and_cache(x, _slice(data, start, size))


@functools.partial(jax.jit, static_argnames=("objective", "size"))
def _chunk_loss(
    objective: Objective, x: Array, data: Data, start: Array, size: int
) -> tuple[jax.Array, jax.Array]:
    batch = _slice(data, start, size)
    nan = jnp.full((), jnp.nan, x.dtype)
    return objective.loss(x, batch), nan if objective.error is None else objective.error(x, batch)
