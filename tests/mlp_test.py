"""What the closed form of the networks promises beyond the table of problems."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asvrg import mlp, objectives
from asvrg.errors import InputError
from tests import problems

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
SIZES = (150, 100, 10)  # of networks that are only made
# relu: (4 + 1) x 5, bias in 20..24, then (5 + 1) x 3, bias in 40..42.
BLOCKS = {
    "of the first layer, with a bias": [0, 7, 24],
    "of the last layer, with biases": [25, 33, 40, 42],
    "across the layers, every layer by inner products": [3, 19, 20, 24, 25, 39, 40, 41],
    "across the layers, the last one multiplied out": [0, 4, 18, 20, 23, 24, 25, 30, 39, 40, 42],
    "across the layers, both multiplied out": [*range(3, 40, 3), 40, 42],
    "everything": list(range(43)),
}


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_entries_of_the_gradient(name: str, alpha: float) -> None:
    problem = problems.get("relu")
    x_tilde, x_hat = problem.x0, problems.other_point(problem)
    block = np.array(BLOCKS[name], np.int32)
    at_tilde = np.mean(problems.sample_grads(problem, x_tilde), axis=0)
    at_hat = np.mean(problems.sample_grads(problem, x_hat), axis=0)
    _, cache = jax.jit(problem.objective.grad_and_cache)(x_tilde, problem.data)
    assert problem.objective.padding == 2  # to 9 rows of 5
    for x in (x_hat, np.pad(x_hat, (0, 2))):
        found = jax.jit(problem.objective.grad)(x, problem.data, block)
        chex.assert_trees_all_close(found, at_hat[block], **CLOSE)
        found = jax.jit(problem.objective.grad_difference)(
            x, x_tilde, cache, problem.data, block, alpha
        )
        chex.assert_trees_all_close(found, (at_hat - alpha * at_tilde)[block], **CLOSE)


def products(fn, *args) -> list[tuple[int, ...]]:
    """The shapes of the matrix products in a function."""
    equations = jax.make_jaxpr(fn)(*args).eqns
    return [e.outvars[0].aval.shape for e in equations if e.primitive.name == "dot_general"]


def test_cache_spares_one_of_two_passes() -> None:
    """A direction multiplies matrices as often as one gradient, and a block forms no large one."""
    objective = mlp.mlp((30, 20, 10, 3))
    x = np.zeros(objective.dim)
    batch = (np.zeros((2, 30)), np.zeros(2, np.int32))
    _, cache = objective.grad_and_cache(x, batch)
    gradient = products(lambda x: objective.grad(x, batch, None), x)
    difference = products(lambda x: objective.grad_difference(x, x, cache, batch, None, 1.0), x)
    assert len(difference) == len(gradient)
    block = np.arange(0, objective.dim, 100, dtype=np.int32)
    on_block = products(lambda x: objective.grad_difference(x, x, cache, batch, block, 1.0), x)
    assert (31, 20) in difference
    assert (31, 20) not in on_block


def test_cache_holds_what_the_difference_needs_of_x_tilde() -> None:
    """Without l2 the difference does not depend on x_tilde, and any other cache changes it."""
    problem = problems.get("tanh_deep")
    objective = mlp.mlp((4, 6, 5, 3), activation="tanh")
    x_tilde, x_hat = problem.x0, problems.other_point(problem)
    _, cache = jax.jit(objective.grad_and_cache)(x_tilde, problem.data)
    difference = jax.jit(objective.grad_difference)
    found = difference(x_hat, x_tilde, cache, problem.data, None, 1.0)
    elsewhere = np.zeros_like(x_tilde)
    chex.assert_trees_all_equal(difference(x_hat, elsewhere, cache, problem.data, None, 1.0), found)
    leaves, structure = jax.tree.flatten(cache)
    for i, leaf in enumerate(leaves):
        wrong = jax.tree.unflatten(structure, [*leaves[:i], leaf + 1, *leaves[i + 1 :]])
        changed = difference(x_hat, x_tilde, wrong, problem.data, None, 1.0)
        assert not np.allclose(changed, found, rtol=1e-3, atol=1e-3), f"leaf {i} is not used"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_of_ten_thousand_do_not_overflow(dtype: str) -> None:
    """Two samples with logits (1e4, 0, -1e4): one of the likeliest class, one of the last."""
    objective = mlp.mlp((1, 3))
    x = np.array([1e4, 0, -1e4, 0, 0, 0], dtype)
    batch = (np.ones((2, 1), dtype), np.array([0, 2], np.int32))
    assert objective.loss(x, batch) == 1e4  # the mean of 0 and 2e4
    samples = jax.jit(objective.per_sample_grads)(x, batch)
    wrong = np.array([1, 0, -1], dtype)
    chex.assert_trees_all_equal(samples, np.stack([np.zeros(6, dtype), np.tile(wrong, 2)]))
    assert objective.error(x, batch) == 0.5


@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_l2_stands_in_every_sample_and_covers_biases(l2: float) -> None:
    plain, problem = mlp.mlp((4, 5, 3)), problems.get("relu")
    regular = mlp.mlp((4, 5, 3), l2=l2)
    without = jax.jit(plain.per_sample_grads)(problem.x0, problem.data)
    with_l2 = jax.jit(regular.per_sample_grads)(problem.x0, problem.data)
    expected = np.tile(l2 * problem.x0, (problems.NUM_SAMPLES, 1))
    chex.assert_trees_all_close(np.asarray(with_l2) - np.asarray(without), expected, atol=1e-12)


@pytest.mark.parametrize(("activation", "gain"), [("relu", 2.0), ("tanh", 1.0)])
def test_init_has_the_variance_of_the_activation(activation: str, gain: float) -> None:
    x = np.asarray(mlp.init(jax.random.key(3), SIZES, activation=activation))
    assert x.dtype == np.float32
    for matrix, inputs in zip(mlp.mlp(SIZES).unravel(x), SIZES[:-1], strict=True):
        np.testing.assert_array_equal(matrix[-1], 0)
        weights = matrix[:-1]
        deviation = 1 / np.sqrt(weights.size)  # of the mean, and about of the relative variance
        assert abs(np.mean(weights)) < 4 * np.std(weights) * deviation
        assert abs(np.var(weights) * inputs / gain - 1) < 4 * np.sqrt(2) * deviation


def test_init_depends_on_the_key_alone() -> None:
    first, again, other = (np.asarray(mlp.init(jax.random.key(k), SIZES)) for k in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert np.mean(first == other) < 0.1  # the biases are zero in both


def test_a_snapshot_in_float32_agrees_with_float64() -> None:
    found = problems.get("relu", "float32")
    gradient, _ = objectives.full_gradient(found.objective, found.x0, found.data, chunk_size=6)
    exact = problems.get("relu")
    expected = np.mean(problems.sample_grads(exact, exact.x0), axis=0)
    assert gradient.dtype == jnp.float32
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: mlp.mlp((4,)), "the number of layer_sizes must be .* at least 2, got 1"),
        (lambda: mlp.mlp((4, 0, 3)), "every entry of layer_sizes must .* at least 1, got 0"),
        (lambda: mlp.mlp((4, 2.5, 3)), "every entry of layer_sizes must be .*, got 2.5"),
        (lambda: mlp.mlp((4, 3), activation="gelu"), "activation must be one of relu, tanh, got"),
        (lambda: mlp.mlp((4, 3), l2=-1.0), "l2 must be a finite number of at least 0, got -1"),
        (lambda: mlp.init(jax.random.key(0), (4, -3)), "layer_sizes must .*, got -3"),
        (lambda: mlp.init(jax.random.key(0), (4, 3), activation="elu"), "one of relu, tanh"),
    ],
)
def test_bad_arguments_are_refused(make, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("inputs", "labels", "sentence"),
    [
        (np.zeros((2, 5)), np.zeros(2, int), r"inputs must be float64 \[b, 4\]"),
        (np.zeros((2, 4), np.float32), np.zeros(2, int), "got float32"),
        (np.zeros(4), np.zeros(2, int), r"inputs must be float64 \[b, 4\]"),
        (np.zeros((2, 4)), np.zeros((2, 1), int), r"labels must be whole numbers \[2\]"),
        (np.zeros((2, 4)), np.zeros(2), "labels must be whole numbers"),
    ],
)
def test_batches_that_do_not_fit_are_refused(inputs, labels, sentence: str) -> None:
    objective = mlp.mlp((4, 3))
    x = np.zeros(objective.dim)
    for function in (objective.loss, objective.grad_and_cache, objective.error):
        with pytest.raises(InputError, match=sentence):
            function(x, (inputs, labels))
