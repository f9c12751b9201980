"""Makes the data set cifar10_features: trains a CNN on CIFAR-10 and writes its activations.

    python -m experiments.extract_features --data_dir=~/data

Trains the network of TensorFlow's CIFAR-10 tutorial on all 50,000 training images, on all cores,
then writes what its layer of 384 units makes of 20,000 training and 4,000 test images to one .npz,
in the user's cache folder, where --dataset=cifar10_features of the other binaries finds it.
Interrupted, the same command goes on where it stopped, and ends with the same features.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import pooch
from absl import flags
from flax import serialization
from numpy.typing import NDArray
from tqdm import tqdm

from asvrg.errors import DivergedError, InputError, check_count, check_real
from experiments import cnn, datasets, files, launch, provenance
from experiments.cnn import Network, TrainState
from experiments.datasets import Dataset

FILE = "cifar10_features.npz"
CHECKPOINT_STEPS = 200  # what a killed process loses at most: some 15 seconds of two cores
PROVENANCE_BYTES = 1 << 20  # of the description in the file, at most
CHUNK = 500  # images that are evaluated at once


class Settings(NamedTuple):
    """The flags that the trained weights depend on, by name."""

    num_epochs: int
    batch_size: int
    lr: float
    seed: int


class Outputs(NamedTuple):
    """What the network makes of n images: logits [n, classes], features [n, 384], float32."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this binary."""
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder with CIFAR-10's files. Default: $ASVRG_DATA_DIR, else the user's cache folder, "
        "where missing files are downloaded to.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "out",
        None,
        f"File for the features. Default: {FILE} in the user's cache folder.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "checkpoint_dir",
        None,
        "Folder for the state of the training, a file with the name of --out and .checkpoint. "
        "Default: the folder of --out.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_train",
        None,
        "Training samples whose features are written: a seeded subset. Default: 20000.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_test",
        None,
        "Test samples whose features are written: a seeded subset. Default: 4000.",
        flag_values=values,
    )
    flags.DEFINE_integer("num_epochs", 8, "Passes over the training images.", flag_values=values)
    flags.DEFINE_integer("batch_size", 64, "Images of a mini-batch.", flag_values=values)
    flags.DEFINE_float("lr", 0.03, "Largest step, after the warm-up.", flag_values=values)
    flags.DEFINE_integer(
        "seed", 0, "Of the subsets, of the first weights and of all draws.", flag_values=values
    )


def main(values: flags.FlagValues) -> int:
    """Trains the network, or takes up its training, and writes the features."""
    sources = datasets.read_sources()
    source = sources["cifar10"]
    settings = Settings(
        check_count("--num_epochs", values.num_epochs),
        check_count("--batch_size", values.batch_size, most=source.available["train"]),
        check_real("--lr", values.lr, above=True),
        check_count("--seed", values.seed, least=0, most=2**32 - 1),
    )
    counts = {
        f"num_{split}": check_count(
            f"--num_{split}",
            source.default[split] if given is None else given,
            most=source.available[split],
        )
        for split, given in (("train", values.num_train), ("test", values.num_test))
    }
    out = Path(pooch.os_cache("asvrg") / FILE if values.out is None else values.out).expanduser()
    if out.exists():
        _check_made_with(out, {**settings._asdict(), **counts})
        print(f"{out} is there already, made with these flags.")
        return 0
    config = provenance.describe(values, {})  # now, as it holds the time and the commit
    data = datasets.load(
        "cifar10",
        values.data_dir,
        source.available["train"],
        source.available["test"],
        settings.seed,
        sources,
    )
    folder = out.parent if values.checkpoint_dir is None else Path(values.checkpoint_dir)
    folder = folder.expanduser()
    files.make_folder("--out must lie in a folder", out.parent)
    files.make_folder("--checkpoint_dir must lie in a folder", folder)

    network = Network(num_classes=data.num_classes)
    checkpoint = folder / f"{out.name}.checkpoint"
    params = train(network, data, settings, checkpoint).params
    test = outputs(network, params, data.test_inputs, data.image_shape)
    accuracy = float(np.mean(test.logits.argmax(1) == data.test_labels))
    print(f"test accuracy of the CNN: {accuracy:.2%} of {len(data.test_labels)} images")
    chosen = outputs(
        network, params, data.train_inputs[: counts["num_train"]], data.image_shape
    ).features
    mean_square = float(np.mean(np.square(chosen, dtype=np.float64)))
    if mean_square == 0:
        raise DivergedError(
            f"all features are 0, as no unit is active any more: the step (--lr) is probably too "
            f"large, got {settings.lr:g}; delete {checkpoint} to start anew."
        )
    scale = mean_square**-0.5
    config["resolved"] = {
        **settings._asdict(),
        **counts,
        "layer": f"the fully connected one of {network.num_features} units, after ReLU",
        "cnn_test_accuracy": accuracy,
        "scale": scale,
        "scale_rule": "activations * scale have a mean square of 1 over train_inputs",
    }
    config["versions"]["flax"] = importlib.metadata.version("flax")
    arrays: dict[str, Any] = {
        "train_inputs": chosen * np.float32(scale),
        "train_labels": data.train_labels[: counts["num_train"]],
        "test_inputs": test.features[: counts["num_test"]] * np.float32(scale),
        "test_labels": data.test_labels[: counts["num_test"]],
        "provenance": np.array(json.dumps(config)),
    }
    files.write_whole(out, lambda file: np.savez_compressed(file, **arrays))
    print(f"features: {out}")
    return 0


