"""The readers of canonical files, on small ones with every defect."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest

from asvrg.errors import InputError
from experiments.datasets.readers import (
    read_batch,
    read_batch_file,
    read_features,
    read_idx,
    read_members,
)
from tests.small_files import (
    BATCH_LABELS,
    FEATURES,
    IMAGES,
    PIXELS,
    batch_file,
    features_file,
    idx_file,
    sha256,
    tar_file,
    write,
)

SIX = np.arange(36, dtype=np.uint8).reshape(6, 2, 3)
GOOD_IDX = idx_file(SIX)
BATCH = batch_file(PIXELS[:3], BATCH_LABELS[:3])


def flip(raw, position):
    return raw[:position] + bytes([raw[position] ^ 0xFF]) + raw[position + 1 :]


def test_idx_values_are_read_in_order(tmp_path):
    path = write(tmp_path, {IMAGES: GOOD_IDX}) / IMAGES
    np.testing.assert_array_equal(read_idx(path, (6, 2, 3), sha256(GOOD_IDX)), SIX)


# The bytes, whether the checksum expected is theirs, and the sentence.
IDX_DEFECTS = {
    "empty": (b"", False, r"is empty: expected a gzipped idx file of 6 x 2 x 3 bytes\.$"),
    "not gzip": (b"<html></html>", False, r"is corrupted, or not gzipped: .*header"),
    "header cut": (gzip.compress(b"\0\0\x08\3\0"), True, r"a header of 16 bytes, found 5\.$"),
    "gzip cut": (
        GOOD_IDX[:45],
        True,
        r"is truncated: expected 6 x 2 x 3 bytes after its header, found \d+ bytes\.$",
    ),
    "only gzip's checksum cut": (GOOD_IDX[:-4], True, r"expected gzip's checksum at its end"),
    "an image too few": (idx_file(SIX[:5], dims=(6, 2, 3)), True, r"truncated.*, found 30 bytes"),
    "an image too many": (
        idx_file(np.concatenate([SIX, SIX[:1]]), dims=(6, 2, 3)),
        True,
        r"is too long or corrupted: expected 6 x 2 x 3 bytes after its header, found more",
    ),
    "a flipped byte": (flip(GOOD_IDX, 40), True, r"is corrupted, or not gzipped"),
    "a flipped byte in gzip's header": (flip(GOOD_IDX, 5), False, r"expected SHA-256"),
    "other images": (idx_file(SIX[::-1]), False, r"is corrupted or another file: .*SHA-256"),
    "floats": (idx_file(SIX, magic=b"\0\0\x0d\3"), True, r"0x00000803 .*, found 0x00000d03"),
    "labels": (idx_file(SIX[:, 0, 0]), True, r"is another kind of file: .*0x00000801"),
    "turned images": (idx_file(SIX.reshape(6, 3, 2)), True, r"6 x 2 x 3, found 6 x 3 x 2\.$"),
    "a huge promise": (
        idx_file(SIX, dims=(2**32 - 1, 2, 3)),
        True,
        r"wrong shape: expected 6 x 2 x 3, found 4294967295 x 2 x 3",
    ),
}


@pytest.mark.parametrize(("raw", "listed", "sentence"), IDX_DEFECTS.values(), ids=IDX_DEFECTS)
def test_defects_of_idx_files(tmp_path, raw, listed, sentence):
    path = write(tmp_path, {IMAGES: raw}) / IMAGES
    with pytest.raises(InputError, match=sentence) as error:
        read_idx(path, (6, 2, 3), sha256(raw if listed else GOOD_IDX))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_file_that_promises_or_holds_too_much_takes_no_memory(tmp_path):
    bomb = idx_file(np.zeros(5 * 10**7, np.uint8), dims=(6, 2, 3))  # 49 kB
    padded = GOOD_IDX + bytes(10**7)
    huge = idx_file(SIX, dims=(10**4, 10**4, 10**4))
    for raw in (bomb, padded, huge):
        path = write(tmp_path, {IMAGES: raw}) / IMAGES
        checksum = sha256(raw)
        tracemalloc.start()
        try:
            with pytest.raises(InputError, match=r"is too long|has the wrong shape"):
                read_idx(path, (6, 2, 3), checksum)
            assert tracemalloc.get_traced_memory()[1] < 10**6
        finally:
            tracemalloc.stop()


BATCH_DEFECTS = {
    "empty": (b"", False, r"is empty: expected a batch of CIFAR-10, \d+ bytes"),
    "cut": (BATCH[:-1], False, rf"truncated: expected {len(BATCH)} bytes, found {len(BATCH) - 1}"),
    "longer": (BATCH + b".", False, rf"is too long: expected {len(BATCH)} bytes"),
    "a flipped byte": (flip(BATCH, 80), False, r"is corrupted or another file: expected SHA-256"),
    "cut, and listed so": (BATCH[:-1], True, r"is corrupted: expected a dict with 'data'"),
    "no pickle": (b"<html></html>", True, r"is corrupted: expected a dict"),
    "no dict": (pickle.dumps([1]), True, r"is not a batch of CIFAR-10"),
    "no arrays": (pickle.dumps({b"data": 1, b"labels": 2}), True, r"has no pixels"),
    "wider images": (batch_file(np.zeros((3, 13), np.uint8), [0] * 3), True, r"of another shape"),
    "an image short": (batch_file(PIXELS[:2], [0] * 3, shape=(3, 12)), True, r"another shape"),
    "floats": (batch_file(PIXELS[:3], [0] * 3, dtype=b"f8"), True, r"expected .* 3 x 12 bytes"),
    "a huge promise": (
        batch_file(PIXELS[:3], [0] * 3, shape=(2**31 - 1, 12)),
        True,
        r"of another shape",
    ),
    "a label short": (batch_file(PIXELS[:3], [0, 1]), True, r"not one an image: .* 3 integers"),
}


@pytest.mark.parametrize(("raw", "listed", "sentence"), BATCH_DEFECTS.values(), ids=BATCH_DEFECTS)
def test_defects_of_cifar_batches(tmp_path, raw, listed, sentence):
    path = write(tmp_path, {"data_batch_1": raw}) / "data_batch_1"
    expected = raw if listed else BATCH
    with pytest.raises(InputError, match=sentence) as error:
        read_batch_file(path, (3, 12), len(expected), sha256(expected))
    assert str(error.value).startswith(str(path))


class RunsCode:
    """Pickles to a call of os.mkdir."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("listed", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, listed):
    marker = tmp_path / "it ran"
    raw = pickle.dumps({b"data": RunsCode(str(marker)), b"labels": [0] * 3}, protocol=3)
    pickle.loads(raw)
    marker.rmdir()  # so it does run where it is let
    checksum = sha256(raw if listed else BATCH)
    with pytest.raises(InputError, match=r"mkdir, which is refused" if listed else "SHA-256"):
        read_batch(raw, "batch", (3, 12), len(raw), checksum)
    assert not marker.exists()


