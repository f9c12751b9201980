"""Draws Figures 1 to 4 again from their csv files, and counts what the claims are held against.

    python -m experiments.draw_figures

Reads runs.csv and predicted.csv of each figure below --results_dir and writes the figures, as svg
and png, and speedup.csv of Figures 2 and 4 beside them, and claims.csv of Figures 1 and 3; and
prints these as the tables of experiments/README.md. Nothing is run: it takes some seconds.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags

from asvrg.errors import InputError
from experiments import launch, recording, tables
from experiments.paper import drawing, evidence, plan, report
from experiments.paper.evidence import CLAIMS, PREDICTED, RUNS, SPEEDUP
from experiments.paper.plan import FIGURES

RESULTS = Path("experiments/results")
DATA = {
    "figure1": ("MNIST, 784x100x10, 2 threads", 10_000),
    "figure2": ("Shared-AsySVRG on MNIST, K threads", 10_000),
    "figure3": ("CIFAR-10 features, 384x50x10, MPI with 3 workers", 20_000),
    "figure4": ("Distributed-AsySVRG, CIFAR-10 features, K workers", 20_000),
}


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this binary."""
    flags.DEFINE_string(
        "results_dir",
        str(RESULTS),
        "Folder with the folders figure1 to figure4, those of them that are there.",
        flag_values=values,
    )


def main(values: flags.FlagValues) -> int:
    """Draws, and prints the paths and the tables of experiments/README.md."""
    folder = Path(values.results_dir)
    if not any((folder / figure / RUNS).is_file() for figure in FIGURES):
        raise InputError(
            f"--results_dir must hold figure1/{RUNS} or another figure's, got {folder}, which "
            "holds none."
        )
    for path in draw(folder):
        print(path)
    print("\n".join(["", *report.report(folder)]))
    return 0


def draw(folder: Path) -> list[Path]:
    """Draws every figure whose runs.csv is there.

    Args:
      folder: that holds the figures' folders.

    Returns:
      The paths of what was written.
    """
    for figure in FIGURES:
        if (folder / figure / RUNS).is_file():
            if figure in ("figure1", "figure3"):
                _draw_methods(folder / figure, figure)
            else:
                _draw_speedup(folder / figure, figure)
    written = (SPEEDUP, CLAIMS)
    return sorted(
        path
        for figure in FIGURES
        for path in (folder / figure).glob("*")
        if path.suffix in (".svg", ".png") or path.name in written
    )


def _draw_methods(folder: Path, figure: str) -> None:
    runs = evidence.read_runs(folder / RUNS)
    title, num_train = DATA[figure]
    drawing.draw_methods(folder, figure, runs, num_train, title)
    tables.write_csv(folder / CLAIMS, evidence.claims(figure, runs, num_train))


def _draw_speedup(folder: Path, figure: str) -> None:
    runs = evidence.read_runs(folder / RUNS)
    predicted = evidence.read_predicted(folder / PREDICTED)
    config = json.loads((folder / recording.CONFIG).read_text(encoding="utf-8"))
    cores = config["machine"]["cores"] if figure == "figure2" else None
    lines = []
    for setting in dict.fromkeys(run.labels.setting for run in predicted):
        real = [run for run in runs if run.labels.setting == setting]
        virtual = [run for run in predicted if run.labels.setting == setting]
        target = evidence.target_loss(real)
        of_setting = [
            *evidence.time_speedups("measured", real, target),
            *evidence.time_speedups("simulated", virtual, target),
        ]
        lines += of_setting
        drawing.draw_speedup(
            folder / f"{figure}_{setting}",
            real,
            virtual,
            of_setting,
            cores=cores,
            title=_title(figure, setting, config["flags"]),
        )
    tables.write_csv(folder / SPEEDUP, lines)


def _title(figure: str, setting: str, given: dict[str, str]) -> str:
    """The title of Figure 2 or 4, with the step or the rates of the links."""
    title, _ = DATA[figure]
    if figure == "figure2":
        of = {plan.TUNED: "the step of Figure 1", plan.QUARTER: "a quarter of the step of Figure 1"}
        return f"{title}, {of[setting]}"
    rate, server_rate = (plan.megabits(given[name]) for name in ("rate", "server_rate"))
    server = rate if setting == plan.EQUAL else server_rate
    return f"{title}\nlinks of {rate:g} Mbit/s, the server's of {server:g} Mbit/s, each way"


if __name__ == "__main__":
    launch.start(main, define_flags)
