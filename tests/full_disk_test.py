"""A disk that is full in the midst of a run: a sentence, nothing damaged, and the run goes on."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.files import Lines
from tests import full_disk

ROOT = Path(__file__).parent.parent
ALONE = ["unshare", "--mount", "--map-root-user"]


@functools.cache
def can_mount() -> bool:
    try:
        tried = subprocess.run([*ALONE, "mount", "-t", "tmpfs", "none", "/mnt"], timeout=20)
    except OSError:
        return False
    return tried.returncode == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", full_disk.FLAGS)
def test_a_full_disk_ends_the_run_with_a_sentence_and_damages_nothing(
    kind: str, tmp_path: Path
) -> None:
    if not can_mount():
        pytest.skip("a small disk needs 'unshare --mount' and the right to mount a tmpfs in it")
    done = subprocess.run(
        [*ALONE, sys.executable, "-W", "ignore", "-m", "tests.full_disk", str(tmp_path), kind],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["code"] == 1
    assert "no space left on device; make room, then the same command goes on." in found["printed"]
    assert "Traceback" not in found["printed"]
    assert found["epochs"] == list(range(len(found["epochs"])))
    assert found["whole lines"]
    assert found["kept"] >= {"metrics": 0, "trace": 0, "checkpoint": 1}[kind]
    assert found["again"] == found["whole"] == 0
    assert found["equal"]
    assert not [name for name in found["left"] if name.endswith(".part")]


def test_a_line_is_added_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    """The first write of a full disk may take a part."""
    path = tmp_path / "lines.csv"
    lines = Lines(path, "a,b\n")
    lines.add("1,2\n")

    class Full:
        """A file that takes three bytes."""

        def __init__(self, file) -> None:
            self.file, self.room = file, 3

        def write(self, raw: bytes) -> int:
            if not self.room:
                raise OSError(28, "No space left on device")
            self.room -= (count := self.file.write(raw[: self.room]))
            return count

        def __getattr__(self, name: str):
            return getattr(self.file, name)

    lines._file = Full(lines._file)
    with pytest.raises(OSError, match="No space left on device") as error:
        lines.add("3,4\n")
    assert error.value.filename == str(path)
    assert path.read_text() == "a,b\n1,2\n"
    lines.close()
    # Opened again it holds what it is told to, and no other bytes.
    with open(path, "a") as file:
        file.write("7,")
    Lines(path, "a,b\n1,2\n").close()
    assert path.read_text() == "a,b\n1,2\n"
