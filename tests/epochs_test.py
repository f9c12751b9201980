"""The arguments of asvrg.fit: what is chosen for them, and what is said about wrong ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import asvrg
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
        ({"alpha": np.nan}, "alpha must be a finite number of at least -inf, got nan."),
        (
            {"method": "sgd", "alpha": 0.5},
            'alpha must be left out, as it belongs to method="svrg" or "sgd_svrg", got 0.5.',
        ),
        (
            {"num_workers": 2},
            'num_workers must be left out, as it belongs to driver="threads", got 2.',
        ),
        (
            {"read_period": 2, "driver": lambda *arguments: None},
            'read_period must be left out, as it belongs to driver="threads", got 2.',
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
        ({"lr": lambda epoch: 0.0}, "lr must be a finite number above 0 in float64, got 0.0"),
        ({"alpha": lambda epoch: np.nan}, "alpha must be a finite number"),
        ({"driver": lambda *arguments: 3}, "returns an asvrg.types.Driver, got one that returns i"),
        ({"data": np.append(DATA, np.nan)}, "not finite in 1 samples, the first of them sample 25"),
        ({"loss": lambda w, z: jnp.log(w) + z}, "the data are finite: look at the loss itself, lo"),
        ({"loss": lambda w, z: jnp.sqrt(w * w) + z}, "loss must have a gradient at params, got na"),
        ({"loss": lambda w, z: z * z + 0 * w, "lr": None}, "loss must depend on params, got one"),
    ],
)
def test_what_functions_give_is_checked_as_it_comes(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        list(epochs(**given))
    assert sentence in str(caught.value)


def first(**given: Any) -> asvrg.fitting.Settings:
    return next(epochs(**given)).settings


def test_what_is_not_given_is_chosen() -> None:
    assert first() == asvrg.fitting.Settings(25, 1, 10, None, 3, 1, None, 0)
    assert first(data=DATA[:4])._asdict().items() >= {"batch_size": 4, "inner_steps": 1}.items()
    assert first(batch_size=2, inner_steps=7).inner_steps == 7
    assert first(method="sgd_svrg", num_epochs=3).pretrain_epochs == 1
    assert first(method="sgd_svrg", num_epochs=20).pretrain_epochs == 5
    assert first(driver=lambda *arguments: None).num_workers is None


def test_threads_take_the_cores_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 6}, raising=False)
    found = first(driver="threads")
    assert (found.num_workers, found.read_period) == (3, 4)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert first(driver="threads", read_period=7)[5:7] == (1, 7)


def test_a_driver_gets_what_the_settings_say() -> None:
    seen: list[Any] = []

    def make(estimator: Any, data: Any, sampler: Any, inner_steps: int) -> Driver:
        seen.extend([estimator, data, sampler, inner_steps])
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        list(epochs(driver=make, batch_size=3, seed=8, alpha=0.5))
    estimator, data, sampler, inner_steps = seen
    assert (sampler.num_samples, sampler.batch_size, sampler.seed, inner_steps) == (25, 3, 8, 9)
    assert estimator.alpha(0) == 0.5
    np.testing.assert_array_equal(data, DATA)


def test_nothing_runs_before_the_first_epoch_is_asked_for() -> None:
    def make(*arguments: Any) -> Driver:
        raise RuntimeError("made")

    run = epochs(driver=make)
    assert next(run).epoch == 0
    with pytest.raises(RuntimeError, match="made"):
        next(run)
