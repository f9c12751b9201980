"""The binary of Algorithms 2 and 3, started by mpiexec as its users start it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from asvrg import delays
from experiments import checkpoints, replay, traces
from tests import binaries, mpi_jobs

pytestmark = pytest.mark.timeout(150)

BINARY = ["-m", "experiments.train_distributed"]
SMALL = ["--num_train=100", "--num_test=50", "--hidden=10", "--inner_steps=50", "--lr=0.2"]


def run(folder: Path, *arguments: str, ranks: int = 3, **launch) -> subprocess.CompletedProcess:
    """Runs the binary on the digits."""
    return mpi_jobs.mpiexec([*BINARY, f"--out_dir={folder}", *SMALL, *arguments], ranks, **launch)


@pytest.mark.parametrize("launch", [{"fault_tolerant": True}, {"mpi": "mpich"}])
def test_a_run_leaves_what_every_binary_leaves(launch, tmp_path: Path, capsys) -> None:
    done = run(
        tmp_path, "--method=sgd_svrg", "--num_epochs=3", "--max_delay=4", "--record", **launch
    )
    assert done.returncode == 0, done.stderr
    rows = binaries.read_metrics(tmp_path)
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["updates"] for row in rows] == ["0", "50", "100", "150"]
    # An epoch of SGD (b m), then two of SVRG (n + 2 b m).
    assert [row["grad_evals"] for row in rows] == ["0", "500", "1600", "2700"]
    assert float(rows[-1]["train_loss"]) < 0.5 * float(rows[0]["train_loss"])
    assert all(int(row["max_delay"]) <= 4 for row in rows)
    recorded = [epoch.trace for epoch in traces.load(tmp_path).epochs]
    assert [int(delays.staleness(trace).max()) for trace in recorded] == [
        int(row["max_delay"]) for row in rows[1:]
    ]
    assert all(len(trace.shards or ()) == 2 for trace in recorded)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["job"]["num_workers"] == 2
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert done.stdout.count("training loss") == 1  # rank 0 alone prints
    assert binaries.run(replay, f"--trace={tmp_path}") == 0
    assert "equal to the bit   3 of 3 epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--shard_sizes=60,30"], "shard_sizes must be 2 numbers, one for each worker, with the"),
        (["--shard_sizes=60,x"], "--shard_sizes must be whole numbers with commas between, got"),
        (["--max_delay=-1"], "--max_delay must be a whole number of at least 0, got -1."),
        (["--batch_size=101"], "--batch_size must be a whole number from 1 to 100, got 101."),
    ],
)
def test_bad_input_is_told_once_and_ends_all_ranks(arguments, sentence, tmp_path: Path) -> None:
    done = run(tmp_path, *arguments, timeout=40)
    assert done.returncode == 2
    assert done.stderr.count(sentence) == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "metrics.csv").exists()


def test_a_single_process_is_told_what_to_do() -> None:
    done = subprocess.run(
        [sys.executable, *BINARY],
        cwd=mpi_jobs.ROOT,
        env=os.environ | mpi_jobs.ENV["openmpi"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "mpiexec must start one server and at least one worker" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_worker_ends_mpich_and_the_same_command_resumes(tmp_path: Path) -> None:
    arguments = ["--num_epochs=400", "--checkpoint_seconds=0", "--inner_steps=200"]
    victim: list[int] = []

    def on_start(job: subprocess.Popen) -> None:
        threading.Thread(target=kill_a_worker, args=(tmp_path, job, victim), daemon=True).start()

    done = run(tmp_path, *arguments, mpi="mpich", on_start=on_start)
    assert victim
    assert done.returncode != 0
    assert "BAD TERMINATION" in done.stdout + done.stderr
    reached = len(binaries.read_metrics(tmp_path)) - 1
    assert 2 <= reached < 400
    more = [f"--num_epochs={reached + 3}", *arguments[1:]]
    again = run(tmp_path, *more, mpi="mpich")
    assert again.returncode == 0, again.stderr
    rows = binaries.read_metrics(tmp_path)
    assert [int(row["epoch"]) for row in rows] == list(range(reached + 4))


def test_a_run_that_outlived_a_worker_is_replayed_to_the_bit(tmp_path: Path, capsys) -> None:
    victim: list[int] = []

    def on_start(job: subprocess.Popen) -> None:
        threading.Thread(target=kill_a_worker, args=(tmp_path, job, victim), daemon=True).start()

    arguments = ["--num_epochs=30", "--inner_steps=200", "--record", "--delay_adaptive"]
    done = run(tmp_path, *arguments, ranks=4, fault_tolerant=True, on_start=on_start)
    assert done.returncode == 0, done.stderr
    assert victim
    shards = [epoch.trace.shards for epoch in traces.load(tmp_path).epochs]
    sizes = [[len(shard.samples) for shard in each or ()] for each in shards]
    assert sizes[0] == [34, 33, 33]
    assert sizes[-1][0] == 0  # worker 0 is the victim
    assert binaries.run(replay, f"--trace={tmp_path}") == 0
    printed = capsys.readouterr().out
    died_in_a_snapshot = "is not known of epochs" in printed
    assert died_in_a_snapshot or "equal to the bit   30 of 30 epochs" in printed
    workers = (tmp_path / "delays.csv").read_text().splitlines()[1:]
    assert {line.split(",")[0] for line in workers} == {"0", "1", "2"}


def test_a_job_that_is_told_to_end_goes_on_inside_of_its_epoch(tmp_path: Path) -> None:
    """With one worker to the bit: mpiexec hands SIGTERM on, and leaves the server a moment."""
    flags = ["--inner_steps=8000", "--lr=0.01", "--checkpoint_seconds=3600", "--num_epochs=3"]
    parts, whole = tmp_path / "parts", tmp_path / "whole"

    def on_start(job: subprocess.Popen) -> None:
        threading.Thread(target=terminate, args=(parts, job), daemon=True).start()

    ended = run(parts, *flags, ranks=2, fault_tolerant=True, on_start=on_start)
    assert ended.returncode != 0
    reached = checkpoints.load(parts)
    assert reached is not None
    assert reached.state.inside is not None
    again = run(parts, *flags, ranks=2, fault_tolerant=True)
    assert again.returncode == 0, again.stderr
    assert re.search(r"goes on after \d+ updates of epoch 2 of 3", again.stderr)
    assert run(whole, *flags, ranks=2, fault_tolerant=True).returncode == 0
    one, two = binaries.read_metrics(parts), binaries.read_metrics(whole)
    assert binaries.without_clock(one) == binaries.without_clock(two)


def terminate(folder: Path, job: subprocess.Popen) -> None:
    """Sends SIGTERM to mpiexec in the midst of an epoch."""
    until = time.monotonic() + 60
    while time.monotonic() < until:  # until an epoch is done, and the next one goes on
        if (folder / "metrics.csv").exists() and len(binaries.read_metrics(folder)) == 2:
            break
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)


def kill_a_worker(folder: Path, job: subprocess.Popen, victim: list[int]) -> None:
    """Sends SIGKILL to the first worker when three epochs are done."""
    metrics = folder / "metrics.csv"
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if metrics.exists() and metrics.read_text().count("\n") > 4:
            break
        time.sleep(0.01)
    mark = dict(
        entry.partition("=")[::2]
        for entry in Path(f"/proc/{job.pid}/environ").read_text().split("\0")
    )[mpi_jobs.MARK]
    for pid in mpi_jobs.processes(mark):
        environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
        if {"PMI_RANK=1", "OMPI_COMM_WORLD_RANK=1"}.intersection(environment):
            victim.append(pid)
            os.kill(pid, signal.SIGKILL)
            return
