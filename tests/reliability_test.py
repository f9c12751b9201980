"""docs/reliability.md: a test for every promise."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROWS = [
    line.split("|")[1:-1]
    for line in (ROOT / "docs" / "reliability.md").read_text().splitlines()
    if line.startswith("|") and not re.match(r"\|(---|\s*(fault|input)\s*\|)", line)
]


def test_every_promise_has_a_test_that_is_there() -> None:
    assert len(ROWS) > 40
    for fault, promise, tests in ROWS:
        named = re.findall(r"`(\w+\.py)::(\w+)`", tests)
        assert named, f"no test shows: {fault.strip()}: {promise.strip()}"
        for file, name in named:
            text = (ROOT / "tests" / file).read_text()
            assert re.search(rf"^def {name}\(", text, re.MULTILINE), f"{file} has no {name}."
