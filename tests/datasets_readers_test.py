"""The readers of canonical files, on small ones with every defect."""

from __future__ import annotations

import gzip
import os
import pickle
import tarfile
import tracemalloc

import numpy as np
import pytest

from asvrg.errors import InputError
from experiments.datasets.readers import read_batch, read_batch_file, read_idx, read_members
from tests.small_files import (
    BATCH_LABELS,
    IMAGES,
    PIXELS,
    batch_file,
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


def test_paths_that_are_no_readable_files(tmp_path):
    (tmp_path / IMAGES).mkdir()
    with pytest.raises(InputError, match=f"{IMAGES} is not a file: expected a gzipped idx"):
        read_idx(tmp_path / IMAGES, (6, 2, 3), "")
    with pytest.raises(InputError, match="none is missing: expected a tar archive with one"):
        list(read_members(tmp_path / "none", {"one": 9}))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=r"loop (is missing|cannot be read)"):
        read_idx(tmp_path / "loop", (6, 2, 3), "")
