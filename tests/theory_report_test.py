"""The theory's report on runs of its own and of the other binaries, on small problems."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from absl.flags import FlagValues

from asvrg import delays, estimators, objectives, sampling, theory
from asvrg.drivers import simulate
from asvrg.errors import InputError
from asvrg.theory import Choice, Setting
from experiments import problem, theory_report, train_shared
from experiments.problem import Problem
from experiments.theory import drawing, judging, measuring
from experiments.theory.measuring import Curvature, EpochRow, Measured
from tests.binaries import read_metrics, run
from tests.theorems_test import read

pytestmark = pytest.mark.timeout(180)

NETWORK = ("--num_train=200", "--hidden=4", "--dtype=float64", "--num_test=20")
SMALL = (*NETWORK, "--num_epochs=3", "--num_singles=6", "--u0=0.3", "--batch_size=4")


def entries(out: str) -> dict[str, str]:
    """The report's lines by name."""
    lines = (line for line in out.splitlines() if line[:1].strip())
    return {line[:19].strip(): line[19:] for line in lines}


def test_a_simulated_run_beside_its_bound(tmp_path, capsys, monkeypatch):
    draw = drawing.draw_report

    def before_the_folder_is_known_as_used(path, *args, **named):
        assert not (path.parent / theory_report.EPOCHS).exists()
        draw(path, *args, **named)

    monkeypatch.setattr(drawing, "draw_report", before_the_folder_is_known_as_used)
    assert run(theory_report, *SMALL, "--delay=2", f"--out_dir={tmp_path}") == 0
    text = entries(capsys.readouterr().out)
    resolved = json.loads((tmp_path / "config.json").read_text())["resolved"]
    setting = Setting(**resolved["setting"])

    # The largest of the estimates, and the theory's eta and m for it.
    estimates = [float(row["value"]) for row in read(tmp_path / theory_report.SMOOTHNESS)]
    assert setting.smoothness == pytest.approx(max(estimates), rel=1e-8)
    points = [row["point"] for row in read(tmp_path / theory_report.SMOOTHNESS)[::2]]
    assert points == ["x^0", "x^1", "x^3"]
    choice = Choice(0.3, 4, 200, 2 / 3)
    at_start = max(estimates[:2])
    assert setting.lr == pytest.approx(float(theory.step_size(choice, at_start)), rel=1e-8)
    assert setting.inner_steps == int(theory.inner_steps(choice)) == 4
    assert (setting.max_delay, setting.blocks) == (2, 1.0)

    # The run again, by the simulator's driver and gradients from elsewhere.
    rows = read(tmp_path / theory_report.EPOCHS)
    again = rerun(setting.lr, 4, 3)
    np.testing.assert_allclose([float(row["mean"]) for row in rows], again.mean(axis=1), rtol=1e-7)
    np.testing.assert_allclose([float(row["start"]) for row in rows], again[:, 0], rtol=1e-7)
    assert resolved["measured"] == pytest.approx(again.mean(), rel=1e-7)
    expected = theory.bound(setting, resolved["gap"], 12)
    assert resolved["predicted"] == pytest.approx(expected, rel=1e-12)
    assert resolved["measured"] < resolved["predicted"] < math.inf

    assert text["run"] == "simulated, every update late by 2; 3 epochs, 12 updates"
    assert text["admissible delay"].startswith("none by (20), which needs u0 b < 3 / 28; ")
    assert text["measured delay"] == "2 at most; m - 1 = 3 would fit"
    assert text["verdict"].startswith("Theorem 3 holds for this run if L is no larger")
    assert text["||grad f||^2"] == f"{resolved['measured']:.3g} on average over all updates"
    assert text["predicted"].startswith(f"at most {expected:.3g} by (19)")
    assert (tmp_path / theory_report.FIGURE).read_bytes().startswith(b"\x89PNG")


def rerun(lr: float, inner_steps: int, num_epochs: int) -> np.ndarray:
    """||grad f||^2 before every update, [S, m], each from a replay of the updates before it."""
    problem_ = problem_of(*NETWORK, "--activation=tanh")
    estimator = estimators.svrg(problem_.objective)
    sampler = sampling.sampler(200, problem_.objective.dim, batch_size=4)
    trace, x, norms = delays.constant(inner_steps, 2), problem_.x0, []
    for epoch in range(num_epochs):
        snapshot = estimator.prepare(x, problem_.train, map)
        for count in range(inner_steps + 1):
            reached = simulate.replay(
                estimator,
                x,
                snapshot,
                problem_.train,
                sampler,
                delays.prefix(trace, count),
                epoch=epoch,
                lr=lr,
            )
            if count < inner_steps:
                gradient, _ = objectives.full_gradient(problem_.objective, reached, problem_.train)
                norms.append(float(gradient @ gradient))
        x = reached
    return np.reshape(norms, (num_epochs, inner_steps))


