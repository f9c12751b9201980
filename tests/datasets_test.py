"""Data sets as users load them: values, the seeded subset, arguments, the table, the real files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from asvrg.errors import InputError
from experiments.datasets import load, read_sources
from experiments.datasets.files import locate
from experiments.datasets.readers import read_idx
from tests.small_files import (
    BATCH_LABELS,
    FEATURES,
    IMAGES,
    LABELS,
    PIXELS,
    batch_file,
    cifar_source,
    features_file,
    features_source,
    hide_users_folders,
    idx_file,
    idx_source,
    numbered_images,
    sha256,
    tar_file,
    write,
)


@pytest.fixture(autouse=True)
def users_data_dir(monkeypatch, tmp_path):
    return hide_users_folders(monkeypatch, tmp_path)


@pytest.mark.parametrize("place", ["", "mnist"])
def test_idx_files_are_loaded_and_scaled(tmp_path, place):
    source, blobs = numbered_images()
    write(tmp_path / place, blobs)
    dataset = load("mnist", tmp_path, sources={"mnist": source})
    # All six images in a random order, which the first pixel gives away.
    order = np.argsort(dataset.train_inputs[:, 0])
    assert order.tolist() != [0, 1, 2, 3, 4, 5]
    pixels = np.arange(36, dtype=np.float32).reshape(6, 6) / np.float32(255)
    np.testing.assert_array_equal(dataset.train_inputs[order], pixels)
    np.testing.assert_array_equal(dataset.train_labels[order], [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(np.sort(dataset.test_labels), [0, 0, 1, 2])
    assert (dataset.train_inputs.dtype, dataset.train_labels.dtype) == (np.float32, np.int32)
    assert (dataset.name, dataset.image_shape, dataset.num_classes) == ("mnist", (2, 3), 3)


@pytest.mark.parametrize("packing", ["files", "gz", "xz", "one file, the others gz"])
@pytest.mark.parametrize("place", ["", "cifar10"])
def test_cifar_batches_are_loaded_from_files_and_archives(tmp_path, packing, place):
    source, blobs = cifar_source()
    if packing == "files":
        held = blobs
    elif packing in ("gz", "xz"):  # in another order, as in the canonical archive
        held = {f"c.tar.{packing}": tar_file(dict(reversed(blobs.items())), packing)}
    else:
        packed = {name: raw for name, raw in blobs.items() if name != "data_batch_2"}
        held = {"data_batch_2": blobs["data_batch_2"], "c.tar.gz": tar_file(packed)}
    write(tmp_path / place, held)
    dataset = load("cifar10", tmp_path, sources={"cifar10": source})
    for inputs, labels, rows in (
        (dataset.train_inputs, dataset.train_labels, slice(0, 6)),
        (dataset.test_inputs, dataset.test_labels, slice(6, 9)),
    ):
        order = np.argsort(inputs[:, 0])
        np.testing.assert_array_equal(inputs[order], PIXELS[rows] / np.float32(255))
        np.testing.assert_array_equal(labels[order], BATCH_LABELS[rows])


def load_features(folder, *counts, limits=(6, 4), **arrays):
    source = features_source(limits=limits)
    write(folder, {FEATURES: features_file(**arrays)})
    return load("cifar10_features", folder, *counts, sources={source.name: source})


def test_features_are_loaded_as_they_are_and_in_the_files_order(tmp_path):
    dataset = load_features(tmp_path)
    np.testing.assert_array_equal(dataset.train_inputs, np.arange(18).reshape(6, 3))
    np.testing.assert_array_equal(dataset.train_labels, [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(dataset.test_inputs, np.arange(18, 30).reshape(4, 3))
    np.testing.assert_array_equal(dataset.test_labels, [0, 1, 2, 0])
    assert (dataset.train_inputs.dtype, dataset.train_labels.dtype) == (np.float32, np.int32)
    assert (dataset.name, dataset.image_shape) == ("cifar10_features", (3,))
    dataset.train_inputs[0] = 7  # a copy of one's own
    part = load_features(tmp_path, 2, 3, 11)
    np.testing.assert_array_equal(part.train_inputs, np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(part.test_labels, [0, 1, 2])


def test_a_file_with_fewer_features_is_taken_as_a_whole_or_says_how_many_it_holds(tmp_path):
    dataset = load_features(tmp_path, limits=(9, 9))
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (6, 4)
    path = tmp_path / FEATURES
    for counts, flag, held in (((7, 4), "--num_train=7", 6), ((6, 5), "--num_test=5", 4)):
        with pytest.raises(InputError) as error:
            load_features(tmp_path, *counts, limits=(9, 9))
        assert str(error.value) == (
            f"{flag} of --dataset=cifar10_features must be at most {held}, which is what {path} "
            f"holds: for more, delete that file and run python -m the.maker {flag} --out={path}."
        )
    with pytest.raises(InputError, match=r"must be a whole number from 1 to 9, got 10\.$"):
        load_features(tmp_path, 10, limits=(9, 9))


def listed_as(source, name, raw):
    """The source with other bytes for one file, so that its checksum is right."""
    files = [
        file._replace(bytes=len(raw), sha256=sha256(raw)) if file.name == name else file
        for file in source.files
    ]
    return source._replace(files=tuple(files))


def test_labels_out_of_range_are_refused(tmp_path):
    source, blobs = numbered_images()
    raw = idx_file(np.array([0, 1, 3, 0, 0, 9], np.uint8))
    write(tmp_path, blobs | {LABELS: raw})
    # Even if the image with that label is not among those chosen.
    with pytest.raises(InputError, match=rf"{LABELS} has the label 3 at position 2: .* 0 to 2\.$"):
        load("mnist", tmp_path, num_train=1, sources={"mnist": listed_as(source, LABELS, raw)})
    source, blobs = cifar_source()
    raw = batch_file(PIXELS[6:], [0, -1, 2])
    write(tmp_path, {"c.tar.xz": tar_file(blobs | {"test_batch": raw}, "xz")})
    source = listed_as(source, "test_batch", raw)
    with pytest.raises(InputError, match=r"c\.tar\.xz \(member test_batch\) has the label -1 at"):
        load("cifar10", tmp_path, sources={"cifar10": source})
    with pytest.raises(
        InputError, match=r"features\.npz \(test_labels\) has the label 10 at pos.* 3"
    ):
        load_features(tmp_path, 1, 1, test_labels=np.array([0, 1, 2, 10], np.int32))


def chosen(folder, source, **options):
    """The numbers of the images that were chosen for training and for testing."""
    dataset = load("mnist", folder, sources={"mnist": source}, **options)
    drawn = []
    for inputs, labels in (
        (dataset.train_inputs, dataset.train_labels),
        (dataset.test_inputs, dataset.test_labels),
    ):
        drawn.append(np.rint(inputs[:, 0] * 255).astype(int))
        np.testing.assert_array_equal(labels, drawn[-1] % 3)
    return [numbers.tolist() for numbers in drawn]


def test_the_subset_is_the_recorded_one(tmp_path):
    numbers = np.arange(200, dtype=np.uint8)  # an image's one pixel is its number
    images = (numbers.reshape(200, 1, 1), numbers % 3)
    source, blobs = idx_source("mnist", images, images)
    write(tmp_path, blobs)
    train, test = chosen(tmp_path, source, num_train=150)
    assert train[:8] == [62, 179, 130, 189, 145, 136, 85, 40]
    assert test[:8] == [81, 110, 173, 162, 55, 176, 43, 74]
    assert (len(train), len(set(train)), len(set(test))) == (150, 150, 200)
    assert chosen(tmp_path, source, num_train=20, num_test=5) == [train[:20], test[:5]]
    train, test = chosen(tmp_path, source, seed=2**32 - 1)
    assert train[:8] == [26, 197, 81, 152, 156, 158, 43, 27]
    assert test[:8] == [94, 29, 158, 119, 151, 108, 146, 59]


def test_digits_are_split_into_disjoint_parts():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    dataset = load("digits")
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (1437, 360)
    first = [1, 6, 8, 9, 4, 9, 9, 1, 7, 6, 2, 0]
    assert dataset.train_labels[:12].tolist() == first
    assert dataset.test_labels[:12].tolist() == [5, 5, 4, 2, 2, 8, 0, 6, 4, 0, 1, 6]
    parts = np.concatenate([dataset.train_inputs, dataset.test_inputs]) * 16
    classes = np.concatenate([dataset.train_labels, dataset.test_labels])
    both, every = np.column_stack([parts, classes]), np.column_stack([images, labels])
    np.testing.assert_array_equal(both[np.lexsort(both.T)], every[np.lexsort(every.T)])
    part = load("digits", num_train=100, num_test=20)
    np.testing.assert_array_equal(part.train_inputs, dataset.train_inputs[:100])
    np.testing.assert_array_equal(part.test_labels, dataset.test_labels[:20])
    assert load("digits", seed=1).train_labels[:12].tolist() != first


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_train": 1438}, r"--num_train of --dataset=digits must be .* 1 to 1437, got 1438\.$"),
        ({"num_train": 0}, r"--num_train of --dataset=digits .*, got 0\.$"),
        ({"num_test": -5}, r"--num_test of --dataset=digits must be .* from 1 to 360, got -5\.$"),
        ({"num_test": 10.0}, r"--num_test .* a whole number .*, got 10\.0\.$"),
        ({"seed": -1}, r"--seed must be a whole number from 0 to 4294967295, got -1\.$"),
        (
            {"name": "minst"},
            r"--dataset=minst is unknown, did you mean mnist\? accepted are mnist,",
        ),
        ({"name": "Fashion-MNIST"}, r"is unknown, did you mean fashion_mnist\? accepted are"),
        (
            {"name": "xyz"},
            r"--dataset=xyz is unknown; accepted are mnist, .*, cifar10_features, digits\.$",
        ),
    ],
)
def test_arguments_out_of_range(options, sentence):
    with pytest.raises(InputError, match=sentence):
        load(**{"name": "digits", **options})


def test_the_table_agrees_with_itself():
    table = Path(__file__).parents[1] / "third_party" / "datasets.toml"
    sources = read_sources()
    for name, entry in tomllib.loads(table.read_text()).items():
        source = sources[name]
        assert entry["licence"]
        assert entry["licence_source"]
        for split in ("train", "test"):
            assert 1 <= source.default[split] <= source.available[split]
            shapes = [f.shape for f in source.files if f.split == split and f.holds != "labels"]
            if source.files:
                assert sum(shape[0] for shape in shapes) == source.available[split]
            assert all(np.prod(shape[1:]) == np.prod(source.image_shape) for shape in shapes)
        sums = [item.sha256 for item in (*source.files, *source.archives) if item.sha256]
        assert all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in sums)
        assert all(url.endswith("/") for url in source.urls)
    assert len({file.sha256 for source in sources.values() for file in source.files}) == 14
    paper = {
        "mnist": (10_000, 2_000),
        "fashion_mnist": (10_000, 2_000),
        "cifar10": (20_000, 4_000),
        "cifar10_features": (20_000, 4_000),
    }
    for name, (num_train, num_test) in paper.items():
        assert sources[name].default == {"train": num_train, "test": num_test}


def test_the_table_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml is missing: expected the table of data sets"):
        read_sources(tmp_path / "none.toml")


def real_folder(folder, *names):
    if not folder or not any((Path(folder) / name).exists() for name in names):
        pytest.skip(f"ASVRG_DATA_DIR names no folder with {names[0]}")
    return Path(folder)


def test_the_real_mnist(users_data_dir):
    folder = real_folder(users_data_dir, f"mnist/{IMAGES}", IMAGES)
    sources = read_sources()
    found = locate(sources["mnist"], sources, folder).files
    first = {
        file.split: read_idx(found[file.name], file.shape, file.sha256)[:10].tolist()
        for file in sources["mnist"].files
        if file.holds == "labels"
    }
    assert first["train"] == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert first["test"] == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    dataset = load("mnist", folder, num_train=60_000, num_test=10_000)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(dataset.train_labels).tolist() == counts
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(dataset.test_labels).tolist() == counts
    # The mean and deviation with which MNIST is commonly normalised.
    assert dataset.train_inputs.mean(dtype=np.float64) == pytest.approx(0.1307, abs=5e-5)
    assert dataset.train_inputs.std(dtype=np.float64) == pytest.approx(0.3081, abs=5e-5)
    assert (dataset.train_inputs.min(), dataset.train_inputs.max()) == (0, 1)
    part = load("mnist", folder)
    assert part.train_labels[:10].tolist() == [7, 9, 5, 5, 4, 9, 7, 2, 2, 3]
    np.testing.assert_array_equal(part.train_inputs, dataset.train_inputs[:10_000])
    np.testing.assert_array_equal(part.test_labels, dataset.test_labels[:2_000])


def test_the_real_cifar(users_data_dir):
    folder = real_folder(users_data_dir, "cifar-10-batches-py/data_batch_1", "data_batch_1")
    dataset = load("cifar10", folder, num_train=50_000, num_test=10_000)
    assert np.bincount(dataset.train_labels).tolist() == [5000] * 10
    assert np.bincount(dataset.test_labels).tolist() == [1000] * 10
    # The means with which the channels are commonly normalised.
    channels = dataset.train_inputs.reshape(-1, *dataset.image_shape)
    means = channels.mean(axis=(0, 2, 3), dtype=np.float64)
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=5e-5)
