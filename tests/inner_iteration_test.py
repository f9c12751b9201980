"""The benchmark of an inner iteration, as a program: its times are for a person to judge."""

from __future__ import annotations

import csv

import pytest

from benchmarks import inner_iteration
from tests.binaries import run

SMALL = ("--num_train=100", "--hidden=10", "--inner_steps=20", "--block_size=64", "--repeats=2")


@pytest.mark.timeout(120)
def test_writes_a_line_for_every_contestant(tmp_path, capsys):
    arguments = (*SMALL, "--read_periods=1,8", f"--out_dir={tmp_path}")
    assert run(inner_iteration, *arguments) == 0
    with open(tmp_path / "inner_iteration.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["contestant"] for line in lines[2:]] == [
        f"threads, K = {workers}, read_period = {period}" for workers in (1, 2) for period in (1, 8)
    ]
    assert float(lines[0]["speedup"]) == 1.0
    for line in lines:
        assert 0 < float(line["min_us"]) <= float(line["median_us"]) <= float(line["max_us"])
    assert (tmp_path / "config.json").exists()

    assert run(inner_iteration, *arguments) == 2
    assert "without another run's results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--repeats=0", "--repeats must be a whole number of at least 1, got 0."),
        ("--num_threads=x", "every entry of --num_threads must be a whole number"),
        ("--read_periods=0", "every entry of --read_periods must be a whole number"),
    ],
)
def test_bad_flags_give_a_sentence(tmp_path, capsys, flag, sentence):
    assert run(inner_iteration, *SMALL, flag, f"--out_dir={tmp_path}/out") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
