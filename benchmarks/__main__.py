"""All contestants in turn: time of an update, time to a loss, memory.

    python -m benchmarks --dataset=mnist --out_dir=FOLDER

asvrg, PyTorch, optax, and what the machine allows; --quick takes less than two minutes on two
cores. Every contestant runs in a process of its own, all of them in every round, in reversed order
in every other one. Writes benchmarks.csv (medians), rounds.csv, curves.csv, benchmarks.png and
config.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from asvrg import objectives
from asvrg.errors import INT32, InputError, check_count, check_real
from benchmarks import figure, measure, results, runner
from benchmarks.contestants import CONTESTANTS, Contestant, c_floor
from benchmarks.measure import Result, Setting
from benchmarks.results import CurveLine, Line, RoundLine
from experiments import folders, launch, problem, provenance, recording, tables
from experiments.problem import Problem

RESULT, ROUNDS, CURVES, FIGURE = "benchmarks.csv", "rounds.csv", "curves.csv", "benchmarks.png"
# rounds, of them with curves, seconds of updates, seconds on the way to the losses
FULL, QUICK = (5, 3, 2.0, 120.0), (1, 1, 0.5, 1.5)
START_SECONDS = 120.0  # for imports and compilation, and evaluations besides


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of the benchmarks."""
    problem.define_flags(values)
    folders.define_out_dir(values)
    flags.DEFINE_bool("quick", False, "Less than two minutes.", flag_values=values)
    flags.DEFINE_integer(
        "rounds", None, f"Default: {FULL[0]}, quick {QUICK[0]}.", flag_values=values
    )
    flags.DEFINE_integer(
        "curve_rounds",
        None,
        f"The first ones, with ways to the losses. Default: {FULL[1]}, quick {QUICK[1]}.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "rate_seconds",
        None,
        f"For which updates are counted. Default: {FULL[2]:g}, quick {QUICK[2]:g}.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "limit_seconds",
        None,
        "Of optimisation, after which a contestant is no longer waited for on its way to the "
        f"losses. Default: {FULL[3]:g}, quick {QUICK[3]:g}.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "only",
        [],
        "Parts of names: contestants with one of them. Default: all.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "lr", None, "eta for all contestants, instead of each one's own.", flag_values=values
    )
    flags.DEFINE_integer("batch_size", 10, "b.", flag_values=values)
    flags.DEFINE_integer("block_size", 1_000, "B, of SVRG.", flag_values=values)
    flags.DEFINE_integer(
        "inner_steps", 2_000, "m, updates between two snapshots.", flag_values=values
    )
    flags.DEFINE_integer("read_period", 64, "r, of asvrg's threads.", flag_values=values)
    flags.DEFINE_integer(
        "eval_every", 250, "Updates between evaluations, without snapshots.", flag_values=values
    )


def main(values: flags.FlagValues) -> int:
    """Runs all rounds, prints the table, and writes the files."""
    rounds, curve_rounds, rate_seconds, limit_seconds = _amounts(values)
    _check_network(values)
    contestants = _contestants(values)
    problem_ = problem.from_flags(values)
    check_count("--batch_size", values.batch_size, most=len(problem_.train[1]))
    check_count("--block_size", values.block_size, most=problem_.objective.dim)
    folder = folders.claim_folder(values.out_dir, f"benchmarks-{values.dataset}", holds=RESULT)
    start_loss = objectives.evaluate(problem_.objective, problem_.x0, problem_.train).loss
    title = f"{values.dataset}, cores: {len(os.sched_getaffinity(0))}, rounds: {rounds}"
    failures: dict[str, str] = {}
    done: list[dict[str, Result]] = []
    round_lines: list[RoundLine] = []
    curve_lines: list[CurveLine] = []
    recording.write_config(folder, provenance.describe(values, _machine(contestants)))
    with (
        tempfile.TemporaryDirectory(prefix="benchmarks-") as shared,
        runner.ending_on_terminate(),
        tqdm(total=rounds * len(contestants), unit="run", mininterval=5.0) as bar,
    ):
        measure.save(_shared(values, problem_, rate_seconds), Path(shared))
        for number in range(1, rounds + 1):
            limit = limit_seconds if number <= curve_rounds else 0.0
            found: dict[str, Result] = {}
            load = {}
            for contestant in contestants if number % 2 else contestants[::-1]:
                bar.set_postfix_str(contestant.name)
                if contestant.name not in failures:
                    load[contestant.name] = os.getloadavg()[0]
                    timeout = START_SECONDS + 3 * (rate_seconds + limit)
                    result = runner.run(contestant, Path(shared), limit, timeout)
                    if isinstance(result, runner.Failure):
                        failures[contestant.name] = f"{result.why}:\n{result.output}"
                    elif wrong := results.check_start(result, start_loss):
                        failures[contestant.name] = wrong
                    else:
                        found[contestant.name] = result
                bar.update()
            # After every round, so that an interrupt leaves what is done.
            done.append(found)
            round_lines += results.round_lines(number, found, load)
            curve_lines += results.curve_lines(number, found)
            _write(folder, title, contestants, done, round_lines, curve_lines)
    for line in results.summarise(contestants, done):
        print(_text(line))
    print(folder / RESULT)
    for name, why in failures.items():
        print(f"{name} {why}", file=sys.stderr)
    return launch.FAILED if failures else 0


