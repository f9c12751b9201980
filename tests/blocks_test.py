"""random_block()."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from asvrg import transforms
from asvrg.errors import InputError

TREE = {"a": jnp.ones((2, 2)), "b": jnp.ones(()), "c": jnp.ones(2)}  # d = 7


def blocks(size: int, steps: int, seed: int = 0) -> np.ndarray:
    """Which coordinates each update kept, bool [steps, d]."""
    keep = transforms.random_block(size, seed=seed)

    def body(state: Any, _: None) -> tuple[Any, jax.Array]:
        kept, state = keep.update(TREE, state)
        return state, ravel_pytree(kept)[0]

    return np.asarray(jax.lax.scan(body, keep.init(TREE), None, length=steps)[1]) == 1


@pytest.mark.parametrize("size", [1, 3, 7])
def test_every_coordinate_is_in_the_block_equally_often(size: int) -> None:
    kept = blocks(size, 2_000)
    np.testing.assert_array_equal(kept.sum(axis=1), size)
    share = size / 7
    deviation = np.abs(kept.mean(axis=0) - share)
    assert np.all(deviation <= 4.5 * np.sqrt(share * (1 - share) / 2_000))
    # Neighbours, round the corner: one run of them begins in each update.
    begins = kept & ~np.roll(kept, 1, axis=1)
    np.testing.assert_array_equal(begins.sum(axis=1), int(size < 7))


def test_seeds_differ_and_repeat() -> None:
    np.testing.assert_array_equal(blocks(2, 50), blocks(2, 50))
    assert not np.array_equal(blocks(2, 50), blocks(2, 50, seed=1))


def test_a_block_that_is_handed_in() -> None:
    keep = transforms.random_block(2)
    tree = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), TREE)
    kept, _ = keep.update(tree, keep.init(tree), block=jnp.array([0, 3, 4, 6], jnp.int32))
    assert kept["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(ravel_pytree(kept)[0], [1, 0, 0, 1, 1, 0, 1])


def test_updates_outside_the_block_may_be_anything() -> None:
    keep = transforms.random_block(1)
    kept, _ = keep.update(
        jnp.array([1.0, jnp.nan, jnp.inf]), keep.init(jnp.zeros(3)), block=jnp.array([0])
    )
    np.testing.assert_array_equal(kept, [1, 0, 0])


def test_only_unmasked_coordinates_count() -> None:
    keep = optax.masked(transforms.random_block(2), {"a": False, "b": True, "c": True})
    kept, _ = keep.update(TREE, keep.init(TREE), block=jnp.array([0, 2]))
    np.testing.assert_array_equal(ravel_pytree(kept)[0], [1, 1, 1, 1, 1, 0, 1])


@pytest.mark.parametrize("size", [0, 1.5, 8])
def test_sizes_out_of_range(size: Any) -> None:
    with pytest.raises(InputError, match="block_size must be a whole number"):
        transforms.random_block(size).init(TREE)
