"""Loading a data set: the seeded subset, and the arrays that training reads."""

from __future__ import annotations

import contextlib
import difflib
import os
import shlex
from collections.abc import Generator, Mapping
from typing import NamedTuple

import numpy as np
from absl import logging
from numpy.typing import NDArray

from asvrg.errors import InputError, check_count
from experiments.datasets.files import Located, locate
from experiments.datasets.readers import (
    read_batch,
    read_batch_file,
    read_features,
    read_idx,
    read_members,
)
from experiments.datasets.sources import DataFile, Source, read_sources

_SPLITS = ("train", "test")


class Dataset(NamedTuple):
    """A data set for classification, ready to train on.

    Attributes:
      name: the data set's name.
      train_inputs: [n, p] float32, an image a row: pixels in [0, 1], or features.
      train_labels: [n] int32, in 0, ..., num_classes - 1.
      test_inputs: [n_test, p] float32, as train_inputs.
      test_labels: [n_test] int32, as train_labels.
      num_classes: the number of classes.
      image_shape: what a row reshapes to: (rows, columns), for CIFAR-10 (channels, rows, columns),
        for features (p,).
    """

    name: str
    train_inputs: NDArray[np.float32]
    train_labels: NDArray[np.int32]
    test_inputs: NDArray[np.float32]
    test_labels: NDArray[np.int32]
    num_classes: int
    image_shape: tuple[int, ...]


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    num_train: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
    sources: Mapping[str, Source] | None = None,
) -> Dataset:
    """Loads a data set, or a random part of it.

    The files are looked for in `data_dir` (or, without it, in $ASVRG_DATA_DIR), then in the user's
    cache folder, and are otherwise downloaded there. The training part is drawn from the training
    files, the test part from the test files, without replacement. The same seed gives the same
    images in the same order on every machine, and a smaller part is the beginning of a larger one.
    The digits come with scikit-learn and are first split into 1,437 and 360. The features of
    CIFAR-10 are not downloaded but made by experiments.extract_features; their file holds a subset
    that was drawn likewise, by the seed given there, and of that a part is the beginning.

    Args:
      name: mnist, fashion_mnist, cifar10, cifar10_features or digits.
      data_dir: a folder that holds the data set's files, or a folder of the data set's name with
        them.
      num_train: how many training images; None means the paper's 10,000, of CIFAR-10 and its
        features 20,000 (or the fewer that the features' file holds), and all of the digits.
      num_test: how many test images; None means the paper's 2,000, of CIFAR-10 and its features
        4,000 (or fewer, likewise), and all of the digits.
      seed: of the choice, from 0 to 2**32 - 1; of no effect on the features.
      sources: the table of data sets; None means third_party/datasets.toml.

    Returns:
      The data set.

    Raises:
      InputError: an argument is out of range, a package is not installed, or a file is missing
        and cannot be downloaded, is not what it should be, or holds fewer images.

    Example:
      >>> data = load("digits", num_train=100, num_test=20)
      >>> data.train_inputs.shape, data.train_inputs.dtype, data.image_shape
      ((100, 64), dtype('float32'), (8, 8))
    """
    sources = read_sources() if sources is None else sources
    if name not in sources:
        close = difflib.get_close_matches(name.lower(), sources, n=1)
        guess = f", did you mean {close[0]}?" if close else ";"
        raise InputError(f"--dataset={name} is unknown{guess} accepted are {', '.join(sources)}.")
    source = sources[name]
    seed = check_count("--seed", seed, least=0, most=2**32 - 1)
    given = {"train": num_train, "test": num_test}
    counts = {
        split: source.default[split] if count is None else _checked(split, count, source)
        for split, count in given.items()
    }
    if source.format == "scikit-learn":
        inputs, labels = _digits(source, counts, seed)
    elif source.format == "features":
        found = locate(source, sources, data_dir)
        inputs, labels = _features(source, found, counts, given)
    else:
        rows = {
            split: _shuffled(source.available[split], seed, stream)[: counts[split]]
            for stream, split in enumerate(_SPLITS)
        }
        inputs, labels = _from_files(source, locate(source, sources, data_dir), rows)
    return Dataset(
        name=name,
        train_inputs=inputs["train"],
        train_labels=labels["train"],
        test_inputs=inputs["test"],
        test_labels=labels["test"],
        num_classes=source.num_classes,
        image_shape=source.image_shape,
    )


_Arrays = tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.int32]]]


