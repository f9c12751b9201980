"""SIGKILL at random moments, and the same command again: the results of one undisturbed run."""

from __future__ import annotations

import itertools
import json
import random
import signal
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from experiments import checkpoints, traces
from tests.binaries import SMALL, read_metrics, without_clock
from tests.lives import lives

KILLS = 25  # of each kind of run
FLAGS = (*SMALL, "--inner_steps=4000", "--checkpoint_seconds=0.02", "--record")
LENGTH = "--num_epochs=8"
KINDS = {
    "a thread": ("--num_threads=1", "--method=sgd_svrg", "--pretrain_epochs=2"),
    "simulated delays": ("--driver=simulate", "--num_threads=5", "--delay_adaptive"),
}


def check_files(folder: Path) -> bool:
    """Whatever is there can be read; returns whether the checkpoint is one inside of an epoch."""
    if (folder / "metrics.csv").exists():
        epochs = [int(row["epoch"]) for row in read_metrics(folder)]
        assert epochs == list(range(len(epochs)))
        assert (folder / "metrics.csv").read_bytes().endswith(b"\n")
    if (folder / "config.json").exists():
        json.loads((folder / "config.json").read_text())
    if (folder / "curves.png").exists():
        assert matplotlib.image.imread(folder / "curves.png").ndim == 3
    if (folder / "trace" / traces.HEADER).exists():
        traces.read_header(folder / "trace")
    reached = checkpoints.load(folder)
    return reached is not None and reached.state.inside is not None


def check_results(folder: Path, whole: Path) -> None:
    """The same numbers, to the bit, as those of a run that nobody disturbed."""
    assert without_clock(read_metrics(folder)) == without_clock(read_metrics(whole))
    assert (folder / "delays.csv").read_text() == (whole / "delays.csv").read_text()
    found, expected = checkpoints.load(folder), checkpoints.load(whole)
    assert found is not None
    assert expected is not None
    assert found.state.x.tobytes() == expected.state.x.tobytes()
    one, two = traces.load(folder), traces.load(whole)
    for a, b in zip(one.epochs, two.epochs, strict=True):
        assert a[:5] == b[:5]  # number, estimator, step, x before and after
        untimed = [each.trace._replace(times=None)._asdict() for each in (a, b)]
        np.testing.assert_equal(*untimed)
        if a.trace.times is not None:
            assert np.all(np.diff(a.trace.times.landed) >= 0)
    assert names(folder) == names(whole)


def names(folder: Path) -> list[str]:
    """All files but those of the checkpoints, whose numbers depend on how many there were."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path) for path in paths if path.parts[0] != checkpoints.FOLDER)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags, rng, whole = (*FLAGS, *KINDS[kind]), random.Random(kind), tmp_path / "whole"
    kills = inside = 0
    with lives("experiments.train_shared", tmp_path / "errors") as zygote:
        assert zygote.live(*flags, LENGTH, f"--out_dir={whole}") == 0
        begin = time.monotonic()
        assert zygote.live(*flags, "--num_epochs=3", f"--out_dir={tmp_path / 'short'}") == 0
        short = time.monotonic() - begin
        for number in itertools.count():
            folder, code = tmp_path / str(number), -1
            while code:
                # Once there are enough the run ends by itself.
                seconds = rng.uniform(0.0, 0.7 * short) if kills < KILLS else 60.0
                code = zygote.live(*flags, LENGTH, f"--out_dir={folder}", seconds=seconds)
                assert code in (0, -signal.SIGKILL), (tmp_path / "errors").read_text()
                kills += code != 0
                inside += check_files(folder)
            check_results(folder, whole)
            if kills >= KILLS:
                break
    printed = (tmp_path / "errors").read_text() + capfd.readouterr().err
    assert "damaged" not in printed
    assert "Traceback" not in printed
    assert inside > 3  # it did go on inside of epochs
