"""The benchmark of the simulator, as a program: its times are for a person to judge."""

from __future__ import annotations

import csv

import pytest

from benchmarks import simulator
from tests.binaries import run


@pytest.mark.timeout(120)
def test_writes_a_line_for_every_contestant(tmp_path, capsys):
    small = ("--num_train=100", "--hidden=10", "--inner_steps=20", "--block_size=64")
    lists = ("--repeats=2", "--delays=3,8", "--num_runs=1,2")
    assert run(simulator, *small, *lists, f"--out_dir={tmp_path}") == 0
    with open(tmp_path / "simulator.csv", newline="", encoding="utf-8") as file:
        lines = {line["contestant"]: line for line in csv.DictReader(file)}
    assert [*lines] == [
        "no delays",
        "delays of 3",
        "delays of 8",
        "delays of 0 to 3",
        "delays of 0 to 8",
        "1 runs at once, with their snapshots",
        "2 runs at once, with their snapshots",
    ]
    assert float(lines["no delays"]["speedup"]) == 1.0
    assert run(simulator, *small, "--delays=", f"--out_dir={tmp_path}/out") == 2
    assert "--delays must be whole numbers with commas between" in capsys.readouterr().err
