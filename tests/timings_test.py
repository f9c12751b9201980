"""The smaller benchmarks as programs: what they say besides times, which are for a person."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from benchmarks import full_gradient, profiles, scaling, windows
from tests.binaries import run

pytestmark = pytest.mark.timeout(120)
SMALL = ("--num_train=100", "--hidden=10")
DRAWS = ("--block_size=64", "--inner_steps=32")


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_windows_with_own_updates_have_one_way_down(tmp_path: Path) -> None:
    lists = ("--read_periods=1,8", "--num_epochs=2", "--repeats=1", "--lr=0.1")
    assert run(windows, *SMALL, *DRAWS, *lists, f"--out_dir={tmp_path}") == 0
    rows = table(tmp_path / "windows.csv")
    losses = {
        (row["read_period"], row["sees_own"], row["epoch"]): float(row["loss"]) for row in rows
    }
    for epoch in "012":
        fresh = losses["1", "True", epoch]
        assert losses["8", "True", epoch] == fresh
        assert math.isclose(losses["1", "False", epoch], fresh, rel_tol=1e-5)
    assert abs(losses["8", "False", "2"] - losses["8", "True", "2"]) > 1e-6
    last = {(row["read_period"], row["sees_own"]): row["max_delay"] for row in rows}
    assert last == {
        ("1", "True"): "0",
        ("1", "False"): "0",
        ("8", "True"): "0",
        ("8", "False"): "7",
    }
    assert (tmp_path / "windows.png").read_bytes().startswith(b"\x89PNG")


def test_full_gradient_is_timed_beside_its_products(tmp_path: Path) -> None:
    assert run(full_gradient, *SMALL, "--repeats=2", f"--out_dir={tmp_path}") == 0
    products, snapshot = table(tmp_path / "full_gradient.csv")
    assert float(products["speedup"]) == 1.0
    assert float(snapshot["median_us"]) > 0


def test_profile_names_the_operations_of_the_loop(tmp_path: Path) -> None:
    draws = ("--block_size=64", "--read_period=4", "--repeats=2")
    assert run(profiles, *SMALL, *draws, f"--out_dir={tmp_path}") == 0
    rows = table(tmp_path / "profile.csv")
    for level in ("window", "loop"):
        shares = [float(row["share"]) for row in rows if row["level"] == level]
        assert math.isclose(sum(shares), 1.0, rel_tol=1e-6)
    assert [row["part"] for row in rows[:4]] == [
        "draws",
        "copy of x",
        "compiled call",
        "addition to x",
    ]
    made = {(row["part"], row["makes"]) for row in rows[4:]}
    assert {("dot_general", "f32[10,10]"), ("scatter-add", "f32[760]")} <= made


def test_scaling_splits_an_iteration(tmp_path: Path) -> None:
    flags = ("--workers=1,2", "--rounds=1", "--read_period=4")
    assert run(scaling, *SMALL, *DRAWS, *flags, f"--out_dir={tmp_path}") == 0
    one, two = table(tmp_path / "scaling.csv")
    assert (one["speedup"], one["processes_speedup"]) == ("1", "1")
    assert float(two["processes_speedup"]) > 0
    for row in (one, two):
        parts = sum(float(row[name]) for name in ("call_us", "landing_us", "rest_us"))
        per_update = 1e6 * float(row["workers"]) / float(row["updates_per_s"])
        assert math.isclose(parts, per_update, rel_tol=1e-6)
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
