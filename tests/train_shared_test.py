"""The shared-memory binary end to end, on digits."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from asvrg import delays
from experiments import checkpoints, problem, traces, train_shared
from tests.binaries import SMALL, read_metrics, run, without_clock

pytestmark = pytest.mark.timeout(180)

COLUMNS = (
    "epoch,seconds,updates,grad_evals,train_loss,train_error,test_loss,test_error,grad_norm_sq,"
    "mean_delay,max_delay"
)
ROOT = Path(__file__).parent.parent


def test_trains_digits_and_leaves_its_results(tmp_path, capsys):
    # Half of the default step, with which some orders of the threads' updates leave 0.4.
    assert run(train_shared, "--num_epochs=4", "--lr=0.25", f"--out_dir={tmp_path}") == 0

    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == COLUMNS
    rows = read_metrics(tmp_path)
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row["updates"] for row in rows] == ["0", "1000", "2000", "3000", "4000"]
    # n + 2 b m component gradients an epoch of SVRG.
    assert int(rows[1]["grad_evals"]) == 1437 + 2 * 10 * 1000
    assert float(rows[0]["train_loss"]) > 2.2  # about log 10: nothing learnt yet
    assert float(rows[-1]["train_loss"]) < 0.35
    assert float(rows[-1]["test_error"]) < 0.10
    assert float(rows[0]["seconds"]) == 0.0 < float(rows[1]["seconds"]) < float(rows[4]["seconds"])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")

    config = json.loads((tmp_path / "config.json").read_text())
    assert config["flags"]["inner_steps"] == 1000
    assert config["resolved"]["num_threads"] == 2
    assert config["resolved"]["dim"] == 65 * 100 + 101 * 10
    assert config["resolved"]["block_size"] == 1000
    assert config["machine"]["cores"] == len(os.sched_getaffinity(0))

    summary = capsys.readouterr().out
    assert re.search(r"^epochs +4 of 4$", summary, re.MULTILINE)
    assert f"training loss      {float(rows[-1]['train_loss']):.4f}" in summary
    assert str(tmp_path / "metrics.csv") in summary
    assert str(tmp_path / "curves.png") in summary


@pytest.mark.parametrize("method", ["sgd", "svrg", "sgd_svrg"])
def test_one_thread_gives_the_simulators_csv(tmp_path, method):
    arguments = [*SMALL, f"--method={method}"]
    if method == "sgd_svrg":
        arguments.append("--pretrain_epochs=1")
    one = run(
        train_shared, *arguments, "--num_threads=1", "--read_period=7", f"--out_dir={tmp_path}/a"
    )
    two = run(train_shared, *arguments, "--driver=simulate", f"--out_dir={tmp_path}/b")
    assert one == two == 0
    threads, simulated = read_metrics(tmp_path / "a"), read_metrics(tmp_path / "b")
    assert without_clock(threads) == without_clock(simulated)
    per_epoch = {"sgd": [500] * 3, "svrg": [1100] * 3, "sgd_svrg": [500, 1100, 1100]}[method]
    assert [int(row["grad_evals"]) for row in threads] == [0, *np.cumsum(per_epoch)]


@pytest.mark.parametrize(
    "flags",
    [
        ("--read=inconsistent",),
        ("--read=view", "--write=lock_free", "--num_threads=3"),
        ("--block_size=0", "--activation=tanh", "--hidden=8,6", "--dtype=float64"),
        ("--driver=simulate", "--num_threads=5"),
        ("--driver=simulate", "--delays=uniform", "--delay=6", "--read_groups=4"),
        ("--driver=simulate", "--delays=constant", "--delay=6"),
    ],
)
def test_every_mode_trains(tmp_path, flags):
    assert run(train_shared, *SMALL, "--lr=0.05", *flags, f"--out_dir={tmp_path}") == 0
    rows = read_metrics(tmp_path)
    assert float(rows[-1]["train_loss"]) < 0.95 * float(rows[0]["train_loss"])
    if "--num_threads=5" in flags:
        assert [row["max_delay"] for row in rows[1:]] == ["4"] * 3
    if "--delay=6" in flags:
        assert [row["max_delay"] for row in rows[1:]] == ["6"] * 3


def test_records_the_trace_and_tensorboard_events(tmp_path, capsys):
    assert run(train_shared, *SMALL, "--record", "--tensorboard", f"--out_dir={tmp_path}") == 0
    recorded = traces.load(tmp_path)
    rows = read_metrics(tmp_path)
    counted = Counter()
    for epoch, row in zip(recorded.epochs, rows[1:], strict=True):
        tau = delays.staleness(epoch.trace)
        assert len(tau) == 50
        assert set(epoch.trace.worker) <= {0, 1}
        assert int(row["max_delay"]) == tau.max()
        counted.update(zip(epoch.trace.worker.tolist(), tau.tolist(), strict=True))
    with open(tmp_path / "delays.csv", newline="") as file:
        listed = {
            (int(row["worker"]), int(row["delay"])): int(row["updates"])
            for row in csv.DictReader(file)
        }
    assert listed == counted
    assert recorded.header.config == json.loads((tmp_path / "config.json").read_text())
    summary = capsys.readouterr().out
    for worker in set(recorded.epochs[0].trace.worker):
        updates = sum(count for (k, _), count in counted.items() if k == worker)
        assert re.search(rf"^  worker {worker} +mean .*, {updates} updates$", summary, re.MULTILINE)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train_loss" in events.read_bytes()


BAD_FLAGS = [
    (["--num_epochs=0"], "--num_epochs must be a whole number of at least 1, got 0."),
    (["--num_epochs=many"], "--num_epochs=many"),
    (["--batch_size=0"], "--batch_size must be a whole number from 1 to 100, got 0."),
    (["--batch_size=101"], "--batch_size must be a whole number from 1 to 100, got 101."),
    (["--block_size=761"], "--block_size must be a whole number from 0 to 760, got 761."),
    (["--inner_steps=-1"], "--inner_steps must be a whole number of at least 1, got -1."),
    (["--num_threads=0"], "--num_threads must be a whole number of at least 1, got 0."),
    (["--read_period=0"], "--read_period must be a whole number of at least 1, got 0."),
    (["--lr=0"], "--lr must be a finite number above 0, got 0.0."),
    (["--lr=nan"], "--lr must be a finite number above 0, got nan."),
    (["--lr=inf"], "--lr must be a finite number above 0, got inf."),
    (["--lr_decay=-0.5"], "--lr_decay must be a finite number of at least 0, got -0.5."),
    (["--l2=-1"], "--l2 must be a finite number of at least 0, got -1.0."),
    (["--seed=-1"], "--seed must be a whole number of at least 0, got -1."),
    (["--hidden=10,x"], "every entry of --hidden must be a whole number of at least 1, got 'x'."),
    (["--hidden=0"], "every entry of --hidden must be a whole number of at least 1, got 0."),
    (["--num_train=100000"], "--num_train"),
    (["--num_test=0"], "--num_test"),
    (["--dataset=minst"], "--dataset=minst"),
    (["--method=saga"], "sgd|svrg|sgd_svrg"),
    (["--data_dir=/nonexistent", "--dataset=mnist"], "--data_dir"),
    (["--pretrain_epochs=2"], "--pretrain_epochs belongs to --method=sgd_svrg"),
    (["--method=sgd_svrg", "--pretrain_epochs=3"], "must exceed --pretrain_epochs, got 3 and 3."),
    (["--write=lock_free"], "--write=lock_free needs --read=inconsistent or view"),
    (["--delays=uniform"], "--delays belongs to --driver=simulate"),
    (["--max_delay=-1"], "--max_delay must be a whole number of at least 0, got -1"),
    (["--driver=simulate", "--max_delay=3"], "--max_delay belongs to --driver=threads"),
    (["--driver=simulate", "--read=view"], "--read belongs to --driver=threads"),
    (["--driver=simulate", "--delay=3"], "--delay belongs to --delays=constant or uniform"),
    (["--num_epoch=3"], "num_epoch"),
    (
        ["--checkpoint_seconds=-1"],
        "--checkpoint_seconds must be a finite number of at least 0, got -1.0.",
    ),
    (["--checkpoint_seconds=nan"], "--checkpoint_seconds must be a finite number of at least 0"),
    (["--resume"], "--resume must find a run to go on with, got --out_dir="),
    (["--out_dir="], "--out_dir must name a folder"),
    (["--out_dir=" + 300 * "x"], "--out_dir must be a folder that can be made"),
    (["--driver=simulate", "--delays=uniform", "--read_groups=761"], "--read_groups must be"),
    (["--flagfile=" + sys.executable], "--flagfile must name a text file"),
    (["mnist"], "flags must have the form --name=value, got 'mnist'."),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD_FLAGS, ids=lambda value: str(value)[:40])
def test_bad_flags_give_a_sentence_and_write_nothing(tmp_path, capsys, arguments, sentence):
    folder = tmp_path / "out"
    assert run(train_shared, *SMALL, f"--out_dir={folder}", *arguments) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert not folder.exists()


def test_used_or_impossible_out_dir_is_refused(tmp_path, capsys):
    (tmp_path / "metrics.csv").write_text("precious")
    assert run(train_shared, *SMALL, f"--out_dir={tmp_path}") == 2
    assert "without another run's results" in capsys.readouterr().err
    assert (tmp_path / "metrics.csv").read_text() == "precious"

    assert run(train_shared, *SMALL, f"--out_dir={tmp_path}/metrics.csv/below") == 2
    assert "--out_dir must be a folder that can be made" in capsys.readouterr().err


def test_divergence_stops_the_run_and_keeps_what_is_written(tmp_path, capsys):
    assert run(train_shared, *SMALL, "--lr=1e9", "--num_epochs=9", f"--out_dir={tmp_path}") == 1
    assert "the step (--lr) is probably too large" in capsys.readouterr().err
    rows = read_metrics(tmp_path)
    assert 1 <= len(rows) < 10
    assert (tmp_path / "curves.png").exists()


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The binary in a process of its own, which does not outlive the test."""
    command = [sys.executable, "-m", "experiments.train_shared", *SMALL, *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_lines(process: subprocess.Popen[str], metrics: Path, count: int) -> None:
    while not metrics.exists() or len(metrics.read_text().splitlines()) < count:
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_process_where_it_can_go_on(tmp_path, number, code):
    """In the midst of a long epoch, and to the bit."""
    flags = ("--num_threads=1", "--inner_steps=40000", "--lr=0.01")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    late = "--checkpoint_seconds=3600"  # only the signal has it write one
    with running("--num_epochs=9", *flags, late, f"--out_dir={parts}") as process:
        wait_for_lines(process, parts / "metrics.csv", 3)
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == code
    assert f"interrupted by {signal.Signals(number).name}." in err
    assert "Traceback" not in err
    reached = checkpoints.load(parts)
    updates = len(reached.state.inside.halfway.trace.worker)
    epoch = reached.state.epoch
    assert (
        f"The same command with --out_dir={parts} goes on after {updates} updates of epoch "
        f"{epoch + 1} of 9.\n"
    ) in err
    assert f"epochs             {epoch} of 9" in out
    rows = read_metrics(parts)
    assert [int(row["epoch"]) for row in rows] == list(range(epoch + 1))
    assert (parts / "curves.png").read_bytes().startswith(b"\x89PNG")

    for folder in (parts, whole):
        arguments = (*SMALL, *flags, f"--num_epochs={epoch + 1}", f"--out_dir={folder}")
        assert run(train_shared, *arguments) == 0
    assert without_clock(read_metrics(parts)) == without_clock(read_metrics(whole))
    seconds = [float(row["seconds"]) for row in read_metrics(parts)]
    assert seconds == sorted(seconds)


def test_interrupt_while_xla_compiles_is_no_crash(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "0")  # so that it does compile
    # As soon as config.json is there, x^0 is evaluated and everything else is compiled.
    for delay in (0.0, 0.3, 0.6):
        folder = tmp_path / str(delay)
        with running("--num_epochs=100000", f"--out_dir={folder}") as process:
            wait_for_lines(process, folder / "config.json", 1)
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
        assert process.returncode == 130, err
        assert "interrupted" in err


def delays_in(summary: str) -> list[str]:
    return [line for line in summary.splitlines() if line.startswith(("delays", "  worker"))]


@pytest.mark.parametrize(
    ("reached", "flags"),
    [
        (1, ("--method=sgd_svrg", "--pretrain_epochs=1", "--num_threads=1")),
        (2, ("--driver=simulate", "--delays=uniform", "--delay=6", "--read_groups=4")),
        (0, ("--driver=simulate", "--num_threads=3", "--method=sgd", "--dtype=float64")),
    ],
)
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    tmp_path, monkeypatch, capsys, reached, flags
):
    arguments = [*SMALL, "--record", *flags]
    assert run(train_shared, *arguments, f"--out_dir={tmp_path}/whole") == 0
    undisturbed = delays_in(capsys.readouterr().out)

    evaluate, calls = problem.evaluate, []

    def interrupted(problem_, x):
        calls.append(x)
        if len(calls) > reached + 1:
            raise KeyboardInterrupt
        return evaluate(problem_, x)

    with monkeypatch.context() as patch:
        patch.setattr(problem, "evaluate", interrupted)
        assert run(train_shared, *arguments, f"--out_dir={tmp_path}/parts") == 130
    capsys.readouterr()
    assert run(train_shared, *arguments, f"--out_dir={tmp_path}/parts") == 0
    assert delays_in(capsys.readouterr().out) == undisturbed

    whole, parts = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "parts")
    assert without_clock(whole) == without_clock(parts)
    seconds = [float(row["seconds"]) for row in parts]
    assert seconds == sorted(seconds)
    one, two = traces.load(tmp_path / "whole"), traces.load(tmp_path / "parts")
    for a, b in zip(one.epochs, two.epochs, strict=True):
        untimed = [epoch._replace(trace=epoch.trace._replace(times=None)) for epoch in (a, b)]
        np.testing.assert_equal(untimed[0], untimed[1])
    assert one.last_x.tobytes() == two.last_x.tobytes()
    csvs = [(tmp_path / name / "delays.csv").read_text() for name in ("whole", "parts")]
    assert csvs[0] == csvs[1]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_left_alone_and_can_be_extended(tmp_path, capsys):
    arguments = [*SMALL, "--driver=simulate", f"--out_dir={tmp_path}/a"]
    assert run(train_shared, *arguments, "--num_epochs=2") == 0
    before = contents(tmp_path)
    for flags, code, sentence in [
        (("--num_epochs=2",), 0, "is finished: it has done 2 epochs"),
        (("--num_epochs=1",), 2, "--num_epochs must be at least 2, the epochs that the run in"),
        (("--lr=0.1", "--seed=3"), 2, "--lr=0.2, --seed=0, which goes on with the same flags only"),
        (("--num_epochs=3", "--noresume"), 2, "--noresume must be given a folder without a run"),
    ]:
        assert run(train_shared, *arguments, *flags) == code
        printed = capsys.readouterr()
        assert sentence in printed.err
        assert "Traceback" not in printed.err
    assert contents(tmp_path) == before

    assert run(train_shared, *arguments, "--num_epochs=5", "--checkpoint_seconds=0") == 0
    whole = [*SMALL, "--driver=simulate", "--num_epochs=5", f"--out_dir={tmp_path}/b"]
    assert run(train_shared, *whole) == 0
    assert without_clock(read_metrics(tmp_path / "a")) == without_clock(
        read_metrics(tmp_path / "b")
    )