def _from_files(source: Source, found: Located, rows: Mapping[str, NDArray[np.int64]]) -> _Arrays:
    """Inputs and labels by split: the given rows of the files, and only those in float."""
    num_pixels = int(np.prod(source.image_shape))
    inputs = {split: np.empty((len(rows[split]), num_pixels), np.float32) for split in _SPLITS}
    labels = {split: np.empty(len(rows[split]), np.int32) for split in _SPLITS}
    first = _first_rows(source)
    with contextlib.closing(_decoded(source, found)) as decoded:
        for file, where, pixels, classes in decoded:
            wanted = rows[file.split] - first[file.name]
            here = (wanted >= 0) & (wanted < file.shape[0])
            if pixels is not None:
                flat = pixels.reshape(file.shape[0], num_pixels)
                inputs[file.split][here] = flat[wanted[here]]
            if classes is not None:
                _check_labels(classes, source.num_classes, where)
                labels[file.split][here] = classes[wanted[here]]
    for split in _SPLITS:
        inputs[split] /= np.float32(255)
    return inputs, labels


_Decoded = tuple[DataFile, str, NDArray[np.uint8] | None, NDArray[np.integer] | None]


def _decoded(source: Source, found: Located) -> Generator[_Decoded, None, None]:
    """Every file with its name for sentences, its pixels and its labels; in any order."""
    packed: dict[str, DataFile] = {}
    for file in source.files:
        path = found.files.get(file.name)
        if path is None:
            packed[file.name] = file
        elif file.holds == "batch":
            images, pixels = file.shape
            batch = read_batch_file(path, (images, pixels), file.bytes, file.sha256)
            yield file, str(path), *batch
        else:
            values = read_idx(path, file.shape, file.sha256)
            are_inputs = file.holds == "inputs"
            yield file, str(path), values if are_inputs else None, None if are_inputs else values
    if found.archive is None:
        return
    if found.archive.suffix == ".xz":
        logging.warning("%s takes seconds to decompress, each time: unpack it once.", found.archive)
    sizes = {name: file.bytes for name, file in packed.items()}
    for name, raw in read_members(found.archive, sizes):
        file, where = packed[name], f"{found.archive} (member {name})"
        images, pixels = file.shape
        yield file, where, *read_batch(raw, where, (images, pixels), file.bytes, file.sha256)


def _digits(source: Source, counts: Mapping[str, int], seed: int) -> _Arrays:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(
            "--dataset=digits needs scikit-learn, which is missing: install asvrg[experiments]."
        ) from None
    images, classes = load_digits(return_X_y=True)
    order = _shuffled(sum(source.available.values()), seed, 0)
    rows = {
        "train": order[: counts["train"]],
        "test": order[source.available["train"] :][: counts["test"]],
    }
    inputs = {split: (images[rows[split]] / 16).astype(np.float32) for split in _SPLITS}
    labels = {split: classes[rows[split]].astype(np.int32) for split in _SPLITS}
    return inputs, labels


def _features(
    source: Source,
    found: Located,
    counts: Mapping[str, int],
    given: Mapping[str, int | None],
) -> _Arrays:
    """The beginnings of the file's parts; `counts` gives way to a smaller file unless `given`."""
    assert found.archive is not None  # locate finds it or raises
    path = found.archive
    (num_features,) = source.image_shape
    inputs, labels = {}, {}
    parts = read_features(path, num_features, source.available)
    for split, (features, classes) in parts.items():
        _check_labels(classes, source.num_classes, f"{path} ({split}_labels)")
        held = len(classes)
        if given[split] is not None and counts[split] > held:
            flag = f"--num_{split}={counts[split]}"
            raise InputError(
                f"{flag} of --dataset={source.name} must be at most {held}, which is what {path} "
                f"holds: for more, delete that file and run {source.command} {flag} "
                f"--out={shlex.quote(str(path))}."
            )
        # Copies, as what is read is read-only, and may be far more than is wanted.
        inputs[split] = features[: counts[split]].copy()
        labels[split] = classes[: counts[split]].copy()
    return inputs, labels


def _shuffled(n: int, seed: int, stream: int) -> NDArray[np.int64]:
    """The numbers 0, ..., n - 1 in random order.

    By numpy's legacy generator, whose stream is frozen: numpy promises the same numbers in every
    version and on every machine for it (NEP 19), and not for `default_rng`.
    """
    generator = np.random.RandomState([seed, stream])
    return generator.permutation(n).astype(np.int64)


def _first_rows(source: Source) -> dict[str, int]:
    """The row of the split at which each file begins."""
    filled: dict[tuple[str, str], int] = {}
    first: dict[str, int] = {}
    for file in source.files:
        first[file.name] = filled.get((file.split, file.holds), 0)
        filled[file.split, file.holds] = first[file.name] + file.shape[0]
    return first


def _checked(split: str, count: int, source: Source) -> int:
    flag = f"--num_{split} of --dataset={source.name}"
    return check_count(flag, count, most=source.available[split])


def _check_labels(labels: NDArray[np.integer], num_classes: int, where: str) -> None:
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        raise InputError(
            f"{where} has the label {labels[bad[0]]} at position {bad[0]}: "
            f"expected 0 to {num_classes - 1}."
        )
