"""Files that orbax keeps: the last few, and none that is half written."""

from __future__ import annotations

from pathlib import Path

import pytest

from asvrg.checkpoints import orbax_files


def test_the_last_ones_stay_and_later_ones_go(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert orbax_files.steps(folder) == []
    for step in (0, 5, 7):
        orbax_files.save(folder, step, bytes([step]), keep=2)
    assert orbax_files.steps(folder) == [5, 7]
    assert orbax_files.load(folder, 5) == bytes([5])
    # A run that went back to an earlier state comes by another way.
    orbax_files.save(folder, 6, b"again", keep=2)
    assert orbax_files.steps(folder) == [5, 6]
    assert orbax_files.load(folder, 6) == b"again"


def test_what_a_killed_process_left_half_written_is_no_file(tmp_path: Path) -> None:
    orbax_files.save(tmp_path, 1, b"one", keep=2)
    half = tmp_path / "2.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "default").touch()
    assert orbax_files.steps(tmp_path) == [1]
    orbax_files.save(tmp_path, 2, b"two", keep=2)
    assert not half.exists()
    assert orbax_files.load(tmp_path, 2) == b"two"


@pytest.mark.parametrize("content", [b"", b"\x00" * 7])
def test_damage_to_what_orbax_notes_beside_does_no_harm(tmp_path: Path, content: bytes) -> None:
    orbax_files.save(tmp_path, 1, b"one", keep=2)
    notes = [path for path in (tmp_path / "1").rglob("*") if path.is_file()]
    notes = [path for path in notes if path.name != orbax_files.FILE]
    assert notes
    for path in notes:
        path.write_bytes(content)
    assert orbax_files.load(tmp_path, 1) == b"one"
