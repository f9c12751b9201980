"""Trees with gaps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asvrg.errors import InputError
from asvrg.transforms import trees

GAP = optax.MaskedNode()


def test_fill_undoes_a_mask_of_whole_subtrees() -> None:
    whole = {"a": {"w": 1.0, "b": 2.0}, "c": 3.0}
    part = {"a": GAP, "c": 4.0}
    assert trees.fill(part, whole) == {"a": {"w": 1.0, "b": 2.0}, "c": 4.0}


def test_fit_takes_what_the_mask_left() -> None:
    like = {"a": GAP, "c": np.zeros(2)}
    fitted = trees.fit("grad_fn", {"a": {"w": np.ones(5)}, "c": np.ones(2)}, like)
    assert fitted["a"] == GAP
    np.testing.assert_array_equal(fitted["c"], [1, 1])
    with pytest.raises(InputError, match="grad_fn must have the structure"):
        trees.fit("grad_fn", {"a": 1.0}, like)
    with pytest.raises(InputError, match="grad_fn must have the structure"):
        trees.fit("grad_fn", {"a": 1.0, "c": {"w": np.ones(2)}}, like)


def test_copy_is_strongly_typed() -> None:
    assert jnp.asarray(1.0).weak_type
    assert not trees.copy(1.0).weak_type


def test_what_is_traced_is_not_known() -> None:
    seen = []
    jax.jit(lambda x: seen.append(trees.known(x)))(2)
    assert seen == [False]
    assert trees.known(jnp.asarray(2))
