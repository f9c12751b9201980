"""Csv files: what is written comes back, and a file is there as a whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest

from experiments import tables


class Line(NamedTuple):
    """A line with a cell of each kind."""

    name: str
    count: int
    loss: float
    limit: int | None = None


def test_nine_digits_give_a_float32_back(tmp_path):
    rng = np.random.default_rng(0)
    wide = rng.normal(size=300) * 10.0 ** rng.integers(-30, 30, size=300)
    numbers = wide.astype(np.float32)
    path = tmp_path / "a.csv"
    tables.write_csv(path, [Line("a", i, float(x)) for i, x in enumerate(numbers)])
    found = tables.read(path)
    np.testing.assert_array_equal(np.array([row["loss"] for row in found], np.float32), numbers)
    assert [int(row["count"]) for row in found] == list(range(300))


def test_numbers_that_are_none_or_not_finite_and_text_that_csv_must_quote(tmp_path):
    names = ["a,b", 'say "c"', "two\nlines", "", " blank "]
    losses = [math.nan, math.inf, -math.inf, -0.0, 5e-324]
    rows = [Line(*pair, 0.5) for pair in zip(names, [2**60 + 1] * 5, strict=True)]
    rows = [row._replace(loss=loss) for row, loss in zip(rows, losses, strict=True)]
    path = tmp_path / "a.csv"
    tables.write_csv(path, rows)
    found = tables.read(path)
    assert [row["name"] for row in found] == names
    assert [repr(float(row["loss"])) for row in found] == [repr(loss) for loss in losses]
    assert {row["count"] for row in found} == {str(2**60 + 1)}
    assert {row["limit"] for row in found} == {""}
    assert list(found[0]) == list(Line._fields)


def test_fewer_digits_are_for_floating_point_numbers_alone(tmp_path):
    path = tmp_path / "a.csv"
    tables.write_lines(path, [("count", "loss"), (1_234_567, 1_234.567)], digits=3)
    assert path.read_text() == "count,loss\n1234567,1.23e+03\n"


def test_an_error_among_the_lines_leaves_the_file_as_it_was(tmp_path):
    def lines() -> Iterator[tuple[object, ...]]:
        yield "loss", "count"
        raise ZeroDivisionError

    path = tmp_path / "a.csv"
    tables.write_lines(path, [("before",)])
    with pytest.raises(ZeroDivisionError):
        tables.write_lines(path, lines())
    assert path.read_text() == "before\n"
    assert list(tmp_path.iterdir()) == [path]
