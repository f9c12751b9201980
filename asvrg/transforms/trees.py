"""Trees of parameters, whole or with the gaps that optax.masked leaves in them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asvrg.errors import InputError
from asvrg.types import Array, PyTree


def fill(masked: PyTree, params: PyTree) -> PyTree:
    """A tree of parameters with what optax.masked or optax.multi_transform took out of it put back.

    Inside of these an svrg() knows its part of the parameters only, and calls `grad_fn` and
    `full_grad_fn` with that part. They put the current values into the gaps. That is exact if the
    other parameters are frozen. If they move, g_s is taken at other values of them than mu was, v
    is biased, and svrg() belongs outside: chain(svrg(), multi_transform(...)).

    Args:
      masked: a tree with an optax.MaskedNode wherever a part is missing.
      params: the whole tree.

    Returns:
      The whole tree, of `masked` where it has something, else of `params`.

    >>> fill({"w": 1.0, "b": optax.MaskedNode()}, {"w": 5.0, "b": 6.0})
    {'b': 6.0, 'w': 1.0}
    """
    return jax.tree.map(
        lambda part, whole: whole if is_gap(part) else part, masked, params, is_leaf=is_gap
    )


def fit(name: str, tree: PyTree, like: PyTree) -> PyTree:
    """The tree with the gaps of `like`, which must otherwise have its structure and shapes.

    Args:
      name: of the argument, for the sentence.
      tree: whole, or with the same gaps.
      like: a tree of arrays, maybe with gaps.

    Returns:
      The tree, of jax's arrays.

    Raises:
      InputError: the tree has another structure, or an array another shape.
    """

    def take(leaf: Any, part: Any) -> Any:
        if is_gap(leaf):
            return leaf
        if not jax.tree_util.all_leaves([part]):
            raise ValueError(f"{part} is no leaf.")
        if np.shape(leaf) != np.shape(part):
            raise InputError(
                f"{name} must have the shapes of the parameters, got {np.shape(part)} for "
                f"{np.shape(leaf)}."
            )
        return jnp.asarray(part)

    try:
        return jax.tree.map(take, like, tree, is_leaf=is_gap)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"{name} must have the structure of the parameters, {jax.tree.structure(like)}, got "
            f"{jax.tree.structure(tree)}."
        ) from error


def placed(new: jax.Array, old: jax.Array) -> jax.Array:
    """The array where the old one lies: a step that was compiled for it then serves the new one."""
    if isinstance(new, jax.core.Tracer) or isinstance(old, jax.core.Tracer):
        return new
    if not isinstance(old, jax.Array) or new.sharding == old.sharding:
        return new
    return jax.device_put(new, old.sharding)


def copy(leaf: Array, dtype: Any = None) -> jax.Array:
    """A copy of a leaf, in its own dtype or another, in memory of its own."""
    # With a dtype, else a number would stay weakly typed, and the second step compile again.
    return jnp.array(leaf, dtype=jnp.result_type(leaf) if dtype is None else dtype, copy=True)


def at_least_single(*leaves: Array) -> np.dtype:
    """The dtype that holds all of these and float32, where jax's own promotion may be strict.

    Whole numbers do not count: numpy would hold them in float64, which jax may not have.
    """
    dtypes = [d for d in map(jnp.result_type, leaves) if jnp.issubdtype(d, jnp.inexact)]
    return functools.reduce(np.promote_types, dtypes, np.dtype("float32"))


def inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """The real part of the inner product of two arrays of one shape and dtype, in float32."""
    return jnp.sum((a.conj() * b).real).astype(jnp.float32)


def known(value: Any) -> bool:
    """Whether a number can be looked at: optax.inject_hyperparams makes arrays of numbers.

    These are traced where its update is jitted.
    """
    return not isinstance(value, jax.core.Tracer)


def check_arrays(params: PyTree) -> None:
    """Raises InputError unless the leaves of a tree of parameters are arrays or numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_gap):
        if is_gap(leaf):
            continue
        try:
            jnp.result_type(leaf)
        except (TypeError, ValueError) as error:
            raise InputError(
                "params must be a pytree of arrays of numbers, got "
                f"{type(leaf).__name__} in params{jax.tree_util.keystr(path)}."
            ) from error


def is_gap(node: Any) -> bool:
    """Whether this is what optax.masked puts in the place of a part."""
    return isinstance(node, optax.MaskedNode)