def train(network: Network, data: Dataset, settings: Settings, checkpoint: Path) -> TrainState:
    """Trains the network, from the checkpoint on if there is one.

    The batch and the views of a step depend on the seed, the epoch and the step alone, so that an
    interrupted training ends in the weights of an undisturbed one, bit for bit.

    Args:
      network: that is trained.
      data: with all training images.
      settings: of the training.
      checkpoint: file of the state, written every CHECKPOINT_STEPS steps, when the user interrupts
        and at the end.

    Returns:
      The state after the last step.

    Raises:
      InputError: the checkpoint is that of other settings, or damaged.
      DivergedError: the loss is no finite number.
    """
    num_samples = len(data.train_labels)
    num_steps = settings.num_epochs * (num_samples // settings.batch_size)
    rates = cnn.learning_rates(settings.lr, num_steps)
    draw_key, init_key = jax.random.split(jax.random.key(settings.seed))
    state = _restore(checkpoint, settings, cnn.init(network, init_key))
    draws = cnn.draws(
        draw_key,
        num_samples,
        batch_size=settings.batch_size,
        num_epochs=settings.num_epochs,
        first=state.step,
    )
    with tqdm(
        total=num_steps,
        initial=state.step,
        unit="batch",
        file=sys.stderr,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
    ) as bar:
        try:
            for draw in draws:
                params, momentum, loss = cnn.train_step(
                    state.params,
                    state.momentum,
                    draw.view_key,
                    data.train_inputs[draw.batch],
                    data.train_labels[draw.batch],
                    rates[state.step],
                    network=network,
                    image_shape=data.image_shape,
                )
                if not np.isfinite(loss):
                    checkpoint.unlink(missing_ok=True)
                    raise DivergedError(
                        f"the loss of the CNN is {loss} in epoch {draw.epoch + 1}: the step (--lr) "
                        f"is probably too large, got {settings.lr:g}."
                    )
                state = TrainState(state.step + 1, params, momentum)
                bar.set_postfix(epoch=draw.epoch + 1, loss=f"{loss:.3f}", refresh=False)
                bar.update()
                launch.raise_if_interrupted()
                if state.step % CHECKPOINT_STEPS == 0 or state.step == num_steps:
                    _save(checkpoint, settings, state)
        except KeyboardInterrupt:
            _save(checkpoint, settings, state)
            bar.write(f"The same command goes on after batch {state.step}.", file=sys.stderr)
            raise
    return state


def outputs(
    network: Network,
    params: cnn.Params,
    inputs: NDArray[np.float32],
    image_shape: tuple[int, ...],
) -> Outputs:
    """What the network makes of the central views of images.

    Args:
      network: whose weights `params` are.
      params: its weights.
      inputs: [n, p], pixels in [0, 1].
      image_shape: (channels, rows, columns) of a row of `inputs`.

    Returns:
      Outputs, in the order of the images.
    """
    chunks = [
        cnn.apply_central(
            params, inputs[first : first + CHUNK], network=network, image_shape=image_shape
        )
        for first in range(0, len(inputs), CHUNK)
    ]
    logits, features = zip(*chunks, strict=True)
    return Outputs(np.concatenate(logits), np.concatenate(features))


def _save(checkpoint: Path, settings: Settings, state: TrainState) -> None:
    raw = serialization.to_bytes({"settings": settings._asdict(), "state": state})
    files.write_whole(checkpoint, lambda file: file.write(raw))


def _restore(checkpoint: Path, settings: Settings, start: TrainState) -> TrainState:
    """The state in the checkpoint, or `start` if there is none."""
    if not checkpoint.exists():
        return start
    raw = checkpoint.read_bytes()
    try:
        saved = serialization.msgpack_restore(raw)
        _check_equal(f"{checkpoint} is a training", saved["settings"], settings._asdict())
        state: TrainState = serialization.from_state_dict(start, saved["state"])
        chex.assert_trees_all_equal_shapes_and_dtypes(state[1:], start[1:])
    except InputError:
        raise
    except Exception as error:  # flax and msgpack exclude none
        raise InputError(
            f"{checkpoint} is not the state of a training, or is damaged: delete it to start anew."
        ) from error
    return state


def _check_made_with(out: Path, wanted: Mapping[str, Any]) -> None:
    """Raises InputError unless `out` holds features that were made with the `wanted` flags."""
    try:
        # Opened here, as np.load leaves a damaged file open.
        with open(out, "rb") as file, np.load(file, allow_pickle=False) as saved:
            if saved.zip.getinfo("provenance.npy").file_size > PROVENANCE_BYTES:
                raise ValueError("a description of this length was not written here")
            made_with = json.loads(str(saved["provenance"]))["resolved"]
        _check_equal(f"--out={out} exists with features", made_with, wanted)
    except InputError:
        raise
    except Exception as error:  # numpy and zipfile exclude none
        raise InputError(
            f"--out={out} exists and does not hold features: name another file."
        ) from error


def _check_equal(what: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if found[name] != value:
            raise InputError(
                f"{what} of --{name}={found[name]}, got --{name}={value}: name another file or "
                "folder, or delete it."
            )


if __name__ == "__main__":
    # One computation at a time, which may have all cores: launch leaves a setting that is there.
    os.environ.setdefault("NPROC", str(len(os.sched_getaffinity(0))))
    launch.start(main, define_flags)
