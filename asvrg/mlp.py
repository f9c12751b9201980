"""The paper's networks, 784x100x10 and 384x50x10, as an Objective in closed form.

The gradient of a layer's weights is a product of two thin matrices, the layer's inputs and its
deltas, one row for each sample. Everything here follows from keeping that product unevaluated:

- The SVRG difference of the first layer is X^T (delta(x_hat) - delta(x_tilde)), one product and
  not two, because both gradients see the same inputs.
- The snapshot pass computes every sample's activations and deltas at x_tilde anyway. Kept as the
  cache, they make a direction cost one forward and backward pass, not two.
- A block of B coordinates needs B inner products of length b, not the whole gradient.

Layer l has one parameter matrix [inputs + 1, outputs] whose last row is the bias, so that a
coordinate of x is an (input, output) pair throughout the layer. x is these matrices, raveled one
after the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from asvrg.errors import INT32, InputError, check_choice, check_count, check_real, said
from asvrg.objectives import on_block, take
from asvrg.types import Array, Data, Objective, PyTree

ACTIVATIONS = ("relu", "tanh")


class Cache(NamedTuple):
    """The samples' inner state at some x, rows for samples.

    Attributes:
      activations: for every hidden layer, its output [b, width].
      deltas: for every layer, the derivative of f_i's loss by its pre-activation [b, width].
    """

    activations: tuple[jax.Array, ...]
    deltas: tuple[jax.Array, ...]


class Factors(NamedTuple):
    """A layer's gradient as inputs^T deltas / b, not multiplied out.

    Attributes:
      inputs: [r, inputs + 1], the last column belongs to the bias; or with more columns behind.
      deltas: [r, outputs].
    """

    inputs: jax.Array
    deltas: jax.Array


def init(
    key: jax.Array, layer_sizes: Sequence[int], *, activation: str = "relu", dtype: str = "float32"
) -> jax.Array:
    """x^0: normal weights of variance 2 / inputs (relu) or 1 / inputs (tanh), and zero biases.

    Args:
      key: a jax.random key.
      layer_sizes: inputs, hidden units of each layer, classes.
      activation: relu or tanh.
      dtype: of the result, a kind of floating-point numbers.

    Returns:
      x^0, [d], with d the sum of (inputs + 1) * outputs over the layers.

    Raises:
      InputError: `key` is no single key, fewer than two sizes, one that is no whole number of at
        least 1, an unknown activation, or another dtype.

    >>> init(jax.random.key(0), (784, 100, 10)).shape
    (79510,)

    Source: He et al. (2015), Delving deep into rectifiers, Equation (10), for relu; LeCun et al.
    (1998), Efficient backprop, Equation (16), for tanh.
    """
    sizes = _check_sizes(layer_sizes)
    gain = {"relu": 2.0, "tanh": 1.0}[check_choice("activation", activation, ACTIVATIONS)]
    _check_dtype(dtype)
    params = []
    try:
        keys = jax.random.split(key, len(sizes) - 1)
    except (TypeError, ValueError) as error:
        raise InputError(f"key must be a single key of jax.random, got {said(key)}.") from error
    for layer_key, (rows, columns) in zip(keys, itertools.pairwise(sizes), strict=True):
        weights = jax.random.normal(layer_key, (rows, columns), dtype)
        scale = jnp.asarray((gain / rows) ** 0.5, dtype)
        params.append(jnp.concatenate([weights * scale, jnp.zeros((1, columns), dtype)]))
    return ravel_pytree(tuple(params))[0]


def mlp(layer_sizes: Sequence[int], *, activation: str = "relu", l2: float = 0.0) -> Objective:
    """f_i(x) = softmax cross-entropy of a fully connected network at sample i + (C / 2) ||x||^2.

    The batch is a pair: inputs float [b, p], labels int [b] in [0, classes). The dtype of x is the
    dtype of everything. The functions raise InputError where shapes or dtypes do not fit, and where
    a label lies outside of its range; in compiled code, where labels have no values yet, such a one
    makes loss and gradients nan.

    Args:
      layer_sizes: inputs p, hidden units of each layer, classes; (784, 100, 10) in the paper.
      activation: of the hidden layers, relu or tanh. With relu f is not Lipschitz smooth.
      l2: C, the weight of the regularisation, inside of every f_i and over all of x.

    Returns:
      An Objective; its `unravel` gives a tuple of matrices [inputs + 1, outputs].

    Raises:
      InputError: fewer than two sizes, one that is no whole number of at least 1, an unknown
        activation, or an `l2` below 0.

    >>> mlp((784, 100, 10), l2=1e-3).dim
    79510

    Source: Huo and Huang (2016), section Experiments.
    """
    sizes = _check_sizes(layer_sizes)
    check_choice("activation", activation, ACTIVATIONS)
    weight = check_real("l2", l2)
    shapes = tuple((rows + 1, columns) for rows, columns in itertools.pairwise(sizes))
    dim = _count(sizes)
    # With it, x is a matrix as wide as the first layer, whose first rows are that layer. Where the
    # others are larger, multiplying them by zeros costs more than copying the first one.
    rows, columns = shapes[0]
    padding = -dim % columns if dim <= 2 * rows * columns else 0

    def unravel(x: Array) -> PyTree:
        params, start = [], 0
        for rows, columns in shapes:
            params.append(x[start : start + rows * columns].reshape(rows, columns))
            start += rows * columns
        return tuple(params)

    def check_batch(x: Array, batch: Data, block: Array | None = None) -> Data:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise InputError(f"data must be a pair (inputs, labels), got {type(batch).__name__}.")
        for name, array in (("x", x), ("inputs", batch[0]), ("labels", batch[1])):
            if not isinstance(array, np.ndarray | jax.Array):
                raise InputError(f"{name} must be an array, got {type(array).__name__}.")
        inputs, labels = batch
        fits = inputs.ndim == 2 and inputs.shape[1] == sizes[0] and inputs.dtype == x.dtype
        accepted = (dim,) if block is None else (dim, dim + padding)
        if not fits or x.ndim != 1 or x.size not in accepted:
            raise InputError(
                f"inputs must be {x.dtype} [b, {sizes[0]}] for an x of shape [{dim}], got "
                f"{inputs.dtype} {list(inputs.shape)} and an x of shape {list(x.shape)}."
            )
        if labels.shape != inputs.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise InputError(
                f"labels must be whole numbers [{inputs.shape[0]}] from 0 to {sizes[-1] - 1}, got "
                f"{labels.dtype} {list(labels.shape)}."
            )
        if not isinstance(labels, jax.core.Tracer):
            _check_labels(np.asarray(labels), sizes[-1])
        return inputs, labels

    def forward(x: Array, inputs: Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """The activations of the hidden layers, and the logits."""
        activations: list[jax.Array] = []
        output = first_layer(x, inputs)
        for matrix in unravel(x)[1:]:
            activations.append(jnp.maximum(output, 0) if activation == "relu" else jnp.tanh(output))
            output = _affine(activations[-1], matrix)
        return tuple(activations), output

    def first_layer(x: Array, inputs: Array) -> jax.Array:
        """The pre-activations [b, width] of the first layer."""
        if x.size == dim:
            return _affine(inputs, unravel(x)[0])
        # A product with a part of x would copy that part before. Here the rows of the other layers
        # are multiplied by zeros.
        return extended(x, inputs) @ x.reshape(-1, shapes[0][1])

    def extended(x: Array, inputs: Array) -> jax.Array:
        """Inputs [b, p] with a one for the bias, and zeros for the rows of a padded x behind it."""
        width = shapes[0][0] if x.size == dim else x.size // shapes[0][1]
        return _with_ones(inputs, width)

    def regularisation(x: Array) -> jax.Array:
        if weight == 0:  # else 0 times infinity, for an x whose square is no float
            return jnp.zeros((), x.dtype)
        return jnp.asarray(weight / 2, x.dtype) * jnp.vdot(x, x)

    def loss(x: Array, batch: Data) -> jax.Array:
        inputs, labels = check_batch(x, batch)
        logits = forward(x, inputs)[1]
        # Optax takes the label's logit from the logarithm of the sum; where both are large, their
        # difference would be lost in rounding.
        logits -= jax.lax.stop_gradient(jnp.max(logits, axis=1, keepdims=True))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        losses = jnp.where(in_range(labels), losses, jnp.full_like(losses, jnp.nan))
        return jnp.mean(losses) + regularisation(x)

    def in_range(labels: Array) -> jax.Array:
        return (labels >= 0) & (labels < sizes[-1])

    def propagate(x: Array, batch: Data, block: Array | None = None) -> Cache:
        """One forward and backward pass that stops short of the gradients of the weights."""
        inputs, labels = check_batch(x, batch, block)
        activations, logits = forward(x, inputs)
        truth = jax.nn.one_hot(labels, sizes[-1], dtype=x.dtype)
        # Else a label outside of its range would be a sample of no class, unnoticed.
        truth = jnp.where(in_range(labels)[:, None], truth, jnp.full_like(truth, jnp.nan))
        delta = jax.nn.softmax(logits) - truth
        deltas = [delta]
        for matrix, output in zip(reversed(unravel(x)[1:]), reversed(activations), strict=True):
            slope = (output > 0).astype(x.dtype) if activation == "relu" else 1 - output * output
            delta = (delta @ matrix[:-1].T) * slope
            deltas.insert(0, delta)
        return Cache(activations, tuple(deltas))

    def contract(
        factors: list[Factors], num_rows: int, anchor: jax.Array, block: Array | None
    ) -> jax.Array:
        """The gradient [d] or [B] of factors over num_rows samples, plus C anchor, [d] or [B]."""
        if block is None:
            gradient = jnp.concatenate([(f.inputs.T @ f.deltas).ravel() for f in factors])
        else:
            gradient = _contract_block(factors, shapes, block)
        scale = jnp.asarray(1 / num_rows, gradient.dtype)
        return gradient * scale + jnp.asarray(weight, gradient.dtype) * anchor

    def grad(x: Array, batch: Data, block: Array | None) -> jax.Array:
        state = propagate(x, batch, block)
        layer_inputs = (extended(x, batch[0]), *map(_with_ones, state.activations))
        factors = [
            Factors(rows, delta) for rows, delta in zip(layer_inputs, state.deltas, strict=True)
        ]
        return contract(factors, batch[0].shape[0], on_block(x, block), block)

    def grad_and_cache(x: Array, batch: Data) -> tuple[jax.Array, Cache]:
        # The compiler shares the pass between the gradient and the cache.
        return grad(x, batch, None), propagate(x, batch)

    def grad_difference(
        x_hat: Array, x_tilde: Array, cache: Cache, batch: Data, block: Array | None, alpha: Array
    ) -> jax.Array:
        state = propagate(x_hat, batch, block)
        factors = [Factors(extended(x_hat, batch[0]), state.deltas[0] - alpha * cache.deltas[0])]
        for layer in range(1, len(shapes)):
            layer_inputs = [state.activations[layer - 1], cache.activations[layer - 1]]
            layer_deltas = [state.deltas[layer], -(alpha * cache.deltas[layer])]
            factors.append(
                Factors(_with_ones(jnp.concatenate(layer_inputs)), jnp.concatenate(layer_deltas))
            )
        anchor = on_block(x_hat, block) - alpha * on_block(x_tilde, block)
        return contract(factors, batch[0].shape[0], anchor, block)

    def per_sample_grads(x: Array, batch: Data) -> jax.Array:
        return jax.vmap(lambda row, label: grad(x, (row[None], label[None]), None))(*batch)

    def error(x: Array, batch: Data) -> jax.Array:
        inputs, labels = check_batch(x, batch)
        wrong = jnp.argmax(forward(x, inputs)[1], axis=1).astype(labels.dtype) != labels
        return jnp.mean(wrong.astype(x.dtype))

    return Objective(
        dim=dim,
        unravel=unravel,
        loss=loss,
        grad=grad,
        grad_and_cache=grad_and_cache,
        grad_difference=grad_difference,
        per_sample_grads=per_sample_grads,
        error=error,
        padding=padding,
    )


def _check_sizes(layer_sizes: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(layer_sizes, Sequence | np.ndarray):
        raise InputError(
            f"layer_sizes must be a sequence of whole numbers, got {type(layer_sizes).__name__}."
        )
    check_count("the number of layer_sizes", len(layer_sizes), least=2)
    sizes = tuple(check_count("every entry of layer_sizes", size) for size in layer_sizes)
    if (dim := _count(sizes)) > INT32:
        raise InputError(
            f"layer_sizes must make at most {INT32} coordinates, as indices of them are int32, got "
            f"{said(dim)}."
        )
    return sizes


def _count(sizes: tuple[int, ...]) -> int:
    """d: each layer has a row for every input, and one for the bias."""
    return sum((rows + 1) * columns for rows, columns in itertools.pairwise(sizes))


def _check_dtype(dtype: str) -> None:
    try:
        real = jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        real = False
    if not real:
        raise InputError(f"dtype must be float32 or float64, got {said(dtype)}.")
    if np.dtype(dtype) == np.float64 and not jax.config.read("jax_enable_x64"):
        raise InputError("dtype must be float32 unless jax_enable_x64 is set, got float64.")


def _check_labels(labels: np.ndarray, num_classes: int) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise InputError(
            f"labels must be whole numbers from 0 to {num_classes - 1}, got "
            f"{labels[wrong[0]]} at sample {wrong[0]}."
        )


def _affine(inputs: Array, matrix: Array) -> jax.Array:
    return inputs @ matrix[:-1] + matrix[-1][None]


def _with_ones(rows: Array, width: int | None = None) -> jax.Array:
    """Rows with a one behind them, for the bias, and zeros up to a width."""
    count, size = rows.shape
    ending = np.zeros((count, (width or size + 1) - size))
    ending[:, 0] = 1
    return jnp.concatenate([rows, jnp.asarray(ending, rows.dtype)], axis=1)


def _contract_block(
    factors: list[Factors], shapes: tuple[tuple[int, int], ...], block: Array
) -> jax.Array:
    """The entries `block` [B] of the layers' raveled inputs^T deltas, [d]."""
    values = jnp.zeros(block.shape, factors[0].deltas.dtype)
    start = 0
    for (inputs, deltas), (rows, columns) in zip(factors, shapes, strict=True):
        size = rows * columns
        coordinate = jnp.clip(block - start, 0, size - 1)
        width = jnp.asarray(columns, coordinate.dtype)
        # Not // and %, which have cases for negative numbers.
        row, column = jax.lax.div(coordinate, width), jax.lax.rem(coordinate, width)
        # A small layer is cheaper to multiply out than to visit for every coordinate.
        if size <= 2 * block.size:
            # Written out, as XLA's product of a transposed matrix on the CPU is a slow one.
            product = jax.lax.optimization_barrier(deltas.T) @ inputs
            entries = on_block(product.ravel(), column * inputs.shape[1] + row)
        else:
            entries = _inner_products(inputs, deltas, row, column)
        in_layer = (block >= start) & (block < start + size)
        values = jnp.where(in_layer, entries, values)
        start += size
    return values


def _inner_products(inputs: Array, deltas: Array, row: Array, column: Array) -> jax.Array:
    """sum_i inputs[i, row] * deltas[i, column], [B], for coordinates row [B], column [B].

    A loop over samples, five in a turn: each gathers from two short rows that stay in the
    first-level cache. With one in a turn it took 1.4 times as long on a CPU, with all of them three
    times.
    """

    def add_sample(i: jax.Array, total: jax.Array) -> jax.Array:
        sample, delta = take((inputs, deltas), i)
        return total + on_block(sample, row) * on_block(delta, column)

    nothing = jnp.zeros(row.shape, deltas.dtype)
    return jax.lax.fori_loop(0, inputs.shape[0], add_sample, nothing, unroll=5)
