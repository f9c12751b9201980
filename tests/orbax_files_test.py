"""Files that orbax keeps: the last few, and none that is half written."""

from __future__ import annotations

from pathlib import Path

import pytest

from asvrg.checkpoints import orbax_files


def test_the_last_ones_stay(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert orbax_files.steps(folder) == []
    for number in range(4):
        orbax_files.save(folder, bytes([number]), keep=2)
    assert orbax_files.steps(folder) == [2, 3]
    assert [orbax_files.load(folder, step) for step in (2, 3)] == [b"\x02", b"\x03"]


def test_nothing_goes_before_the_new_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        orbax_files.save(tmp_path, bytes([number]), keep=2)

    def full(self, directory: Path, args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(orbax_files._Handler, "save", full)
    with pytest.raises(OSError, match="No space left"):
        orbax_files.save(tmp_path, b"2", keep=2)
    assert orbax_files.steps(tmp_path) == [0, 1]


def test_what_a_killed_process_left_half_written_is_no_file(tmp_path: Path) -> None:
    orbax_files.save(tmp_path, b"one", keep=2)
    half = tmp_path / "1.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "default").touch()
    assert orbax_files.steps(tmp_path) == [0]
    orbax_files.save(tmp_path, b"two", keep=2)
    assert not half.exists()
    assert orbax_files.load(tmp_path, 1) == b"two"


@pytest.mark.parametrize("content", [b"", b"\x00" * 7])
def test_damage_to_what_orbax_notes_beside_does_no_harm(tmp_path: Path, content: bytes) -> None:
    orbax_files.save(tmp_path, b"one", keep=2)
    notes = [path for path in (tmp_path / "0").rglob("*") if path.is_file()]
    notes = [path for path in notes if path.name != orbax_files.FILE]
    assert notes
    for path in notes:
        path.write_bytes(content)
    assert orbax_files.load(tmp_path, 0) == b"one"
