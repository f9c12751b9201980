"""All figures from the data on, with commands that leave at once what real ones leave later."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shlex
import signal
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import asvrg.checkpoints
from asvrg.errors import InputError
from experiments import datasets, recording, reproduce
from experiments.cluster import launcher
from experiments.cluster.namespaces import ClusterError
from experiments.methods import METHODS, Step
from experiments.paper import drawing, evidence, plan, processes
from experiments.paper.plan import FIGURES, Labels
from experiments.speedup.predictions import BEYOND
from tests.binaries import run
from tests.fake_commands import EPOCHS, FOUND, Commands, labels_of, loss_of

pytestmark = pytest.mark.timeout(60)
ROOT = Path(__file__).parent.parent
MPI = launcher.Mpi(Path("/some/mpi/mpiexec"), launcher.OPEN_MPI)
SMALL = ("--num_seeds=2", "--speedup_seeds=1", "--threads=2", "--workers=2")
STEPS, LINKS = ("tuned_step", "quarter_step"), ("equal_links", "fast_server")
ONE = ("--figures=figure1", "--num_seeds=1")


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def pretending() -> Iterator[Commands]:
    """Nothing is run, drawn, or looked for."""
    commands = Commands()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "run", commands)
        patch.setattr(launcher, "find_mpi", lambda: MPI)
        patch.setattr(datasets, "locate", lambda *args: None)
        for name in ("draw_methods", "draw_speedup"):
            patch.setattr(drawing, name, lambda *args, **named: None)
        yield commands


@pytest.fixture
def commands() -> Iterator[Commands]:
    with pretending() as made:
        yield made


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Commands]:
    """All figures at a small size, without a stop."""
    folder = tmp_path_factory.mktemp("reproduce")
    with pretending() as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(asvrg.checkpoints, "save", lambda *args: None)  # which take their time
        assert run(reproduce, *SMALL, "--data_dir=some/data", f"--out_dir={folder}") == 0
    return folder, made


def expected_labels(figure: str) -> list[Labels]:
    """With 2 seeds, and 1 or 2 workers where their number is asked for."""
    if figure in ("figure1", "figure3"):
        k = 2 if figure == "figure1" else 3
        return [Labels(method, k, "", seed) for method in METHODS for seed in (0, 1)]
    if figure == "figure2":
        return [Labels("svrg", k, of, seed) for of in STEPS for k in (1, 2) for seed in (0, 1)]
    runs = [("unlimited", 1), *((of, k) for of in LINKS for k in (1, 2))]
    return [Labels("svrg", k, of, 0) for of, k in runs]


@pytest.mark.parametrize("figure", FIGURES)
def test_the_rows_of_every_run_have_its_labels(whole, figure):
    results = whole[0] / reproduce.RESULTS / figure
    runs = evidence.read_runs(results / evidence.RUNS)
    assert sorted(each.labels for each in runs) == sorted(expected_labels(figure))
    for each in runs:
        assert list(each.columns) == list(recording.Row._fields)
        assert each.columns["epoch"].tolist() == [0, 1, 2]
        assert each.columns["train_loss"][-1] == pytest.approx(loss_of(each.labels), rel=1e-8)
        assert each.columns["seconds"][-1] == pytest.approx(EPOCHS / each.labels.workers, rel=1e-8)


def test_each_figure_has_the_tables_that_belong_to_it(whole):
    common = {evidence.RUNS, reproduce.COMMANDS, recording.CONFIG}
    expected = {
        "figure1": {evidence.STEPS, evidence.BEST, evidence.CLAIMS},
        "figure2": {evidence.PREDICTED, evidence.SPEEDUP},
        "figure3": {evidence.STEPS, evidence.BEST, evidence.CLAIMS},
        "figure4": {evidence.PREDICTED, evidence.SPEEDUP},
    }
    folder, _ = whole
    for figure, own in expected.items():
        results = folder / reproduce.RESULTS / figure
        assert {path.name for path in results.iterdir()} == common | own
        for name in (evidence.STEPS, evidence.BEST):
            if name in own:
                assert (results / name).read_bytes() == (
                    folder / figure / "tune" / name
                ).read_bytes()
        config = json.loads((results / recording.CONFIG).read_text())
        assert config["flags"]["server_rate"] == "1gbit"
        assert config["machine"]["cores"] == len(os.sched_getaffinity(0))


def test_predictions_are_what_is_simulated_beyond_the_measured(whole):
    results = whole[0] / reproduce.RESULTS
    for figure, settings in (("figure2", STEPS), ("figure4", LINKS)):
        rows = read(results / figure / evidence.PREDICTED)
        assert {row["kind"] for row in rows} == {BEYOND}
        found = evidence.read_predicted(results / figure / evidence.PREDICTED)
        assert [(each.labels.setting, each.labels.workers) for each in found] == [
            (setting, k) for setting in settings for k in (1, 2, 4, 8, 16, 32)
        ]


def test_every_command_is_run_once_and_listed(whole):
    folder, commands = whole
    names = [Path(name).relative_to(folder).as_posix() for name in commands.folders]
    assert len(set(names)) == len(names) == 2 + 6 + (8 + 2) + 6 + (5 + 2)
    assert commands.logs == [folder / name / "log.txt" for name in names]
    ran = dict(zip(names, commands.done, strict=True))
    listed: dict[str, str] = {}
    for figure in FIGURES:
        for row in read(folder / reproduce.RESULTS / figure / reproduce.COMMANDS):
            assert row["name"].startswith(f"{figure}/")
            assert row["name"] not in listed
            assert 0 <= float(row["seconds"]) < 60  # the time limit of the test
            listed[row["name"]] = row["command"]
    assert set(listed) == set(names)
    here = {"python": os.path.abspath(sys.executable), "mpiexec": str(MPI.mpiexec)}
    for name, command in listed.items():
        words = [here.get(word, word) for word in shlex.split(command)]
        assert ran[name] == [*words, "--data_dir=some/data", f"--out_dir={folder / name}"]
    # Each figure's search comes first, and a prediction after the run that it reads.
    assert names[:2] == ["figure1/tune", "figure3/tune"]
    for name, words in ran.items():
        for of in [word.removeprefix("--runs=") for word in words if word.startswith("--runs=")]:
            assert names.index(Path(of).relative_to(folder).as_posix()) < names.index(name)


def test_the_steps_that_were_found_are_those_of_the_runs(whole):
    _, commands = whole
    counted = 0
    for name, words in zip(commands.folders, commands.done, strict=True):
        given = dict(re.findall(r"^--(\w+)=(.*)$", "\n".join(words), re.MULTILINE))
        if {"tune", "predicted"} & set(Path(name).parts):
            assert "lr" not in given
            continue
        figure = next(part for part in Path(name).parts if part in FIGURES)
        steps = FOUND[plan.SEARCH_OF[figure]]
        method, _, setting, _ = labels_of(words, given)
        times = 4 if setting == "quarter_step" else 1
        assert float(given["lr"]) * times == steps[method].lr
        assert float(given["lr_decay"]) == steps[method].decay
        assert ("pretrain_lr" in given) == (method == "sgd_svrg")
        if method == "sgd_svrg":
            first = Step(float(given["pretrain_lr"]), float(given["pretrain_lr_decay"]))
            assert first == steps["sgd"]
            counted += 1
    assert counted == 4


def test_what_failed_is_done_again_and_nothing_else(tmp_path, commands, capsys):
    def fail(folder: Path) -> None:
        if folder.name == "svrg-0":
            raise ChildProcessError(f"it ended with code 1; {folder / 'log.txt'} says why.")

    commands.before = fail
    command = (*ONE, f"--out_dir={tmp_path}")
    assert run(reproduce, *command) == 1
    said = capsys.readouterr().err
    assert f"it ended with code 1; {tmp_path}/figure1/svrg-0/log.txt says why." in said
    assert f"The same command with --out_dir={tmp_path} goes on after 2 units." in said
    first = ["figure1/tune", "figure1/sgd-0", "figure1/svrg-0"]
    assert commands.folders == [f"{tmp_path}/{name}" for name in first]
    assert not (tmp_path / reproduce.RESULTS).exists()

    commands.before = lambda folder: None
    assert run(reproduce, *command) == 0
    assert "goes on after 2 units\n" in capsys.readouterr().err
    rest = ["figure1/svrg-0", "figure1/sgd_svrg-0"]
    assert commands.folders[3:] == [f"{tmp_path}/{name}" for name in rest]
    results = tmp_path / reproduce.RESULTS / "figure1"
    runs = evidence.read_runs(results / evidence.RUNS)
    assert [each.labels.method for each in runs] == list(METHODS)
    # How long a command took that was cut off, nobody knows.
    took = {row["name"]: row["seconds"] for row in read(results / reproduce.COMMANDS)}
    assert [name for name, seconds in took.items() if not seconds] == ["figure1/svrg-0"]

    before = {path.name: path.read_bytes() for path in results.glob("*.csv")}
    assert run(reproduce, *command, "--resume") == 0
    assert len(commands.done) == 5
    assert {path.name: path.read_bytes() for path in results.glob("*.csv")} == before
    capsys.readouterr()
    assert run(reproduce, *command, "--rate=5mbit") == 2
    assert "with --rate=100mbit, which goes on with the same flags only" in capsys.readouterr().err


def test_other_figures_and_more_seeds_are_added_later(tmp_path, commands):
    command = (f"--out_dir={tmp_path}", "--threads=1", "--workers=1", "--speedup_seeds=1")
    assert run(reproduce, *command, *ONE) == 0
    assert run(reproduce, *command, "--figures=figure1,figure4", "--num_seeds=2") == 0
    names = [Path(name).relative_to(tmp_path).as_posix() for name in commands.folders]
    assert names[4:] == [
        "figure3/tune",
        *("figure1/sgd-1", "figure1/svrg-1", "figure1/sgd_svrg-1"),
        *(f"figure4/{setting}/1-0" for setting in ("unlimited", *LINKS)),
        *(f"figure4/predicted/{setting}" for setting in LINKS),
    ]
    results = tmp_path / reproduce.RESULTS
    runs = evidence.read_runs(results / "figure1" / evidence.RUNS)
    assert sorted(each.labels for each in runs) == sorted(expected_labels("figure1"))

    # More workers are simulated too.
    assert run(reproduce, *command, "--figures=figure4", "--workers=1,3") == 0
    runs = evidence.read_runs(results / "figure4" / evidence.RUNS)
    expected = {("unlimited", 1), *((setting, k) for setting in LINKS for k in (1, 3))}
    assert {(each.labels.setting, each.labels.workers) for each in runs} == expected
    found = evidence.read_predicted(results / "figure4" / evidence.PREDICTED)
    assert [(each.labels.setting, each.labels.workers) for each in found] == [
        (setting, k) for setting in LINKS for k in (1, 2, 3, 4, 8, 16, 32)
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_what_is_done(tmp_path, commands, capfd, number, code):
    def interrupt(folder: Path) -> None:
        if folder.name == "sgd-0":
            os.kill(os.getpid(), number)

    commands.before = interrupt
    command = (*ONE, f"--out_dir={tmp_path}")
    assert run(reproduce, *command) == code
    assert "goes on after 1 units." in capfd.readouterr().err
    commands.before = lambda folder: None
    assert run(reproduce, *command) == 0
    assert [Path(name).name for name in commands.folders] == [
        "tune",
        *("sgd-0", "sgd-0", "svrg-0", "sgd_svrg-0"),
    ]


def test_a_prediction_that_was_cut_off_at_its_end_is_made_again(tmp_path, commands):
    """Unlike the other binaries, its own refuses a folder with results."""

    def interrupt(folder: Path) -> None:
        if "predicted" in folder.parts:
            os.kill(os.getpid(), signal.SIGTERM)

    commands.after = interrupt
    command = ("--figures=figure2", "--num_seeds=1", "--threads=1", f"--out_dir={tmp_path}")
    assert run(reproduce, *command) == 143
    commands.after = lambda folder: None
    assert run(reproduce, *command) == 0
    predicted = tmp_path / reproduce.RESULTS / "figure2" / evidence.PREDICTED
    assert len(evidence.read_predicted(predicted)) == 2 * 6


def test_the_bar_does_not_go_beyond_its_end(tmp_path, commands, monkeypatch):
    """Of which tqdm would warn, whatever the seconds are that add up to it."""
    monkeypatch.setattr(asvrg.checkpoints, "save", lambda *args: None)
    original = plan.runs
    for draw in range(8):

        def runs(*args: Any, draw: int = draw) -> list[plan.Command]:
            return [
                each._replace(seconds=zlib.crc32(f"{draw}{each.name}".encode()) / 1e9)
                for each in original(*args)
            ]

        monkeypatch.setattr(plan, "runs", runs)
        assert run(reproduce, *ONE, f"--out_dir={tmp_path / str(draw)}") == 0


def test_figure_2_takes_the_search_of_figure_1(tmp_path, commands):
    command = ("--figures=figure2", "--num_seeds=1", "--threads=1", f"--out_dir={tmp_path}")
    assert run(reproduce, *command) == 0
    names = [Path(name).relative_to(tmp_path).as_posix() for name in commands.folders]
    assert names == [
        "figure1/tune",
        *(f"figure2/{setting}/1-0" for setting in STEPS),
        *(f"figure2/predicted/{setting}" for setting in STEPS),
    ]
    assert [path.name for path in (tmp_path / reproduce.RESULTS).iterdir()] == ["figure2"]
    assert not (tmp_path / reproduce.RESULTS / "figure2" / evidence.BEST).exists()


def test_a_dry_run_prints_every_command_and_leaves_nothing(tmp_path, commands, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(reproduce, "--dry_run", f"--out_dir={tmp_path / 'new'}") == 0
    printed = capsys.readouterr().out.splitlines()
    shape = r" *\d+ s  (?:mpiexec .*)?python -m experiments\.(\w+) .*"
    binaries = [re.fullmatch(shape, line)[1] for line in printed]
    assert {name: binaries.count(name) for name in binaries} == {
        "tune": 2,
        "train_shared": 3 * 5 + 2 * 6 * 5,
        "train_distributed": 3 * 5,
        "cluster": (1 + 10 + 10) * 3,
        "predict_speedup": 2 + 2,
    }
    assert len(set(printed)) == len(printed)
    assert commands.done == []
    assert list(tmp_path.iterdir()) == []


def test_features_that_are_missing_are_made_first(tmp_path, commands, monkeypatch):
    looked: list[str] = []

    def locate(source: Any, sources: Any, data_dir: str | None) -> None:
        looked.append(source.name)
        raise InputError("--dataset=cifar10_features is nowhere.")

    monkeypatch.setattr(datasets, "locate", locate)
    assert run(reproduce, *ONE, f"--out_dir={tmp_path / 'one'}") == 0
    assert looked == []
    three = (
        "--figures=figure3",
        "--num_seeds=1",
        "--data_dir=x",
        f"--out_dir={tmp_path / 'three'}",
    )
    assert run(reproduce, *three) == 0
    assert looked == ["cifar10_features"]
    words = commands.done[4]
    assert words[1:] == ["-m", "experiments.extract_features", "--data_dir=x"]
    assert commands.logs[4] == tmp_path / "three" / "cifar10_features" / "log.txt"
    assert "experiments.tune" in commands.done[5]


def test_figures_that_need_mpi_are_refused_without_it(tmp_path, commands, capsys, monkeypatch):
    def find_mpi() -> launcher.Mpi:
        raise ClusterError("there is no program 'mpiexec'.")

    monkeypatch.setattr(launcher, "find_mpi", find_mpi)
    for figures in ("figure1,figure3", "figure4"):
        given = (f"--figures={figures}", f"--out_dir={tmp_path / 'new'}")
        assert run(reproduce, *given) == 2
        said = capsys.readouterr().err
        assert "--figures must leave out figure3 and figure4 without MPI: there is no" in said
    assert run(reproduce, "--figures=figure1", "--dry_run") == 0
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--figures=figure5", "--figures must be some of figure1, figure2, figure3, figure4"),
        ("--figures=", "with commas between, got ''"),
        ("--num_seeds=0", "--num_seeds must be a whole number of at least 1, got 0"),
        ("--speedup_seeds=0", "--speedup_seeds must be a whole number of at least 1, got 0"),
        ("--threads=1,0", "every entry of --threads must be a whole number of at least 1, got 0"),
        ("--workers=two", "every entry of --workers must be a whole number of at least 1"),
        # What the binaries would refuse, hours later.
        ("--threads=20000", "--threads must be a whole number from 1 to 16384, got 20000"),
        ("--workers=65", "--workers must be a whole number from 1 to 64, got 65"),
        ("--rate=fast", "--rate must be a whole number and kbit, mbit or gbit"),
        ("--rate=unlimited", "--rate must be a whole number and kbit, mbit or gbit"),
        ("--server_rate=0mbit", "--server_rate must be a whole number and kbit, mbit or gbit"),
    ],
)
def test_bad_flags_are_refused(tmp_path, commands, capsys, flag, sentence):
    assert run(reproduce, flag, "--dry_run", f"--out_dir={tmp_path / 'new'}") == 2
    assert sentence in capsys.readouterr().err
    assert commands.done == []
    assert not (tmp_path / "new").exists()