NOISE = np.random.RandomState(0).bytes(50_000)
ARCHIVE_DEFECTS = {
    "empty": (b"", r"is empty: expected a tar archive with one, two"),
    "no archive": (b"<html></html>", r"is truncated or corrupted: expected a tar archive"),
    "cut": (tar_file({"one": bytes(9), "two": NOISE})[:40_000], r"is truncated or corrupted"),
    "a member short": (tar_file({"one": b""}), r"one\) is truncated: expected 9 bytes, found 0"),
    "a member long": (tar_file({"one": bytes(10)}), r"is too long: expected 9 bytes, found 10"),
    "a member missing": (tar_file({"one": bytes(9)}), r"is incomplete: .* found no two\.$"),
    "a link": (
        tar_file({"one": bytes(9)}, member_type=tarfile.SYMTYPE),
        r"one\) is not a file: expected a regular",
    ),
    "a flood": (tar_file({"x": bytes(3 * 10**7), "one": bytes(9)}), r"found far more data"),
}


@pytest.mark.parametrize(("raw", "sentence"), ARCHIVE_DEFECTS.values(), ids=ARCHIVE_DEFECTS)
def test_defects_of_archives(tmp_path, raw, sentence):
    path = write(tmp_path, {"c.tar.gz": raw}) / "c.tar.gz"
    with pytest.raises(InputError, match=sentence) as error:
        list(read_members(path, {"one": 9, "two": 50_000}))
    assert str(error.value).startswith(str(path))


