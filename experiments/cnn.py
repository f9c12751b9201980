"""The convolutional network of TensorFlow's CIFAR-10 tutorial, its views of an image, its training.

Two 5x5 convolutions with max-pooling and local response normalisation, fully connected layers of
384 and 192 units, softmax; trained on random crops and flips, evaluated on central crops.

Source: TensorFlow's tutorial "Advanced Convolutional Neural Networks" and its models
tutorials/image/cifar10 (M. Abadi et al., 2016), after A. Krizhevsky's cuda-convnet. The shapes,
the constants of the normalisation and the weight decay are the tutorial's. Its initial weights, its
plain SGD and its distortions of brightness and contrast are not: they are made for hundreds of
epochs, and the standardisation of each view undoes most of the distortions anyhow.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen
from numpy.typing import NDArray

from asvrg.types import Array

VIEW = 24  # pixels: height and width of what the network sees of an image
WEIGHT_DECAY = 0.004  # of the weights of the layers of 384 and 192 units, in the loss
MOMENTUM = 0.9
_DECAYED = ("features", "hidden")

Params = Mapping[str, Mapping[str, Array]]  # the weights, by layer and name: conv1, kernel


class Network(linen.Module):
    """The network: views [b, 24, 24, 3] -> logits [b, classes] and features [b, 384], after ReLU.

    Attributes:
      channels: of both convolutions.
      num_features: units of the first fully connected layer, whose activations are the features.
      num_hidden: units of the second.
      num_classes: number of logits.
    """

    channels: int = 64
    num_features: int = 384
    num_hidden: int = 192
    num_classes: int = 10

    @linen.compact
    def __call__(self, views: Array) -> tuple[Array, Array]:
        """Returns logits and features."""
        he = linen.initializers.he_normal()
        convolution = functools.partial(
            linen.Conv, self.channels, kernel_size=(5, 5), kernel_init=he
        )
        # ReLU and maximum commute; after the pooling there are four times fewer numbers.
        x = linen.relu(max_pool(convolution(name="conv1")(views)))
        x = linen.relu(convolution(name="conv2")(local_response_norm(x)))
        x = max_pool(local_response_norm(x))
        x = x.reshape(x.shape[0], -1)
        features = linen.relu(linen.Dense(self.num_features, kernel_init=he, name="features")(x))
        hidden = linen.relu(linen.Dense(self.num_hidden, kernel_init=he, name="hidden")(features))
        # Zeros: all classes are equally likely at first.
        last = linen.Dense(self.num_classes, kernel_init=linen.initializers.zeros, name="logits")
        return last(hidden), features


class TrainState(NamedTuple):
    """Where training is: the number of steps made, int, the weights, and their momentum."""

    step: int
    params: Params
    momentum: optax.OptState


class Draw(NamedTuple):
    """What a step sees: its epoch, the key of its views, and its images, int [b]."""

    epoch: int
    view_key: Array
    batch: NDArray[np.integer]


def local_response_norm(
    x: Array, *, radius: int = 4, bias: float = 1.0, alpha: float = 0.001 / 9, beta: float = 0.75
) -> Array:
    """Divides by (bias + alpha * the sum of squares over neighbouring channels) ** beta.

    Args:
      x: float [..., channels].
      radius: how many channels on either side are summed.
      bias: added to the sum.
      alpha: weight of the sum.
      beta: exponent.

    Returns:
      float [..., channels].

    Source: A. Krizhevsky, I. Sutskever, G. Hinton: ImageNet classification with deep convolutional
    neural networks, NIPS 2012, section 3.3.
    """
    window = (1,) * (x.ndim - 1) + (2 * radius + 1,)
    near = jax.lax.reduce_window(jnp.square(x), 0.0, jax.lax.add, window, (1,) * x.ndim, "SAME")
    # A power by exp and log: on the CPU, a third of the time of **.
    return x * jnp.exp(-beta * jnp.log(bias + alpha * near))


def max_pool(x: Array) -> Array:
    """The maximum over windows of 3 x 3 with stride 2 that start at even rows and columns.

    The last window of a row or column has two entries (as with padding "SAME"). Written as maxima
    of slices, as the gradient of flax's max_pool takes eight times as long on the CPU.

    Args:
      x: float [b, rows, columns, channels], rows and columns even.

    Returns:
      float [b, rows / 2, columns / 2, channels].
    """
    for axis in (1, 2):
        shape = (*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        even, odd = jnp.moveaxis(x.reshape(shape), axis + 1, 0)
        low = jax.lax.slice_in_dim(even, 0, 1, axis=axis)
        after = jax.lax.slice_in_dim(even, 1, None, axis=axis)
        third = jnp.concatenate([after, jnp.full_like(low, -jnp.inf)], axis)
        x = jnp.maximum(jnp.maximum(even, odd), third)
    return x


def as_images(inputs: Array, image_shape: tuple[int, ...]) -> Array:
    """The rows of a data set as images with the channels last.

    That is what XLA's convolutions on the CPU are faster with.

    Args:
      inputs: float [b, p].
      image_shape: (channels, rows, columns) of a row of `inputs`.

    Returns:
      float [b, rows, columns, channels].
    """
    return jnp.moveaxis(inputs.reshape(-1, *image_shape), 1, -1)


def random_views(key: Array, images: Array, size: int = VIEW) -> Array:
    """A random crop of each image, mirrored with probability 1/2.

    Args:
      key: a jax.random key.
      images: [b, rows, columns, channels].
      size: height and width of the crop.

    Returns:
      [b, size, size, channels].
    """
    batch, rows, columns, channels = images.shape
    row_key, column_key, flip_key = jax.random.split(key, 3)
    top = jax.random.randint(row_key, (batch,), 0, rows - size + 1)
    left = jax.random.randint(column_key, (batch,), 0, columns - size + 1)
    mirrored = jax.random.bernoulli(flip_key, shape=(batch,))

    def view(image: Array, top: Array, left: Array, mirrored: Array) -> Array:
        crop = jax.lax.dynamic_slice(image, (top, left, 0), (size, size, channels))
        return jnp.where(mirrored, crop[:, ::-1], crop)

    return jax.vmap(view)(images, top, left, mirrored)


def central_views(images: Array, size: int = VIEW) -> Array:
    """The middle of each image.

    Args:
      images: [b, rows, columns, channels].
      size: height and width of the middle.

    Returns:
      [b, size, size, channels].
    """
    top, left = (images.shape[1] - size) // 2, (images.shape[2] - size) // 2
    return images[:, top : top + size, left : left + size]


def standardise(views: Array) -> Array:
    """Gives each view mean 0 and variance 1.

    The divisor is at least 1 / sqrt(number of entries), so that a uniform view becomes zeros.

    Args:
      views: float [b, rows, columns, channels].

    Returns:
      float [b, rows, columns, channels].
    """
    axes = (1, 2, 3)
    entries = np.prod(views.shape[1:])
    centred = views - views.mean(axes, keepdims=True)
    deviation = jnp.sqrt(jnp.square(centred).mean(axes, keepdims=True))
    return centred / jnp.maximum(deviation, float(1 / np.sqrt(entries)))


def learning_rates(peak: float, num_steps: int) -> NDArray[np.float32]:
    """The step sizes: up to `peak` over a tenth of the steps, then down a cosine to 0.

    Neither end is 0 itself: each step moves.

    Args:
      peak: the largest step size.
      num_steps: number of steps.

    Returns:
      float32 [num_steps].
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup_steps=num_steps // 10, decay_steps=num_steps + 1
    )
    steps = jnp.arange(1, num_steps + 1, dtype=jnp.float32)
    return np.asarray(jax.vmap(schedule)(steps), np.float32)


