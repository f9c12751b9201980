"""asvrg.transforms inside of optax's wrappers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asvrg import transforms
from asvrg.errors import InputError
from tests.optax_tasks import Task, found, rows, run

LR = 0.2


def partly(task: Task) -> dict[str, Callable]:
    """The extra arguments for svrg() inside of a mask."""

    def extra(params: Any, t: Any, data: Any) -> dict[str, Callable]:
        args = task.extra_args(rows(t, data), data)
        return {k: lambda p, f=f: f(transforms.fill(p, params)) for k, f in args.items()}

    return extra


LABELS = {"weights": "moves", "bias": "frozen"}
MASK = {"weights": True, "bias": False}
# (svrg(), the policy that it was made with) -> an optimiser
WRAPPERS = {
    "everything of ours": lambda c, policy: optax.chain(
        transforms.measure_variance(),
        c,
        transforms.measure_variance(),
        optax.clip_by_global_norm(1.0),
        optax.adam(1e-2),
        transforms.random_block(4),
    ),
    "masked": lambda c, policy: optax.chain(optax.masked(c, MASK), optax.adam(1e-2)),
    "multi_transform": lambda c, policy: optax.multi_transform(
        {"moves": optax.chain(c, optax.adam(1e-2)), "frozen": optax.set_to_zero()}, LABELS
    ),
    "inject_hyperparams": lambda c, policy: optax.chain(
        optax.inject_hyperparams(transforms.svrg)(
            **policy, alpha=optax.linear_schedule(1.0, 0.0, 9)
        ),
        optax.adam(1e-2),
    ),
    "MultiSteps": lambda c, policy: optax.MultiSteps(optax.chain(c, optax.adam(1e-2)), 2),
    "MultiSteps after": lambda c, policy: optax.chain(
        c, optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation()
    ),
    "apply_if_finite": lambda c, policy: optax.apply_if_finite(optax.chain(c, optax.adam(1e-2)), 3),
}


@pytest.mark.parametrize("policy", [{"every": 3}, {"probability": 0.4}], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_compile_once_and_keep_dtypes(
    name: str, dtype: str, policy: dict[str, Any]
) -> None:
    task = Task("least_squares", "float32")

    def loss(p: Any, batch: Any) -> jax.Array:
        return jnp.mean((batch[0] @ p["weights"] + p["bias"] - batch[1]) ** 2)

    task.params, task.data = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype), (task.params, task.data)
    )
    task.grad = jax.grad(loss)  # type: ignore[method-assign]
    params, state, compiled = run(
        task,
        WRAPPERS[name](transforms.svrg(**policy), policy),
        lambda params, t, data: task.grad(params, rows(t, data)),
        partly(task),
        8,
    )
    assert compiled == 1
    (svrg_state,) = found(state)
    kept = jax.tree.leaves(svrg_state.snapshot)
    assert [leaf.dtype for leaf in kept] == [jnp.dtype(dtype)] * len(kept)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(svrg_state.full_grad))
    assert int(svrg_state.num_snapshots) > 1
    assert float(loss(params, task.data)) < float(loss(task.params, task.data))


@pytest.mark.parametrize("inside", [True, False])
def test_multisteps_is_one_step_on_the_larger_batch(inside: bool) -> None:
    """Inside, where the extra arguments belong to the larger batch; before it, to each batch."""
    task = Task("tanh_by_autodiff")
    correction, sgd = transforms.svrg(every=2 if inside else 6), optax.sgd(LR)
    if inside:
        several = optax.MultiSteps(optax.chain(correction, sgd), 3, accumulator_dtype=None)
    else:
        several = optax.chain(
            correction, optax.MultiSteps(sgd, 3, accumulator_dtype=None).gradient_transformation()
        )
    found_params, _, _ = run(
        task,
        several,
        lambda params, t, data: task.grad(params, rows(t, data)),
        lambda params, t, data: task.extra_args(
            rows(t // 3, data, 6) if inside else rows(t, data), data
        ),
        12,
    )
    expected, _, _ = run(
        task,
        optax.chain(transforms.svrg(every=2), sgd),
        lambda params, t, data: task.grad(params, rows(t, data, 6)),
        lambda params, t, data: task.extra_args(rows(t, data, 6), data),
        4,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14),
        found_params,
        expected,
    )


def test_masked_and_multi_transform_freeze_the_rest() -> None:
    """svrg() on the moving part is svrg() on all parameters before a mask."""
    task = Task("least_squares")
    grads = lambda params, t, data: task.grad(params, rows(t, data))  # noqa: E731
    frozen = optax.masked(optax.set_to_zero(), {"weights": False, "bias": True})
    sgd, correction = optax.sgd(LR), transforms.svrg(every=3)
    whole, _, _ = run(
        task,
        optax.chain(correction, sgd, frozen),
        grads,
        lambda params, t, data: task.extra_args(rows(t, data), data),
        7,
    )
    masked = optax.chain(optax.masked(correction, MASK), sgd, frozen)
    parts = optax.multi_transform(
        {"moves": optax.chain(correction, sgd), "frozen": optax.set_to_zero()}, LABELS
    )
    for optimiser in (masked, parts):
        params, state, _ = run(task, optimiser, grads, partly(task), 7)
        (svrg_state,) = found(state)
        assert isinstance(svrg_state.snapshot["bias"], optax.MaskedNode)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), params, whole)
    assert not np.allclose(whole["weights"], task.params["weights"], rtol=1e-3)


def test_a_mask_without_fill_is_explained() -> None:
    task = Task("least_squares")
    optimiser = optax.masked(transforms.svrg(), MASK)
    state = optimiser.init(task.params)
    with pytest.raises(ValueError, match="sizes") as caught:  # a vector that is too short
        optimiser.update(
            task.params, state, task.params, grad_fn=lambda p: task.grad(p, task.batch(0))
        )
    assert "asvrg.transforms.fill" in "".join(caught.value.__notes__)


def test_an_accumulator_hides_extra_arguments() -> None:
    """MultiSteps made a plain transformation is given none by a chain, which must not go unseen."""
    task = Task("least_squares")
    hidden = optax.MultiSteps(transforms.svrg(every=2), 2).gradient_transformation()
    optimiser = optax.chain(hidden, optax.sgd(LR))
    with pytest.raises(InputError, match="got neither"), jax.numpy_dtype_promotion("standard"):
        optimiser.update(
            task.params,
            optimiser.init(task.params),
            task.params,
            **task.extra_args(task.batch(0), task.data),
        )


def test_an_update_that_is_not_finite_leaves_no_trace() -> None:
    task = Task("least_squares")
    optimiser = optax.apply_if_finite(optax.chain(transforms.svrg(every=2), optax.sgd(LR)), 5)

    def grads(params: Any, t: Any, data: Any) -> Any:
        bad = jnp.where((t == 0) | (t == 2), jnp.nan, 1.0)
        return jax.tree.map(lambda g: g * bad, task.grad(params, rows(t, data)))

    _, state, _ = run(
        task, optimiser, grads, lambda p, t, data: task.extra_args(rows(t, data), data), 5
    )
    (svrg_state,) = found(state)
    assert (int(svrg_state.step), int(svrg_state.num_snapshots)) == (3, 2)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(svrg_state.full_grad))


def test_hyperparameters_can_be_set_in_the_state() -> None:
    task = Task("least_squares")
    optimiser = optax.inject_hyperparams(transforms.svrg)(every=50, alpha=1.0)
    state = optimiser.init(task.params)
    g, batch = task.grad(task.params, task.batch(0)), task.batch(0)
    update = lambda state: optimiser.update(  # noqa: E731
        g, state, task.params, **task.extra_args(batch, task.data)
    )
    v, state = update(state)
    mu = task.grad(task.params, task.data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), v, mu)
    state.hyperparams["alpha"] = jnp.asarray(0.0)
    v, _ = update(state)
    jax.tree.map(np.testing.assert_array_equal, v, g)
