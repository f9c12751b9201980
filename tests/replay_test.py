"""Recorded runs, run again: equal to the bit, or it is said why not."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from asvrg import delays, estimators, objectives
from asvrg.drivers import simulate
from experiments import problem, replay, traces, train_shared
from experiments.traces import Header, spill
from tests.binaries import SMALL, run

pytestmark = pytest.mark.timeout(180)

EXACT = {
    "threads": ("--num_threads=3", "--read_period=4"),
    "all of x": ("--block_size=0", "--method=sgd"),
    "two phases": ("--method=sgd_svrg", "--pretrain_epochs=1", "--lr_decay=0.3"),
    "adaptive": ("--delay_adaptive", "--num_threads=4", "--read_period=1"),
    "one thread": ("--num_threads=1", "--read=view", "--write=lock_free"),
    "float64": ("--dtype=float64", "--activation=tanh", "--hidden=8,6"),
    "groups": ("--driver=simulate", "--delays=uniform", "--delay=6", "--read_groups=4"),
    "round robin": ("--driver=simulate", "--num_threads=5", "--seed=3"),
    "alpha": ("--num_threads=3", "--alpha=0.8", "--alpha_epochs=2"),
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """The folder of a run of three epochs of 50 updates by two threads."""
    folder = tmp_path_factory.mktemp("run")
    assert run(train_shared, *SMALL, "--record", "--read_period=4", f"--out_dir={folder}") == 0
    return folder


def copy_of(folder: Path, to: Path) -> Path:
    """The trace of a run in a folder of its own."""
    (to / "trace").mkdir(parents=True)
    for path in (folder / "trace").iterdir():
        (to / "trace" / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize("flags", EXACT.values(), ids=EXACT.keys())
def test_a_run_with_consistent_reads_is_replayed_to_the_bit(tmp_path, capsys, flags):
    assert run(train_shared, *SMALL, *flags, "--record", f"--out_dir={tmp_path}") == 0
    capsys.readouterr()
    assert run(replay, f"--trace={tmp_path}") == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^epoch +\d+ .*: equal to the bit$", printed, re.MULTILINE)) == 3
    assert "equal to the bit   3 of 3 epochs" in printed
    assert "distance           0 at most in an entry" in printed
    assert printed.rstrip().endswith("kept")


def test_a_resumed_run_is_replayed_as_one(tmp_path, capsys):
    flags = (*SMALL, "--record", "--num_threads=2", f"--out_dir={tmp_path}")
    assert run(train_shared, *flags, "--num_epochs=2") == 0
    assert run(train_shared, *flags, "--num_epochs=5") == 0
    capsys.readouterr()
    assert run(replay, f"--trace={tmp_path}") == 0
    assert "equal to the bit   5 of 5 epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "sentences"),
    [
        (("--read=inconsistent",), ["x was copied without the lock while others wrote to it"]),
        (
            ("--read=view", "--write=lock_free"),
            ["x was read in place while others wrote to it", "one of the additions may be lost"],
        ),
    ],
)
def test_where_it_cannot_be_exact_it_is_said_why(tmp_path, capsys, flags, sentences):
    assert run(train_shared, *SMALL, *flags, "--record", f"--out_dir={tmp_path}") == 0
    capsys.readouterr()
    assert run(replay, f"--trace={tmp_path}") == 0
    printed = capsys.readouterr().out
    assert "promise            none. --read=" in printed
    for sentence in sentences:
        assert sentence in printed
    distance = float(re.search(r"^distance +(\S+) at most", printed, re.MULTILINE)[1])
    assert distance < 1.0


def test_a_replay_up_to_an_update_is_at_the_x_of_that_update(recorded, tmp_path, capsys):
    out = tmp_path / "x"
    assert run(replay, f"--trace={recorded}", "--update=71", f"--out_dir={out}") == 0
    printed = capsys.readouterr().out

    recording = traces.load(recorded)
    problem_ = problem.from_recorded(recording.header.config["flags"], None)
    sampler = replay.make_sampler(recording.header)
    estimator = estimators.svrg(problem_.objective)
    x = problem_.x0
    for epoch, count in ((recording.epochs[0], 50), (recording.epochs[1], 21)):
        snapshot = estimator.prepare(x, problem_.train, map)
        first = delays.prefix(epoch.trace, count)
        x = simulate.replay(
            estimator,
            x,
            snapshot,
            problem_.train,
            sampler,
            first,
            epoch=epoch.number - 1,
            lr=epoch.lr,
        )
    tau = delays.staleness(recording.epochs[1].trace)[20]
    worker = recording.epochs[1].trace.worker[20]
    assert f"update             71, the 21. of epoch 2, by worker {worker} with delay {tau}\n" in (
        printed
    )
    wanted = objectives.evaluate(problem_.objective, x, problem_.train, with_grad=True)
    assert f"training loss      {wanted.loss:.9g}\n" in printed
    assert f"||grad f||^2       {wanted.grad_norm_sq:.9g}\n" in printed
    with np.load(out / "x.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["x"], x)
        assert file["update"] == 71
        parameters = [file[f"parameters[{i}]"] for i in range(2)]
    assert [each.shape for each in parameters] == [(65, 10), (11, 10)]
    np.testing.assert_array_equal(np.concatenate([each.ravel() for each in parameters]), x)


@pytest.mark.parametrize("epoch", [0, 2, 3])
def test_at_the_end_of_an_epoch_it_finds_what_the_run_found(recorded, capsys, epoch):
    assert run(replay, f"--trace={recorded}", f"--update={50 * epoch}") == 0
    printed = capsys.readouterr().out
    with open(recorded / "metrics.csv", newline="") as file:
        row = list(csv.DictReader(file))[epoch]
    assert f"training loss      {row['train_loss']}\n" in printed
    assert f"||grad f||^2       {row['grad_norm_sq']}\n" in printed
    assert ("before the first update" in printed) == (epoch == 0)


def test_a_broken_promise_is_a_failure(recorded, tmp_path, capsys):
    folder = copy_of(recorded, tmp_path) / "trace"
    header = traces.read_header(folder)
    epoch = traces.Epochs(folder, header, 3)[1]
    worker = epoch.trace.worker.copy()
    worker[7] = 1 - worker[7]  # this one and all later ones have other draws now
    version = np.minimum(np.arange(50), 7) * (np.arange(50) >= 7)
    wrong = epoch.trace._replace(worker=worker, read_version=version, sees_own=False)
    spill.write_epoch(folder, header, epoch._replace(trace=wrong))
    assert run(replay, f"--trace={tmp_path}") == 1
    printed = capsys.readouterr().out
    assert "equal to the bit   1 of 3 epochs" in printed
    assert printed.rstrip().endswith("BROKEN")


def test_a_trace_of_other_data_is_refused(recorded, tmp_path, capsys):
    folder = copy_of(recorded, tmp_path) / "trace"
    header = traces.read_header(folder)
    spill.write_header(folder, header._replace(data_sha256=64 * "0"))
    assert run(replay, f"--trace={tmp_path}") == 2
    printed = capsys.readouterr()
    assert "was recorded on other training data than those of --data_dir" in printed.err
    assert printed.out == ""


def test_a_damaged_epoch_is_found_before_anything_is_computed(recorded, tmp_path, capsys):
    path = copy_of(recorded, tmp_path) / "trace" / "epoch-00002.npz"
    path.write_bytes(path.read_bytes()[:-40])
    assert run(replay, f"--trace={tmp_path}") == 2
    printed = capsys.readouterr()
    assert f"{path} is damaged" in printed.err
    assert "Traceback" not in printed.err
    assert "epoch     1" not in printed.out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ((), "--trace must name the folder of a run"),
        (("--trace=/nonexistent",), "/nonexistent/trace holds no recorded run"),
        (("--update=151",), "--update must be a whole number from 0 to 150, got 151."),
        (("--update=-1",), "--update must be a whole number from 0 to 150, got -1."),
        (("--out_dir=",), "--out_dir must name a folder"),
    ],
)
def test_bad_flags_give_a_sentence(recorded, capsys, flags, sentence):
    trace = (f"--trace={recorded}",) if flags and "--trace" not in flags[0] else ()
    assert run(replay, *trace, *flags) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert "Traceback" not in printed.err


def test_an_x_that_is_there_is_not_overwritten(recorded, tmp_path, capsys):
    (tmp_path / "x.npz").write_text("precious")
    assert run(replay, f"--trace={recorded}", "--update=1", f"--out_dir={tmp_path}") == 2
    assert "which holds a x.npz" in capsys.readouterr().err
    assert (tmp_path / "x.npz").read_text() == "precious"


def a_header(dtype: str = "float32", *, fault_tolerant: bool | None = None, **flags) -> Header:
    job = {} if fault_tolerant is None else {"job": {"fault_tolerant": fault_tolerant}}
    return Header("", {"flags": flags, **job}, "", 9, dtype, 5, 3, 2, 1)


def test_only_what_cannot_be_exact_has_a_reason():
    threads = {"driver": "threads", "method": "svrg"}
    assert replay.why_inexact(a_header(**threads, read="consistent", write="locked")) is None
    assert replay.why_inexact(a_header(driver="simulate", read="view", write="lock_free")) is None
    one = a_header(**threads, read="view", write="lock_free")._replace(num_workers=1)
    assert replay.why_inexact(one) is None
    assert replay.why_inexact(a_header(method="svrg", fault_tolerant=True)) is None
    assert replay.why_inexact(a_header("float64", method="svrg", fault_tolerant=False)) is None
    assert replay.why_inexact(a_header(method="sgd", fault_tolerant=False)) is None
    collective = replay.why_inexact(a_header(method="svrg", fault_tolerant=False))
    assert "in an order of its own" in collective
    died = replay.why_inexact(a_header(method="svrg", fault_tolerant=True), [3, 7])
    assert "not known of epochs 3, 7" in died


def test_products_of_many_mini_batches_are_replayed_but_for_rounding(tmp_path, capsys):
    flags = (
        "--nosees_own",
        "--read_period=16",
        "--dtype=float64",
        "--activation=tanh",
        "--lr=0.05",
    )
    assert run(train_shared, *SMALL, *flags, "--record", f"--out_dir={tmp_path}") == 0
    told = capsys.readouterr().out
    assert re.search(
        r"^Theorem 2 +(inside|outside) of \(13\), if L is no larger", told, re.MULTILINE
    )
    assert "no theorem covers" not in told
    assert run(replay, f"--trace={tmp_path}") == 0
    printed = capsys.readouterr().out
    assert "--nosees_own: the iterations of a window were products of many mini-batches" in printed
    distance = float(re.search(r"^distance +(\S+) at most", printed, re.MULTILINE)[1])
    assert distance < 1e-12


def test_what_no_theorem_covers_is_named_with_its_delays(tmp_path, capsys):
    flags = ("--nosees_own", "--method=sgd", "--lr_decay=0.2", "--num_threads=1", "--read_period=8")
    assert run(train_shared, *SMALL, *flags, f"--out_dir={tmp_path}") == 0
    told = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert "the longest delay is 7," in told
    for reason in ("it is SGD's", "its step decays", "relu has kinks"):
        assert reason in told
