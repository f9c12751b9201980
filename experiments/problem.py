"""The problem of a run: a data set, the network's objective on it, and where x starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from asvrg import mlp, objectives
from asvrg.errors import INT32, InputError, check_count, check_real
from asvrg.types import Array, Data, Objective
from experiments import datasets

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar10_features")


class Problem(NamedTuple):
    """What is minimised, from where, and on what it is evaluated.

    Attributes:
      objective: f over x in R^d.
      x0: float [d], of the run's seed.
      make_x0: seed -> an x^0 like it.
      train: inputs [n, p] of x0's dtype, pixels in [0, 1] or features, and labels int32 [n].
      test: the same for the test samples.
    """

    objective: Objective
    x0: Array
    make_x0: Callable[[int], Array]
    train: Data
    test: Data


class Evaluation(NamedTuple):
    """f, errors and ||grad f||^2 at one x: losses with the l2 term, errors in [0, 1]."""

    train_loss: float
    train_error: float
    test_loss: float
    test_error: float
    grad_norm_sq: float


def define_flags(values: flags.FlagValues, *, hidden: int = 100, l2: float = 1e-3) -> None:
    """Adds the flags of the data set and of the network; `hidden` and `l2` are the paper's."""
    flags.DEFINE_enum("dataset", "digits", DATASETS, "Data set.", flag_values=values)
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder with the data set's files. Default: $ASVRG_DATA_DIR, else the user's cache folder, "
        "where missing files are downloaded to; cifar10_features is made by "
        "experiments.extract_features.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_train",
        None,
        "n, training samples: a seeded subset. Default: 10000 of mnist and fashion_mnist, 20000 of "
        "cifar10 and cifar10_features (or what its file holds), 1437 of digits.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_test",
        None,
        "Test samples: a seeded subset. Default: 2000 of mnist and fashion_mnist, 4000 of cifar10 "
        "and cifar10_features (or what its file holds), 360 of digits.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "hidden",
        [str(hidden)],
        "Units of each hidden layer, with commas between.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "activation", "relu", mlp.ACTIVATIONS, "Of the hidden layers.", flag_values=values
    )
    flags.DEFINE_float("l2", l2, "C, weight of the l2 regularisation.", flag_values=values)
    flags.DEFINE_enum(
        "dtype", "float32", ("float32", "float64"), "Of x and of the data.", flag_values=values
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Of the subset (not that of cifar10_features), of x^0 and of all draws; at least 0.",
        flag_values=values,
    )


def from_recorded(given: Mapping[str, Any], data_dir: str | None) -> Problem:
    """The problem of a run, from the flags in its config.json.

    Args:
      given: the run's flags by name, others than the problem's among them.
      data_dir: folder of the data set's files; None for the run's own.

    Returns:
      A Problem.

    Raises:
      InputError: a flag's value is not accepted, or a data file is missing or damaged.
    """
    values = flags.FlagValues()
    define_flags(values)
    values.mark_as_parsed()
    for name in sorted(set(values) & set(given)):
        said = given[name]
        if said is None and values[name].default is None:
            continue
        try:
            values[name].parse(",".join(said) if isinstance(said, list) else str(said))
        except (flags.Error, TypeError) as error:
            raise InputError(
                f"the record of a run must hold flags that are accepted, got --{name}={said!r} "
                f"({error})."
            ) from error
    if data_dir is not None:
        values["data_dir"].value = data_dir
    return from_flags(values)


def from_flags(values: flags.FlagValues) -> Problem:
    """Loads the data and builds the network that the flags describe.

    Args:
      values: parsed, with the flags of `define_flags`.

    Returns:
      A Problem.

    Raises:
      InputError: a flag's value is not accepted, or a data file is missing or damaged.
    """
    check_count("--seed", values.seed, least=0)
    check_real("--l2", values.l2)
    hidden = [
        check_count(
            "every entry of --hidden",
            int(size) if size.strip().isdecimal() else size,
            limit=INT32,
        )
        for size in values.hidden
    ]
    if values.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    data = datasets.load(
        values.dataset, values.data_dir, values.num_train, values.num_test, values.seed
    )
    layer_sizes = (data.train_inputs.shape[1], *hidden, data.num_classes)

    def make_x0(seed: int) -> Array:
        key = jax.random.key(seed)
        return mlp.init(key, layer_sizes, activation=values.activation, dtype=values.dtype)

    return Problem(
        objective=mlp.mlp(layer_sizes, activation=values.activation, l2=values.l2),
        x0=make_x0(values.seed),
        make_x0=make_x0,
        train=_on_device(data.train_inputs, data.train_labels, values.dtype),
        test=_on_device(data.test_inputs, data.test_labels, values.dtype),
    )


def evaluate(problem: Problem, x: Array) -> Evaluation:
    """The metrics of x on the training and the test samples.

    Args:
      problem: with the data.
      x: float [d].

    Returns:
      An Evaluation; its gradient is that of the training loss.
    """
    train = objectives.evaluate(problem.objective, x, problem.train, with_grad=True)
    test = objectives.evaluate(problem.objective, x, problem.test)
    return Evaluation(train.loss, train.error, test.loss, test.error, train.grad_norm_sq)


def _on_device(inputs: np.ndarray, labels: np.ndarray, dtype: str) -> Data:
    return jax.device_put((inputs.astype(dtype, copy=False), labels))
