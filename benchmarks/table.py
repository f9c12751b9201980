"""The table of benchmarks.csv in Markdown, as README.md has it.

python -m benchmarks.table FOLDER
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

RESULT = "benchmarks.csv"
HEAD = (
    "| | µs an update | updates/s | times the C code's | s to loss 0.5 / 0.3 / 0.2 | peak MB |",
    "|---|---|---|---|---|---|",
)


def markdown(folder: Path) -> str:
    """Lines of a table, a contestant each; figures have three digits.

    Args:
      folder: of the results of `python -m benchmarks`.

    Returns:
      The text, with a newline behind every line.
    """
    with open(folder / RESULT, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["us_per_update"]]
    return "".join(f"{line}\n" for line in (*HEAD, *map(_line, rows)))


def _line(row: dict[str, str]) -> str:
    seconds = [row[f"seconds_to_{target}"] for target in ("0_5", "0_3", "0_2")]
    cells = (
        row["contestant"],
        _number(row["us_per_update"]),
        f"{float(_digits(row['updates_per_s'])):,.0f}",
        _number(row["times_c"]),
        " / ".join(_number(each) for each in seconds) if any(seconds) else "",
        f"{float(row['peak_mb']):.0f}",
    )
    return f"| {' | '.join(cells)} |"


def _number(text: str) -> str:
    """Three digits, and a dash for nothing."""
    if not text:
        return "-"
    value = float(_digits(text))
    return f"{value:.0f}" if value >= 100 else f"{value:g}"


def _digits(text: str) -> str:
    return f"{float(text):.3g}"


if __name__ == "__main__":
    print(markdown(Path(sys.argv[1])), end="")