def _amounts(values: flags.FlagValues) -> tuple[int, int, float, float]:
    preset = QUICK if values.quick else FULL
    given = (values.rounds, values.curve_rounds, values.rate_seconds, values.limit_seconds)
    rounds, curve_rounds, rate_seconds, limit_seconds = (
        default if value is None else value for value, default in zip(given, preset, strict=True)
    )
    return (
        check_count("--rounds", rounds, limit=INT32),
        check_count("--curve_rounds", curve_rounds, least=0, limit=INT32),
        check_real("--rate_seconds", rate_seconds, above=True),
        check_real("--limit_seconds", limit_seconds, above=True),
    )


def _contestants(values: flags.FlagValues) -> list[Contestant]:
    """Those that --only names and that this machine can run; says which it cannot."""
    wanted = [
        contestant if values.lr is None or not contestant.lr else contestant._replace(lr=values.lr)
        for contestant in CONTESTANTS
        if not values.only or any(part in contestant.name for part in values.only)
    ]
    if not wanted:
        names = "; ".join(contestant.name for contestant in CONTESTANTS)
        raise InputError(f"--only must be parts of these names: {names}; got {values.only}.")
    lacks = {contestant: runner.missing(contestant) for contestant in wanted}
    for contestant, what in lacks.items():
        if what:
            print(f"{contestant.name} is left out, as it needs {what}.")
    able = [contestant for contestant in wanted if not lacks[contestant]]
    if not able:
        raise InputError("--only must name a contestant that this machine can run, got none.")
    return able


def _shared(values: flags.FlagValues, problem_: Problem, rate_seconds: float) -> measure.Problem:
    """The problem as all contestants get it."""
    inputs, labels = (np.asarray(leaf) for leaf in problem_.train)
    setting = Setting(
        layer_sizes=(
            inputs.shape[1],
            int(values.hidden[0]),
            problem_.objective.unravel(problem_.x0)[-1].shape[1],
        ),
        l2=values.l2,
        batch_size=values.batch_size,
        block_size=values.block_size,
        inner_steps=values.inner_steps,
        read_period=values.read_period,
        eval_every=values.eval_every,
        rate_seconds=rate_seconds,
        seed=values.seed,
    )
    return measure.Problem(setting, np.asarray(problem_.x0), inputs, labels)


def _machine(contestants: Sequence[Contestant]) -> dict[str, Any]:
    """What config.json tells besides flags and commit."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "steps": {each.name: each.lr for each in contestants if each.lr},
        "torch": _version("torch"),
        "blas": f"{blas['name']} {blas['version']}",
        "compiler": _compiler(),
        "environment": runner.THREADS,
        "load": os.getloadavg(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _compiler() -> str | None:
    """The first line of what the C compiler says about itself."""
    try:
        done = subprocess.run(
            [c_floor.COMPILER, "--version"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0]


def _check_network(values: flags.FlagValues) -> None:
    """The network that all contestants have; asvrg and optax would do others as well."""
    for name, accepted in (("activation", "relu"), ("dtype", "float32")):
        if values[name].value != accepted:
            raise InputError(f"--{name} must be {accepted} here, got {values[name].value}.")
    if len(values.hidden) != 1:
        raise InputError(f"--hidden must be one number here, got {','.join(values.hidden)}.")
    for name in ("batch_size", "block_size", "inner_steps", "read_period", "eval_every"):
        check_count(f"--{name}", values[name].value, limit=INT32)
    if values.lr is not None:
        check_real("--lr", values.lr, above=True)
    check_count("--read_period", values.read_period, most=min(values.inner_steps, c_floor.DRAWS))


def _write(
    folder: Path,
    title: str,
    contestants: Sequence[Contestant],
    rounds: Sequence[results.Round],
    round_lines: Sequence[RoundLine],
    curve_lines: Sequence[CurveLine],
) -> None:
    lines = results.summarise(contestants, rounds)
    for name, rows in ((RESULT, lines), (ROUNDS, round_lines), (CURVES, curve_lines)):
        if rows:
            tables.write_csv(folder / name, rows)
    if any(line.us_per_update is not None for line in lines):
        figure.draw(folder / FIGURE, lines, title)


def _text(line: Line) -> str:
    """A line of the printed table."""
    if line.us_per_update is None:
        return f"{line.contestant:<38} {line.gb_per_s:.1f} GB/s"
    text = f"{line.contestant:<38} {line.us_per_update:7.1f} us "
    text += f"({line.us_min:.1f} to {line.us_max:.1f})"
    if line.times_c is not None:
        text += f", {line.times_c:.2f} times the C code's"
    if line.updates_to_0_5 is not None or line.lr is not None:
        reached = results.seconds_to(line)
        seconds = " / ".join("-" if each is None else f"{each:.2f}" for each in reached)
        text += f"; to {' / '.join(f'{target:g}' for target in measure.TARGETS)} in {seconds} s"
    return text + f"; {line.peak_mb:.0f} MB"


if __name__ == "__main__":
    launch.start(main, define_flags)
