"""The convolutional network: its parts against numpy, its views, its loss, its draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from experiments import cnn
from experiments.cnn import Network

TINY = Network(channels=4, num_features=12, num_hidden=6)
SHAPE = (3, 32, 32)
BATCH = 8  # one size, so that the step is compiled once


def random_images(count, seed=0, shape=(32, 32, 3)):
    return np.random.default_rng(seed).random((count, *shape), np.float32)


def start(network=TINY):
    return cnn.init(network, jax.random.key(0))


def make_step(params, momentum, inputs, labels, lr, key):
    return cnn.train_step(
        params,
        momentum,
        key,
        inputs,
        labels,
        np.float32(lr),
        network=TINY,
        image_shape=SHAPE,
    )


def test_has_the_tutorials_layers_and_1068298_weights():
    params = jax.eval_shape(lambda: start(Network())).params
    shapes = {name: layer["kernel"].shape for name, layer in params.items()}
    assert shapes == {
        "conv1": (5, 5, 3, 64),
        "conv2": (5, 5, 64, 64),
        "features": (6 * 6 * 64, 384),  # 24 pixels, halved twice
        "hidden": (384, 192),
        "logits": (192, 10),
    }
    by_hand = (75 + 1) * 64 + (1600 + 1) * 64 + (2304 + 1) * 384 + (384 + 1) * 192 + (192 + 1) * 10
    assert by_hand == 1_068_298
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == by_hand
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_network_is_its_layers_one_after_the_other():
    """The network against the textbook's order of layers, by flax's and numpy's own parts."""
    noise = np.random.default_rng(1).normal
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + noise(scale=0.05, size=leaf.shape).astype(np.float32),
        start().params,
    )
    views = random_images(3, shape=(24, 24, 3)) - 0.5

    def convolve(name, x):
        dimensions = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(
            x, params[name]["kernel"], (1, 1), "SAME", dimension_numbers=dimensions
        )
        return np.maximum(np.asarray(out) + params[name]["bias"], 0)

    def connect(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    def pool(x):
        return linen.max_pool(x, (3, 3), (2, 2), "SAME")

    x = normalise_by_loops(np.asarray(pool(convolve("conv1", views))))
    x = np.asarray(pool(normalise_by_loops(convolve("conv2", x))))
    features = np.maximum(connect("features", x.reshape(3, -1)), 0)
    logits = connect("logits", np.maximum(connect("hidden", features), 0))

    actual_logits, actual_features = jax.jit(TINY.apply)({"params": params}, views)
    np.testing.assert_allclose(actual_features, features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actual_logits, logits, rtol=1e-4, atol=1e-5)
    assert np.any(features == 0)
    assert np.any(features > 0)


def normalise_by_loops(x, radius=4, bias=1.0, alpha=0.001 / 9, beta=0.75):
    out = np.empty_like(x)
    channels = x.shape[-1]
    for channel in range(channels):
        near = range(max(0, channel - radius), min(channels, channel + radius + 1))
        total = sum(x[..., other].astype(float) ** 2 for other in near)
        out[..., channel] = x[..., channel] / (bias + alpha * total) ** beta
    return out


def test_local_response_norm_sums_over_the_channels_nearby():
    x = 30 * np.random.default_rng(0).normal(size=(2, 3, 11)).astype(np.float32)
    np.testing.assert_allclose(cnn.local_response_norm(x), normalise_by_loops(x), rtol=1e-5)
    np.testing.assert_allclose(
        cnn.local_response_norm(x, radius=1, bias=2.0, alpha=0.1, beta=0.5),
        normalise_by_loops(x, radius=1, bias=2.0, alpha=0.1, beta=0.5),
        rtol=1e-5,
    )


def test_max_pool_equals_flaxs_and_its_gradient():
    x = np.random.default_rng(0).normal(size=(2, 8, 6, 3)).astype(np.float32) - 3  # mostly below 0
    weights = np.random.default_rng(1).normal(size=(2, 4, 3, 3)).astype(np.float32)

    def flaxs(x):
        return linen.max_pool(x, (3, 3), (2, 2), "SAME")

    np.testing.assert_array_equal(cnn.max_pool(x), flaxs(x))
    actual = jax.grad(lambda x: jnp.sum(weights * cnn.max_pool(x)))(x)
    expected = jax.grad(lambda x: jnp.sum(weights * flaxs(x)))(x)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def test_rows_are_read_channels_first():
    rows = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, -1)
    images = np.asarray(cnn.as_images(rows, (3, 4, 5)))
    assert images.shape == (2, 4, 5, 3)
    assert images[1, 2, 3, 1] == rows[1, 1 * 20 + 2 * 5 + 3]


