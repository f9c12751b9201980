"""Whatever bytes a file holds, its reader gives the right content or an InputError, and no more.

The files are the whole ones, cut, with bits and runs of bytes changed, or made up. Nothing that
they say is run, and no memory is taken for what they only promise.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asvrg.errors import InputError
from experiments import cnn, extract_features, traces, train_shared
from experiments.datasets import readers
from experiments.speedup import short_runs
from experiments.theory import measuring
from experiments.traces import storage
from tests import small_files, traces_test
from tests.binaries import SMALL, run

pytestmark = pytest.mark.timeout(60)

MEGABYTE = 1 << 20
NESTED = b"[" * 100_000
fuzz = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A way to damage a file: a cut, changed bits, a run of other bytes, or another file."""
    kind = draw(st.sampled_from(["cut", "flip", "flip", "run", "other", "longer"]))
    places = draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=3))
    mask, noise = draw(st.integers(1, 255)), draw(st.binary(min_size=1, max_size=64))

    def damaged(raw: bytes) -> bytes:
        at = [int(place * len(raw)) for place in places]
        if kind == "cut":
            return raw[: at[0]]
        if kind == "longer":
            return raw + noise
        if kind == "other":
            return noise
        changed = bytearray(raw)
        if kind == "run":
            changed[at[0] : at[0] + len(noise)] = noise
        for each in at if kind == "flip" else ():
            changed[each] ^= mask
        return bytes(changed)

    return damaged


@contextlib.contextmanager
def little_memory(most: int) -> Iterator[None]:
    """Fails where Python and numpy take more memory than that in between."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def outcome(read: Callable[[], Any]) -> Any:
    """What a reader gives, or None where it refuses; any other exception fails the test."""
    try:
        with little_memory(16 * MEGABYTE):  # the buffers of an archive's reader
            return read()
    except InputError:
        return None


SIX = np.arange(36, dtype=np.uint8).reshape(6, 2, 3)
BATCH = small_files.batch_file(small_files.PIXELS[:3], small_files.BATCH_LABELS[:3])
MEMBERS = {"one": b"first", "two": b"second one"}


def of_idx(path: Path, raw: bytes) -> Any:
    return readers.read_idx(path, (6, 2, 3), small_files.sha256(raw)).tolist()


def of_batch(path: Path, raw: bytes) -> Any:
    pair = readers.read_batch_file(path, (3, 12), len(raw), small_files.sha256(raw))
    return [array.tolist() for array in pair]


def of_archive(path: Path, raw: bytes) -> Any:
    return list(readers.read_members(path, {name: len(held) for name, held in MEMBERS.items()}))


def of_features(path: Path, raw: bytes) -> Any:
    parts = readers.read_features(path, 3, {"train": 6, "test": 4})
    return [array.tolist() for part in parts.values() for array in part]


# The whole file, its reader, and whether what it holds is told from any other: readers of files
# with a checksum are given the damaged one's here, as what comes after that check is looked at.
DATA_FILES = {
    "images.gz": (small_files.idx_file(SIX), of_idx, False),
    "data_batch_1": (BATCH, of_batch, False),
    "c.tar.gz": (small_files.tar_file(MEMBERS), of_archive, True),
    "c.tar.xz": (small_files.tar_file(MEMBERS, "xz"), of_archive, True),
    "features.npz": (small_files.features_file(), of_features, True),
    "plain.npz": (small_files.features_file(np.savez), of_features, True),
}


@pytest.mark.parametrize("name", DATA_FILES)
@fuzz
@given(damage=damages())
def test_damaged_data_files_are_refused_or_read(tmp_path, name, damage) -> None:
    raw, read, is_told = DATA_FILES[name]
    (tmp_path / name).write_bytes(raw)
    whole = read(tmp_path / name, raw)
    damaged = damage(raw)
    (tmp_path / name).write_bytes(damaged)
    found = outcome(lambda: read(tmp_path / name, damaged))
    assert found is None or not is_told or found == whole


OPCODES = [bytes([code]) for code in range(256)]
NAMES = [b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"]


@fuzz
@given(st.lists(st.sampled_from([*OPCODES, *NAMES]), max_size=30))
def test_a_pickle_of_any_opcodes_runs_nothing(parts) -> None:
    """Every class that the unpickler lets through is a stand-in of ours."""
    raw = b"\x80\x02" + b"".join(parts) + b"."
    sha256 = small_files.sha256(raw)
    assert outcome(lambda: readers.read_batch(raw, "batch", (3, 12), len(raw), sha256)) is None


def test_pickles_that_would_run_or_take_memory_are_refused(tmp_path) -> None:
    marker = tmp_path / "it ran"
    system = f"touch '{marker}'".encode()
    deep = b"]" * 50_000 + b"a" * 49_999
    hostile = [
        b"cos\nsystem\n(S'" + system.replace(b"'", b"") + b"'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(system)]) + system + b"\x85R.",
        b"\x80\x02B\xff\xff\xff\x7f.",  # two gigabytes of a string
        b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b".",
        b"\x80\x02J\xff\xff\xff\x7fr\xff\xff\xff\x7f.",  # a memo of 2^31 places
        b"\x80\x02" + deep + b".",
        b"\x80\x04\x95" + (1 << 62).to_bytes(8, "little") + b".",
        pickle.dumps(os.getcwd),
    ]
    for raw in hostile:
        sha256 = small_files.sha256(raw)
        with little_memory(20 * MEGABYTE), pytest.raises(InputError, match="corrupted|not a batch"):
            readers.read_batch(raw, "batch", (3, 12), len(raw), sha256)
    assert not marker.exists()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A record of two epochs, of arrays alone."""
    folder = tmp_path_factory.mktemp("recorded")
    every = [traces_test.a_trace(seed, everything=True) for seed in (1, 2)]
    traces_test.record(folder, every)
    return folder


