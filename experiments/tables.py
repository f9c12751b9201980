"""Csv files out of named tuples."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.files import write_whole


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    """Writes named tuples of one kind as a csv file, whole or not at all.

    Args:
      path: of the file.
      rows: at least one; numbers get nine digits, which give a float32 back exactly.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0]._fields)
    for row in rows:
        writer.writerow(f"{cell:.9g}" if isinstance(cell, float) else cell for cell in row)
    write_whole(path, lambda file: file.write(text.getvalue().encode()))