LIMITS = {"train": 6, "test": 4}


def save_npy(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), version=(1, 0))
    return stream.getvalue()


def replaced(content, name="train_inputs", method=zipfile.ZIP_DEFLATED):
    """The small file of features with other bytes in the place of one array's."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(features_file())) as old, zipfile.ZipFile(stream, "w") as new:
        for info in old.infolist():
            is_that = info.filename == f"{name}.npy"
            raw = content if is_that else old.read(info)
            new.writestr(info.filename, raw, method if is_that else zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def header(shape, descr="<f4"):
    """The .npy header alone."""
    stream = io.BytesIO()
    entries = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, entries)
    return stream.getvalue()


SIX_BY_3 = np.arange(18, dtype=np.float32).reshape(6, 3)
NOT_FINITE = SIX_BY_3.copy()
NOT_FINITE[4, 1:] = np.nan, np.inf
GOOD_FEATURES = features_file()
FEATURES_DEFECTS = {
    "empty": (b"", r"is empty: expected an \.npz with the arrays train_inputs, train_labels and"),
    "no zip": (
        b"<html></html>",
        r"is truncated, corrupted or another file: .*, found: File is not",
    ),
    "cut": (GOOD_FEATURES[:-30], r"is truncated, corrupted or another file: expected an \.npz"),
    "an .npy": (save_npy(SIX_BY_3), r"is truncated, corrupted or another file"),
    "another .npz": (
        features_file(train_inputs=None, test_inputs=None),
        r"holds no train_inputs: expected it as train_inputs\.npy, found train_labels\.npy, ",
    ),
    "no labels": (features_file(test_labels=None), r"holds no test_labels"),
    "an empty zip": (b"PK\5\6" + bytes(18), r"holds no train_inputs: .*, found nothing\.$"),
    "a flipped byte": (replaced(b"?" + save_npy(SIX_BY_3)[1:]), r"found: the magic string is not"),
    "floats of 64 bits": (
        features_file(train_inputs=SIX_BY_3.astype(np.float64)),
        r"as float64 of shape \(6, 3\): expected float32 of shape \(n, 3\), row by row\.$",
    ),
    "the other byte order": (
        features_file(train_inputs=SIX_BY_3.astype(">f4")),
        r"as >f4 of shape",
    ),
    "columns first": (features_file(train_inputs=np.asfortranarray(SIX_BY_3)), "row by row"),
    "more features": (
        features_file(test_inputs=np.zeros((4, 4), np.float32)),
        r"test_inputs as float32 of shape \(4, 4\):",
    ),
    "labels of 64 bits": (
        features_file(test_labels=np.arange(4)),
        r"as int64 of shape \(4,\): expected int32 of shape \(n\),",
    ),
    "labels in columns": (
        features_file(test_labels=np.zeros((4, 1), np.int32)),
        r"as int32 of shape \(4, 1\):",
    ),
    "a number": (features_file(test_labels=np.array(1, np.int32)), r"as int32 of shape \(\):"),
    "a label short": (
        features_file(train_labels=np.zeros(5, np.int32)),
        r"has 5 train_labels: expected one for each of the 6 train_inputs\.$",
    ),
    "too many": (
        features_file(test_inputs=np.zeros((5, 3), np.float32)),
        r"holds 5 test_inputs: expected 1 to 4\.$",
    ),
    "none": (features_file(train_inputs=SIX_BY_3[:0]), r"holds 0 train_inputs: expected 1 to 6"),
    "not finite": (
        features_file(train_inputs=NOT_FINITE),
        r"has nan in train_inputs at row 4, column 1: expected finite numbers\.$",
    ),
    "a row short": (
        replaced(save_npy(SIX_BY_3)[:-12]),
        r"\(array train_inputs\) is truncated: expected 72 bytes, found 60\.$",
    ),
    "a byte more": (
        replaced(save_npy(SIX_BY_3) + b"x"),
        r"is too long: expected 72 bytes, found 73",
    ),
    "a huge promise": (replaced(header((2**62, 3))), r"holds 4611686018427387904 train_inputs"),
    "less than nothing": (replaced(header((-6, 3))), r"holds -6 train_inputs: expected 1 to 6"),
    "no header": (replaced(b"\x93NUMPY\1\0\x08\0{[](7)}\n"), r"found: malformed node"),
    "a long header": (replaced(b"\x93NUMPY\2\0\xff\xff\xff\xff"), r"\(2, 0\): expected \(1, 0\)"),
    "bzip2": (replaced(save_npy(SIX_BY_3), method=zipfile.ZIP_BZIP2), r"compression method 12"),
}


@pytest.mark.parametrize(("raw", "sentence"), FEATURES_DEFECTS.values(), ids=FEATURES_DEFECTS)
def test_defects_of_features(tmp_path, raw, sentence):
    path = write(tmp_path, {FEATURES: raw}) / FEATURES
    with pytest.raises(InputError, match=sentence) as error:
        read_features(path, 3, LIMITS)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_features_that_are_damaged_anywhere_are_refused_or_read_unharmed(tmp_path, save):
    good = features_file(save)
    path = tmp_path / FEATURES

    def read(raw):
        path.write_bytes(raw)
        parts = read_features(path, 3, LIMITS)
        return [array.tolist() for split in LIMITS for array in parts[split]]

    expected = read(good)
    assert expected[:2] == [SIX_BY_3.tolist(), [0, 1, 2, 0, 1, 2]]
    for length in range(0, len(good), 7):
        with pytest.raises(InputError):
            read(good[:length])
    for position in range(len(good)):
        with contextlib.suppress(InputError):
            assert read(flip(good, position)) == expected, position


def test_pickled_features_are_refused_and_not_run(tmp_path):
    marker = tmp_path / "it ran"
    array = np.array([RunsCode(str(marker))] * 6, dtype=object)
    path = write(tmp_path, {FEATURES: features_file(train_inputs=array)}) / FEATURES
    with np.load(path, allow_pickle=True) as saved:
        assert len(saved["train_inputs"]) == 6
    marker.rmdir()  # so it does run where it is let
    with pytest.raises(
        InputError, match=r"holds train_inputs as object of shape \(6,\): expected float32"
    ):
        read_features(path, 3, LIMITS)
    assert not marker.exists()


def test_features_that_decompress_to_far_more_take_no_memory(tmp_path):
    bomb = replaced(save_npy(SIX_BY_3) + bytes(10**8))
    # The same, and the directory understates it: its size field is that of an honest file.
    size = struct.pack("<I", len(save_npy(SIX_BY_3)) + 10**8)
    liar = bomb.replace(size, struct.pack("<I", len(save_npy(SIX_BY_3))))
    assert liar != bomb
    for raw in (bomb, liar):
        path = write(tmp_path, {FEATURES: raw}) / FEATURES
        tracemalloc.start()
        try:
            with pytest.raises(InputError, match=r"is too long|Bad CRC"):
                read_features(path, 3, LIMITS)
            assert tracemalloc.get_traced_memory()[1] < 10**6
        finally:
            tracemalloc.stop()


def test_paths_that_are_no_readable_files(tmp_path):
    (tmp_path / IMAGES).mkdir()
    with pytest.raises(InputError, match=f"{IMAGES} is not a file: expected a gzipped idx"):
        read_idx(tmp_path / IMAGES, (6, 2, 3), "")
    with pytest.raises(InputError, match="none is missing: expected a tar archive with one"):
        list(read_members(tmp_path / "none", {"one": 9}))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=r"loop (is missing|cannot be read)"):
        read_idx(tmp_path / "loop", (6, 2, 3), "")
