"""Runs the paper's experiments from the data on: Figures 1 to 4, their searches and predictions.

    python -m experiments.reproduce --out_dir=runs/reproduce

About an hour and a half on two cores with nothing else running; --dry_run lists the commands with
the time that each takes. They are those of the other binaries: `tune` finds the steps, then
`train_shared` and `train_distributed` run with --num_seeds seeds, and `predict_speedup` simulates
more workers. Figure 4 runs on an emulated cluster (see `experiments.cluster` for what that takes).
Every command leaves its folder and its log below --out_dir; the folder results/ has the csv files
of each figure and the figures. What is done is kept: after SIGINT or SIGTERM the same command goes
on, inside of a run too; with more seeds or other figures it adds them. Without a file of
cifar10_features, `extract_features` makes it first.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from asvrg.errors import InputError, check_count
from experiments import (
    checkpoints,
    datasets,
    draw_figures,
    files,
    folders,
    iterations,
    launch,
    provenance,
    recording,
    tables,
    tune,
    units,
)
from experiments.cluster import launcher
from experiments.cluster.namespaces import MOST_WORKERS, RATE, ClusterError
from experiments.methods import METHODS, Step
from experiments.paper import plan, processes
from experiments.paper.evidence import BEST, PREDICTED, RUNS, STEPS
from experiments.paper.plan import FIGURES, Command, Sizes
from experiments.speedup.outputs import CURVES
from experiments.speedup.predictions import BEYOND

NAME = "reproduce"
RESULTS = "results"
COMMITTED = Path(__file__).parent / "results"
COMMANDS = "commands.csv"
# What only says which commands there are: more seeds, or another figure, can be added later.
FREE_FLAGS = units.FREE_FLAGS | {
    "figures",
    "num_seeds",
    "speedup_seeds",
    "threads",
    "workers",
    "dry_run",
}
FEATURES = "cifar10_features"
FEATURES_SECONDS = 800.0


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this binary."""
    flags.DEFINE_list("figures", list(FIGURES), "Figures to make.", flag_values=values)
    flags.DEFINE_integer(
        "num_seeds", 5, "Runs of each method in Figures 1 to 3, seeds 0, 1, ...", flag_values=values
    )
    flags.DEFINE_integer(
        "speedup_seeds", 3, "The same of each number of workers in Figure 4.", flag_values=values
    )
    flags.DEFINE_list(
        "threads", ["1", "2", "4", "8", "16", "32"], "K of Figure 2.", flag_values=values
    )
    flags.DEFINE_list(
        "workers", [str(k) for k in range(1, 11)], "K of Figure 4.", flag_values=values
    )
    flags.DEFINE_string(
        "rate", "100mbit", "Of a worker's link in Figure 4, each way.", flag_values=values
    )
    flags.DEFINE_string(
        "server_rate",
        "1gbit",
        "Of the server's link in Figure 4 where it is faster than theirs; it is run with equal "
        "links too.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder with the data sets' files. Default: $ASVRG_DATA_DIR, else the user's cache folder.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "dry_run", False, "Print the commands and the seconds they take.", flag_values=values
    )
    folders.define_out_dir(values)
    folders.define_resume(values)


