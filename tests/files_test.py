"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os

import pytest

from experiments import files


def test_a_file_is_written_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    files.write_whole(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_whole(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_signal_after_the_renaming_stays_that_signal(tmp_path, monkeypatch):
    replace = os.replace

    def interrupted(*paths):
        replace(*paths)
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_whole(tmp_path / "file", lambda file: file.write(b"new"))
    assert (tmp_path / "file").read_bytes() == b"new"


def test_parts_that_a_killed_process_left_are_removed(tmp_path):
    (tmp_path / "trace").mkdir()
    parts = [tmp_path / f".a{files.PART}", tmp_path / "trace" / f".b.npz-x{files.PART}"]
    for path in (*parts, tmp_path / "kept.csv"):
        path.touch()
    files.remove_parts(tmp_path)
    assert not [path for path in parts if path.exists()]
    assert (tmp_path / "kept.csv").exists()
