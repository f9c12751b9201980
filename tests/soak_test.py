"""The soak: it counts what is lost to the last addition, and says what is wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from asvrg.drivers import threads
from asvrg.types import Delta
from benchmarks import endurance, soak
from benchmarks.endurance import Line, MemoryLine
from tests.binaries import run

pytestmark = pytest.mark.timeout(60)

# A soak of a second: 8 epochs.
SOAK = (
    "--num_train=100",
    "--num_test=50",
    "--hidden=10",
    "--inner_steps=50",
    "--num_updates=399",
)
GOOD = Line(
    mode="view/lock_free",
    half="counting",
    workers=2,
    block=5,
    asked=100,
    landed=100,
    lost=3,
    lost_share=0.006,
    max_delay=9,
    longest_delay=9,
    resident_mb=300.0,
    last_mb=300.0,
    slope_mb=0.0,
    slope_error=0.1,
    updates_per_s=1e4,
    first_loss=None,
    last_loss=None,
)


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_soak_trains_and_counts_in_each_mode(tmp_path: Path) -> None:
    modes = ["consistent/locked", "view/lock_free"]
    given = ["--num_threads=3", "--block_size=64", f"--out_dir={tmp_path}", "--read_period=2"]
    assert run(soak, *SOAK, *given, f"--modes={','.join(modes)}") == 0
    lines, memory = read(tmp_path / "soak.csv"), read(tmp_path / "memory.csv")
    assert [line["half"] for line in lines] == ["training", "counting"] * 3
    assert [line["mode"] for line in lines[::2]] == [*modes, modes[0]]
    assert [line["max_delay"] for line in lines] == ["", "", "", "", "5", "5"]
    for line in lines:
        assert line["asked"] == line["landed"] == "400"  # whole epochs
        assert line["block"] == "64"
        if line["half"] == "training":
            assert line["lost"] == ""
            assert float(line["last_loss"]) < float(line["first_loss"])
        elif line["mode"] == modes[0]:
            assert line["lost"] == "0"
        else:
            assert 0 <= int(line["lost"]) < 400 * 64
            assert float(line["lost_share"]) == pytest.approx(int(line["lost"]) / (400 * 64))
    assert len(memory) == 8 * len(lines)
    assert [int(line["updates"]) for line in memory[:8]] == list(range(50, 401, 50))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["resolved"]["max_delay"] == 3 * 2 - 1
    assert (tmp_path / "soak.png").stat().st_size > 0


def test_what_is_lost_is_counted_and_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One coordinate of each window's first update, behind the back of the trace."""
    add = threads.add

    def losing(buffer: np.ndarray, delta: Delta) -> None:
        values = np.array(delta.values)
        values[0, 0] = 0.0
        add(buffer, Delta(delta.block, values))

    monkeypatch.setattr(threads, "add", losing)
    given = ["--num_threads=2", "--block_size=64", "--read_period=10", f"--out_dir={tmp_path}"]
    assert run(soak, *SOAK, *given, "--modes=consistent/locked") == 1
    lost = [line["lost"] for line in read(tmp_path / "soak.csv")]
    assert lost == ["", "40", "", "40"]
    told = capsys.readouterr().err
    for mode in ("consistent/locked", "consistent/locked, max_delay=19"):
        assert f"{mode}, counting: 40 additions to a coordinate were lost." in told


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({}, None),
        ({"mode": "consistent/locked"}, "3 additions to a coordinate were lost."),
        ({"mode": "in_turn"}, "3 additions to a coordinate were lost."),
        ({"lost": -1}, "-1 additions to a coordinate were lost."),
        ({"landed": 99}, "99 updates landed instead of 100."),
        ({"longest_delay": 10}, "a delay was 10, above 9."),
        ({"max_delay": None, "longest_delay": 10}, None),
        ({"first_loss": 2.0, "last_loss": 1.0}, None),
        ({"first_loss": 2.0, "last_loss": 2.5}, "the loss went from 2 to 2.5."),
        ({"first_loss": 2.0, "last_loss": np.nan}, "the loss went from 2 to nan."),
    ],
)
def test_complaints_name_what_is_wrong(changed: dict, sentence: str | None) -> None:
    line = GOOD._replace(**changed)
    mode = endurance.Mode(line.mode, line.max_delay).title
    expected = [] if sentence is None else [f"{mode}, counting: {sentence}"]
    assert endurance.complaints(line) == expected


def test_growth_is_the_slope_with_its_standard_error() -> None:
    """The textbook's formulas, and a slope that is known."""
    rng = np.random.default_rng(0)
    updates = 5_000 * np.arange(1, 201)
    noise = rng.normal(size=200)
    memory = [
        MemoryLine("", "", int(t), 300 + 0.25 * t / 1e5 + e)
        for t, e in zip(updates, noise, strict=True)
    ]
    slope, error = endurance.growth(memory)
    t = updates / 1e5 - np.mean(updates / 1e5)
    expected = t @ [line.resident_mb for line in memory] / (t @ t)
    rest = np.array([line.resident_mb for line in memory]) - expected * t
    assert slope == pytest.approx(expected)
    assert error == pytest.approx(np.sqrt(np.sum((rest - rest.mean()) ** 2) / 198 / (t @ t)))
    assert abs(slope - 0.25) < 3 * error


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("--num_updates=0", "--num_updates must be a whole number of at least 1, got 0"),
        ("--num_updates=350", "--num_updates must make at least 8 epochs of --inner_steps = 50"),
        ("--inner_steps=16777217", "--inner_steps must be a whole number from 1 to 16777216"),
        ("--modes=consistent/lock_free", "every entry of --modes must be one of consistent/locked"),
        ("--modes=", "--modes must be names with commas between, got none"),
        ("--lr=0", "--lr must be a finite number above 0"),
        ("--max_delay=-1", "--max_delay must be a whole number of at least 0, got -1"),
        ("--block_size=9999", "--block_size must be a whole number from 0 to 760, got 9999"),
    ],
)
def test_bad_flags_are_refused(
    given: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(soak, *SOAK, f"--out_dir={tmp_path / 'soak'}", given) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "soak").exists()


def test_flags_of_threads_are_refused_with_mpi(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(soak, "--driver=mpi", "--num_threads=2") == 2
    assert "--num_threads belongs to --driver=threads" in capsys.readouterr().err
