"""The problem of a run, from its flags."""

from __future__ import annotations

import numpy as np
import pytest
from absl import flags

from asvrg import objectives
from experiments import problem


def make(*arguments: str) -> problem.Problem:
    values = flags.FlagValues()
    problem.define_flags(values)
    values(["binary", *arguments])
    return problem.from_flags(values)


def test_flags_describe_the_network_and_the_data():
    made = make("--hidden=7,5", "--num_train=200", "--num_test=30", "--activation=tanh")
    assert made.objective.dim == 65 * 7 + 8 * 5 + 6 * 10 == made.x0.size
    assert made.train[0].shape == (200, 64)
    assert made.test[0].shape == (30, 64)
    assert made.x0.dtype == made.train[0].dtype == np.float32
    assert made.train[1].dtype == np.int32
    assert make("--dtype=float64", "--num_train=20").x0.dtype == np.float64


def test_seed_picks_subset_and_start():
    one, same, other = (
        make("--num_train=20"),
        make("--num_train=20"),
        make("--num_train=20", "--seed=1"),
    )
    np.testing.assert_array_equal(one.x0, same.x0)
    np.testing.assert_array_equal(one.train[0], same.train[0])
    assert np.any(np.asarray(one.x0) != np.asarray(other.x0))
    assert np.any(np.asarray(one.train[0]) != np.asarray(other.train[0]))


def test_evaluation_holds_f_its_gradient_and_errors_of_both_splits():
    made = make("--hidden=6", "--num_train=90", "--num_test=40", "--dtype=float64", "--l2=0.3")
    found = problem.evaluate(made, made.x0)
    for samples, loss, error in (
        (made.train, found.train_loss, found.train_error),
        (made.test, found.test_loss, found.test_error),
    ):
        first, second = map(np.asarray, made.objective.unravel(made.x0))
        hidden = np.maximum(np.asarray(samples[0]) @ first[:-1] + first[-1], 0)
        logits = hidden @ second[:-1] + second[-1]
        top = logits.max(axis=1)
        log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        labels = np.asarray(samples[1])
        picked = logits[np.arange(len(labels)), labels]
        l2 = 0.15 * float(made.x0 @ made.x0)
        assert loss == pytest.approx(np.mean(log_sum - picked) + l2, rel=1e-12)
        assert error == pytest.approx(np.mean(logits.argmax(axis=1) != labels), rel=1e-12)
    gradient, _ = objectives.full_gradient(made.objective, made.x0, made.train)
    assert found.grad_norm_sq == pytest.approx(float(gradient @ gradient), rel=1e-12)


def test_features_of_cifar10_are_a_data_set_like_the_others(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "train_inputs": 3 * rng.random((8, 384), np.float32),
        "train_labels": rng.integers(0, 10, 8, np.int32),
        "test_inputs": 3 * rng.random((5, 384), np.float32),
        "test_labels": rng.integers(0, 10, 5, np.int32),
    }
    np.savez(tmp_path / "cifar10_features.npz", **arrays)
    made = make("--dataset=cifar10_features", f"--data_dir={tmp_path}", "--hidden=50", "--seed=3")
    assert made.objective.dim == 385 * 50 + 51 * 10
    np.testing.assert_array_equal(made.train[0], arrays["train_inputs"])
    np.testing.assert_array_equal(made.train[1], arrays["train_labels"])
    np.testing.assert_array_equal(made.test[0], arrays["test_inputs"])
