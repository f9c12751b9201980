"""Csv files: out of rows, and back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.files import write_whole


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    """Writes named tuples of one kind as a csv file, whole or not at all.

    Args:
      path: of the file.
      rows: at least one; numbers get nine digits, which give a float32 back exactly.
    """
    write_lines(path, [rows[0]._fields, *rows])


def write_lines(path: Path, lines: Iterable[Sequence[Any]], digits: int = 9) -> None:
    """Writes a csv file, whole or not at all.

    Args:
      path: of the file.
      lines: of cells, the header first.
      digits: of floating-point numbers.
    """
    content = as_text(lines, digits).encode()
    write_whole(path, lambda file: file.write(content))


def as_text(lines: Iterable[Sequence[Any]], digits: int = 9) -> str:
    r"""Lines of cells as csv has them.

    >>> as_text([("epoch", "loss"), (1, 1 / 3)], digits=3)
    'epoch,loss\n1,0.333\n'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [f"{cell:.{digits}g}" if isinstance(cell, float) else cell for cell in line]
        for line in lines
    )
    return text.getvalue()


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a csv file below its header, by the names there."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