def test_random_views_are_windows_and_their_mirror_images():
    """Pixels that tell where they come from: a view is named by its corner and its direction."""
    row, column = np.mgrid[:32, :32].astype(np.float32)
    images = np.broadcast_to(np.stack([row, column, row * 100 + column], -1), (400, 32, 32, 3))
    views = np.asarray(cnn.random_views(jax.random.key(3), images))
    assert views.shape == (400, 24, 24, 3)
    tops, lefts, mirrored = set(), set(), 0
    for view in views:
        is_mirrored = view[0, 0, 1] > view[0, -1, 1]
        window = view[:, ::-1] if is_mirrored else view
        top, left = window[0, 0, :2].astype(int)
        np.testing.assert_array_equal(window, images[0, top : top + 24, left : left + 24])
        tops.add(top)
        lefts.add(left)
        mirrored += is_mirrored
    assert tops == lefts == set(range(9))
    assert 150 < mirrored < 250  # 200 +- 5 standard deviations


def test_random_views_depend_on_the_key_alone():
    images = random_images(8)
    first = cnn.random_views(jax.random.key(1), images)
    np.testing.assert_array_equal(first, cnn.random_views(jax.random.key(1), images))
    assert np.any(first != cnn.random_views(jax.random.key(2), images))


def test_central_views_leave_four_pixels_on_each_side():
    images = random_images(2)
    np.testing.assert_array_equal(cnn.central_views(images), images[:, 4:28, 4:28])


