"""A run from its first epoch to its summary."""

from __future__ import annotations

import contextlib
import signal

import numpy as np
import pytest

from asvrg.errors import DivergedError, InputError
from asvrg.types import Driver, Snapshot, Trace
from experiments import checkpoints, figures, files, launch, problem, recording, session
from experiments.methods import Phase, Step
from experiments.problem import Evaluation

TRACE = Trace(np.zeros(3, np.int32), np.array([0, 0, 0], np.int32))


CONFIG = {"flags": {}, "resolved": {}, "started": "now"}


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs two phases of a driver that only counts, with given training losses.

    A loss of None is an interruption.
    """

    def run(losses, num_epochs=3):
        remaining = iter(losses)

        def evaluate(problem_, x):
            loss = next(remaining)
            if loss is None:
                raise KeyboardInterrupt
            return Evaluation(loss, 0.5, 1.0, 0.5, float(x[0]))

        monkeypatch.setattr(problem, "evaluate", evaluate)
        driver = Driver(lambda x: Snapshot(), lambda x, *_: (x + 1, TRACE), lambda x: None, 3, 20)
        phases = [Phase("sgd", Step(1.0, 0.0), epochs) for epochs in (1, num_epochs)]
        begun = []
        fake = problem.Problem(objective=None, x0=np.ones(2), make_x0=None, train=None, test=None)
        with recording.Recorder(
            tmp_path, CONFIG, record=False, tensorboard=False, checkpoint_seconds=1e9
        ) as recorder:
            run.recorder = recorder
            session.train(
                fake, phases, lambda phase: begun.append(phase) or driver, recorder, title=""
            )
        return begun

    return run


def test_phases_follow_each_other_in_one_record(train, capsys):
    begun = train([3.0, 2.0, 1.0, 0.5])
    assert [phase.num_epochs for phase in begun] == [1, 3]
    assert [row.epoch for row in train.recorder.rows] == [0, 1, 2, 3]
    assert [row.updates for row in train.recorder.rows] == [0, 3, 6, 9]
    assert [row.grad_evals for row in train.recorder.rows] == [0, 20, 40, 60]
    summary = capsys.readouterr().out
    assert "epochs             3 of 3" in summary
    assert "mean 1.0, median 1, 95 % 2, max 2" in summary


def test_a_loss_that_is_not_finite_stops_the_run(train, capsys):
    with pytest.raises(DivergedError, match="training loss is not a finite number after epoch 2"):
        train([3.0, 2.0, float("inf"), 1.0])
    assert [row.epoch for row in train.recorder.rows] == [0, 1, 2]
    assert "epochs             2 of 3" in capsys.readouterr().out


def test_a_loss_that_explodes_stops_the_run_before_it_overflows(train, capsys):
    sentence = "the training loss has grown from 3 to 4e\\+04 by epoch 2 with step 1; the step"
    with pytest.raises(DivergedError, match=sentence):
        train([3.0, 29_000.0, 40_000.0, 1.0])
    assert [row.epoch for row in train.recorder.rows] == [0, 1, 2]
    assert "The same command" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reached", "num_phases"), [(0, 2), (1, 1), (2, 1)], ids=["phase 1", "between", "phase 2"]
)
def test_an_interrupted_run_goes_on_in_the_phase_that_it_was_in(
    train, tmp_path, capsys, reached, num_phases
):
    losses = [3.0, 2.0, 1.0, 0.5]
    with pytest.raises(KeyboardInterrupt):
        train([*losses[: reached + 1], None])
    printed = capsys.readouterr()
    assert f"The same command with --out_dir={tmp_path} goes on after epoch {reached} of 3.\n" in (
        printed.err
    )
    assert f"epochs             {reached} of 3" in printed.out

    assert len(train(losses[reached + 1 :])) == num_phases
    rows = train.recorder.rows
    assert [row.epoch for row in rows] == [0, 1, 2, 3]
    assert [row.train_loss for row in rows] == losses
    assert [row.grad_norm_sq for row in rows] == [1.0, 2.0, 3.0, 4.0]  # x, as evaluated
    assert [row.updates for row in rows] == [0, 3, 6, 9]
    assert [row.grad_evals for row in rows] == [0, 20, 40, 60]
    printed = capsys.readouterr()
    assert f"goes on after epoch {reached} of 3" in printed.err
    assert "mean 1.0, median 1, 95 % 2, max 2" in printed.out


def test_a_finished_run_is_not_run_again_but_extended(train, capsys):
    train([3.0, 2.0, 1.0, 0.5])
    capsys.readouterr()
    assert train([]) == []
    printed = capsys.readouterr()
    assert "the run is finished: it has done 3 epochs" in printed.err
    assert "epochs             3 of 3" in printed.out
    with pytest.raises(InputError, match="--num_epochs must be at least 3, the epochs that the"):
        train([], num_epochs=2)
    train([0.25, 0.1], num_epochs=5)
    assert [row.train_loss for row in train.recorder.rows] == [3.0, 2.0, 1.0, 0.5, 0.25, 0.1]


@pytest.mark.parametrize("refused_by", ["fewer epochs", "another process"])
def test_a_command_that_is_refused_changes_nothing(train, tmp_path, capsys, refused_by):
    train([3.0, 2.0, 1.0, 0.5])
    capsys.readouterr()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with files.held(tmp_path) if refused_by == "another process" else contextlib.nullcontext():
        num_epochs = 9 if refused_by == "another process" else 2
        with pytest.raises(InputError):
            train([], num_epochs=num_epochs)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("where", ["evaluation", "figure"])
def test_a_signal_at_the_very_end_loses_nothing(train, tmp_path, monkeypatch, capsys, where):
    """The last epoch is kept, though its checkpoint is the last thing that a run writes."""
    owner, name = {"evaluation": (recording, "row"), "figure": (figures, "draw_curves")}[where]
    real = getattr(owner, name)

    def interrupted(*args):
        if where == "figure" or args[0].epoch == 3:
            signal.raise_signal(signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(owner, name, interrupted)
    code = launch.run(lambda values: train([3.0, 2.0, 1.0, 0.5]), lambda values: None, ["binary"])
    assert code == 143
    monkeypatch.setattr(owner, name, real)
    assert checkpoints.load(tmp_path).state.epoch == 3
    assert (tmp_path / "curves.png").exists()
    assert "goes on after" not in capsys.readouterr().err
    assert train([]) == []


def test_a_run_that_diverged_diverges_again(train, capsys):
    for losses in ([3.0, 2.0, float("inf")], [2.0, float("inf")]):
        with pytest.raises(DivergedError, match="not a finite number after epoch 2"):
            train(losses)
        assert [row.epoch for row in train.recorder.rows] == [0, 1, 2]
        assert "The same command" not in capsys.readouterr().err


def test_a_full_disk_does_not_hide_what_stopped_the_run(train, capsys, monkeypatch):
    save = checkpoints.save

    def save_once(folder, progress):
        if progress.state.epoch > 0:
            raise OSError("disk full")
        save(folder, progress)

    monkeypatch.setattr(checkpoints, "save", save_once)
    with pytest.raises(KeyboardInterrupt):
        train([3.0, 2.0, None])
    printed = capsys.readouterr().err
    assert "goes on after epoch 0 of 3" in printed
    assert "disk full" in printed
