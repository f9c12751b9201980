"""The arguments of asvrg.fit: what is chosen for them, and what is said about wrong ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import asvrg
from asvrg import objectives
from asvrg.errors import InputError
from asvrg.types import Driver

DATA = np.linspace(-1.0, 2.0, 25)


def loss(w: Any, z: Any) -> Any:
    return 0.5 * (w - z) ** 2


def epochs(**given: Any) -> Iterator[asvrg.FitEpoch]:
    arguments: dict[str, Any] = {"loss": loss, "params": jnp.zeros(()), "data": DATA, "lr": 0.1}
    return asvrg.fit_epochs(**(arguments | given))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"method": "adam"}, "method must be one of svrg, sgd, sgd_svrg, got 'adam'."),
        (
            {"driver": "mpi"},
            "driver, where it is no function, must be one of serial, threads, got 'mpi'.",
        ),
        ({"num_epochs": 0}, "num_epochs must be a whole number of at least 1, got 0."),
        ({"num_epochs": 2.5}, "num_epochs must be a whole number of at least 1, got 2.5."),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1."),
        ({"chunk_size": 0}, "chunk_size must be a whole number of at least 1, got 0."),
        ({"tolerance": 0.0}, "tolerance must be a finite number above 0, got 0.0."),
        ({"batch_size": 26}, "batch_size must be a whole number from 1 to 25, got 26."),
        ({"block_size": 2}, "block_size must be a whole number from 1 to 1, got 2."),
        ({"inner_steps": 0}, "inner_steps must be a whole number of at least 1, got 0."),
        ({"lr": 0.0}, "lr must be a finite number above 0, got 0.0."),
        ({"lr": np.inf}, "lr must be a finite number above 0, got inf."),
        ({"lr": "auto"}, "lr must be a finite number above 0, got 'auto'."),
        (
            {"lr": 1e-60, "params": np.zeros((), np.float32), "data": DATA.astype(np.float32)},
            "lr must be a finite number above 0 in float32, got 1e-60, which is 0.0 there.",
        ),
        (
            {"lr": lambda s: 1.0 - s / 19},  # it ends with 0, as many schedules do
            "lr in epoch s = 19 must be a finite number above 0, got 0.0.",
        ),
        (
            {"lr": lambda s: 0.1 - s},
            "lr in epoch s = 1 must be a finite number above 0, got -0.9.",
        ),
        (
            {"lr": lambda s: None},
            "lr in epoch s = 0 must be a finite number above 0, got None.",
        ),
        ({"alpha": np.nan}, "alpha must be a finite number, got nan."),
        ({"alpha": lambda s: None}, "alpha in epoch s = 0 must be a finite number, got None."),
        (
            {"alpha": lambda s: np.inf if s else 1.0},
            "alpha in epoch s = 1 must be a finite number, got inf.",
        ),
        (
            {"method": "sgd", "alpha": lambda s: 1.0 if s else "a"},
            "alpha in epoch s = 0 must be a finite number, got 'a'.",
        ),
        ({"method": "sgd", "alpha": None}, "alpha must be a finite number, got None."),
        (
            {"method": "sgd", "alpha": 0.5},
            'alpha must be left out, as it belongs to method="svrg" or "sgd_svrg", got 0.5.',
        ),
        (
            {"num_workers": 2},
            'num_workers must be left out, as it belongs to driver="threads", got 2.',
        ),
        (
            {"read_period": 2, "driver": lambda *arguments, inner_steps: None},
            'read_period must be left out, as it belongs to driver="threads", got 2.',
        ),
        (
            {"driver": asvrg.threads.driver},
            "driver must be a function that can be called as driver(estimator, data, sampler, "
            "inner_steps=m), got one that cannot (missing a required argument: 'num_threads'); "
            "functools.partial gives it the rest.",
        ),
        (
            {"driver": "threads", "num_workers": 0},
            "num_workers must be a whole number of at least 1, got 0.",
        ),
        (
            {"driver": "threads", "read_period": 0},
            "read_period must be a whole number of at least 1, got 0.",
        ),
        (
            {"pretrain_epochs": 2},
            'pretrain_epochs must be left out, as it belongs to method="sgd_svrg", got 2.',
        ),
        (
            {"method": "sgd_svrg", "pretrain_epochs": 3, "num_epochs": 3},
            "num_epochs must exceed pretrain_epochs, as it counts all epochs, got 3 and 3.",
        ),
        (
            {"method": "sgd_svrg", "num_epochs": 1},
            "num_epochs must exceed pretrain_epochs, as it counts all epochs, got 1 and 1.",
        ),
    ],
)
def test_wrong_arguments_are_named_in_the_call(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        epochs(**given)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"driver": lambda *arguments, inner_steps: 3},
            "returns an asvrg.types.Driver, got one that returns int",
        ),
        ({"data": np.append(DATA, np.nan)}, "not finite in 1 samples, the first of them sample 25"),
        ({"loss": lambda w, z: jnp.log(w) + z}, "the data are finite: look at the loss itself, lo"),
        ({"loss": lambda w, z: jnp.sqrt(w * w) + z}, "loss must have a gradient at params, got na"),
        ({"loss": lambda w, z: z * z + 0 * w, "lr": None}, "or loss does not depend on them."),
    ],
)
def test_what_functions_give_is_checked_as_it_comes(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        list(epochs(**given))
    assert sentence in str(caught.value)


def test_sgd_has_no_coefficient_of_any_shape() -> None:
    with pytest.raises(InputError, match="alpha must be a finite number, got "):
        epochs(method="sgd", alpha=jnp.ones(3))


def test_numbers_may_be_arrays_of_no_axis() -> None:
    """Schedules of jax give them."""
    shared: dict[str, Any] = {
        "loss": objectives.from_loss(lambda w, z: loss(w[0], z), jnp.zeros(1)),
        "params": jnp.zeros(1),
        "num_epochs": 2,
    }
    expected = [each.params for each in epochs(**shared, lr=0.25, alpha=0.5)]
    for given in (
        {"lr": np.float32(0.25), "alpha": jnp.float32(0.5)},
        {"lr": jnp.asarray(0.25), "alpha": np.asarray(0.5)},
        {"lr": lambda s: jnp.float32(0.25), "alpha": lambda s: jnp.asarray(0.5)},
    ):
        found = list(epochs(**shared, **given))
        np.testing.assert_array_equal([each.params for each in found], expected)
        assert found[-1].lr == 0.25


def test_schedules_are_asked_before_the_run_and_once() -> None:
    asked: list[Any] = []

    def lr(epoch: int) -> float:
        asked.append(epoch)
        return 0.1 / (1 + epoch)

    run = epochs(lr=lr, alpha=lambda s: asked.append(-s) or 0.5, num_epochs=3)
    assert sorted(asked) == [-2, -1, 0, 0, 1, 2]
    assert [each.lr for each in run] == [0.1, 0.1, 0.05, 0.1 / 3]
    assert len(asked) == 6


def first(**given: Any) -> asvrg.fitting.Settings:
    return next(epochs(**given)).settings


def test_what_is_not_given_is_chosen() -> None:
    assert first() == asvrg.fitting.Settings(25, 1, 10, None, 3, 1, None, 0)
    assert first(data=DATA[:4])._asdict().items() >= {"batch_size": 4, "inner_steps": 1}.items()
    assert first(batch_size=2, inner_steps=7).inner_steps == 7
    assert first(method="sgd_svrg", num_epochs=3).pretrain_epochs == 1
    assert first(method="sgd_svrg", num_epochs=20).pretrain_epochs == 5
    assert first(driver=lambda *arguments, inner_steps: None).num_workers is None


def test_threads_take_the_cores_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 6}, raising=False)
    found = first(driver="threads")
    assert (found.num_workers, found.read_period) == (3, 4)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert first(driver="threads", read_period=7)[5:7] == (1, 7)


def test_a_driver_gets_what_the_settings_say() -> None:
    seen: list[Any] = []

    def make(estimator: Any, data: Any, sampler: Any, *, inner_steps: int) -> Driver:
        seen.extend([estimator, data, sampler, inner_steps])
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        list(epochs(driver=make, batch_size=3, seed=8, alpha=0.5))
    estimator, data, sampler, inner_steps = seen
    assert (sampler.num_samples, sampler.batch_size, sampler.seed, inner_steps) == (25, 3, 8, 9)
    assert estimator.alpha(0) == 0.5
    np.testing.assert_array_equal(data, DATA)


def test_nothing_runs_before_the_first_epoch_is_asked_for() -> None:
    def make(*arguments: Any, inner_steps: int) -> Driver:
        raise RuntimeError("made")

    run = epochs(driver=make)
    assert next(run).epoch == 0
    with pytest.raises(RuntimeError, match="made"):
        next(run)
