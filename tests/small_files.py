"""Small data sets in the canonical formats, and the sources that describe them."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import tarfile

import numpy as np

from experiments.datasets import Source
from experiments.datasets.sources import Archive, DataFile

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
FEATURES = "cifar10_features.npz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"

# CIFAR-10 in small: nine images of 3 x 2 x 2 pixels.
PIXELS = np.arange(9 * 12, dtype=np.uint8).reshape(9, 12)
BATCH_LABELS = [0, 1, 2, 2, 1, 0, 1, 0, 2]


def sha256(raw):
    return hashlib.sha256(raw).hexdigest()


def write(folder, blobs):
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in blobs.items():
        (folder / name).write_bytes(raw)
    return folder


def hide_users_folders(monkeypatch, tmp_path):
    """Gives a test its own cache folder, no data folder and no proxy; returns the user's folder."""
    folder = os.environ.get("ASVRG_DATA_DIR")
    monkeypatch.delenv("ASVRG_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


def idx_file(values, dims=None, magic=None):
    dims = values.shape if dims is None else dims
    magic = bytes([0, 0, 8, len(dims)]) if magic is None else magic
    header = magic + struct.pack(f">{len(dims)}I", *dims)
    return gzip.compress(header + values.tobytes(), mtime=0)


def idx_source(name, train, test, urls=()):
    """A source of four idx files, and the files.

    Args:
      name: the data set's name.
      train: the images [n, rows, columns] and the labels [n], uint8.
      test: the same.
      urls: the mirrors.

    Returns:
      The source, and the files' bytes by name.
    """
    arrays = {
        IMAGES: ("train", "inputs", train[0]),
        LABELS: ("train", "labels", train[1]),
        TEST_IMAGES: ("test", "inputs", test[0]),
        TEST_LABELS: ("test", "labels", test[1]),
    }
    blobs = {file: idx_file(values) for file, (_, _, values) in arrays.items()}
    files = tuple(
        DataFile(file, split, holds, values.shape, len(blobs[file]), sha256(blobs[file]))
        for file, (split, holds, values) in arrays.items()
    )
    counts = {"train": len(train[0]), "test": len(test[0])}
    source = Source(
        name=name,
        format="idx",
        num_classes=3,
        image_shape=train[0].shape[1:],
        available=counts,
        default=counts,
        folders=tuple(dict.fromkeys((name, name.replace("_", "-")))),
        urls=urls,
        files=files,
    )
    return source, blobs


def numbered_images(name="mnist", first=0, urls=()):
    """Six and four images of 2 x 3 pixels; pixel values count up from `first`."""
    images = (np.arange(60, dtype=np.uint8) + first).reshape(10, 2, 3)
    labels = np.arange(10, dtype=np.uint8) % 3
    return idx_source(name, (images[:6], labels[:6]), (images[6:], labels[6:]), urls)


def batch_file(pixels, labels, dtype=b"u1", shape=None):
    """A batch as Python 2 and numpy 1 pickled it: the opcodes of the canonical files."""

    def string(text):
        return b"T" + struct.pack("<I", len(text)) + text

    def integer(number):
        return b"J" + struct.pack("<i", number)

    rows, columns = pixels.shape if shape is None else shape
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b")
    byte_type = b"cnumpy\ndtype\n" + string(dtype) + b"K\x00K\x01\x87R(K\x03" + string(b"|")
    byte_type += b"NNN" + integer(-1) + integer(-1) + b"K\x00tb"
    state = b"(K\x01" + integer(rows) + integer(columns) + b"\x86" + byte_type + b"\x89"
    array = empty + b"\x87R" + state + string(pixels.tobytes()) + b"tb"
    numbers = b"](" + b"".join(integer(label) for label in labels) + b"e"
    return b"\x80\x02}(" + string(b"labels") + numbers + string(b"data") + array + b"u."


def cifar_source(urls=()):
    """A source of two training batches and a test batch of three images each, and the files."""
    rows = {"data_batch_1": slice(0, 3), "data_batch_2": slice(3, 6), "test_batch": slice(6, 9)}
    blobs = {name: batch_file(PIXELS[r], BATCH_LABELS[r]) for name, r in rows.items()}
    files = tuple(
        DataFile(name, name.split("_")[0].replace("data", "train"), "batch", (3, 12), len(raw), sha)
        for name, raw, sha in ((name, raw, sha256(raw)) for name, raw in blobs.items())
    )
    counts = {"train": 6, "test": 3}
    source = Source(
        name="cifar10",
        format="cifar",
        num_classes=3,
        image_shape=(3, 2, 2),
        available=counts,
        default=counts,
        folders=("cifar10",),
        urls=urls,
        files=files,
        archives=(Archive("c.tar.gz", sha256(tar_file(blobs))), Archive("c.tar.xz", None)),
    )
    return source, blobs


def features_file(save=np.savez_compressed, **arrays):
    """An .npz with six and four samples of three features; `arrays` replace its own, None drops."""
    numbers = np.arange(30, dtype=np.float32).reshape(10, 3)
    labels = np.arange(10, dtype=np.int32) % 3
    own = {
        "train_inputs": numbers[:6],
        "train_labels": labels[:6],
        "test_inputs": numbers[6:],
        "test_labels": labels[6:],
        "provenance": np.array("by hand"),
    }
    stream = io.BytesIO()
    save(stream, **{name: a for name, a in (own | arrays).items() if a is not None})
    return stream.getvalue()


def features_source(num_features=3, limits=(6, 4)):
    """A source of features, in a file that `features_file` makes."""
    counts = dict(zip(("train", "test"), limits, strict=True))
    return Source(
        name="cifar10_features",
        format="features",
        num_classes=10,
        image_shape=(num_features,),
        available=counts,
        default=counts,
        folders=("cifar10_features",),
        archives=(Archive(FEATURES, None),),
        command="python -m the.maker",
    )


def tar_file(blobs, compression="gz", member_type=tarfile.REGTYPE):
    """An archive with the blobs, in a folder and after a file that nobody wants."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{compression}") as tar:
        for name, raw in {"readme.html": b"not wanted", **blobs}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.type = member_type
            member.size = len(raw) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(raw))
    return stream.getvalue()
