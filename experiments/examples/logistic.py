"""Logistic regression with an l2 term, in float64, against scikit-learn's optimum.

    python -m experiments.examples.logistic

f_i(W, b) = -log softmax(W^T a_i + b)[y_i] + l2/2 ||W||^2 on the digits: what SVRG is made for, a
finite sum of smooth and convex functions. With a constant step it goes to the optimum itself, at
a linear rate, where SGD stays as far away as its variance keeps it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from sklearn.linear_model import LogisticRegression

import asvrg
from asvrg import transforms
from asvrg.errors import check_count
from asvrg.types import Array, Data, PyTree
from experiments import datasets, launch
from experiments.examples import comparison
from experiments.examples.comparison import Row

L2 = 0.01
# SVRG: the best of 0.5, 1, 1.5 and 2. SGD: the best of 0.01, 0.03, ..., 3, constant (1.3e-3 above
# the optimum at best), step / (1 + t / k) with k of 10, 100 and 1,000 (4e-4), and down a cosine to
# 0 (3e-4).
SVRG_STEP, SGD_STEP = 1.5, 0.3

Params = dict[str, Array]


def loss(params: Params, sample: Data) -> Array:
    """f_i: a function of the parameters and of one sample, and of nothing else."""
    inputs, label = sample
    logits = inputs @ params["weights"] + params["biases"]
    entropy = optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)
    return entropy + 0.5 * L2 * jnp.sum(params["weights"] ** 2)


@jax.jit
def mean_loss(params: Params, batch: Data) -> Array:
    """The mean of f_i over a batch, or over all samples: then it is f."""
    return jnp.mean(jax.vmap(loss, in_axes=(None, 0))(params, batch))


def train(
    mean_loss: Callable[[PyTree, Data], Array],
    optimiser: optax.GradientTransformationExtraArgs,
    params: PyTree,
    data: Data,
    *,
    batch_size: int,
    num_steps: int,
    seed: int,
) -> tuple[PyTree, optax.OptState]:
    """A loop as with any optimiser of optax; svrg() wants two functions given to update()."""
    grad = jax.grad(mean_loss)

    @jax.jit
    def step(
        params: PyTree, opt_state: optax.OptState, batch: Data, data: Data
    ) -> tuple[PyTree, optax.OptState]:
        updates, opt_state = optimiser.update(
            grad(params, batch),
            opt_state,
            params,
            grad_fn=lambda params: grad(params, batch),
            full_grad_fn=lambda params: transforms.over_arrays(grad, params, data),
        )
        return optax.apply_updates(params, updates), opt_state

    opt_state, on_device = optimiser.init(params), jax.device_put(data)
    for batch in comparison.batches(data, batch_size, num_steps, seed):
        params, opt_state = step(params, opt_state, batch, on_device)
    return params, opt_state


def reference(data: Data) -> Params:
    """The optimum by scikit-learn, which minimises C sum_i f_i, where C = 1 / (n l2)."""
    inputs, labels = data
    solver = LogisticRegression(C=1 / (len(labels) * L2), solver="newton-cholesky", tol=1e-12)
    solver.fit(inputs, labels)
    return {"weights": jnp.asarray(solver.coef_.T), "biases": jnp.asarray(solver.intercept_)}


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this example."""
    comparison.define_flags(values, num_epochs=50, batch_size=16)
    flags.DEFINE_integer("num_threads", 2, "K, of driver='threads'.", flag_values=values)


def main(values: flags.FlagValues) -> int:
    """Prints how far above the optimum SGD and SVRG end."""
    check_count("--num_threads", values.num_threads, most=comparison.THREADS)
    jax.config.update("jax_enable_x64", True)
    digits = datasets.load("digits", num_train=values.num_train, seed=values.seed)
    data = (digits.train_inputs.astype(np.float64), digits.train_labels)
    n, num_inputs = digits.train_inputs.shape
    budget, b = comparison.budget(values, n), values.batch_size
    start = {
        "weights": jnp.zeros((num_inputs, digits.num_classes)),
        "biases": jnp.zeros(digits.num_classes),
    }
    lowest = float(mean_loss(reference(data), data))

    def evaluate(params: Params) -> tuple[Array, str]:
        reached = mean_loss(params, data)
        return reached, f"{reached - lowest:.1e}"

    trained = functools.partial(
        train, mean_loss, params=start, data=data, batch_size=b, seed=values.seed
    )

    sgd = optax.sgd(optax.cosine_decay_schedule(SGD_STEP, budget.sgd_steps))
    svrg = optax.chain(asvrg.svrg(every=budget.every), optax.scale(-SVRG_STEP))
    # It chooses the step itself, a cautious one, as threads make x a little stale; so it is given
    # more epochs, of which it needs those that it takes to ||grad f||^2 <= 1e-12.
    result = asvrg.fit(
        loss, start, data, driver="threads", num_workers=values.num_threads,
        num_epochs=10 * values.num_epochs, tolerance=1e-12,
        batch_size=b, inner_steps=budget.every, seed=values.seed,
    )  # fmt: skip

    comparison.print_table(
        f"digits: n = {n}, d = {optax.tree.size(start)}, b = {b}, m = {budget.every}. "
        f"scikit-learn's optimum: {lowest:.12f}.",
        evaluate,
        start,
        [
            Row("sgd, cosine", b * budget.sgd_steps, *trained(sgd, num_steps=budget.sgd_steps)),
            Row("svrg", budget.gradients, *trained(svrg, num_steps=budget.svrg_steps)),
            Row("fit, threads", int(result.history.grad_evals[-1]), result.params),
        ],
        score="above the optimum",
    )
    return 0


if __name__ == "__main__":
    launch.start(main, define_flags)