def test_resume_finds_the_newest_run_of_its_kind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [*SMALL, "--driver=simulate"]
    assert run(train_shared, *arguments, "--resume") == 2
    assert (
        "--resume must find a run to go on with, got none in runs/train_shared-digits-svrg-*"
        in (capsys.readouterr().err)
    )
    for seed in (1, 2):
        assert run(train_shared, *arguments, "--num_epochs=1", f"--seed={seed}") == 0
    assert run(train_shared, *arguments, "--num_epochs=2", "--seed=2", "--resume") == 0
    assert "goes on after epoch 1 of 2" in capsys.readouterr().err
    first, second = sorted((tmp_path / "runs").iterdir())
    assert [len(read_metrics(folder)) for folder in (first, second)] == [2, 3]
    assert run(train_shared, *arguments, "--num_epochs=3", "--seed=1", "--resume") == 2
    assert "holds a run with --seed=2, which goes on with the same flags only" in (
        capsys.readouterr().err
    )


def test_damaged_checkpoints_never_lose_results(tmp_path, capsys):
    arguments = [*SMALL, "--driver=simulate", "--checkpoint_seconds=0", f"--out_dir={tmp_path}"]
    assert run(train_shared, *arguments) == 0
    rows = without_clock(read_metrics(tmp_path))
    for path in (tmp_path / "checkpoint" / "3").rglob("content"):
        path.write_bytes(path.read_bytes()[:-30])
    assert run(train_shared, *arguments) == 0
    assert "is damaged" in capsys.readouterr().err
    assert without_clock(read_metrics(tmp_path)) == rows

    for path in (tmp_path / "checkpoint").rglob("content"):
        path.write_bytes(b"")
    before = contents(tmp_path)
    assert run(train_shared, *arguments, "--num_epochs=9") == 2
    printed = capsys.readouterr()
    assert "whose checkpoints are all damaged; name another folder" in printed.err
    assert "Traceback" not in printed.err
    assert contents(tmp_path) == before


def test_help_lists_the_flags(capsys):
    assert run(train_shared, "--help") == 0
    printed = capsys.readouterr().out
    assert "Shared-AsySVRG (Algorithm 1)" in printed
    for name in ("dataset", "method", "num_threads", "read_period", "pretrain_epochs", "out_dir"):
        assert f"--{name}" in printed or f"--[no]{name}" in printed
