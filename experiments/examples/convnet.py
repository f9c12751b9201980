"""A network of flax with convolutions and without normalisation, on images.

    python -m experiments.examples.convnet

Batch normalisation would make the loss of an image depend on the others in its batch: there would
be no f_i, and the full gradient at the snapshot would not be the mean of what the steps compute.
Weights that are standardised keep the signals' scale as well, and leave every f_i fixed.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
from absl import flags
from flax import linen

import asvrg
from asvrg import transforms
from asvrg.errors import check_count
from asvrg.types import Array, Data, PyTree
from experiments import launch
from experiments.examples import comparison
from experiments.examples.comparison import Row

# Of 0.003, 0.01, 0.03 and 0.1 the best with each for the digits.
ADAM_STEP, SVRG_STEP, ALPHA_STEP = 0.03, 0.01, 0.03
# Of 0.03, 0.1, 0.3, 0.5, 1 and 2, the last but two: 1 is not better on all seeds, with 2 all units
# of ReLU die.
THREADS_STEP = 0.5


class StandardisedConv(linen.Module):
    """A 3x3 convolution with stride 2 and scaled weight standardisation, then ReLU.

    The weights that a channel sums with have mean 0 and variance 2 / fan-in, however training
    changes their parameters.

    Attributes:
      channels: of the output.

    Source: Brock, De and Smith (2021), Characterizing signal propagation to close the performance
    gap in unnormalized ResNets.
    """

    channels: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        """Images [b, rows, columns, c] -> [b, rows / 2, columns / 2, channels]."""
        shape = (3, 3, x.shape[-1], self.channels)
        kernel = self.param("kernel", linen.initializers.normal(1.0), shape)
        gain = self.param("gain", linen.initializers.ones, (self.channels,))
        bias = self.param("bias", linen.initializers.zeros, (self.channels,))
        kernel = jax.nn.standardize(kernel, axis=(0, 1, 2)) * (2 / (9 * x.shape[-1])) ** 0.5
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=layout)
        return linen.relu(x * gain.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1))


class Network(linen.Module):
    """Two convolutions and a linear layer."""

    num_classes: int

    @linen.compact
    def __call__(self, images: Array) -> Array:
        """Images [b, rows, columns, 1] -> logits [b, classes]."""
        x = StandardisedConv(32)(StandardisedConv(16)(images))
        return linen.Dense(self.num_classes)(x.reshape(len(x), -1))


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this example."""
    comparison.define_flags(values, num_epochs=12, batch_size=32)
    comparison.define_image_flags(values)
    flags.DEFINE_integer("num_threads", 2, "K, of driver='threads'.", flag_values=values)


def main(values: flags.FlagValues) -> int:
    """Prints what Adam makes of the same number of gradients, without svrg() and with it."""
    check_count("--num_threads", values.num_threads, most=comparison.THREADS)
    images = comparison.load_images(values)
    shape = (-1, *images.image_shape, 1)
    data = (images.train_inputs.reshape(shape), images.train_labels)
    test = (images.test_inputs.reshape(shape), images.test_labels)
    n = len(images.train_labels)
    budget, b = comparison.budget(values, n), values.batch_size

    network = Network(images.num_classes)
    start = jax.jit(network.init)(jax.random.key(values.seed), data[0][:1])

    @jax.jit
    def mean_loss(params: PyTree, batch: Data) -> Array:
        pixels, labels = batch
        logits = network.apply(params, pixels)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def accuracy(params: PyTree, batch: Data) -> Array:
        pixels, labels = batch
        logits = jnp.asarray(network.apply(params, pixels))
        return jnp.mean(jnp.argmax(logits, axis=-1) == labels)

    grad = jax.grad(mean_loss)

    def train(
        optimiser: optax.GradientTransformationExtraArgs, num_steps: int, every: int | None = None
    ) -> tuple[PyTree, optax.OptState]:
        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(
            params: PyTree, opt_state: optax.OptState, batch: Data
        ) -> tuple[PyTree, optax.OptState]:
            updates, opt_state = optimiser.update(
                grad(params, batch),
                opt_state,
                params,
                grad_fn=lambda params: grad(params, batch),
            )
            return optax.apply_updates(params, updates), opt_state

        params = jax.tree.map(jnp.copy, start)  # as the first step is given its buffers
        opt_state = optimiser.init(params)
        for t, batch in enumerate(comparison.batches(data, b, num_steps, values.seed)):
            if every is not None and t % every == 0:
                # Snapshots by hand: the batches of such a pass may come from files, and be ragged.
                full_grad = transforms.over_batches(grad, params, comparison.chunks(data, 500))
                opt_state = transforms.refresh(opt_state, params, full_grad)
            params, opt_state = step(params, opt_state, batch)
        return params, opt_state

    def evaluate(params: PyTree) -> tuple[Array, str]:
        return mean_loss(params, data), f"{accuracy(params, test):.1%}"

    clip = optax.clip_by_global_norm(1.0)
    plain = optax.chain(clip, optax.adam(ADAM_STEP))
    svrg = optax.chain(asvrg.svrg(), clip, optax.adam(SVRG_STEP))
    decay = optax.linear_schedule(1.0, 0.0, budget.svrg_steps)
    alpha = optax.chain(asvrg.svrg(alpha=decay), clip, optax.adam(ALPHA_STEP))

    def loss(params: PyTree, sample: Data) -> Array:
        return mean_loss(params, jax.tree.map(lambda a: a[None], sample))

    result = asvrg.fit(
        loss, start, data, driver="threads", num_workers=values.num_threads, read_period=1,
        num_epochs=values.num_epochs, batch_size=b, inner_steps=budget.every, lr=THREADS_STEP,
        seed=values.seed,
    )  # fmt: skip
    comparison.print_table(
        f"{values.dataset}: n = {n}, b = {b}, m = {budget.every}.",
        evaluate,
        start,
        [
            Row("adam", b * budget.sgd_steps, *train(plain, budget.sgd_steps)),
            Row("svrg, adam", budget.gradients, *train(svrg, budget.svrg_steps, budget.every)),
            Row(
                "alpha-svrg, adam", budget.gradients, *train(alpha, budget.svrg_steps, budget.every)
            ),
            Row("fit, threads", int(result.history.grad_evals[-1]), result.params),
        ],
        score="test accuracy",
    )
    return 0


if __name__ == "__main__":
    launch.start(main, define_flags)