def everything(folder: Path) -> Any:
    found = traces.load(folder)
    return found.header, list(found.epochs), found.last_epoch, found.last_x.tobytes()


@pytest.mark.parametrize("name", ["run.json", "epoch-00002.npz", "x.npz", "shards-*.npz"])
@fuzz
@given(damage=damages())
def test_damaged_traces_are_refused_or_read(recorded, name, damage) -> None:
    path = next((recorded / "trace").glob(name))
    raw, whole = path.read_bytes(), everything(recorded)
    try:
        path.write_bytes(damage(raw))
        found = outcome(lambda: everything(recorded))
    finally:
        path.write_bytes(raw)
    if found is not None:
        np.testing.assert_equal(found, whole)


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


@fuzz
@given(field=st.sampled_from(traces.Header._fields), value=ANYTHING)
def test_a_sealed_header_that_no_run_has_written_is_refused(recorded, field, value) -> None:
    """With the right checksum, so that all of it was meant."""
    path = recorded / "trace" / "run.json"
    written, whole = path.read_text(), everything(recorded)
    record = json.loads(written)
    del record["sha256"]
    record[field] = value
    try:
        path.write_text(json.dumps({**record, "sha256": traces.seal(record)}))
        found = outcome(lambda: everything(recorded))
    finally:
        path.write_text(written)
    # The numbers of workers and samples alone may be larger, and the data another's.
    if found is not None:
        assert field in ("num_workers", "num_samples", "data_sha256")
        np.testing.assert_equal(found[1], whole[1])


@fuzz
@given(entry=st.sampled_from(["run_id", "number", "estimator", "lr", "before", "after", "shards",
                              "sees_own"]), value=ANYTHING)  # fmt: skip
def test_an_epoch_that_says_anything_is_refused_or_read(recorded, entry, value) -> None:
    path = traces.epoch_file(recorded / "trace", 2)
    raw = path.read_bytes()
    found, arrays = storage.read(path, limit=MEGABYTE)
    try:
        storage.write(path, {**found, entry: value}, arrays)
        outcome(lambda: everything(recorded))
    finally:
        path.write_bytes(raw)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", NESTED),
        ("run.json", b'{"format": "asvrg trace", "version": 1, "sha256": ' + b"9" * 10_000 + b"}"),
        ("x.npz", b"PK\5\6" + bytes(18)),
    ],
)
def test_hostile_files_of_a_trace_are_refused(recorded, tmp_path, name, content) -> None:
    shutil.copytree(recorded, tmp_path / "run")
    (tmp_path / "run" / "trace" / name).write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        traces.load(tmp_path / "run")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_that_decompresses_to_far_more_takes_no_memory(tmp_path, method) -> None:
    """Also where its directory says nothing of it."""
    path, stream = tmp_path / "x.npz", io.BytesIO()
    size = 50 * MEGABYTE
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("x.npy", bytes(size))
    bomb = stream.getvalue()
    liar = bomb.replace(size.to_bytes(4, "little"), (1_000).to_bytes(4, "little"))
    assert liar != bomb
    for raw in (bomb, liar):
        path.write_bytes(raw)
        with little_memory(MEGABYTE), pytest.raises(InputError, match="is damaged"):
            storage.read(path, limit=storage.SLACK)


