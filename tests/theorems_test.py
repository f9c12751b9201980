"""The binary that holds the theorems against runs, on a problem of a second."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from asvrg import theory
from asvrg.theory import Setting
from experiments import datasets, problem, theorems
from experiments.theory import studies
from tests.binaries import run

SMALL = (
    "--problem=network",
    "--num_train=300",
    "--hidden=2",
    "--num_seeds=2",
    "--num_updates=40",
    "--num_singles=4",
)


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_logistic_problem_tells_small_labels_from_large_ones():
    values = flags.FlagValues()
    theorems.define_flags(values)
    values(["binary", "--problem=logistic", "--num_train=100"])
    (made,) = theorems.make_problems(values, problem.from_flags(values))
    labels = datasets.load("digits", None, 100, None, 0).train_labels
    assert made.smoothness == pytest.approx(0.25 + 2 * 0.1)
    assert np.array_equal(np.asarray(made.data[1]), np.where(labels > np.median(labels), 1.0, -1.0))
    np.testing.assert_allclose(np.linalg.norm(made.data[0], axis=1), 1.0, rtol=1e-12)


def test_a_stopped_one_goes_on_and_writes_tables_figure_and_settings(tmp_path, capsys, monkeypatch):
    original, calls = studies.bounds, []

    def stopped(*args):
        calls.append(args)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(studies, "bounds", stopped)
    assert run(theorems, *SMALL, f"--out_dir={tmp_path}") == 143
    said = capsys.readouterr().err
    assert f"The same command with --out_dir={tmp_path} goes on after 1 of 3 units." in said
    assert run(theorems, *SMALL, f"--out_dir={tmp_path}") == 0
    assert len(calls) == 1
    out = capsys.readouterr().out

    config = json.loads((tmp_path / "config.json").read_text())
    (network,) = config["resolved"].values()
    assert not network["proven"]
    assert network["dim"] == 65 * 2 + 3 * 10
    assert config["flags"]["activation"] == "tanh"
    smallest, largest = network["curvature at x0"]
    assert smallest < 0 < largest <= network["smoothness"]

    rows = read(tmp_path / theorems.BOUNDS)
    assert {row["theorem"] for row in rows} == {"2", "4"}
    for row in rows:
        assert float(row["mean"]) < float(row["bound"])
        setting = Setting(
            lr=float(row["lr"]),
            smoothness=float(row["smoothness"]),
            batch_size=int(row["batch_size"]),
            inner_steps=int(row["inner_steps"]),
            max_delay=int(row["delay"]),
            blocks=float(row["blocks"]),
        )
        expected = theory.bound(setting, network["gap"], int(row["updates"]))
        assert float(row["bound"]) == pytest.approx(expected, rel=1e-6)

    # n + 2 b m component gradients an epoch of SVRG, b m of SGD.
    last = {row["method"]: row for row in read(tmp_path / theorems.RATES)}
    svrg, sgd = last["svrg"], last["sgd, constant step"]
    assert (svrg["updates"], svrg["grad_evals"]) == ("40", str(2 * (300 + 2 * 20)))
    assert (sgd["updates"], sgd["grad_evals"], sgd["bound"]) == ("40", "40", "nan")
    assert len(read(tmp_path / theorems.SLOPES)) == 3
    without = [row for row in read(tmp_path / theorems.DELAYS) if row["delay"] == "0"]
    assert [row["ratio"] for row in without] == ["1"] * 4

    assert (tmp_path / theorems.FIGURE).read_bytes().startswith(b"\x89PNG")
    assert "* beyond Theorem 3" in out
    assert f"bound {float(rows[-1]['bound']):.3e}" in out
    assert str(tmp_path) in out

    # Another study's folder is not written to.
    assert run(theorems, *SMALL, "--num_updates=41", f"--out_dir={tmp_path}") == 2
    said = capsys.readouterr().err
    assert f"--out_dir={tmp_path} holds a run with --num_updates=40, which goes on" in said


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--activation=relu", "--activation must be tanh, got relu"),
        ("--num_seeds=0", "--num_seeds must be a whole number of at least 1"),
        ("--weight=0", "--weight must be a finite number above 0"),
        ("--num_train=4", "--num_train must be so many samples that m"),
    ],
)
def test_bad_flags_are_refused(tmp_path, capsys, flag, sentence):
    assert run(theorems, *SMALL, flag, f"--out_dir={tmp_path / 'new'}") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new" / theorems.BOUNDS).exists()