def draws(
    key: Array, num_samples: int, *, batch_size: int, num_epochs: int, first: int = 0
) -> Iterator[Draw]:
    """The draws of all steps from `first` on; the draw of a step is the same wherever one begins.

    Args:
      key: a jax.random key.
      num_samples: n; in an epoch each image is drawn at most once, in random order.
      batch_size: images in a step; what is left over at an epoch's end is dropped.
      num_epochs: number of epochs.
      first: the first step, counted over all epochs.

    Yields:
      A Draw for each step.
    """
    steps = num_samples // batch_size
    for epoch in range(first // steps, num_epochs):
        order_key, view_key = jax.random.split(jax.random.fold_in(key, epoch))
        order = np.asarray(jax.random.permutation(order_key, num_samples))
        for step in range(max(first - epoch * steps, 0), steps):
            batch = order[step * batch_size : (step + 1) * batch_size]
            yield Draw(epoch, jax.random.fold_in(view_key, step), batch)


def init(network: Network, key: Array) -> TrainState:
    """The state before the first step.

    Args:
      network: whose weights are drawn.
      key: a jax.random key.

    Returns:
      A TrainState.
    """
    params = _init_params(network, key)
    return TrainState(0, params, _optimiser().init(params))


@functools.partial(jax.jit, static_argnames="network")
def _init_params(network: Network, key: Array) -> Params:
    params: Params = network.init(key, jnp.zeros((1, VIEW, VIEW, 3), jnp.float32))["params"]
    return params


def loss(network: Network, params: Params, views: Array, labels: Array) -> Array:
    """Mean cross-entropy, plus half the weight decay times the decayed weights' sum of squares.

    Args:
      network: that is trained.
      params: its weights.
      views: float32 [b, 24, 24, 3], standardised.
      labels: int32 [b].

    Returns:
      float32 scalar.
    """
    logits, _ = network.apply({"params": params}, views)
    entropy = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    decayed = sum(jnp.vdot(params[name]["kernel"], params[name]["kernel"]) for name in _DECAYED)
    return entropy + 0.5 * WEIGHT_DECAY * decayed


@functools.partial(jax.jit, static_argnames=("network", "image_shape"))
def train_step(
    params: Params,
    momentum: optax.OptState,
    key: Array,
    inputs: Array,
    labels: Array,
    lr: Array,
    *,
    network: Network,
    image_shape: tuple[int, ...],
) -> tuple[Params, optax.OptState, Array]:
    """One step of SGD with Nesterov momentum on random views of a batch.

    Args:
      params: the network's weights.
      momentum: as `init` made it, or as the last step left it.
      key: a jax.random key, of the views.
      inputs: float32 [b, p], pixels in [0, 1].
      labels: int32 [b].
      lr: float32 scalar, the step size.
      network: that is trained.
      image_shape: (channels, rows, columns) of a row of `inputs`.

    Returns:
      The new params and momentum, and the loss before the step, float32 scalar.
    """
    views = standardise(random_views(key, as_images(inputs, image_shape)))
    value, grad = jax.value_and_grad(loss, argnums=1)(network, params, views, labels)
    direction, momentum = _optimiser().update(grad, momentum)
    params = jax.tree.map(lambda weight, entry: weight - lr * entry, params, direction)
    return params, momentum, value


@functools.partial(jax.jit, static_argnames=("network", "image_shape"))
def apply_central(
    params: Params, inputs: Array, *, network: Network, image_shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """What the network makes of the central views of images.

    Args:
      params: the network's weights.
      inputs: float32 [b, p], pixels in [0, 1].
      network: whose weights they are.
      image_shape: (channels, rows, columns) of a row of `inputs`.

    Returns:
      The logits, float32 [b, classes], and the features, float32 [b, 384].
    """
    views = standardise(central_views(as_images(inputs, image_shape)))
    return network.apply({"params": params}, views)


def _optimiser() -> optax.GradientTransformation:
    return optax.trace(MOMENTUM, nesterov=True)