def problem_of(*arguments: str) -> Problem:
    values = FlagValues()
    problem.define_flags(values)
    values(["binary", *arguments])
    return problem.from_flags(values)


def test_the_delays_of_real_threads_are_measured(tmp_path, capsys):
    flags = ("--driver=threads", "--num_threads=3", "--inner_steps=40", "--lr=0.001")
    assert run(theory_report, *SMALL, *flags, f"--out_dir={tmp_path}") == 0
    text = entries(capsys.readouterr().out)
    rows = read(tmp_path / theory_report.EPOCHS)
    assert [int(row["updates"]) for row in rows] == [40, 40, 40]
    longest = max(int(row["max_delay"]) for row in rows)
    assert text["measured delay"] == f"{longest} at most; m - 1 = 39 would fit"
    # Small steps: the gradient hardly changes, whatever the threads do.
    values = [float(row[name]) for row in rows for name in ("start", "mean")]
    assert max(values) < 1.1 * min(values)


def test_blocks_are_judged_by_theorem_1(tmp_path, capsys):
    assert run(theory_report, *SMALL, "--block_size=31", f"--out_dir={tmp_path}") == 0
    text = entries(capsys.readouterr().out)
    dim = 65 * 4 + 5 * 10
    assert f"d / B {dim / 31:.3g}" in text["suggested"]
    assert "(13)" in text["admissible delay"]
    assert text["verdict"].startswith("Theorem 1 holds")
    assert "by (12)" in text["predicted"]


def test_the_report_on_a_run_of_train_shared(tmp_path, capsys):
    trained = ("--driver=simulate", "--num_threads=3", "--block_size=0", "--activation=tanh")
    for lr, name in ((0.002, "slow"), (0.5, "fast")):
        flags = (f"--lr={lr}", "--inner_steps=20", "--num_epochs=3", "--batch_size=4")
        assert run(train_shared, *NETWORK, *trained, *flags, f"--out_dir={tmp_path / name}") == 0
        capsys.readouterr()
        report = (f"--run_dir={tmp_path / name}", "--num_singles=6", "--u0=0.1")
        assert run(theory_report, *report, f"--out_dir={tmp_path / name / 'report'}") == 0
        text = entries(capsys.readouterr().out)
        metrics = read_metrics(tmp_path / name)
        resolved = json.loads((tmp_path / name / "report" / "config.json").read_text())["resolved"]
        assert (resolved["setting"]["lr"], resolved["setting"]["inner_steps"]) == (lr, 20)
        assert resolved["setting"]["max_delay"] == 2
        starts = [float(row["grad_norm_sq"]) for row in metrics[:-1]]
        assert resolved["measured"] == pytest.approx(np.mean(starts), rel=1e-8)
        assert resolved["gap"] == pytest.approx(float(metrics[0]["train_loss"]), rel=1e-8)
        assert "the beginnings of epochs" in text["||grad f||^2"]
        if name == "slow":
            assert text["verdict"].startswith("Theorem 3 holds for this run")
            assert resolved["predicted"] > resolved["measured"]
        else:
            assert re.search("does not hold for this run, whatever its delays", text["verdict"])
            assert text["predicted"] == "nothing is predicted"
            assert resolved["predicted"] is None


def measured(**changes: object) -> Measured:
    rows = [EpochRow(0, 10, 2.0, 1.0, 3), EpochRow(1, 10, 1.0, 0.5, 5)]
    return Measured("a run", 0.01, 10, 1.0, 1_000, 2.0, rows, {}, [])._replace(**changes)


