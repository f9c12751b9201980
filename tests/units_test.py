"""Studies by units: none is done twice, none that is done gets lost, and no other study goes on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags

import asvrg.checkpoints
from asvrg.checkpoints import orbax_files
from asvrg.errors import DivergedError, InputError
from experiments import checkpoints, files, folders, launch, units

ROOT = Path(__file__).parent.parent
CONFIG = {"flags": {"seed": 3, "num_threads": 1}, "resolved": {"dim": 5}, "started": "today"}
NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def _restore_environment(monkeypatch):
    monkeypatch.setenv("NPROC", "1")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def outcome(name: str) -> list[tuple[Any, ...]]:
    """Rows whose numbers are easily changed by writing and reading them."""
    rng = np.random.default_rng(ord(name))
    hard = (float("nan"), -float("inf"), -0.0, 5e-324, 2**60 + 1, True, float(np.float32(0.1)))
    return [(name, *hard, *rng.normal(size=3).tolist())]


def study(folder: Path, config: dict[str, Any] = CONFIG, program: str = "study") -> dict[str, Any]:
    """What the units give, and which of them were computed, by now."""
    computed = []

    def compute(name: str) -> list[tuple[Any, ...]]:
        computed.append(name)
        return outcome(name)

    with units.kept(folder, program, config, len(NAMES)) as kept:
        found = {name: kept.do(name, lambda name=name: compute(name)) for name in NAMES}
    return {"found": found, "computed": computed, "config": kept.config}


def stopped_at(folder: Path, name: str, stop: Callable[[], object]) -> None:
    """A study in which something happens while a unit is under way."""

    def compute(each: str) -> list[tuple[Any, ...]]:
        if each == name:
            stop()
        return outcome(each)

    with units.kept(folder, "study", CONFIG, len(NAMES)) as kept:
        for each in NAMES:
            kept.do(each, lambda each=each: compute(each))


def raising(error: BaseException) -> Callable[[], object]:
    def stop() -> None:
        raise error

    return stop


def test_outcomes_come_back_to_the_bit_and_are_not_computed_again(tmp_path):
    first, second = study(tmp_path), study(tmp_path)
    assert first["computed"] == list(NAMES)
    assert second["computed"] == []
    expected = {name: [list(row) for row in outcome(name)] for name in NAMES}
    assert repr(first["found"]) == repr(second["found"]) == repr(expected)
    assert "resumed" not in first["config"]
    later = study(tmp_path, CONFIG | {"started": "tomorrow"})["config"]
    assert later["started"] == "today"
    assert later["resumed"] == [{"units": 3, "started": "tomorrow"}]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_waits_for_the_end_of_the_unit(tmp_path, capsys, number, code):
    def main(values: flags.FlagValues) -> int:
        stopped_at(tmp_path, "b", lambda: os.kill(os.getpid(), number))
        return 0

    assert launch.run(main, lambda values: None, ["binary"]) == code
    said = capsys.readouterr().err
    assert f"The same command with --out_dir={tmp_path} goes on after 2 of 3 units." in said
    assert study(tmp_path)["computed"] == ["c"]
    assert "goes on after 2 of 3 units" in capsys.readouterr().err


def test_a_second_signal_does_not_wait(tmp_path, capsys):
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    def main(values: flags.FlagValues) -> int:
        stopped_at(tmp_path, "b", twice)
        return 0

    assert launch.run(main, lambda values: None, ["binary"]) == 130
    assert "goes on after 1 of 3 units." in capsys.readouterr().err


def test_a_kill_loses_the_unit_under_way_alone(tmp_path):
    program = """
import os, signal, sys
from pathlib import Path
from tests.units_test import stopped_at
stopped_at(Path(sys.argv[1]), "c", lambda: os.kill(os.getpid(), signal.SIGKILL))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert study(tmp_path)["computed"] == ["c"]


def test_an_error_in_a_unit_leaves_the_others(tmp_path, capsys):
    with pytest.raises(ZeroDivisionError):
        stopped_at(tmp_path, "c", raising(ZeroDivisionError()))
    assert "goes on after 2 of 3 units." in capsys.readouterr().err
    assert study(tmp_path)["computed"] == ["c"]


