"""random_block() for a chain of optax: the coordinates that an iteration of Algorithm 1 moves."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asvrg.errors import INT32, INT64, InputError, check_count
from asvrg.transforms.trees import check_arrays, known
from asvrg.types import Array, PyTree


class RandomBlockState(NamedTuple):
    """The state of random_block().

    Attributes:
      step: int32, updates done.
      key: uint32, the data of the random key; update t uses it folded with t.
    """

    step: jax.Array
    key: jax.Array


def random_block(block_size: int, *, seed: int = 0) -> optax.GradientTransformationExtraArgs:
    """Keeps the updates of a random block k_t of B coordinates and zeroes the others, Equation (4).

    The coordinates are those of the raveled parameters, in the order of `jax.tree.leaves`. The
    block is a window of B neighbours whose begin is uniform, and which goes on at the first
    coordinate after the last: every coordinate is in it with probability B / d, as the theory
    wants it, and the draw costs next to nothing where B independent ones would cost a sort. The
    transformation belongs last in a chain: before one with momentum, others would move as well.

    `update(updates, state, ..., block=...)`: with the extra argument `block`, int [B], these
    coordinates are kept instead, as many as they are; the random draw is then not used.

    Args:
      block_size: B, from 1 to d.
      seed: of the windows.

    Returns:
      An optax.GradientTransformationExtraArgs with a RandomBlockState.

    Raises:
      InputError: an argument is no whole number in its range, from `init` if `block_size` is above
        d, or d is too large for int32.

    >>> keep = random_block(2)
    >>> x = {"a": jnp.ones(2), "b": jnp.ones(())}
    >>> keep.update(x, keep.init(x), block=jnp.array([1, 2]))[0]
    {'a': Array([0., 1.], dtype=float32), 'b': Array(1., dtype=float32)}

    Source: Huo and Huang (2016), Algorithm 1.
    """
    if known(block_size):
        check_count("block_size", block_size, limit=INT32)
    if known(seed):
        check_count("seed", seed, least=0, limit=INT64)

    def init(params: PyTree) -> RandomBlockState:
        check_arrays(params)
        dim = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
        if dim > INT32:
            raise InputError(f"params must have fewer than 2^31 entries in all, got {dim}.")
        if known(block_size) and dim:
            check_count("block_size", block_size, most=dim)
        return RandomBlockState(jnp.zeros((), jnp.int32), jax.random.key_data(jax.random.key(seed)))

    def update(
        updates: PyTree,
        state: RandomBlockState,
        params: PyTree | None = None,
        *,
        block: Array | None = None,
        **others: Any,
    ) -> tuple[PyTree, RandomBlockState]:
        del params, others
        leaves, structure = jax.tree.flatten(updates)
        sizes = [leaf.size for leaf in leaves]
        dim, starts = sum(sizes), np.cumsum([0, *sizes])[:-1]
        if block is not None:
            block = _check_block(block)
            kept = [_within(block, int(s), leaf) for s, leaf in zip(starts, leaves, strict=True)]
        else:
            key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
            begin = jax.random.randint(key, (), 0, max(dim, 1), jnp.int32)
            size = jnp.asarray(block_size, jnp.int32)
            kept = [
                _in_window(leaf, int(start), begin, size, dim)
                for start, leaf in zip(starts, leaves, strict=True)
            ]
        blocked = [_kept(k, u) for k, u in zip(kept, leaves, strict=True)]
        return jax.tree.unflatten(structure, blocked), state._replace(
            step=optax.safe_increment(state.step)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _check_block(block: Array) -> jax.Array:
    dtype, shape = getattr(block, "dtype", None), np.shape(block)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer) or len(shape) != 1:
        found = type(block).__name__ if dtype is None else f"{dtype} of shape {shape}"
        raise InputError(f"block must be an array [B] of coordinates, whole numbers, got {found}.")
    return jnp.asarray(block)


def _kept(where: jax.Array, leaf: jax.Array) -> jax.Array:
    zero = jnp.zeros_like(leaf)
    # Where shardings are part of the types, a select wants those of its operands to be the same.
    return jnp.where(where | (zero != 0), leaf, zero)


def _in_window(
    leaf: jax.Array, start: int, begin: jax.Array, size: jax.Array, dim: int
) -> jax.Array:
    """Which coordinates `start`, `start` + 1, ... are less than `size` after `begin`, modulo d."""
    place = jnp.arange(leaf.size, dtype=jnp.int32).reshape(leaf.shape) + (start - begin)
    return jnp.where(place < 0, place + dim, place) < size


def _within(block: Array, start: int, leaf: jax.Array) -> jax.Array:
    place = jnp.asarray(block) - start
    # A negative index would count from the end, one beyond the end is dropped.
    place = jnp.where(place < 0, leaf.size, place)
    return jnp.zeros(leaf.size, bool).at[place].set(True, mode="drop").reshape(leaf.shape)
