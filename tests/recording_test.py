"""What a run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from asvrg.errors import InputError
from asvrg.types import EpochResult, Trace
from experiments import files, folders, recording, traces
from experiments.methods import Phase, Step
from experiments.problem import Evaluation

EVALUATION = Evaluation(0.1, 0.2, 0.3, 0.4, 1 / 3)


CONFIG = {"flags": {"lr": 1.0}, "resolved": {"num_threads": 3}, "started": "now"}
TRACE = Trace(np.array([0, 1], np.int32), np.array([0, 0], np.int32), sees_own=True)
TRAIN = (np.ones((4, 2)), np.arange(4))
PHASE = Phase("sgd", Step(0.5, 0.0), 9)


def a_state(epoch: int, trace: Trace | None = None) -> EpochResult:
    x = np.full(2, epoch, np.float32)
    return EpochResult(epoch, x, 0.5 * epoch, 2 * epoch, 9 * epoch, trace)


def a_line(epoch: int) -> str:
    return f"{epoch},{epoch / 2:g},{2 * epoch},{9 * epoch},0.1,0.2,0.3,0.4,0.333333333,0,0"


def a_recorder(
    folder: Path, *, record: bool = False, tensorboard: bool = False, seconds: float = 1e9
) -> recording.Recorder:
    return recording.Recorder(
        folder,
        CONFIG,
        record=record,
        tensorboard=tensorboard,
        checkpoint_seconds=seconds,
    )


def test_row_has_the_delays_of_the_epochs_trace():
    trace = Trace(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 0]))
    row = recording.row(a_state(1, trace), EVALUATION)
    assert row.mean_delay == (0 + 1 + 1 + 3) / 4
    assert row.max_delay == 3
    row = recording.row(a_state(0), EVALUATION)
    assert row.mean_delay == row.max_delay == 0


def test_every_line_is_on_disk_as_soon_as_it_is_added(tmp_path):
    with a_recorder(tmp_path) as recorder:
        assert not list(tmp_path.iterdir())
        recorder.begin(3)
        assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
        for epoch in range(3):
            recorder.add(a_state(epoch), EVALUATION)
            lines = (tmp_path / "metrics.csv").read_text().splitlines()
            assert lines[0] == ",".join(recording.Row._fields)
            assert lines[1:] == [a_line(e) for e in range(epoch + 1)]


def fail_after(
    recorder: recording.Recorder,
    num_epochs: int,
    *,
    trace: Trace | None = None,
    checkpoint_at: int | None = None,
) -> None:
    """Records epochs 0 to `num_epochs` of a run that then raises."""

    def run() -> None:
        with recorder:
            recorder.begin(9, TRAIN)
            for epoch in range(num_epochs + 1):
                recorder.add(a_state(epoch, trace if epoch else None), EVALUATION, PHASE)
                recorder.checkpoint(now=epoch == checkpoint_at)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        run()


def test_traces_and_delays_are_kept_when_the_run_fails(tmp_path):
    fail_after(a_recorder(tmp_path, record=True), 1, trace=TRACE)
    run = traces.load(tmp_path)
    assert run.header.config == CONFIG
    assert run.last_x.tobytes() == a_state(1).x.tobytes()
    (epoch,) = run.epochs
    assert (epoch.estimator, epoch.lr) == ("sgd", 0.5)
    np.testing.assert_equal(epoch.trace._asdict(), TRACE._asdict())
    assert (tmp_path / "delays.csv").read_text() == "worker,delay,updates\n0,0,1\n1,1,1\n"


def test_a_run_goes_on_from_its_checkpoint_with_the_records_of_one_run(tmp_path):
    first = a_recorder(tmp_path, record=True)
    fail_after(first, 3, trace=TRACE, checkpoint_at=2)
    # A process that is killed may leave half of a line after those that the checkpoint lacks.
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("4,0.")

    assert len(traces.load(tmp_path).epochs) == 3
    run_id = traces.load(tmp_path).header.run_id

    with a_recorder(tmp_path, record=True) as second:
        state = second.begin(5, TRAIN)
        assert state.x.tolist() == [2.0, 2.0]
        assert state._replace(x=None) == a_state(2)._replace(x=None)
        assert second.rows == first.rows[:3]
        assert second.delay_counts.tolist() == [[2, 0], [0, 2], [0, 0]]
        assert len(traces.load(tmp_path).epochs) == 2
        for epoch in (3, 4, 5):
            second.add(a_state(epoch, TRACE), EVALUATION, PHASE)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "1", "2", "3", "4", "5"]
    assert second.delay_counts.tolist() == [[5, 0], [0, 5], [0, 0]]
    assert (tmp_path / "delays.csv").read_text() == "worker,delay,updates\n0,0,5\n1,1,5\n"
    run = traces.load(tmp_path)
    assert run.header.run_id == run_id
    assert [epoch.number for epoch in run.epochs] == [1, 2, 3, 4, 5]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["resumed"] == [{"epoch": 2, "started": "now"}]
    assert run.header.config == config


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_without_its_record_is_left_alone_unless_it_goes_on_without_one(tmp_path):
    fail_after(a_recorder(tmp_path, record=True), 3, trace=TRACE, checkpoint_at=2)
    traces.epoch_file(tmp_path / "trace", 1).unlink()
    before = contents(tmp_path)
    with (
        pytest.raises(InputError, match="--norecord goes on without one: .*epoch-00001.npz"),
        a_recorder(tmp_path, record=True) as recorder,
    ):
        recorder.begin(5, TRAIN)
    assert contents(tmp_path) == before
    with a_recorder(tmp_path) as recorder:
        assert recorder.begin(5, TRAIN).epoch == 2
        recorder.add(a_state(3, TRACE), EVALUATION, PHASE)
    assert traces.recorded_epochs(tmp_path / "trace") == [2]


def test_a_run_that_goes_on_unrecorded_keeps_the_record_of_its_beginning(tmp_path):
    fail_after(a_recorder(tmp_path, record=True), 3, trace=TRACE, checkpoint_at=2)
    with a_recorder(tmp_path) as recorder:
        recorder.begin(5, TRAIN)
        recorder.add(a_state(3, TRACE), EVALUATION, PHASE)
    run = traces.load(tmp_path)
    assert (len(run.epochs), run.last_epoch) == (2, 2)
    with (
        pytest.raises(InputError, match="lacks a file: .*epoch-00003.npz"),
        a_recorder(tmp_path, record=True) as recorder,
    ):
        recorder.begin(5, TRAIN)


@pytest.mark.parametrize(("seconds", "epoch"), [(0, 3), (1e9, 0)])
def test_checkpoints_are_as_far_apart_as_asked(tmp_path, seconds, epoch):
    fail_after(a_recorder(tmp_path, seconds=seconds), 3)
    with a_recorder(tmp_path) as recorder:
        assert recorder.begin(4).epoch == epoch


def test_an_interrupt_before_the_line_of_a_recorded_epoch_does_not_lose_it(tmp_path, monkeypatch):
    def interrupted(self, values):
        monkeypatch.undo()
        raise KeyboardInterrupt

    def run() -> None:
        with a_recorder(tmp_path) as recorder:
            recorder.begin(9)
            recorder.add(a_state(0), EVALUATION)
            recorder.add(a_state(1), EVALUATION)
            monkeypatch.setattr(files.Lines, "add", interrupted)
            try:
                recorder.add(a_state(2), EVALUATION)
            finally:
                recorder.checkpoint(now=True)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == [a_line(e) for e in range(3)]
    with a_recorder(tmp_path) as again:
        assert again.begin(9).epoch == 2


def test_a_run_that_ends_well_is_finished(tmp_path):
    with a_recorder(tmp_path) as recorder:
        recorder.begin(1)
        for epoch in (0, 1):
            recorder.add(a_state(epoch), EVALUATION)
    before = contents(tmp_path)
    with (
        pytest.raises(InputError, match="--num_epochs must be at least 1, the epochs that the run"),
        a_recorder(tmp_path) as again,
    ):
        again.begin(0)
    assert before == contents(tmp_path)
    with a_recorder(tmp_path) as more:
        assert more.begin(2).epoch == 1


def test_the_records_of_an_epoch_that_ctrl_c_cut_short_are_not_in_the_checkpoint(
    tmp_path, monkeypatch
):
    with a_recorder(tmp_path) as recorder:
        recorder.begin(9)
        recorder.add(a_state(0), EVALUATION)

        def interrupted(trace: Trace) -> np.ndarray:
            raise KeyboardInterrupt

        monkeypatch.setattr(recording.delays, "staleness", interrupted)
        with pytest.raises(KeyboardInterrupt):
            recorder.add(a_state(1, TRACE), EVALUATION)
        recorder.checkpoint(now=True)
        assert recorder.saved.epoch == 0


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    with a_recorder(tmp_path) as first:
        first.begin(9)
        first.add(a_state(0), EVALUATION)
        with (
            pytest.raises(InputError, match="a folder that no other process writes to"),
            a_recorder(tmp_path) as second,
        ):
            second.begin(9)
        first.add(a_state(1), EVALUATION)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[1:] == [a_line(0), a_line(1)]


def test_who_read_a_checkpoint_that_another_process_went_beyond_does_not_go_on(tmp_path):
    fail_after(a_recorder(tmp_path), 1)
    with a_recorder(tmp_path) as first:
        with pytest.raises(InputError, match="a folder that no other process writes to"):
            a_recorder(tmp_path)
        assert first.begin(2).epoch == 0
        for epoch in (1, 2):
            first.add(a_state(epoch), EVALUATION)
    with a_recorder(tmp_path) as second:
        assert second.begin(9).epoch == 2


def test_tensorboard_hides_the_events_after_the_checkpoint(tmp_path):
    fail_after(a_recorder(tmp_path, tensorboard=True), 2)
    with a_recorder(tmp_path, tensorboard=True) as recorder:
        recorder.begin(9)
        recorder.add(a_state(1), EVALUATION)
    events = [path.read_bytes() for path in (tmp_path / "tensorboard").iterdir()]
    restart = Event(step=1, session_log=SessionLog(status=SessionLog.START)).SerializeToString()
    assert sum(restart in content for content in events) == 1


def test_default_folders_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {folders.claim_folder(None, "name", holds="x.csv") for _ in range(5)}
    assert len(found) == 5
    assert all(folder.is_dir() and folder.parent.name == "runs" for folder in found)


def test_folder_of_another_run_is_refused(tmp_path):
    (tmp_path / "metrics.csv").touch()
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(InputError, match=r"--out_dir must be a folder without another run"):
        folders.claim_folder(str(tmp_path), "name", holds="metrics.csv", kind="checkpoint")


def test_folder_with_a_checkpoint_is_that_of_a_run_but_of_no_benchmark(tmp_path):
    fail_after(a_recorder(tmp_path), 1)
    assert (
        folders.claim_folder(str(tmp_path), "name", holds="metrics.csv", kind="checkpoint")
        == tmp_path
    )
    with pytest.raises(InputError, match="without another run's results"):
        folders.claim_folder(str(tmp_path), "name", holds="config.json")
