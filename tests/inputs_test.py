"""What asvrg.fit makes of params, data and loss, and what it says where they do not fit."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asvrg.errors import InputError
from asvrg.fitting import inputs
from asvrg.objectives import Metrics
from asvrg.types import Objective
from tests import problems

ROWS, TARGETS = np.arange(8.0).reshape(4, 2), np.arange(4)


def squares(w: Any, sample: Any) -> Any:
    row, target = sample
    return 0.5 * (row @ w - target.astype(w.dtype)) ** 2


def check(**given: Any) -> inputs.Inputs:
    arguments: dict[str, Any] = {
        "loss": squares, "params": np.ones(2), "data": (ROWS, TARGETS), "error": None,
    }  # fmt: skip
    return inputs.check(**(arguments | given))


def test_the_problem_is_the_users() -> None:
    found = check(error=lambda w, sample: sample[0] @ w > 6)
    rows = jnp.asarray(ROWS)
    losses = 0.5 * (ROWS.sum(1) - TARGETS) ** 2
    np.testing.assert_array_equal(found.x0, [1, 1])
    assert found.num_samples == 4
    assert found.objective.loss(found.x0, (rows, TARGETS)) == pytest.approx(losses.mean())
    assert found.objective.error is not None
    assert found.objective.error(found.x0, (rows, TARGETS)) == np.mean(ROWS.sum(1) > 6)


def test_params_are_copied() -> None:
    params = np.ones(2)
    found = check(params=params)
    params += 1
    np.testing.assert_array_equal(found.x0, [1, 1])


def test_scalars_that_are_floats_are_params() -> None:
    found = check(
        loss=lambda p, sample: (p["a"] * sample[0][0] + p["b"]) ** 2,
        params={"a": 1.0, "b": np.float64(2.0), "c": None},
    )
    np.testing.assert_array_equal(found.x0, [1, 2])
    assert found.unravel(found.x0) == {"a": 1.0, "b": 2.0, "c": None}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_get_the_dtype_beside_them(dtype: str) -> None:
    found = check(
        loss=lambda p, sample: jnp.sum(p["w"]) * p["b"],
        params={"b": 0.1, "w": np.ones(2, dtype)},
    )
    assert found.x0.dtype == dtype
    np.testing.assert_array_equal(found.x0, np.array([0.1, 1, 1], dtype))


def test_float32_params_with_float64_data() -> None:
    with jax.numpy_dtype_promotion("standard"):
        found = check(params=np.ones(2, "float32"))
        assert found.objective.grad(found.x0, found.data, None).dtype == np.float32


def test_an_objective_has_an_order_of_its_own() -> None:
    """Its params need not lie in x in the order of their leaves."""
    plain, rows = problems.get("least_squares").objective, problems.get("least_squares").data

    def unravel(x: Any) -> Any:
        return {"weights": x[3::-1], "bias": x[4]}

    reversed_: Objective = plain._replace(unravel=unravel)
    params = {"weights": np.arange(4.0), "bias": np.array(9.0)}
    found = check(loss=reversed_, params=params, data=rows)
    np.testing.assert_array_equal(found.x0, [3, 2, 1, 0, 9])
    jax.tree.map(np.testing.assert_array_equal, found.unravel(found.x0), params)
    flat = check(loss=reversed_, params=np.arange(5.0), data=rows)
    np.testing.assert_array_equal(flat.unravel(flat.x0), np.arange(5.0))


def fails(w: Any, sample: Any) -> Any:
    raise KeyError("rows")


def search(w: Any, sample: Any) -> Any:
    """It doubles w until it is large enough, which is no more than jax can trace."""
    return jax.lax.while_loop(lambda v: v < 10, lambda v: 2 * v, jnp.sum(w * w))


def outside(w: Any, sample: Any) -> Any:
    return jax.pure_callback(lambda w: w, jax.ShapeDtypeStruct((), w.dtype), w[0])


LABELLED = {"x": np.zeros((4, 784), "float32"), "y": np.zeros(4, int)}
BATCHES = "loss is called with one sample at a time, here arrays of shape (2,), () without an axis"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"params": np.ones(2, int)}, "params must hold float32 or float64 arrays only, got dtype"),
        ({"params": {"w": np.ones(2, "float16")}}, "got dtype float16 in params['w'];"),
        ({"params": [jnp.ones(2, "bfloat16")]}, "got dtype bfloat16 in params[0];"),
        ({"params": (np.ones(2), jnp.tanh)}, "got PjitFunction in params[1]; keep what is not"),
        ({"params": (np.ones(2), 3)}, "got int in params[1];"),
        (
            {"params": (np.ones(2), np.ones(2, "float32"))},
            "params must hold arrays of one dtype, at least one, got ['float32', 'float64'].",
        ),
        ({"params": None}, "params must hold arrays of one dtype, at least one, got no array."),
        ({"params": np.ones(0)}, "params must have at least one entry"),
        ({"data": np.array(["a", "b"])}, "arrays of numbers, got dtype <U1 in data."),
        ({"data": {"x": np.array([None])}}, "arrays of numbers, got dtype object in data['x']."),
        ({"data": (ROWS, TARGETS[:3])}, "share a leading axis of at least one sample"),
        ({"data": ROWS[:0]}, "share a leading axis of at least one sample"),
        ({"data": ()}, "share a leading axis of at least one sample"),
        (
            {"data": [[1.0, 2.0]]},
            "got a single float in data[0][0]; a list is a pytree of its entries",
        ),
        ({"loss": "mse"}, "loss must be a function (params, sample) -> scalar or an asvrg.Objecti"),
        ({"loss": lambda w, sample: w * sample[0]}, "return a scalar for one sample, got shape (2"),
        ({"loss": lambda w, sample: w[0] * sample[0][0][None]}, BATCHES),
        ({"loss": lambda w, sample: jnp.mean(sample[0] @ w - sample[1], axis=1)}, BATCHES),
        ({"loss": lambda w, sample: {"mse": w[0]}}, "loss must return a scalar, got dict;"),
        ({"loss": lambda w, sample: None}, "loss must return a scalar, got NoneType;"),
        ({"loss": lambda w, sample: sample[1]}, "return a floating-point number, got dtype int64"),
        ({"loss": lambda w: w[0]}, "that jax can trace, got TypeError: "),
        ({"loss": fails}, "loss must be a function of params and one sample that jax can trace"),
        ({"loss": lambda w, s: w[0] if w[0] > 0 else -w[0]}, "got TracerBoolConversionError: "),
        ({"loss": lambda w, s: w[0] * float(s[1])}, "got ConcretizationTypeError: "),
        ({"loss": lambda w, s: w[0] * np.asarray(s[0])[0]}, "got TracerArrayConversionError: "),
        ({"loss": lambda w, s: w[0] * [1, 2, 3, 4][s[1]]}, "got TracerIntegerConversionError: "),
        ({"loss": lambda w, s: jnp.sum(w[w > 0])}, "got NonConcreteBooleanIndexError: "),
        ({"loss": search}, "a gradient that jax can take in reverse mode, and for a batch by jax."),
        ({"loss": outside}, "by jax.vmap, got ValueError: Pure callbacks do not support JVP"),
        (
            {"loss": problems.get("logistic").objective, "params": np.ones(4), "data": LABELLED},
            "data must be such as the Objective's loss takes, got ",
        ),
        (
            {"loss": problems.get("logistic").objective, "params": np.ones(4), "data": LABELLED},
            " for a batch of one sample, a dict with arrays of shape (1, 784), (1,).",
        ),
        ({"error": lambda w, sample: w > 0}, "error must return a scalar for one sample, got shap"),
        (
            {"loss": problems.get("logistic").objective, "params": np.ones(3)},
            "params must have the 4 entries of the Objective, got 3.",
        ),
        (
            {"loss": problems.get("tanh_deep").objective, "params": [np.ones(83)]},
            "or a pytree with the shapes that the Objective's unravel gives, [(",
        ),
        (
            {"loss": problems.get("logistic").objective, "error": fails},
            "error must be None where loss is an Objective, which has its own.",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        check(**given)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "loss",
    [
        lambda w, s: w[0] if w[0] > 0 else -w[0],
        lambda w, s: w[0] * float(s[1]),
        lambda w, s: w[0] * np.asarray(s[0])[0],
        lambda w, s: jnp.sum(w[w > 0]),
    ],
)
def test_values_that_are_not_there_yet_are_the_advice(loss: Any) -> None:
    """Not the axis of a batch, which has nothing to do with it."""
    with pytest.raises(InputError) as caught:
        check(loss=loss)
    assert "use jnp.where or jax.lax.cond in place of if" in str(caught.value)
    assert "one sample at a time" not in str(caught.value)


def test_float64_needs_x64() -> None:
    with jax.enable_x64(False):
        with pytest.raises(InputError, match="unless jax_enable_x64 is set, got float64 in params"):
            check()
        with warnings.catch_warnings(action="error"):  # no cut is announced by a warning
            found = check(params=np.ones(2, "float32"))
    assert found.x0.dtype == found.data[0].dtype == np.float32


def metrics(loss: float, grad_norm_sq: float = 1.0) -> Metrics:
    return Metrics(loss, float("nan"), grad_norm_sq)


def test_a_loss_that_is_not_finite_has_a_cause() -> None:
    rows = ROWS.copy()
    rows[[1, 3], 0] = np.nan, np.inf
    data = {"rows": rows, "labels": TARGETS}
    sentence = r"data\['rows'\] has entries that are not finite in 2 samples, the first .* sample 1"
    with pytest.raises(InputError, match=sentence):
        inputs.check_finite(metrics(float("nan")), data)
    with pytest.raises(InputError, match="got inf on average .*; the data are finite: look at"):
        inputs.check_finite(metrics(float("inf")), (ROWS, TARGETS))
    with pytest.raises(InputError, match="loss must have a gradient at params, got nan"):
        inputs.check_finite(metrics(1.0, float("nan")), (ROWS, TARGETS))
    inputs.check_finite(metrics(1.0), data)