def main(values: flags.FlagValues) -> int:
    """Runs all that is not done, writes csv files, config.json and the figures."""
    wanted, sizes = _checked(values)
    mpi = None
    if {"figure3", "figure4"} & set(wanted):
        try:
            mpi = launcher.find_mpi().name
        except ClusterError as error:
            raise InputError(
                f"--figures must leave out figure3 and figure4 without MPI: {error}"
            ) from error
    searches = sorted({plan.SEARCH_OF[figure] for figure in wanted})
    if values.dry_run:
        _list([plan.search(figure) for figure in searches])
        for figure in wanted:
            # With the steps of the committed search, which this one should find too.
            best = tables.read(COMMITTED / plan.SEARCH_OF[figure] / BEST)
            done = plan.runs(figure, sizes, _steps(best), mpi)
            _list([*done, *plan.predictions(figure, sizes, done, Path("."))])
        return 0
    out_dir = folders.folder_to_resume(values, NAME, checkpoints.UNITS)
    folder = folders.claim_folder(out_dir, NAME, holds=COMMANDS, kind=checkpoints.UNITS)
    described = provenance.describe(values, {})
    with units.kept(folder, NAME, described, free=FREE_FLAGS) as kept:
        runner = _Runner(folder, values.data_dir, kept)
        with runner.bar:
            if any(plan.SEARCH_OF[figure] == "figure3" for figure in wanted):
                runner.find_features()
            for figure in searches:
                runner.expect([plan.search(figure)])
            for figure in wanted:
                nothing = {method: Step(0.0, 0.0) for method in METHODS}
                todo = plan.runs(figure, sizes, nothing, mpi)
                runner.expect([*todo, *plan.predictions(figure, sizes, todo, folder)])
            found = {figure: runner.do(plan.search(figure)) for figure in searches}
            for figure in wanted:
                search = found[plan.SEARCH_OF[figure]]
                todo = plan.runs(figure, sizes, _steps(search["tables"][BEST]), mpi)
                runs = [(command, runner.do(command)) for command in todo]
                simulated = [
                    (command, runner.do(command))
                    for command in plan.predictions(figure, sizes, todo, folder)
                ]
                _gather(folder / RESULTS / figure, figure, search, runs, simulated, kept.config)
    draw_figures.draw(folder / RESULTS)
    print(f"results  {folder / RESULTS}")
    return 0


class _Runner:
    """Does commands and keeps what they leave behind, with one bar for all of them."""

    def __init__(self, folder: Path, data_dir: str | None, kept: units.Units) -> None:
        self._folder = folder
        self._data_dir = data_dir
        self._kept = kept
        self._environment = dict(os.environ)
        if os.geteuid() == 0:  # who runs all of this as root means mpiexec too
            for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
                self._environment.setdefault(name, "1")
        self.bar = tqdm(
            total=0,
            # What is left by the plan: what was done before an interruption has no rate.
            bar_format="{desc}{percentage:3.0f}%|{bar}| {postfix}",
            file=sys.stderr,
            mininterval=0.2 if sys.stderr.isatty() else 30.0,
        )

    def expect(self, commands: list[Command]) -> None:
        """Adds the time of what is not done yet to the bar."""
        self.bar.total += sum(
            command.seconds for command in commands if self._kept.outcome(command.unit) is None
        )

    def find_features(self) -> None:
        """Makes the file of cifar10_features unless there is one."""
        sources = datasets.read_sources()
        try:
            datasets.locate(sources[FEATURES], sources, self._data_dir)
        except InputError:
            words = ["python", "-m", "experiments.extract_features"]
            self.bar.total += FEATURES_SECONDS
            self._run(Command(FEATURES, words, FEATURES_SECONDS), out_dir=False)

    def do(self, command: Command) -> Any:
        """What a command left behind: the tables by name, and the seconds that it took."""
        done: dict[str, Any] = self._kept.do(command.unit, lambda: self._do(command))
        return done

    def _do(self, command: Command) -> dict[str, Any]:
        if not command.goes_on:
            shutil.rmtree(self._folder / command.name, ignore_errors=True)
        is_new = not (self._folder / command.name).exists()
        begin = time.perf_counter()
        self._run(command)
        left = {
            path.name: tables.read(path)
            for path in sorted((self._folder / command.name).glob("*.csv"))
        }
        left.pop(recording.DELAYS, None)
        return {
            "command": shlex.join(command.words),
            "seconds": time.perf_counter() - begin if is_new else None,
            "tables": left,
        }

    def _run(self, command: Command, *, out_dir: bool = True) -> None:
        folder = self._folder / command.name
        files.make_folder("--out_dir must be a folder", folder)
        words = [_program(word) for word in command.words]
        if self._data_dir is not None:
            words.append(f"--data_dir={self._data_dir}")
        if out_dir:
            words.append(f"--out_dir={folder}")
        begin, shown = time.perf_counter(), 0.0
        self.bar.set_description(command.name, refresh=False)

        def tick() -> None:
            nonlocal shown
            reached = min(time.perf_counter() - begin, 0.99 * command.seconds)
            left = tqdm.format_interval(self.bar.total - self.bar.n)
            self.bar.set_postfix_str(f"about {left} to go", refresh=False)
            self.bar.update(reached - shown)
            shown = reached

        log = folder / "log.txt"
        processes.run(words, log, self._environment, self._kept.stop, tick)
        # Not beyond the end, of which tqdm warns: sums of seconds are rounded.
        self.bar.update(min(command.seconds - shown, self.bar.total - self.bar.n))


