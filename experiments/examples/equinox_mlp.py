"""A multilayer perceptron of equinox on images, its arrays apart from its static parts.

    python -m experiments.examples.equinox_mlp

A model of equinox is a pytree in which functions stand beside arrays. eqx.partition takes the
arrays out; these are the parameters, for optax and for fit alike.
"""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from absl import flags

import asvrg
from asvrg.errors import check_count
from asvrg.types import Array, Data, PyTree
from experiments import launch
from experiments.examples import comparison
from experiments.examples.comparison import Row
from experiments.examples.logistic import train

L2 = 1e-3
# Each the best for the digits of those that double from 0.05 on. With 5,000 images of MNIST,
# and so inner loops three times as long, SVRG ends at 0.29 with 0.2, at 0.085 with 0.1.
SVRG_STEP, THREADS_STEP, SGD_STEP = 0.2, 0.2, 0.4


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this example."""
    comparison.define_flags(values, num_epochs=30, batch_size=16)
    comparison.define_image_flags(values)
    flags.DEFINE_integer("width", 64, "Units of both hidden layers.", flag_values=values)
    flags.DEFINE_integer("num_threads", 2, "K, of driver='threads'.", flag_values=values)


def main(values: flags.FlagValues) -> int:
    """Prints what SGD and SVRG make of the same number of gradients."""
    check_count("--width", values.width, most=comparison.WIDTH)
    check_count("--num_threads", values.num_threads, most=comparison.THREADS)
    images = comparison.load_images(values)
    data = (images.train_inputs, images.train_labels)
    test = (images.test_inputs, images.test_labels)
    n, num_pixels = images.train_inputs.shape
    budget, b = comparison.budget(values, n), values.batch_size

    key = jax.random.key(values.seed)
    model = eqx.nn.MLP(num_pixels, images.num_classes, values.width, depth=2, key=key)
    start, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params: PyTree, sample: Data) -> Array:
        pixels, label = sample
        logits = eqx.combine(params, static)(pixels)
        entropy = optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)
        return entropy + 0.5 * L2 * optax.tree.norm(params, squared=True)

    @jax.jit
    def mean_loss(params: PyTree, batch: Data) -> Array:
        return jnp.mean(jax.vmap(loss, in_axes=(None, 0))(params, batch))

    def error(params: PyTree, sample: Data) -> Array:
        pixels, label = sample
        return jnp.argmax(eqx.combine(params, static)(pixels)) != label

    @jax.jit
    def accuracy(params: PyTree, test: Data) -> Array:
        return 1 - jnp.mean(jax.vmap(error, in_axes=(None, 0))(params, test))

    trained = functools.partial(
        train, mean_loss, params=start, data=data, batch_size=b, seed=values.seed
    )

    def evaluate(params: PyTree) -> tuple[Array, str]:
        return mean_loss(params, data), f"{accuracy(params, test):.1%}"

    sgd = optax.sgd(optax.cosine_decay_schedule(SGD_STEP, budget.sgd_steps))
    svrg = optax.chain(asvrg.svrg(every=budget.every), optax.scale(-SVRG_STEP))
    result = asvrg.fit(
        loss, start, data, driver="threads", num_workers=values.num_threads, read_period=1,
        num_epochs=values.num_epochs, batch_size=b, inner_steps=budget.every, lr=THREADS_STEP,
        error=error, seed=values.seed,
    )  # fmt: skip
    comparison.print_table(
        f"{values.dataset}: n = {n}, b = {b}, m = {budget.every}.",
        evaluate,
        start,
        [
            Row("sgd, cosine", b * budget.sgd_steps, *trained(sgd, num_steps=budget.sgd_steps)),
            Row("svrg", budget.gradients, *trained(svrg, num_steps=budget.svrg_steps)),
            Row("fit, threads", int(result.history.grad_evals[-1]), result.params),
        ],
        score="test accuracy",
    )
    return 0


if __name__ == "__main__":
    launch.start(main, define_flags)
