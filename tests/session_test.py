"""A run from its first epoch to its summary."""

from __future__ import annotations

import numpy as np
import pytest

from asvrg import estimators
from asvrg.errors import DivergedError
from asvrg.types import Driver, Snapshot, Trace
from experiments import problem, recording, session
from experiments.methods import Phase, Step
from experiments.problem import Evaluation

TRACE = Trace(np.zeros(3, np.int32), np.array([0, 0, 0], np.int32))


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs two phases of a driver that only counts, with given training losses."""

    def run(losses):
        remaining = iter(losses)
        monkeypatch.setattr(
            problem, "evaluate", lambda problem_, x: Evaluation(next(remaining), 0.5, 1.0, 0.5, 1.0)
        )
        driver = Driver(lambda x: Snapshot(), lambda x, *_: (x + 1, TRACE), lambda x: None, 3, 20)
        phases = [Phase(estimators.sgd, Step(1.0, 0.0), epochs) for epochs in (1, 3)]
        begun = []
        fake = problem.Problem(objective=None, x0=np.zeros(2), train=None, test=None)
        with recording.Recorder(tmp_path, {}, save_trace=False, tensorboard=False) as recorder:
            try:
                session.train(
                    fake, phases, lambda phase: begun.append(phase) or driver, recorder, title=""
                )
            finally:
                run.rows = recorder.rows
        return begun

    return run


def test_phases_follow_each_other_in_one_record(train, capsys):
    begun = train([3.0, 2.0, 1.0, 0.5])
    assert [phase.num_epochs for phase in begun] == [1, 3]
    assert [row.epoch for row in train.rows] == [0, 1, 2, 3]
    assert [row.updates for row in train.rows] == [0, 3, 6, 9]
    assert [row.grad_evals for row in train.rows] == [0, 20, 40, 60]
    summary = capsys.readouterr().out
    assert "epochs             3 of 3" in summary
    assert "mean 1.0, median 1, 95 % 2, max 2" in summary


def test_a_loss_that_is_not_finite_stops_the_run(train, capsys):
    with pytest.raises(DivergedError, match="training loss is not a finite number after epoch 2"):
        train([3.0, 2.0, float("inf"), 1.0])
    assert [row.epoch for row in train.rows] == [0, 1, 2]
    assert "epochs             2 of 3" in capsys.readouterr().out