def test_what_would_happen_again_is_not_recommended(tmp_path, capsys):
    with pytest.raises(DivergedError):
        stopped_at(tmp_path, "c", raising(DivergedError("the loss is nan.")))
    assert "goes on" not in capsys.readouterr().err


def test_a_full_disk_leaves_the_units_before(tmp_path, capsys, monkeypatch):
    save = asvrg.checkpoints.save

    def full(folder: Path, content: asvrg.checkpoints.Content) -> None:
        if len(content.record["units"]) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        save(folder, content)

    monkeypatch.setattr(asvrg.checkpoints, "save", full)
    with pytest.raises(OSError, match="No space"):
        study(tmp_path)
    assert "goes on after 1 of 3 units." in capsys.readouterr().err
    monkeypatch.undo()
    assert study(tmp_path)["computed"] == ["b", "c"]


def contents(folder: Path) -> Iterator[Path]:
    """The files of the checkpoints, the newest first."""
    found = {int(path.name): path for path in (folder / "units").iterdir()}
    for step in sorted(found, reverse=True):
        (path,) = found[step].rglob(orbax_files.FILE)
        yield path


def test_a_damaged_newest_checkpoint_falls_back(tmp_path, capsys):
    study(tmp_path)
    newest = next(contents(tmp_path))
    newest.write_bytes(newest.read_bytes()[:-40])
    again = study(tmp_path)
    assert again["computed"] == ["c"]
    said = capsys.readouterr().err
    assert f"The checkpoint {tmp_path / 'units' / '2'} is damaged" in said
    assert study(tmp_path)["computed"] == []

    for path in contents(tmp_path):
        path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"--out_dir must name a folder .* are all damaged"):
        study(tmp_path)


def test_another_study_is_refused(tmp_path):
    study(tmp_path)
    other = CONFIG | {"flags": {"seed": 4, "num_threads": 1}}
    with pytest.raises(InputError, match=r"with --seed=3, which goes on .* got --seed=4\."):
        study(tmp_path, other)
    with pytest.raises(InputError, match=r"with dim=5, which goes on .* got dim=6\."):
        study(tmp_path, CONFIG | {"resolved": {"dim": 6}})
    with pytest.raises(InputError, match=r"a study of experiments\.study, got experiments\.other"):
        study(tmp_path, other, "other")
    free = CONFIG | {"flags": {"seed": 3, "num_threads": 2}}
    assert study(tmp_path, free)["computed"] == []


def test_two_processes_are_not_at_one_study(tmp_path):
    with (
        files.held(tmp_path),
        pytest.raises(InputError, match="a folder that no other process writes to"),
    ):
        study(tmp_path)


def test_which_folders_are_taken(tmp_path):
    def claim(folder: Path, **named: Any) -> Path:
        return folders.claim_folder(str(folder), "name", **named)

    of_study, of_run, of_old = (tmp_path / name for name in ("study", "run", "old"))
    study_ = {"holds": "rows.csv", "kind": checkpoints.UNITS}
    run_ = {"holds": "metrics.csv", "kind": checkpoints.FOLDER}
    for folder in (of_study, of_run, of_old):
        folder.mkdir()
        (folder / "rows.csv").touch()
    study(of_study)
    (of_run / "rows.csv").unlink()
    (of_run / "checkpoint").mkdir()
    assert claim(of_study, **study_) == of_study
    for folder, named, what in (
        (of_old, study_, "rows.csv"),
        (of_study, {"holds": "rows.csv"}, "rows.csv"),
        (of_run, study_, "folder checkpoint"),
        (of_study, run_, "folder units"),
    ):
        with pytest.raises(InputError, match=f"without another run's results.* holds a {what}"):
            claim(folder, **named)


def test_resume_finds_the_newest_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = flags.FlagValues()
    folders.define_out_dir(values)
    folders.define_resume(values)
    values(["binary", "--resume"])
    with pytest.raises(InputError, match="--resume must find a run to go on with"):
        folders.folder_to_resume(values, "study", "units")
    for date in ("2", "1", "3"):
        (Path("runs") / f"study-{date}").mkdir(parents=True)
    for date in ("2", "1"):  # there is nothing in the newest
        study(Path("runs") / f"study-{date}")
    assert folders.folder_to_resume(values, "study", "units") == "runs/study-2"