def test_standardised_views_have_mean_0_and_variance_1():
    views = 5 * random_images(3, shape=(24, 24, 3)) + 2
    actual = np.asarray(cnn.standardise(views))
    expected = (views - views.mean((1, 2, 3), keepdims=True)) / views.std((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    uniform = np.full((1, 24, 24, 3), 0.7, np.float32)
    np.testing.assert_allclose(cnn.standardise(uniform), np.zeros_like(uniform), atol=1e-4)


def test_loss_is_cross_entropy_and_decay_of_the_hidden_layers_weights():
    params = start().params
    views, labels = random_images(5, shape=(24, 24, 3)), np.array([0, 3, 9, 1, 1], np.int32)
    logits = np.asarray(jax.jit(TINY.apply)({"params": params}, views)[0], np.float64)
    entropy = np.log(np.exp(logits).sum(1)) - logits[np.arange(5), labels]
    squares = sum(np.sum(np.square(params[name]["kernel"])) for name in ("features", "hidden"))
    value = jax.jit(cnn.loss, static_argnums=0)(TINY, params, views, labels)
    np.testing.assert_allclose(value, entropy.mean() + 0.002 * squares, rtol=1e-5)


def test_steps_learn_64_images_by_heart():
    labels = np.random.default_rng(1).integers(0, 10, 64).astype(np.int32)
    # A colour for each class, which survives crops and flips.
    colours = np.random.default_rng(2).random((10, 3), np.float32)
    noise = random_images(64).reshape(64, -1)
    inputs = 0.5 * noise + 0.5 * np.repeat(colours[labels], 32 * 32, axis=1)
    params, momentum = start().params, start().momentum
    losses = []
    for _, key, batch in cnn.draws(jax.random.key(2), 64, batch_size=BATCH, num_epochs=40):
        params, momentum, loss = make_step(
            params, momentum, inputs[batch], labels[batch], 0.003, key
        )
        losses.append(float(loss))
    assert np.mean(losses[-8:]) < 0.25 * np.mean(losses[:8])
    logits, _ = cnn.apply_central(params, inputs, network=TINY, image_shape=SHAPE)
    assert np.mean(np.asarray(logits).argmax(1) == labels) > 0.9


def test_step_descends_the_loss_of_the_keys_views_by_nesterovs_formula():
    """That is u <- g + 0.9 u; x <- x - lr (g + 0.9 u); a step without momentum leaves u = g."""
    inputs, labels = random_images(BATCH).reshape(BATCH, -1), np.arange(BATCH, dtype=np.int32)
    key = jax.random.key(7)
    views = cnn.standardise(cnn.random_views(key, cnn.as_images(inputs, SHAPE)))
    loss = jax.jit(cnn.loss, static_argnums=0)
    x0, zero = start().params, start().momentum
    x0 = {**x0, "logits": jax.tree.map(lambda leaf: leaf + 0.1, x0["logits"])}

    def combine(coefficient, direction, base):
        return jax.tree.map(lambda d, b: coefficient * d + b, direction, base)

    x1, momentum, value = make_step(x0, zero, inputs, labels, 0.01, key)
    np.testing.assert_allclose(value, loss(TINY, x0, views, labels), rtol=1e-5)
    _, (g0,), _ = make_step(x0, zero, inputs, labels, 1.0, key)
    _, (g1,), _ = make_step(x1, zero, inputs, labels, 1.0, key)
    x2, (u2,), _ = make_step(x1, momentum, inputs, labels, 0.02, key)

    norm_sq = sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(g0))
    up, down = (loss(TINY, combine(eps, g0, x0), views, labels) for eps in (1e-3, -1e-3))
    np.testing.assert_allclose((up - down) / 2e-3, norm_sq, rtol=0.01)

    def check(actual, expected):
        for leaf, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-6)

    check(x1, combine(-0.01 * 1.9, g0, x0))
    check(u2, combine(0.9, g0, g1))
    check(x2, combine(-0.02, combine(0.9, u2, g1), x1))


def test_learning_rates_rise_and_fall():
    rates = cnn.learning_rates(0.4, 101)
    assert rates.dtype == np.float32
    np.testing.assert_allclose(rates[[0, 4, 9]], [0.04, 0.2, 0.4], rtol=1e-5)
    # After 10 of 102 steps, a cosine: at the middle of the other 92, half of it.
    np.testing.assert_allclose(rates[55], 0.2, rtol=1e-5)
    assert np.all(np.diff(rates[9:]) < 0)
    assert 0 < rates[-1] < 0.001


def test_an_epoch_draws_every_image_once():
    draws = list(cnn.draws(jax.random.key(0), 23, batch_size=5, num_epochs=3))
    assert [draw.epoch for draw in draws] == [0] * 4 + [1] * 4 + [2] * 4
    epochs = [np.concatenate([draw.batch for draw in draws[i : i + 4]]) for i in (0, 4, 8)]
    for batches in epochs:
        assert len(set(batches)) == 20
        assert set(batches) <= set(range(23))
    assert np.any(epochs[0] != epochs[1])
    keys = {tuple(jax.random.key_data(draw.view_key).tolist()) for draw in draws}
    assert len(keys) == 12


@pytest.mark.parametrize("first", [0, 3, 4, 9, 12])
def test_draws_go_on_anywhere(first):
    def tuples(**start):
        draws = cnn.draws(jax.random.key(1), 22, batch_size=5, num_epochs=3, **start)
        return [
            (d.epoch, jax.random.key_data(d.view_key).tolist(), d.batch.tolist()) for d in draws
        ]

    assert tuples(first=first) == tuples()[first:]
