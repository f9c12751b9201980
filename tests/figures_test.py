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


COUNTS = np.array([[9, 3, 0, 1], [7, 0, 5, 0]])


def colours(image: np.ndarray, colour: str) -> int:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return int(np.sum(np.all(np.abs(image[..., :3] - wanted) < 0.01, axis=-1)))


def test_curves_show_both_series_and_follow_the_data(tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    figures.draw_curves(one, rows([2.0, 1.0, 0.5]), COUNTS, "title")
    figures.draw_curves(two, rows([2.0, 0.1, 0.7]), COUNTS, "title")
    first, second = imread(one), imread(two)
    assert first.shape == second.shape
    assert colours(first, figures.BLUE) > 500
    assert colours(first, figures.ORANGE) > 500
    assert np.any(first != second)


def test_a_run_that_only_began_can_be_drawn(tmp_path):
    nothing = np.zeros((0, 0), np.int64)
    title = "stopped before its first epoch ended"
    figures.draw_curves(tmp_path / "a.png", rows([2.3]), nothing, title)
    assert colours(imread(tmp_path / "a.png"), figures.BLUE) > 0


def histogram_of(tmp_path, counts: list[list[int]]) -> np.ndarray:
    path = tmp_path / "a.png"
    figures.draw_curves(path, rows([2.0, 1.0]), np.array(counts), "title")
    image = imread(path)
    return image[image.shape[0] // 2 :, 2 * image.shape[1] // 3 :]


def test_few_workers_have_a_line_each_in_the_histogram(tmp_path):
    for number in (2, 4):
        image = histogram_of(tmp_path, [[5, 1, 2]] * number)
        for worker, colour in enumerate(figures.WORKERS):
            assert (colours(image, colour) > 30) == (worker < number)
    image = histogram_of(tmp_path, [[5, 1, 2]] * 5)
    assert not any(colours(image, colour) > 30 for colour in figures.WORKERS)
    assert colours(image, figures.GREY) > 1_000


def test_bars_are_as_high_as_the_share_of_their_delays(tmp_path):
    def grey(counts):
        return colours(histogram_of(tmp_path, counts), figures.GREY)

    assert grey([[10, 10, 10, 10]]) > 1.5 * grey([[40, 0, 0, 1]])
    # A long tail goes into fewer bars, and none of it is lost.
    tail = np.zeros((1, 1_000), int)
    tail[0, [0, 999]] = 1
    assert grey(tail.tolist()) > 100


def test_long_delays_are_drawn_in_all_shapes(tmp_path):
    for length in (1, 41, 5_000):
        assert colours(histogram_of(tmp_path, [[1] * length]), figures.GREY) > 1_000