def test_verdicts():
    estimates = [Curvature("x^0", "f", 0.5), Curvature("x^0", "3 f_i", 1.0)]

    def verdict(run_: Measured) -> str:
        return judging.judge(run_, estimates, 0.1, 2 / 3).verdict

    assert "holds for this run if L is no larger: its longest delay, 5, is" in verdict(measured())
    late = measured(rows=[EpochRow(0, 50, 2.0, 1.0, 41)])
    assert "its longest delay is 41, and its eta and m bear 3" in verdict(late)
    large = verdict(measured(lr=0.5))
    assert "whatever its delays: its eta is 50 times the suggested one" in large
    decays = verdict(measured(uncovered=["its step decays", "it is SGD's"]))
    assert decays == "no theorem covers this run: its step decays; and it is SGD's."
    found = judging.judge(measured(), estimates, 0.1, 2 / 3)
    setting = Setting(0.01, 1.0, 10, 10, 5)
    assert found.predicted == float(theory.bound(setting, 2.0, 20))
    assert found.measured == 0.75
    assert found.tolerated == int(theory.tolerated_delay(setting))


@pytest.mark.parametrize(
    ("method", "activation", "why"),
    [
        ("svrg", "relu", "relu has kinks"),
        ("sgd", "tanh", "it is SGD's"),
        ("sgd_svrg", "tanh", None),
    ],
)
def test_what_no_theorem_covers_is_said(tmp_path, capsys, method, activation, why):
    flags = ("--driver=simulate", f"--method={method}", f"--activation={activation}", "--lr=0.001")
    flags += ("--inner_steps=10", "--num_epochs=3", "--block_size=0", "--lr_decay=0")
    flags += ("--pretrain_epochs=1",) * (method == "sgd_svrg")
    assert run(train_shared, *NETWORK, *flags, f"--out_dir={tmp_path / 'a'}") == 0
    capsys.readouterr()
    report = (f"--run_dir={tmp_path / 'a'}", "--num_singles=2", f"--out_dir={tmp_path / 'b'}")
    assert run(theory_report, *report) == 0
    text = entries(capsys.readouterr().out)
    if why is None:  # the epochs of SVRG, after those of SGD
        assert text["verdict"].startswith("Theorem 3 holds")
        assert [row["epoch"] for row in read(tmp_path / "b" / theory_report.EPOCHS)] == ["1", "2"]
    else:
        assert text["verdict"].startswith(f"no theorem covers this run: {why}")
        assert text["predicted"] == "nothing is predicted"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--u0=1",), "--u0 must be a finite number above 0 and below 1, got 1.0."),
        (("--alpha=0",), "--alpha must be a finite number above 0 and at most 1, got 0.0."),
        (("--lr=-1",), "--lr must be a finite number above 0, got -1.0."),
        (("--num_epochs=0",), "--num_epochs must be a whole number of at least 1, got 0."),
        (("--delay=-1",), "--delay must be a whole number of at least 0, got -1."),
        (("--num_threads=2",), "--num_threads belongs to --driver=threads"),
        (("--driver=threads", "--delay=2"), "--delay belongs to --driver=simulate"),
        (("--u0=0.9", "--batch_size=100"), "--u0 must be small enough that m"),
        (("--block_size=1000",), "--block_size must be a whole number from 0 to 310, got 1000."),
        (("--run_dir=x", "--lr=0.1"), "--num_train is that of the run in --run_dir"),
    ],
)
def test_bad_flags_are_refused(tmp_path, capsys, flags, sentence):
    command = (*NETWORK, "--num_singles=2", *flags)
    command = sorted(set(command), key=command.index)
    if "--run_dir=x" in flags:
        command = ["--num_train=20", *flags]
    assert run(theory_report, *command, f"--out_dir={tmp_path}") == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["missing", "no json", "foreign", "short"])
def test_a_folder_that_is_no_runs_is_refused(tmp_path, damage):
    config = {
        "flags": {"dataset": "digits", "method": "svrg", "inner_steps": 5},
        "resolved": {"dim": 1, "num_train": 2, "steps": [{"lr": 0.1, "decay": 0.0}]},
    }
    if damage != "missing":
        text = "{" if damage == "no json" else json.dumps(config if damage == "short" else {})
        (tmp_path / "config.json").write_text(text)
        with open(tmp_path / "metrics.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", "updates", "train_loss", "grad_norm_sq", "max_delay"])
            writer.writerow([0, 0, 1.0, 1.0, 0])
    sentence = "--run_dir must (be a folder with the config.json|hold a run with an epoch)"
    with pytest.raises(InputError, match=sentence):
        measuring.recorded_run(Path(tmp_path), None)
