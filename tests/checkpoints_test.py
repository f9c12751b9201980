"""Checkpoints: exact, whole or not at all, the last two; and which runs go on from them."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import asvrg.checkpoints
from asvrg import training
from asvrg.checkpoints import orbax_files
from asvrg.errors import InputError
from asvrg.types import Halfway, Inside, Shard, Times, Trace
from experiments import checkpoints
from experiments.checkpoints import Progress

CONFIG = {"flags": {"lr": 0.2, "hidden": ["10"], "num_epochs": 3}, "resolved": {"dim": 5}}


def progress(epoch: int, dtype: str = "float32") -> Progress:
    state = training.start(np.random.default_rng(epoch).normal(size=500).astype(dtype))
    return Progress(
        state._replace(
            epoch=epoch, seconds=epoch / 3, updates=10 * epoch, grad_evals=2**60 + epoch
        ),
        [(e, e / 3, float("nan"), -float("inf"), 2**60) for e in range(epoch + 1)],
        np.array([[7, 0, epoch], [0, 2, 0]]),
        CONFIG,
    )


def files_of(folder: Path, step: int) -> list[Path]:
    return [path for path in (folder / "checkpoint" / str(step)).rglob("*") if path.is_file()]


def content_of(folder: Path, step: int) -> Path:
    (path,) = [path for path in files_of(folder, step) if path.name == orbax_files.FILE]
    return path


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_comes_back_exactly(tmp_path, dtype):
    saved = progress(2, dtype)
    checkpoints.save(tmp_path, saved)
    loaded = checkpoints.load(tmp_path)
    assert loaded.state.x.dtype == saved.state.x.dtype
    assert loaded.state.x.tobytes() == saved.state.x.tobytes()
    assert loaded.state._replace(x=None) == saved.state._replace(x=None)
    assert repr(loaded.rows) == repr(saved.rows)  # as nan differs from nan
    assert loaded.delay_counts.tolist() == saved.delay_counts.tolist()
    assert loaded.config == saved.config


@pytest.mark.parametrize("whole", [True, False])
def test_a_state_inside_of_an_epoch_comes_back_exactly(tmp_path, whole):
    rng = np.random.default_rng(3)
    trace = Trace(
        np.array([0, 1, 0], np.int32),
        np.array([[0, 0], [0, 1], [2, 1]], np.int32),
        sees_own=True,
        shards=(Shard(np.array([4, 0], np.int32), 0.5), Shard(np.zeros(0, np.int32), 0.0)),
        scale=rng.random(3) if whole else None,
        times=Times(*rng.random((3, 3))) if whole else None,
    )
    memory = (np.int32(7), rng.random((2, 3)).astype("float32")) if whole else ()
    inside = Inside(Halfway(rng.random(500), trace, memory), rng.random(500) if whole else (), 0.1)
    saved = progress(2)
    saved = saved._replace(state=saved.state._replace(inside=inside))
    checkpoints.save(tmp_path, saved)
    found = checkpoints.load(tmp_path).state.inside
    np.testing.assert_equal(found, inside)
    dtypes = [[each.dtype for each in one.halfway.memory] for one in (found, inside)]
    assert dtypes[0] == dtypes[1]
    dtypes = [[each.samples.dtype for each in one.halfway.trace.shards] for one in (found, inside)]
    assert dtypes[0] == dtypes[1]


def test_the_last_two_stay(tmp_path):
    assert checkpoints.load(tmp_path) is None
    assert not checkpoints.exist_in(tmp_path)
    for epoch in range(4):
        checkpoints.save(tmp_path, progress(epoch))
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == ["2", "3"]
    assert checkpoints.load(tmp_path).state.epoch == 3


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit_of_x(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(progress(2).state.x.tobytes()) + 999] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [truncate, flip_a_bit_of_x, Path.unlink, lambda path: path.write_bytes(b"")]
)
def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path, capfd, damage):
    for epoch in (1, 2):
        checkpoints.save(tmp_path, progress(epoch))
    damage(content_of(tmp_path, 1))
    assert checkpoints.load(tmp_path).state.epoch == 1
    printed = capfd.readouterr().err
    assert printed.startswith(f"The checkpoint {tmp_path / 'checkpoint' / '1'} is damaged: ")
    assert "Traceback" not in printed

    # The run comes by the same state again; then the next one finds it.
    checkpoints.save(tmp_path, progress(2))
    assert checkpoints.load(tmp_path).state.epoch == 2
    assert "damaged" not in capfd.readouterr().err


def test_if_all_are_damaged_nothing_is_taken_for_a_new_run(tmp_path):
    for epoch in (1, 2):
        checkpoints.save(tmp_path, progress(epoch))
        truncate(content_of(tmp_path, epoch - 1))
    assert checkpoints.exist_in(tmp_path)
    with pytest.raises(InputError, match="whose checkpoints are all damaged; name another folder"):
        checkpoints.load(tmp_path)


def test_without_space_the_checkpoint_before_stays(tmp_path):
    checkpoints.save(tmp_path, progress(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal, so that a file of more bytes than this is an error.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.save(tmp_path, progress(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.load(tmp_path).state.epoch == 1
    checkpoints.save(tmp_path, progress(2))
    assert checkpoints.load(tmp_path).state.epoch == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_comes_after_the_checkpoint_that_is_being_written(tmp_path, monkeypatch, number):
    save, handled = orbax_files.save, []

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), number)
        time.sleep(0.1)
        save(*args, **kwargs)
        assert not handled

    before = signal.signal(number, lambda number, frame: handled.append(number))
    try:
        monkeypatch.setattr(orbax_files, "save", interrupted)
        checkpoints.save(tmp_path, progress(1))
    finally:
        signal.signal(number, before)
    assert handled == [number]
    assert checkpoints.load(tmp_path).state.epoch == 1


def test_a_checkpoint_that_promises_more_than_it_holds_is_damaged(tmp_path, capfd):
    for epoch in (1, 2):
        checkpoints.save(tmp_path, progress(epoch))
    with zipfile.ZipFile(content_of(tmp_path, 1), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(1 << 24))
    assert checkpoints.load(tmp_path).state.epoch == 1
    assert "is damaged: it promises more than it holds." in capfd.readouterr().err


def test_another_version_of_the_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(asvrg.checkpoints, "VERSION", 99)
    checkpoints.save(tmp_path, progress(1))
    monkeypatch.undo()
    with pytest.raises(
        InputError, match="--out_dir must name a folder with checkpoints of version 3, got 99"
    ):
        checkpoints.load(tmp_path)


def config(flags: dict[str, object], resolved: dict[str, object]) -> dict[str, object]:
    return {"flags": CONFIG["flags"] | flags, "resolved": CONFIG["resolved"] | resolved}


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (
            config({"lr": 0.3, "hidden": ["10", "8"]}, {"dim": 9}),
            "holds a run with --hidden=['10'], --lr=0.2, which goes on with the same flags only, "
            "got --hidden=['10', '8'], --lr=0.3.",
        ),
        (config({}, {"dim": 9}), "a run with dim=5, which goes on with the same flags only, got d"),
        (config({"overlap": False}, {}), "a run with no --overlap, which goes on"),
    ],
)
def test_another_run_is_refused_by_the_names_of_what_differs(other, sentence):
    with pytest.raises(InputError) as error:
        checkpoints.check_same_run(Path("runs/a"), CONFIG, other)
    assert sentence in str(error.value)


def test_flags_that_change_no_result_may_differ():
    free = {
        "num_epochs": 9,
        "out_dir": "a",
        "checkpoint_seconds": 0,
        "data_dir": "b",
        "record": True,
        "resume": True,
    }
    restored = json.loads(json.dumps(CONFIG))
    checkpoints.check_same_run(Path("a"), restored, config(free | {"hidden": ["10"]}, {}))
