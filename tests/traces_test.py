"""Records of runs: what is written comes back, and what is damaged or foreign is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from asvrg import delays, training
from asvrg.errors import InputError
from asvrg.types import EpochResult, Shard, Times, Trace
from experiments import traces
from experiments.methods import Phase, Step
from experiments.traces import spill, storage

CONFIG = {"flags": {"seed": 1}, "resolved": {}, "program": "train_shared"}
TRAIN = (np.arange(12.0).reshape(6, 2), np.arange(6))
PHASE = Phase("svrg", Step(0.1, 0.5), 9)
SHARDS = (
    Shard(np.array([0, 2, 4], np.int32), 1.25),
    Shard(np.array([5, 1, 3], np.int32), 0.75),
)
M = 40


def a_trace(seed: int, *, groups: int = 1, everything: bool = False) -> Trace:
    rng = np.random.default_rng(seed)
    trace = delays.uniform(M, 300, seed=seed, num_groups=groups)
    trace = trace._replace(worker=rng.integers(2, size=M).astype(np.int32))
    if not everything:
        return trace._replace(sees_own=seed % 2 == 0)
    landed = np.cumsum(rng.exponential(1e-4, size=M))
    computed = landed - rng.exponential(1e-5, size=M)
    return trace._replace(
        shards=SHARDS if seed % 3 else SHARDS[::-1],
        scale=rng.uniform(0.1, 1.0, size=M),
        times=Times(computed - rng.exponential(1e-3, size=M), computed, landed),
    )


def an_x(epoch: int) -> np.ndarray:
    return np.random.default_rng(epoch).normal(size=300).astype(np.float32)


def a_state(epoch: int, trace: Trace | None) -> EpochResult:
    return training.start(an_x(epoch))._replace(epoch=epoch, trace=trace)


def record(folder: Path, all_traces: list[Trace], config: dict = CONFIG) -> None:
    writer = spill.TraceWriter(folder, config, TRAIN, 2)
    writer.add(a_state(0, None), None)
    for number, trace in enumerate(all_traces, 1):
        writer.add(a_state(number, trace), PHASE)


def assert_same(one: Trace, two: Trace) -> None:
    assert one.times is None or two.times is None or len(one.times) == len(two.times)
    for a, b in zip(one.times or (), two.times or (), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-7)  # two of three are differences
    np.testing.assert_equal(one._replace(times=None)._asdict(), two._replace(times=None)._asdict())


@pytest.mark.parametrize(
    "all_traces",
    [
        [a_trace(1), a_trace(2), a_trace(3)],
        [a_trace(1, groups=3), a_trace(2, groups=3)],
        [a_trace(seed, everything=True) for seed in range(1, 5)],
    ],
)
@pytest.mark.parametrize("below", ["", "trace"])
def test_everything_comes_back(tmp_path, all_traces, below):
    record(tmp_path, all_traces)
    run = traces.load(tmp_path / below)
    assert len(run.epochs) == run.last_epoch == len(all_traces)
    assert run.header.config == CONFIG
    assert run.header[2:] == (
        storage.digest(TRAIN),
        6,
        "float32",
        300,
        M,
        2,
        all_traces[0].read_version.shape[1] if all_traces[0].read_version.ndim == 2 else 1,
    )
    assert run.last_x.tobytes() == an_x(len(all_traces)).tobytes()
    for number, (epoch, trace) in enumerate(zip(run.epochs, all_traces, strict=True), 1):
        assert epoch.number == number
        assert epoch.estimator == "svrg"
        assert epoch.lr == 0.1 / number**0.5
        assert epoch.before == storage.digest(an_x(number - 1))
        assert epoch.after == storage.digest(an_x(number))
        assert_same(epoch.trace, trace)
        assert (epoch.trace.times is None) == (trace.times is None)


def test_an_update_costs_few_bytes_and_shards_are_written_once(tmp_path):
    m = 10_000
    trace = delays.uniform(m, 40, seed=1)._replace(
        worker=np.random.default_rng(1).integers(3, size=m).astype(np.int32), shards=SHARDS
    )
    writer = spill.TraceWriter(tmp_path, CONFIG, TRAIN, 2)
    writer.add(a_state(0, None), None)
    for number in (1, 2, 3):
        writer.add(a_state(number, trace), PHASE)
    size = traces.epoch_file(tmp_path / "trace", 1).stat().st_size
    assert size < 1.3 * m  # log2(3 * 41) / 8 = 0.87 bytes of entropy
    assert len(list((tmp_path / "trace").glob("shards-*"))) == 1


def changed(path: Path, change) -> None:
    """Writes a file of the trace anew, with another content but right checksums."""
    found, arrays = storage.read(path, limit=1 << 20)
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(found, arrays)
    storage.write(path, found, arrays)


def set_record(**entries):
    return lambda found, arrays: found.update(entries)


def set_array(**entries):
    return lambda found, arrays: arrays.update(entries)


def foreign_worker(found, arrays) -> None:
    arrays["worker"][5] = 2


def before_the_first(found, arrays) -> None:
    arrays["delay"] = arrays["delay"].astype(int)
    arrays["delay"][5] = 6


def from_the_future(found, arrays) -> None:
    arrays["delay"] = arrays["delay"].astype(int)
    arrays["delay"][5] = -1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (foreign_worker, "workers must have numbers below 2, got 2"),
        (before_the_first, "read_version must lie between 0 and the update's own index, got -1"),
        (from_the_future, "read_version must lie between 0 and the update's own index, got 6"),
        (
            set_array(worker=np.zeros(M + 1, np.uint8)),
            r"whole numbers [40] and [40], got uint8 [41]",
        ),
        (set_array(delay=np.zeros((M, 2), np.uint8)), r"got uint8 [40] and uint8 [40, 2]"),
        (set_array(worker=np.zeros(M)), "whole numbers"),
        (set_array(scale=np.ones(3)), "trace.scale must have a number for each of the 40 updates"),
        (set_array(scale=np.full(M, np.nan)), "trace.scale must hold finite numbers"),
        (
            set_array(ticks=np.zeros((3, 5), int)),
            "trace.times.read must have a number for each of the 40 updates",
        ),
        (set_record(run_id="other"), "must be of epoch 2 of run"),
        (set_record(number=7), "must be of epoch 2 of run"),
        (set_record(shards="../x.npz"), "shards must be in a file of this folder"),
        (set_record(shards="shards-0123456789abcdef.npz"), "No such file"),
        (set_record(before="?"), "does not begin where the epoch before it ended"),
        (lambda found, arrays: arrays.pop("worker"), "is no trace of a run"),
        (lambda found, arrays: found.pop("lr"), "is no trace of a run"),
    ],
)
def test_an_epoch_that_no_run_has_left_is_refused(tmp_path, change, sentence):
    record(tmp_path, [a_trace(1), a_trace(2), a_trace(3)])
    path = traces.epoch_file(tmp_path / "trace", 2)
    changed(path, change)
    with pytest.raises(InputError) as error:
        list(traces.load(tmp_path).epochs)
    assert sentence in str(error.value)
    assert str(path) in str(error.value)


def test_other_shards_under_the_name_of_the_right_ones_are_refused(tmp_path):
    record(tmp_path, [a_trace(1, everything=True)])
    (path,) = (tmp_path / "trace").glob("shards-*")
    changed(path, lambda found, arrays: np.copyto(arrays["samples"], 0))
    with pytest.raises(InputError, match="shards-.* is damaged"):
        list(traces.load(tmp_path).epochs)


def test_a_folder_without_a_record_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/trace holds no recorded run: .*run.json"):
        traces.load(tmp_path)


def test_a_missing_epoch_is_named(tmp_path):
    record(tmp_path, [a_trace(1), a_trace(2), a_trace(3)])
    traces.epoch_file(tmp_path / "trace", 2).unlink()
    with pytest.raises(InputError, match="epoch-00002.npz is missing"):
        traces.load(tmp_path)


@pytest.mark.parametrize("lost", ["epoch-00003.npz", "x.npz", "run.json"])
def test_a_lost_file_is_named(tmp_path, lost):
    record(tmp_path, [a_trace(seed) for seed in range(4)])
    for name in ("epoch-00003.npz", "epoch-00004.npz") if lost.startswith("e") else (lost,):
        (tmp_path / "trace" / name).unlink()
    with pytest.raises(InputError, match="x.npz must hold" if lost.startswith("e") else lost):
        traces.load(tmp_path)


def test_a_run_killed_between_an_epochs_two_files_can_be_read(tmp_path):
    record(tmp_path, [a_trace(1), a_trace(2)])
    before = (tmp_path / "trace" / "x.npz").read_bytes()
    writer = spill.TraceWriter(tmp_path, CONFIG, TRAIN, 2)
    writer.resume(a_state(2, None))
    writer.add(a_state(3, a_trace(3)), PHASE)
    (tmp_path / "trace" / "x.npz").write_bytes(before)
    run = traces.load(tmp_path)
    assert (len(run.epochs), run.last_epoch) == (3, 2)
    assert run.last_x.tobytes() == an_x(2).tobytes()


def test_a_file_of_another_run_is_refused(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        record(tmp_path / name, [a_trace(1), a_trace(2)])
    for name in ("epoch-00001.npz", "x.npz"):
        shutil.copytree(tmp_path / "a", tmp_path / name)
        shutil.copy(tmp_path / "b" / "trace" / name, tmp_path / name / "trace" / name)
        with pytest.raises(InputError, match=f"{name} must"):
            list(traces.load(tmp_path / name).epochs)


def test_another_version_is_told_from_a_changed_header(tmp_path):
    record(tmp_path, [a_trace(1)])
    path = tmp_path / "trace" / "run.json"
    written = path.read_text()
    for old, new, sentence in [
        ('"version": 1', '"version": 2', "must be of version 1 of the format, got 2"),
        ('"seed": 1', '"seed": 2', "is damaged"),
        ('"format": "asvrg trace"', '"format": "bam"', "no record of a run"),
        ("{", "", "no record of a run"),
    ]:
        assert old in written
        path.write_text(written.replace(old, new))
        with pytest.raises(InputError, match=sentence):
            traces.load(tmp_path)


def test_a_pickle_is_not_opened(tmp_path):
    record(tmp_path, [a_trace(1)])
    path = traces.epoch_file(tmp_path / "trace", 1)
    np.savez(path, worker=np.array([{}], object), delay=np.zeros(M), record=np.zeros(1, np.uint8))
    with pytest.raises(InputError, match="epoch-00001.npz is damaged"):
        traces.load(tmp_path)


def outcome(folder: Path) -> object:
    """What the reader makes of a folder: everything, or that it was refused."""
    try:
        run = traces.load(folder)
        return run.header, list(run.epochs), run.last_epoch, run.last_x.tobytes()
    except InputError as error:
        return None if str(folder) in str(error) else error


@pytest.mark.parametrize("name", ["run.json", "epoch-00002.npz", "x.npz", "shards-*.npz"])
def test_damage_is_refused_or_changes_nothing(tmp_path, name):
    record(tmp_path, [a_trace(seed, everything=True) for seed in (1, 2)])
    path = next((tmp_path / "trace").glob(name))
    whole, content = outcome(tmp_path), path.read_bytes()
    assert whole is not None
    rng = np.random.default_rng(len(name))
    refused = 0
    for trial in range(150):
        damaged = bytearray(content)
        if trial % 3 == 0:
            del damaged[rng.integers(len(damaged)) :]
        else:
            for place in rng.integers(len(damaged), size=rng.integers(1, 4)):
                damaged[place] ^= 1 << rng.integers(8) if trial % 3 == 1 else 255
        path.write_bytes(damaged)
        found = outcome(tmp_path)
        refused += found is None
        if found is not None:
            np.testing.assert_equal(found, whole)
    assert refused > 100


def test_what_was_recorded_after_the_checkpoint_is_taken_back(tmp_path):
    record(tmp_path, [a_trace(seed) for seed in (1, 2, 3, 4)])
    spill.rewind(tmp_path, a_state(2, None))
    run = traces.load(tmp_path)
    assert (len(run.epochs), run.last_epoch) == (2, 2)
    assert run.last_x.tobytes() == an_x(2).tobytes()

    config = json.loads(json.dumps(CONFIG | {"resumed": [2]}))
    writer = spill.TraceWriter(tmp_path, config, TRAIN, 2)
    writer.check(a_state(2, None))
    writer.resume(a_state(2, None))
    for number in (3, 4):
        writer.add(a_state(number, a_trace(number)), PHASE)
    again = traces.load(tmp_path)
    assert again.header.run_id == run.header.run_id
    assert again.header.config == config
    for number, epoch in enumerate(again.epochs, 1):
        assert_same(epoch.trace, a_trace(number))

    spill.rewind(tmp_path, a_state(0, None))
    assert not list((tmp_path / "trace").iterdir())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: shutil.rmtree(folder), "holds no recorded run"),
        (lambda folder: (folder / "epoch-00001.npz").unlink(), "epoch-00001.npz"),
        (lambda folder: (folder / "epoch-00002.npz").write_bytes(b""), "is damaged"),
    ],
)
def test_a_run_does_not_go_on_with_half_a_record(tmp_path, change, sentence):
    record(tmp_path, [a_trace(1), a_trace(2)])
    writer = spill.TraceWriter(tmp_path, CONFIG, TRAIN, 2)
    writer.check(a_state(2, None))
    with pytest.raises(InputError, match="epoch-00001.npz does not end with the x of the"):
        writer.check(a_state(3, None)._replace(epoch=1))
    change(tmp_path / "trace")
    with pytest.raises(InputError, match=f"--norecord goes on without one: .*{sentence}"):
        writer.check(a_state(2, None))


def test_a_run_on_other_data_does_not_go_on_in_the_record(tmp_path):
    record(tmp_path, [a_trace(1)])
    other = spill.TraceWriter(tmp_path, CONFIG, (TRAIN[0] + 1, TRAIN[1]), 2)
    with pytest.raises(InputError, match="was recorded on other training data"):
        other.check(a_state(1, None))


def test_a_digest_is_of_values_shapes_and_types():
    x = np.arange(4, dtype=np.float32)
    others = (x.astype(np.float64), x[::-1], x.reshape(2, 2), (x[:2], x[2:]), x.view(np.int32))
    digests = {storage.digest(each) for each in (x, *others)}
    assert len(digests) == 1 + len(others)
    assert storage.digest(x[::2].copy()) == storage.digest(x[::2])
