"""The worked examples, at a small size and as a user would run them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asvrg
from experiments import datasets
from experiments.examples import (
    comparison,
    convnet,
    equinox_mlp,
    logistic,
    randomness,
    transformer,
)
from tests import binaries

SMALL_TRANSFORMER = (
    "--num_train=64", "--length=8", "--width=8", "--num_layers=1", "--num_epochs=2",
)  # fmt: skip


# As a user has it, but quick to compile: most of the time would go there.
CONFIG = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_disable_most_optimizations": True,
}


@pytest.fixture(autouse=True)
def _as_a_user_has_jax() -> Iterator[None]:
    before = {name: jax.config.values[name] for name in CONFIG}
    for name, value in CONFIG.items():  # no context manager: threads would not see it
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def table(
    capsys: pytest.CaptureFixture[str], example: ModuleType, *arguments: str
) -> dict[str, list[str]]:
    """What an example prints: the cells of each line by its name, gradients and loss first."""
    assert binaries.run(example, *arguments) == 0
    lines = capsys.readouterr().out.split("\n\n")[1].splitlines()
    cells = [re.split(r" {3,}", line.strip()) for line in lines]
    return {name: others for name, *others in cells[1:]}


def gradients(rows: dict[str, list[str]], *names: str) -> list[int]:
    return [int(rows[name][0].replace(",", "")) for name in names]


def test_logistic_regression_reaches_the_optimum_of_scikit_learn(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = table(capsys, logistic, "--num_train=100", "--every=100", "--num_epochs=40")
    above = {name: float(rows[name][2]) for name in ("sgd, cosine", "svrg", "fit, threads")}
    assert abs(above["svrg"]) < 1e-8
    assert abs(above["fit, threads"]) < 1e-8
    assert above["sgd, cosine"] > 1e-6
    assert rows["svrg"][3:] == ["100%", "1.00"]
    sgd, svrg = gradients(rows, "sgd, cosine", "svrg")
    assert svrg == 40 * (100 + 2 * 16 * 100)
    assert 0 <= svrg - sgd < 16


def test_the_first_step_of_logistic_regression_is_the_full_gradient() -> None:
    jax.config.update("jax_enable_x64", True)
    digits = datasets.load("digits", num_train=50, seed=0)
    inputs, labels = digits.train_inputs.astype(np.float64), digits.train_labels
    rng = np.random.default_rng(0)
    weights, biases = rng.normal(size=(64, 10)), rng.normal(size=10)
    params, _ = logistic.train(
        logistic.mean_loss,
        optax.chain(asvrg.svrg(every=5), optax.scale(-1.0)),
        {"weights": jnp.asarray(weights), "biases": jnp.asarray(biases)},
        (inputs, labels), batch_size=3, num_steps=1, seed=0,
    )  # fmt: skip
    exponentials = np.exp(inputs @ weights + biases)
    off = exponentials / exponentials.sum(axis=1, keepdims=True) - np.eye(10)[labels]
    np.testing.assert_allclose(
        weights - params["weights"], inputs.T @ off / 50 + logistic.L2 * weights, atol=1e-13
    )
    np.testing.assert_allclose(biases - params["biases"], off.mean(axis=0), atol=1e-13)


def test_the_network_of_equinox_learns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(
        capsys, equinox_mlp, "--num_train=200", "--num_epochs=20", "--width=16", "--num_threads=1"
    )
    for name in ("sgd, cosine", "svrg", "fit, threads"):
        assert float(rows[name][1]) < 0.4 < 2 < float(rows["start"][1])
        assert float(rows[name][2].rstrip("%")) > 75
    assert float(rows["svrg"][3].rstrip("%")) > 0
    sgd, svrg, fit = gradients(rows, "sgd, cosine", "svrg", "fit, threads")
    assert svrg == fit == 20 * (200 + 2 * 16 * 13)
    assert 0 <= svrg - sgd < 16


def test_the_convolutional_network_learns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(capsys, convnet, "--num_train=100", "--num_epochs=4")
    for name in ("adam", "svrg, adam", "alpha-svrg, adam", "fit, threads"):
        assert float(rows[name][1]) < 1.8 < 2 < float(rows["start"][1])
    adam, *others = gradients(rows, "adam", "svrg, adam", "alpha-svrg, adam", "fit, threads")
    assert others == [4 * (100 + 2 * 32 * 4)] * 3
    assert 0 <= others[0] - adam < 32


def test_kernels_have_mean_zero_and_variance_two_over_fan_in() -> None:
    """The derivative of an output with respect to what it sees is its kernel."""
    layer = convnet.StandardisedConv(4)
    key = jax.random.key(0)
    params = jax.jit(layer.init)(key, jnp.zeros((1, 7, 7, 3)))
    params = jax.tree.map(lambda p: 5 * p + jax.random.normal(key, p.shape), params)
    params["params"] |= {"gain": jnp.ones(4), "bias": jnp.full(4, 1e3)}  # where ReLU does nothing
    derivative = jax.jit(jax.jacobian(lambda x: layer.apply(params, x)[0, 1, 1]))
    kernels = derivative(jnp.ones((1, 7, 7, 3)))
    assert np.count_nonzero(kernels) == 4 * 27
    np.testing.assert_allclose(kernels.sum(axis=(1, 2, 3, 4)), 0, atol=1e-5)
    np.testing.assert_allclose((kernels**2).sum(axis=(1, 2, 3, 4)) / 27, 2 / 27, rtol=1e-5)


def test_the_transformer_learns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(capsys, transformer, *SMALL_TRANSFORMER, "--batch_size=8")
    for name in ("adam", "svrg, adam", "alpha-svrg, adam"):
        assert float(rows[name][1]) < float(rows["start"][1]) - 1
    adam, svrg, alpha = gradients(rows, "adam", "svrg, adam", "alpha-svrg, adam")
    assert adam == svrg == alpha == 2 * (64 + 2 * 8 * 8)


def test_no_character_of_the_transformer_sees_a_later_one_or_another_window() -> None:
    network = transformer.Decoder(width=8, num_layers=1)
    windows, _ = transformer.load_windows(10, 5, seed=0)
    params = jax.jit(network.init)(jax.random.key(0), windows)
    apply = jax.jit(network.apply)
    logits = apply(params, windows)
    changed = windows.copy()
    changed[2, 6] += 1
    differs = np.any(apply(params, changed) != logits, axis=-1)
    assert np.argwhere(differs).tolist() == [[2, place] for place in range(6, 11)]


def test_windows_are_pieces_of_the_text() -> None:
    train, test = transformer.load_windows(30, 1000, seed=0)
    everything = "".join(transformer.topics[name] for name in sorted(transformer.topics))
    everything = everything.encode("ascii", "replace").decode()
    for window in (*train[:20], *test[:20]):
        assert "".join(map(chr, window)) in everything
    assert not {w.tobytes() for w in train} & {w.tobytes() for w in test if len(set(w)) > 9}


@pytest.mark.parametrize(
    ("case", "is_fixed"),
    [("batch normalisation", False), ("dropout, fresh seeds", False),
     ("  one for each sample", True)],
)  # fmt: skip
def test_fixed_f_i_make_the_full_gradient_a_mean(case: str, is_fixed: bool) -> None:
    digits = datasets.load("digits", num_train=randomness.N, seed=0)
    (found,) = [c for c in randomness.CASES if c.name == case]
    removed, off = randomness.measure(
        found, digits.train_inputs, digits.train_labels, num_epochs=3, seed=0
    )
    assert off < 1e-4 if is_fixed else off > 0.05
    if case != "batch normalisation":
        assert (removed > 0) == is_fixed


def test_chunks_hold_every_sample_once() -> None:
    parts = list(comparison.chunks((np.arange(7), np.arange(14).reshape(7, 2)), 3))
    assert [len(rows) for rows, _ in parts] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in parts]), np.arange(7))


@pytest.mark.parametrize(
    ("example", "flag", "sentence"),
    [
        (logistic, "--batch_size=0", "--batch_size"),
        (logistic, "--num_train=0", "num_train"),
        (equinox_mlp, "--every=0", "--every"),
        (equinox_mlp, "--width=0", "--width"),
        (convnet, "--num_threads=0", "--num_threads"),
        (convnet, "--batch_size=9999", "--batch_size"),
        (transformer, "--width=30", "--width must be a multiple of 4, got 30."),
        (transformer, "--length=999999", "--length"),
        (transformer, "--num_train=999999", "--num_train"),
        (transformer, "--num_epochs=0", "--num_epochs"),
        (randomness, "--num_epochs=0", "--num_epochs"),
    ],
)
def test_bad_flags_get_a_sentence(
    example: ModuleType, flag: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert binaries.run(example, flag) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out
