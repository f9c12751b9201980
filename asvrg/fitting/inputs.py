"""What a user hands to `asvrg.fit`, checked before any work: params, data, and a loss that fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from asvrg import objectives
from asvrg.errors import InputError
from asvrg.objectives import Metrics
from asvrg.types import Array, Data, Objective, PyTree

# (params, sample) -> scalar
SampleFn = Callable[[PyTree, Data], Any]

DTYPES = ("float32", "float64")
# Keys too: noise whose key is part of the sample is a fixed function of it.
_KINDS = (jnp.number, jax.dtypes.prng_key)
# What jax raises where a function wants the values of what is traced.
_NO_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_TRACED = (
    "params and sample are traced and have no values yet: use jnp.where or jax.lax.cond in place "
    "of if and of boolean indices, and jax.numpy in place of numpy, float() and int()"
)


class Inputs(NamedTuple):
    """The problem as the drivers want it.

    Attributes:
      objective: f over x in R^d.
      x0: float [d], the raveled params.
      unravel: x [d] -> the params, in the structure that they were given in.
      data: a pytree of jax arrays [n, ...].
      num_samples: n.
    """

    objective: Objective
    x0: Array
    unravel: Callable[[Array], PyTree]
    data: Data
    num_samples: int


def check(loss: SampleFn | Objective, params: PyTree, data: Data, error: SampleFn | None) -> Inputs:
    """Makes the problem out of what the user has, or says what is wrong with it.

    Args:
      loss: (params, sample) -> scalar, or an Objective.
      params: a pytree of float32 or of float64 arrays; for an Objective also x itself, [d].
      data: a pytree of arrays [n, ...].
      error: (params, sample) -> 0 or 1, or None; None for an Objective, which has its own.

    Returns:
      Inputs.

    Raises:
      InputError: something does not fit.

    >>> params = {"slope": jnp.ones(2), "fixed": None, "shift": jnp.zeros(())}
    >>> def loss(p, sample):
    ...     return (p["slope"] @ sample["row"] + p["shift"] - sample["target"]) ** 2
    >>> inputs = check(loss, params, {"row": np.eye(2), "target": np.arange(2)}, None)
    >>> inputs.num_samples, inputs.x0, inputs.data["target"].dtype
    (2, Array([0., 1., 1.], dtype=float32), dtype('int32'))
    >>> inputs.unravel(inputs.x0)["shift"]
    Array(0., dtype=float32)
    """
    params = _of_one_dtype(jax.tree_util.tree_map_with_path(_param, params))
    data = jax.tree_util.tree_map_with_path(_column, data)
    n = objectives.num_samples(data)
    if isinstance(loss, Objective):
        if error is not None:
            raise InputError("error must be None where loss is an Objective, which has its own.")
        x0, unravel = _ravel_for(loss, params)
        objective = loss
        _check_loss(objective, x0, data)
    else:
        if not callable(loss):
            raise InputError(
                "loss must be a function (params, sample) -> scalar or an asvrg.Objective, got "
                f"{type(loss).__name__}."
            )
        objective = objectives.from_loss(loss, params, error=error)
        _check_scalar("loss", loss, params, data)
        if error is not None:
            _check_scalar("error", error, params, data)
        x0, unravel = ravel_pytree(params)
        _check_gradient(objective, x0, data)
    return Inputs(objective, x0, unravel, data, n)


def check_finite(metrics: Metrics, data: Data) -> None:
    """Raises InputError if loss or gradient at the start are no numbers, with a likely cause.

    Args:
      metrics: of x^0, with the gradient's norm.
      data: a pytree of arrays [n, ...].

    Raises:
      InputError: the loss is nan or infinite, or the gradient nan.

    >>> check_finite(Metrics(0.5, 0.0, 1.0), np.zeros(3))
    """
    if np.isfinite(metrics.loss):
        if np.isnan(metrics.grad_norm_sq):
            raise InputError(
                "loss must have a gradient at params, got nan where the loss itself is finite; a "
                "root or a norm at 0, say, has no derivative there."
            )
        return
    hint = "the data are finite: look at the loss itself, log(0) or a division by 0, say"
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            bad = ~np.isfinite(np.asarray(leaf)).reshape(len(leaf), -1).all(axis=1)
            if bad.any():
                where = jax.tree_util.keystr(path)
                hint = (
                    f"data{where} has entries that are not finite in {int(bad.sum())} samples, "
                    f"the first of them sample {int(bad.argmax())}"
                )
    raise InputError(
        f"loss must be finite at params, got {metrics.loss} on average over the data; {hint}."
    )


def _param(path: Any, leaf: Any) -> jax.Array | float:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None and isinstance(leaf, float):
        return leaf
    name = f"params{jax.tree_util.keystr(path)}"
    if str(dtype) not in DTYPES:
        found = type(leaf).__name__ if dtype is None else f"dtype {dtype}"
        raise InputError(
            f"params must hold float32 or float64 arrays only, got {found} in {name}; keep what is "
            "not trained out of params (equinox: eqx.partition(model, eqx.is_inexact_array)), and "
            "cast inside of the loss to compute in a smaller dtype."
        )
    if dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise InputError(
            f"params must hold float32 arrays unless jax_enable_x64 is set, got float64 in {name}; "
            'cast it, or call jax.config.update("jax_enable_x64", True) first.'
        )
    return jnp.array(leaf)  # a copy: the caller's own array may change while epochs are asked for


def _of_one_dtype(params: PyTree) -> PyTree:
    """The params as arrays; Python floats get the dtype of the arrays beside them."""
    leaves = jax.tree.leaves(params)
    dtypes = sorted({str(leaf.dtype) for leaf in leaves if isinstance(leaf, jax.Array)})
    if len(dtypes) > 1 or not leaves:
        raise InputError(
            f"params must hold arrays of one dtype, at least one, got {dtypes or 'no array'}."
        )
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, *dtypes), params)


def _column(path: Any, leaf: Any) -> jax.Array:
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    name = f"data{jax.tree_util.keystr(path)}"
    if array.ndim == 0:
        raise InputError(
            "data must be a pytree of arrays [n, ...], got a single "
            f"{type(leaf).__name__} in {name}; a list is a pytree of its entries, make it an array."
        )
    if array.dtype != bool and not any(jnp.issubdtype(array.dtype, kind) for kind in _KINDS):
        raise InputError(
            f"data must be a pytree of arrays of numbers, got dtype {array.dtype} in {name}."
        )
    return jnp.asarray(array)


def _ravel_for(objective: Objective, params: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """The params as x of a given objective, whose own order of the coordinates holds."""
    x0, unravel = ravel_pytree(params)
    if x0.shape != (objective.dim,):
        raise InputError(
            f"params must have the {objective.dim} entries of the Objective, got {x0.size}."
        )
    if isinstance(params, jax.Array) and params.ndim == 1:
        return x0, unravel
    # Where in x the Objective has each entry of its params, which need not be the raveled order.
    places = objective.unravel(np.arange(objective.dim))
    if _shapes(places) != _shapes(params):
        raise InputError(
            f"params must be an array [{objective.dim}], or a pytree with the shapes that the "
            f"Objective's unravel gives, {_shapes(places)[1]}, got {_shapes(params)[1]}."
        )
    order, _ = ravel_pytree(places)
    return jnp.zeros_like(x0).at[order].set(x0), objective.unravel


def _shapes(tree: PyTree) -> tuple[Any, list[tuple[int, ...]]]:
    return jax.tree.structure(tree), [np.shape(leaf) for leaf in jax.tree.leaves(tree)]


def _check_scalar(name: str, function: SampleFn, params: PyTree, data: Data) -> None:
    """Raises InputError unless a function of one sample gives one number."""
    sample = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), data)
    shapes = _shapes(sample)[1]
    advice = (
        f"{name} is called with one sample at a time, here arrays of shape "
        f"{', '.join(map(str, shapes))} without an axis for the batch; for a function written for "
        f"batches, hand in lambda params, sample: {name}(params, jax.tree.map(lambda a: a[None], "
        "sample))"
    )
    try:
        out = jax.eval_shape(function, params, sample)
    except Exception as cause:
        raise InputError(
            f"{name} must be a function of params and one sample that jax can trace, got "
            f"{_said(cause)}; {_TRACED if isinstance(cause, _NO_VALUES) else advice}."
        ) from cause
    leaves = jax.tree.leaves(out)
    if len(leaves) != 1 or not jax.tree_util.all_leaves([out]):
        raise InputError(f"{name} must return a scalar, got {type(out).__name__}; {advice}.")
    if out.shape != ():
        raise InputError(
            f"{name} must return a scalar for one sample, got shape {out.shape}; {advice}."
        )
    if name == "loss" and not jnp.issubdtype(out.dtype, jnp.floating):
        raise InputError(f"loss must return a floating-point number, got dtype {out.dtype}.")


def _check_gradient(objective: Objective, x0: Array, data: Data) -> None:
    """Raises InputError unless jax can take the gradient of a loss that it can trace."""
    try:
        jax.eval_shape(objective.grad, x0, _one_sample(data), None)
    except Exception as cause:
        raise InputError(
            "loss must have a gradient that jax can take in reverse mode, and for a batch by "
            f"jax.vmap, got {_said(cause)}; in place of lax.while_loop, say, use lax.scan."
        ) from cause


def _check_loss(objective: Objective, x0: Array, data: Data) -> None:
    """Raises InputError unless the loss of an Objective takes such data."""
    batch = _one_sample(data)
    try:
        jax.eval_shape(objective.loss, x0, batch)
        # With the values of the data, which some losses look at: labels out of range, say.
        jax.eval_shape(lambda x: objective.loss(x, data), x0)
    except InputError:
        raise
    except Exception as cause:
        raise InputError(
            f"data must be such as the Objective's loss takes, got {_said(cause)} for a batch of "
            f"one sample, a {type(batch).__name__} with arrays of shape "
            f"{', '.join(map(str, _shapes(batch)[1]))}."
        ) from cause


def _one_sample(data: Data) -> Data:
    """A batch of a single sample, without its values."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), data)


def _said(cause: Exception) -> str:
    """An exception in a part of a sentence: its name and the first line of what it says."""
    return f"{type(cause).__name__}: {str(cause).partition(chr(10))[0].rstrip('.')}"
