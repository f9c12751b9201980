"""What a run leaves behind."""

from __future__ import annotations

import json

import numpy as np
import pytest

from asvrg import training
from asvrg.errors import InputError
from asvrg.types import Trace
from experiments import recording
from experiments.problem import Evaluation

EVALUATION = Evaluation(0.1, 0.2, 0.3, 0.4, 1 / 3)


def a_row(epoch: int) -> recording.Row:
    state = training.start(np.zeros(2))._replace(epoch=epoch, seconds=0.5, updates=7, grad_evals=9)
    return recording.row(state, EVALUATION)


def test_row_has_the_delays_of_the_epochs_trace():
    trace = Trace(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 0]))
    row = recording.row(training.start(np.zeros(2))._replace(trace=trace), EVALUATION)
    assert row.mean_delay == (0 + 1 + 1 + 3) / 4
    assert row.max_delay == 3
    assert a_row(0).mean_delay == a_row(0).max_delay == 0


def test_every_line_is_on_disk_as_soon_as_it_is_added(tmp_path):
    with recording.Recorder(tmp_path, {"a": 1}, save_trace=False, tensorboard=False) as recorder:
        assert json.loads((tmp_path / "config.json").read_text()) == {"a": 1}
        for epoch in range(3):
            recorder.add(a_row(epoch), None)
            lines = (tmp_path / "metrics.csv").read_text().splitlines()
            assert lines[0] == ",".join(recording.Row._fields)
            assert len(lines) == epoch + 2
            assert lines[-1] == f"{epoch},0.5,7,9,0.1,0.2,0.3,0.4,0.333333333,0,0"


def test_traces_are_kept_when_the_run_fails(tmp_path):
    trace = Trace(np.array([0, 1], np.int32), np.array([0, 0], np.int32), sees_own=True)

    def run():
        with recording.Recorder(tmp_path, {}, save_trace=True, tensorboard=False) as recorder:
            recorder.add(a_row(0), None)
            recorder.add(a_row(1), trace)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        run()
    with np.load(tmp_path / "trace.npz", allow_pickle=False) as saved:
        assert saved["worker"].tolist() == [[0, 1]]
        assert saved["sees_own"].tolist() == [True]


def test_a_file_is_written_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    recording.write_whole(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        recording.write_whole(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_default_folders_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {recording.claim_folder(None, "name") for _ in range(5)}
    assert len(folders) == 5
    assert all(folder.is_dir() and folder.parent.name == "runs" for folder in folders)


def test_folder_of_another_run_is_refused(tmp_path):
    (tmp_path / "metrics.csv").touch()
    with pytest.raises(InputError, match=r"--out_dir must be a folder without another run"):
        recording.claim_folder(str(tmp_path), "name")
