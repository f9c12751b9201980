"""The figure of `alpha_svrg`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.deep.runs import Method, Row
from experiments.figures import BLUE, GREEN, ORANGE, PURPLE, draw_band, label_ends
from experiments.files import write_whole

# Okabe and Ito (2008), as the others.
BLACK, SKY, OCHRE = "#000000", "#56b4e9", "#e69f00"
OF_ALPHA = (GREEN, PURPLE, OCHRE)
SMALLEST = 1e-3  # of a ratio of variances: what is below is drawn there


def draw(
    path: Path, methods: Sequence[Method], rows: Sequence[Row], num_samples: int, title: str
) -> None:
    """Draws loss over updates and over gradients, the variance of v, and the best alpha.

    Args:
      path: of the png.
      methods: of the rows.
      rows: of all methods and seeds.
      num_samples: n.
      title: of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 8), layout="constrained", dpi=120)
    figure.suptitle(title, fontsize=11)
    (by_updates, by_gradients), (ratio, best) = figure.subplots(2, 2)
    looks = {method.name: look for method, look in zip(methods, _looks(methods), strict=True)}
    names = {method.name: _label(method, methods) for method in methods}
    num_epochs = methods[0].num_epochs
    epochs = f"epochs, {max(r.updates for r in rows) // max(r.epoch for r in rows)} updates each"
    snapshots = [method.name for method in methods if method.alpha is not None]

    def loss(row: Row) -> float:
        return row.train_loss

    def panel(axes: Any, of: Sequence[str], x: Callable[[Row], float], y: Any) -> None:
        ends = []
        for name in of:
            end = _curve(axes, [r for r in rows if r.method == name], x, y, looks[name])
            if end is not None:
                ends.append((names[name], looks[name]["color"], end))
        label_ends(axes, ends)

    equal = [method.name for method in methods if method.num_epochs == num_epochs]
    by_updates.set(yscale="log", xlabel=epochs, ylabel="training loss")
    panel(by_updates, equal, lambda row: row.epoch, loss)
    by_updates.set_title("(a) equal numbers of updates", fontsize=10)
    by_gradients.set(
        yscale="log", xlabel="component gradients computed / n", ylabel="training loss"
    )
    panel(by_gradients, list(looks), lambda row: row.grad_evals / num_samples, loss)
    by_gradients.set_title("(b) equal numbers of gradients", fontsize=10)
    ratio.set(yscale="log", xlabel=epochs, ylabel="variance of v / variance of g")
    panel(ratio, snapshots, lambda row: row.epoch, _ratio)
    times = methods[1].batch_size / methods[0].batch_size
    whole = [0, num_epochs]
    ratio.plot(whole, [1, 1], color=BLACK, linewidth=0.8)
    ratio.plot(whole, [1 / times, 1 / times], color=SKY, linestyle="--")
    ratio.set_title(f"(c) variance; dashed: a batch of {times:.3g} b, same cost", fontsize=10)
    best.set(xlabel=epochs, ylabel="alpha")
    panel(best, snapshots, lambda row: row.epoch, lambda row: row.best_alpha)
    for method in methods:
        if method.alpha is not None:
            last = 0.0 if method.decays else method.alpha
            look = looks[method.name] | {"linestyle": ":"}
            best.plot(whole, [method.alpha, last], **look)
    best.set_title("(d) alpha of smallest variance; dotted: alpha used", fontsize=10)
    for each in (by_updates, by_gradients, ratio, best):
        each.grid(True, alpha=0.25)
        each.set_xlim(left=0)
    write_whole(path, lambda file: figure.savefig(file, format="png"))


def _looks(methods: Sequence[Method]) -> list[dict[str, Any]]:
    sgd = iter(((BLUE, "-"), (SKY, "--"), (BLACK, "--")))
    decaying = iter(OF_ALPHA)
    looks = []
    for method in methods:
        if method.alpha is None:
            colour, style = next(sgd)
        else:
            colour, style = (next(decaying) if method.decays else ORANGE), "-"
        looks.append({"color": colour, "linestyle": style, "linewidth": 1.6})
    return looks


def _label(method: Method, methods: Sequence[Method]) -> str:
    first = methods[0]
    if method.alpha is not None:
        return f"alpha {method.alpha:g} to 0" if method.decays else "SVRG"
    if method.batch_size != first.batch_size:
        return f"SGD, {method.batch_size / first.batch_size:.3g} b"
    if method.num_epochs != first.num_epochs:
        return f"SGD, {method.num_epochs / first.num_epochs:.3g} x epochs"
    return "SGD"


def _ratio(row: Row) -> float:
    return max(row.variance_v / row.variance_g, SMALLEST) if row.variance_g else np.nan


def _curve(
    axes: Any,
    rows: Sequence[Row],
    x: Callable[[Row], float],
    y: Callable[[Row], float],
    look: dict[str, Any],
) -> tuple[float, float] | None:
    """Draws the mean over seeds and a band from the smallest to the largest.

    Returns:
      Where the mean ends, which is where a seed left the finite numbers if one did.
    """
    ordered = sorted(rows, key=lambda row: row.epoch)
    groups = [list(group) for _, group in itertools.groupby(ordered, lambda row: row.epoch)]
    places = [x(group[0]) for group in groups]
    values = np.array([[y(row) for row in group] for group in groups])
    return draw_band(axes, places, values, look)
