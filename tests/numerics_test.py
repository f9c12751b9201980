"""Numbers at the ends of their range: the loss never overflows where it is finite."""

from __future__ import annotations

import jax
import mpmath
import numpy as np
import pytest

from asvrg import fit, mlp, objectives

SIZES = (2, 3)  # without hidden layers the logits are sums of two terms, which are known exactly
LABELS = np.array([0, 1, 2, 2])
# Powers of two: products with them are exact in both precisions.
SCALES = {"float32": (2.0**13, 2.0**100, 2.0**125), "float64": (2.0**13, 2.0**100, 2.0**1000)}
CASES = [(dtype, scale) for dtype, scales in SCALES.items() for scale in scales]


OBJECTIVE = mlp.mlp(SIZES)
# Compiled once for each precision.
loss, grad = jax.jit(OBJECTIVE.loss), jax.jit(OBJECTIVE.grad)
per_sample_grads, grad_and_cache = map(
    jax.jit, (OBJECTIVE.per_sample_grads, OBJECTIVE.grad_and_cache)
)
grad_difference, automatic = jax.jit(OBJECTIVE.grad_difference), jax.jit(jax.grad(OBJECTIVE.loss))


def rows(dtype: str) -> np.ndarray:
    return np.array([[1, 0], [0, 1], [1, 1], [0.5, -0.25]], dtype)


def weights(dtype: str, scale: float) -> np.ndarray:
    """An x of logits of the order of `scale`, some equal, some far apart; the biases are 0."""
    matrix = np.array([[1, 0.5, 1], [-0.5, -1, 0.5], [0, 0, 0]]) * scale
    return matrix.astype(dtype).ravel()


def exactly(x: np.ndarray, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The samples' losses and their gradients, with more digits than any float has."""
    losses, gradients = [], []
    with mpmath.workprec(4_000):
        matrix = mpmath.matrix(x.reshape(3, 3).tolist())
        for row, label in zip(inputs, LABELS, strict=True):
            extended = [*map(float, row), 1.0]
            logits = [mpmath.fsum(extended[i] * matrix[i, k] for i in range(3)) for k in range(3)]
            top = max(logits)
            total = mpmath.fsum(mpmath.exp(each - top) for each in logits)
            losses.append(float(top + mpmath.log(total) - logits[label]))
            deltas = [
                float(mpmath.exp(each - top) / total) - (k == label)
                for k, each in enumerate(logits)
            ]
            gradients.append(np.outer(extended, deltas).ravel())
    return np.array(losses), np.array(gradients)


@pytest.mark.parametrize(("dtype", "scale"), CASES)
def test_the_loss_of_large_logits_is_exact(dtype: str, scale: float) -> None:
    inputs, x = rows(dtype), weights(dtype, scale)
    losses, gradients = exactly(x, inputs)
    assert np.all(np.isfinite(losses))
    assert losses.max() > 0.5 * scale
    for i, (row, label) in enumerate(zip(inputs, LABELS, strict=True)):
        one = row[None], LABELS[i : i + 1]
        assert label == one[1][0]
        np.testing.assert_allclose(loss(x, one), losses[i], rtol=2e-6)
        np.testing.assert_allclose(grad(x, one, None), gradients[i], atol=2e-6)
    np.testing.assert_allclose(per_sample_grads(x, (inputs, LABELS)), gradients, atol=2e-6)


@pytest.mark.parametrize("block", [None, np.array([0, 2, 4, 8], np.int32)])
@pytest.mark.parametrize(("dtype", "scale"), CASES)
def test_directions_at_large_logits_are_exact(dtype: str, scale: float, block) -> None:
    """By the cache, as SVRG takes them, and by automatic differentiation of the loss."""
    inputs = rows(dtype)
    x_tilde = weights(dtype, scale)
    x_hat = -x_tilde
    batch = inputs, LABELS
    mean, cache = grad_and_cache(x_tilde, batch)
    expected = exactly(x_tilde, inputs)[1].mean(axis=0)
    np.testing.assert_allclose(mean, expected, atol=2e-6)
    np.testing.assert_allclose(automatic(x_tilde, batch), mean, atol=2e-6)
    alpha = np.asarray(0.5, dtype)
    found = grad_difference(x_hat, x_tilde, cache, batch, block, alpha)
    wanted = exactly(x_hat, inputs)[1].mean(axis=0) - 0.5 * expected
    np.testing.assert_allclose(found, wanted if block is None else wanted[block], atol=4e-6)


def test_a_hidden_layer_of_large_outputs_is_exact_too() -> None:
    """A relu is homogeneous: weights 2^20 times as large make logits 2^40 times as large."""
    objective, inputs = mlp.mlp((2, 4, 3)), rows("float64")
    x = np.random.default_rng(0).normal(size=objective.dim)
    for matrix in objective.unravel(x):
        matrix[-1] = 0
    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-12)):
        large = (x * 2**20).astype(dtype)
        hidden = np.maximum(inputs @ objective.unravel(large.astype(float))[0][:2], 0)
        logits = hidden @ objective.unravel(large.astype(float))[1][:4]
        losses = logits.max(axis=1) - logits[np.arange(4), LABELS]  # exp of the gaps is 0
        gaps = np.sort(logits, axis=1)
        assert np.all(gaps[:, -1] - gaps[:, -2] > 1e6)
        batch = inputs.astype(dtype), LABELS
        found, gradient = jax.jit(lambda x, b: (objective.loss(x, b), objective.grad(x, b, None)))(
            large, batch
        )
        np.testing.assert_allclose(found, losses.mean(), rtol=tolerance)
        assert np.all(np.isfinite(gradient))
        # softmax is 1 at the largest logit and 0 elsewhere
        at_logits = (np.eye(3)[logits.argmax(axis=1)] - np.eye(3)[LABELS]) / 4
        weights = objective.unravel(large.astype(float))[1][:4]
        ones = np.ones((4, 1))
        wanted = [
            np.hstack([inputs, ones]).T @ (at_logits @ weights.T * (hidden > 0)),
            np.hstack([hidden, ones]).T @ at_logits,
        ]
        for one, other in zip(objective.unravel(np.asarray(gradient)), wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
        assert np.abs(wanted[0]).max() > 1e3


@pytest.mark.parametrize(("driver", "method"), [("serial", "sgd_svrg"), ("threads", "svrg")])
def test_float64_is_float32_with_more_digits(driver: str, method: str) -> None:
    objective = mlp.mlp((2, 3, 3), activation="tanh", l2=1e-3)
    rng = np.random.default_rng(1)
    inputs, labels = rng.normal(size=(30, 2)), rng.integers(3, size=30)
    x = 0.5 * rng.normal(size=objective.dim)
    losses = []
    for dtype in ("float32", "float64"):
        data = inputs.astype(dtype), labels
        more = {"num_workers": 1} if driver == "threads" else {}
        result = fit(
            objective, x.astype(dtype), data, method=method, driver=driver, lr=0.2, num_epochs=3,
            batch_size=3, seed=4, **more,
        )  # fmt: skip
        assert result.params[0].dtype == dtype
        losses.append(result.history.loss)
        end = objectives.evaluate(
            objective, np.concatenate([p.ravel() for p in result.params]), data
        )
        np.testing.assert_allclose(end.loss, result.history.loss[-1], rtol=1e-6)
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-6)
    assert np.any(losses[0] != losses[1])