def _program(word: str) -> str:
    """The word as this environment has it."""
    if word == "python":
        return os.path.abspath(sys.executable)
    return str(launcher.find_mpi().mpiexec) if word == "mpiexec" else word


def _steps(best: list[dict[str, str]]) -> dict[str, Step]:
    """The best step of each method, from the best.csv that `tune` left."""
    return {
        row["method"]: Step(float(row["lr"]), float(row["lr_decay"]))
        for row in best
        if row["among"] == tune.ALL
    }


def _gather(
    folder: Path,
    figure: str,
    search: dict[str, Any],
    runs: list[tuple[Command, Any]],
    simulated: list[tuple[Command, Any]],
    config: dict[str, Any],
) -> None:
    """Writes the csv files of a figure and its config.json."""
    files.make_folder("--out_dir must be a folder", folder)
    if figure == plan.SEARCH_OF[figure]:
        for name in (STEPS, BEST):
            _write(folder / name, search["tables"][name])
    rows = [
        {name: str(value) for name, value in command.labels._asdict().items()} | row
        for command, done in runs
        if command.labels is not None
        for row in done["tables"][recording.METRICS]
    ]
    _write(folder / RUNS, rows)
    curves = [
        {"setting": command.labels.setting} | row
        for command, done in simulated
        if command.labels is not None
        for row in done["tables"][CURVES]
        if row["kind"] == BEYOND
    ]
    if curves:
        _write(folder / PREDICTED, curves)
    all_commands = [*runs, *simulated]
    if figure == plan.SEARCH_OF[figure]:
        all_commands = [(plan.search(figure), search), *all_commands]
    _write(
        folder / COMMANDS,
        [
            {
                "name": command.name,
                "seconds": "" if done["seconds"] is None else f"{done['seconds']:.1f}",
                "command": done["command"],
            }
            for command, done in all_commands
        ],
    )
    recording.write_config(folder, config)


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    tables.write_lines(path, [list(rows[0]), *(list(row.values()) for row in rows)])


def _list(commands: list[Command]) -> None:
    for command in commands:
        print(f"{command.seconds:5.0f} s  {shlex.join(command.words)}")


def _checked(values: flags.FlagValues) -> tuple[list[str], Sizes]:
    """--figures in their order, and what the other flags say."""
    given = values.figures
    if not given or set(given) - set(FIGURES):
        raise InputError(
            f"--figures must be some of {', '.join(FIGURES)}, with commas between, got "
            f"{','.join(given)!r}."
        )
    for name in ("num_seeds", "speedup_seeds"):
        check_count(f"--{name}", values[name].value, limit=1_000)
    for name, rate in (("rate", values.rate), ("server_rate", values.server_rate)):
        if not re.fullmatch(RATE, rate):
            raise InputError(
                f"--{name} must be a whole number and kbit, mbit or gbit, got {rate!r}."
            )
    threads, workers = launch.counts(values, "threads"), launch.counts(values, "workers")
    check_count("every entry of --threads", max(threads), limit=iterations.MOST_WORKERS)
    check_count("every entry of --workers", max(workers), limit=MOST_WORKERS)
    return [figure for figure in FIGURES if figure in given], Sizes(
        values.num_seeds,
        values.speedup_seeds,
        sorted({1, *threads}),
        sorted({1, *workers}),
        values.rate,
        values.server_rate,
    )


if __name__ == "__main__":
    launch.start(main, define_flags)
