"""Figures from rows of metrics.csv."""

from __future__ import annotations

import numpy as np
from matplotlib.image import imread

from experiments import figures
from experiments.recording import Row


def rows(losses: list[float]) -> list[Row]:
    return [
        Row(epoch, 0.1 * epoch, 5 * epoch, 9 * epoch, loss, 0.5, loss, 0.6, loss**2, 1.0, 3)
        for epoch, loss in enumerate(losses)
    ]


def colours(image: np.ndarray, colour: str) -> int:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return int(np.sum(np.all(np.abs(image[..., :3] - wanted) < 0.01, axis=-1)))


def test_curves_show_both_series_and_follow_the_data(tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    figures.draw_curves(one, rows([2.0, 1.0, 0.5]), "title")
    figures.draw_curves(two, rows([2.0, 0.1, 0.7]), "title")
    first, second = imread(one), imread(two)
    assert first.shape == second.shape
    assert colours(first, figures.BLUE) > 500
    assert colours(first, figures.ORANGE) > 500
    assert np.any(first != second)


def test_a_run_that_only_began_can_be_drawn(tmp_path):
    figures.draw_curves(tmp_path / "a.png", rows([2.3]), "stopped before its first epoch ended")
    assert colours(imread(tmp_path / "a.png"), figures.BLUE) > 0
