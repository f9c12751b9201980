"""The tables of experiments/README.md, from the csv files of Figures 1 to 4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from experiments import tables
from experiments.paper.evidence import BEST, CLAIMS, SPEEDUP
from experiments.paper.plan import FIGURES

Row = dict[str, str]
ENDS = (
    ("training loss", "train_loss in the end", "{:.3f}"),
    ("training error", "train_error in the end", "{:.2%}"),
    ("test error", "test_error in the end", "{:.2%}"),
    ("\\|\\|∇f\\|\\|²", "grad_norm_sq in the end", "{:.1e}"),
    ("seconds", "seconds", "{:.2g}"),
    ("slope", "slope of the mean of grad_norm_sq", "{:.2f}"),
)
LATER = (
    ("training loss", "epoch from which train_loss stays below sgd's", "{:.0f}"),
    ("training error", "epoch from which train_error stays below sgd's", "{:.0f}"),
    ("test error", "epoch from which test_error stays below sgd's", "{:.0f}"),
    ("epochs with lower loss", "epochs with train_loss below sgd's", "{:.0f}"),
    ("epochs with lower test error", "epochs with test_error below sgd's", "{:.0f}"),
    (
        "lower loss from so many n gradients on",
        "component gradients / n from which train_loss stays below sgd's",
        "{:.0f}",
    ),
    (
        "loss / SGD's, equal gradients",
        "train_loss over sgd's at equal component gradients",
        "{:.2f}",
    ),
    ("loss / SGD's, equal time", "train_loss over sgd's at equal time", "{:.2f}"),
)


def report(folder: Path) -> list[str]:
    """All tables.

    Args:
      folder: that holds the figures' folders.

    Returns:
      Lines of Markdown, those of different tables with an empty one between.
    """
    lines: list[str] = []
    for figure in FIGURES:
        if (folder / figure / CLAIMS).is_file():
            claims = tables.read(folder / figure / CLAIMS)
            steps = tables.read(folder / figure / BEST)
            lines += [*_ends(figure, claims, steps), "", *_later(figure, claims), ""]
        if (folder / figure / SPEEDUP).is_file():
            lines += [*_speedups(figure, tables.read(folder / figure / SPEEDUP)), ""]
    return lines


def _ends(figure: str, claims: Sequence[Row], steps: Sequence[Row]) -> list[str]:
    """What the methods reach in the end, with their steps."""
    used = {row["method"]: row for row in steps if row["among"] == "all"}
    return _table(
        [_title(figure, "in the end"), "step", *(name for name, _, _ in ENDS)],
        [
            [
                method,
                _step(used[method]),
                *(_cell(claims, what, method, form) for _, what, form in ENDS),
            ]
            for method in dict.fromkeys(row["of"] for row in claims)
        ],
    )


def _later(figure: str, claims: Sequence[Row]) -> list[str]:
    """From which epoch on a method is below SGD to the end, and how it compares at equal cost."""
    methods = [method for method in dict.fromkeys(row["of"] for row in claims) if method != "sgd"]
    return _table(
        [_title(figure, "below SGD from epoch"), *(name for name, _, _ in LATER)],
        [
            [method, *(_cell(claims, what, method, form) for _, what, form in LATER)]
            for method in methods
        ],
    )


def _speedups(figure: str, rows: Sequence[Row]) -> list[str]:
    """Equation (22), measured and simulated."""
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        of_setting = [row for row in rows if row["setting"] == setting]
        kinds = {
            kind: {int(row["workers"]): row for row in of_setting if row["kind"] == kind}
            for kind in ("measured", "simulated")
        }
        target = float(next(iter(kinds["measured"].values()))["target_loss"])
        name = f"K, {setting.replace('_', ' ')}"
        lines += _table(
            [
                _title(figure, name),
                f"seconds to loss {target:.3g}",
                "time speedup (22)",
                "updates/s",
                "mean delay",
                "largest",
                "simulated speedup",
            ],
            [
                [
                    str(k),
                    *_measured(kinds["measured"].get(k)),
                    _simulated(kinds["simulated"].get(k)),
                ]
                for k in sorted({*kinds["measured"], *kinds["simulated"]})
            ],
        )
        lines.append("")
    return lines[:-1]


def _measured(row: Row | None) -> list[str]:
    if row is None:
        return [""] * 5
    seconds, speedup = "not reached", ""
    if row["seconds"]:
        seconds = f"{float(row['seconds']):.3g}"
        spread = (float(row[name]) for name in ("time_speedup", "smallest", "largest"))
        speedup = _spread("{:.2f}", *spread)
    return [
        seconds,
        speedup,
        f"{float(row['updates_per_s']):,.0f}",
        f"{float(row['mean_delay']):.1f}",
        row["max_delay"],
    ]


def _simulated(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{float(row['time_speedup']):.2f}" if row["time_speedup"] else "not reached"


def _cell(claims: Sequence[Row], what: str, method: str, form: str) -> str:
    (row,) = (row for row in claims if row["what"] == what and row["of"] == method)
    return _spread(form, *(float(row[name]) for name in ("mean", "smallest", "largest")))


def _spread(form: str, mean: float, smallest: float, largest: float) -> str:
    """The mean, and the range if it is to be seen; an epoch that never comes is never."""

    def say(number: float) -> str:
        return "never" if math.isinf(number) else form.format(number).replace("%", " %")

    if say(smallest) == say(largest):
        return say(mean)
    if math.isinf(mean):
        return f"{say(smallest)} to {say(largest)}"
    return f"{say(mean)} ({say(smallest)} to {say(largest)})"


def _step(row: Row) -> str:
    decay = float(row["lr_decay"])
    return f"{float(row['lr']):g}" + (f" / (1 + s)^{decay:g}" if decay else "")


def _title(figure: str, what: str) -> str:
    return f"Figure {figure[-1]}: {what}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