@pytest.mark.parametrize("entry", ["record", "worker"])
def test_a_record_of_deep_nesting_or_pickles_is_refused(tmp_path, entry) -> None:
    path = tmp_path / "x.npz"
    arrays: dict[str, Any] = {"record": np.frombuffer(b"{}", np.uint8)}
    arrays[entry] = np.frombuffer(NESTED, np.uint8) if entry == "record" else np.array([{}], object)
    np.savez_compressed(path, **arrays)
    with pytest.raises(InputError, match="is damaged"):
        storage.read(path, limit=MEGABYTE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """What train_shared leaves, with a record."""
    folder = tmp_path_factory.mktemp("trained")
    assert run(train_shared, *SMALL, "--record", f"--out_dir={folder}") == 0
    shutil.rmtree(folder / "checkpoint")  # which has a reader and tests of its own
    return folder


@pytest.mark.parametrize("name", ["config.json", "metrics.csv"])
@fuzz
@given(damage=damages())
def test_damaged_results_are_refused_or_read(trained, name, damage) -> None:
    raw = (trained / name).read_bytes()
    try:
        (trained / name).write_bytes(damage(raw))
        with contextlib.suppress(InputError):
            measuring.recorded_run(trained, None)
        if name == "metrics.csv":
            with contextlib.suppress(InputError):
                short_runs.recorded(str(trained))
    finally:
        (trained / name).write_bytes(raw)


FLAGS = ("dataset", "hidden", "l2", "seed", "num_train", "activation", "dtype", "data_dir",
         "method", "inner_steps", "driver", "block_size", "pretrain_epochs")  # fmt: skip


@fuzz
@given(name=st.sampled_from(FLAGS), value=ANYTHING)
def test_a_config_that_says_anything_is_refused_or_read(trained, name, value) -> None:
    path = trained / "config.json"
    written = path.read_text()
    config = json.loads(written)
    config["flags"][name] = value
    try:
        path.write_text(json.dumps(config))
        with contextlib.suppress(InputError):
            measuring.recorded_run(trained, None)
    finally:
        path.write_text(written)


def test_deep_nesting_in_a_config_is_refused(trained, tmp_path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_bytes(NESTED)
    with pytest.raises(InputError, match="RecursionError"):
        measuring.recorded_run(tmp_path / "run", None)


START = cnn.TrainState(0, {"w": np.ones((2, 2), np.float32)}, {"w": np.zeros((2, 2), np.float32)})
MADE_WITH = extract_features.Settings(1, 2, 0.1, 0)


@fuzz
@given(damage=damages())
def test_a_damaged_training_state_is_refused_or_read(tmp_path, damage) -> None:
    path = tmp_path / "checkpoint"
    raw = serialization.to_bytes({"settings": MADE_WITH._asdict(), "state": START})
    path.write_bytes(damage(raw))
    with contextlib.suppress(InputError):
        found = extract_features._restore(path, MADE_WITH, START)
        assert found.params["w"].shape == (2, 2)


@fuzz
@given(damage=damages())
def test_damaged_features_are_not_taken_for_ones_made_with_these_flags(tmp_path, damage) -> None:
    path, wanted = tmp_path / "features.npz", {"seed": 0}
    np.savez_compressed(path, provenance=np.array(json.dumps({"resolved": wanted})))
    extract_features._check_made_with(path, wanted)
    path.write_bytes(damage(path.read_bytes()))
    with contextlib.suppress(InputError):
        extract_features._check_made_with(path, wanted)
